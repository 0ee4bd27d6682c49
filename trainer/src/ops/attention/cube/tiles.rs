//! Products of tiles. A cube has `down` times `across` units; each keeps a block of four rows and four columns of the
//! scores in registers, and four rows of its share of the columns of an output. What the units share passes through
//! shared memory in steps of some features, so that the tiles of a head of any size fit.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::ops::cube::most_units;

/// Rows and columns of the scores that one unit keeps.
pub(super) const BLOCK: usize = 4;
/// Features that pass through shared memory at once for a product of rows.
const STEP: usize = 32;
/// Between rows in shared memory: one more than a step, so that neighbouring rows lie in different banks.
const PITCH: usize = STEP + 1;

/// How the tiles of one kernel are cut; a constant of its compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ops::attention) struct Tiles {
    /// Units below each other, which share columns.
    pub(super) down: usize,
    /// Units beside each other, which share rows.
    pub(super) across: usize,
    /// Features of a head.
    pub(super) features: usize,
    /// Whether loops over registers are unrolled: on a GPU, where an index that is not a constant would move them to
    /// memory. A CPU's cubes are small, and code for whole heads would take long to compile.
    pub(super) unrolled: bool,
}

impl Tiles {
    /// The largest tiles whose units and shared memory the device has, up to 64 x 64.
    pub(super) fn new(client: &Client, features: usize) -> Self {
        let hardware = &client.properties().hardware;
        let mut units = most_units(client);
        loop {
            let across = 1 << (units.ilog2() / 2);
            let down = (units / across).min(hardware.max_cube_dim.1 as usize);
            let tiles = Self {
                down,
                across,
                features,
                unrolled: across >= 8,
            };
            if tiles.shared_bytes() <= hardware.max_shared_memory_size || units == 1 {
                return tiles;
            }
            units /= 2;
        }
    }

    /// Rows of a tile.
    pub(super) fn rows(self) -> usize {
        self.down * BLOCK
    }

    /// Columns of a tile.
    pub(super) fn columns(self) -> usize {
        self.across * BLOCK
    }

    /// Units of a cube.
    pub(super) fn units(self) -> usize {
        self.down * self.across
    }

    /// Cubes as the kernels expect them.
    pub(super) fn dim(self) -> CubeDim {
        CubeDim::new_2d(self.across as u32, self.down as u32)
    }

    /// Between rows of weights in shared memory.
    pub(super) fn pitch(self) -> usize {
        self.columns() + 1
    }

    /// Features of an output that pass through shared memory at once.
    pub(super) fn width(self) -> usize {
        self.columns().max(16)
    }

    /// Of those, the ones that belong to one unit.
    pub(super) fn share(self) -> usize {
        self.width() / self.across
    }

    /// Passes for all features of an output.
    pub(super) fn passes(self) -> usize {
        self.features.div_ceil(self.width())
    }

    /// Elements of an output that a unit keeps.
    pub(super) fn kept(self) -> usize {
        self.passes() * BLOCK * self.share()
    }

    /// Elements of the memory that inputs pass through.
    pub(super) fn stage(self) -> usize {
        ((self.rows() + self.columns()) * PITCH).max(self.columns() * self.width())
    }

    fn shared_bytes(self) -> usize {
        (self.stage() + self.rows() * (self.pitch() + 3)) * size_of::<f32>()
    }
}

/// Some rows of one head in a matrix of all heads.
#[derive(CubeType)]
pub(super) struct Rows {
    /// The first row.
    pub first: usize,
    /// How many there are; rows of a tile beyond them count as zero.
    pub present: usize,
    /// Elements between a row and the next.
    pub stride: usize,
    /// Elements before the head in a row.
    pub offset: usize,
}

/// Copies features of rows into shared memory, neighbouring units neighbouring features.
#[cube]
fn stage<F: Float>(
    source: &[F],
    rows: &Rows,
    feature: usize,
    memory: &mut Shared<[f32]>,
    start: usize,
    #[comptime] count: usize,
    #[comptime] width: usize,
    #[comptime] pitch: usize,
    #[comptime] tiles: Tiles,
) {
    let mut index = UNIT_POS as usize;
    while index < comptime!(count * width) {
        let row = index / width;
        let column = index % width;
        let mut value = 0.0f32;
        if row < rows.present && feature + column < comptime!(tiles.features) {
            let position = (rows.first + row) * rows.stride + rows.offset + feature + column;
            value = f32::cast_from(source[position]);
        }
        memory[start + row * pitch + column] = value;
        index += comptime!(tiles.units());
    }
}

/// `scores = left rightᵀ` over the features: row `4 y + i` and column `x + across j` of the tile in element `4 i + j`.
#[cube]
pub(super) fn multiply_rows<F: Float>(
    left: &[F],
    left_rows: &Rows,
    right: &[F],
    right_rows: &Rows,
    scores: &mut Array<f32>,
    memory: &mut Shared<[f32]>,
    #[comptime] tiles: Tiles,
) {
    let first_left = UNIT_POS_Y as usize * comptime!(BLOCK * PITCH);
    let first_right = comptime!(tiles.rows() * PITCH) + UNIT_POS_X as usize * PITCH;
    #[unroll]
    for index in 0..comptime!(BLOCK * BLOCK) {
        scores[index] = 0.0f32;
    }
    let mut feature = 0usize;
    while feature < comptime!(tiles.features) {
        sync_cube();
        stage::<F>(
            left,
            left_rows,
            feature,
            memory,
            0usize,
            comptime!(tiles.rows()),
            STEP,
            PITCH,
            tiles,
        );
        stage::<F>(
            right,
            right_rows,
            feature,
            memory,
            comptime!(tiles.rows() * PITCH).runtime(),
            comptime!(tiles.columns()),
            STEP,
            PITCH,
            tiles,
        );
        sync_cube();
        for step in 0..STEP {
            let mut lefts = Array::<f32>::new(BLOCK);
            #[unroll]
            for row in 0..BLOCK {
                lefts[row] = memory[first_left + comptime!(row * PITCH) + step];
            }
            #[unroll]
            for column in 0..BLOCK {
                let right = memory[first_right + comptime!(column * tiles.across * PITCH) + step];
                #[unroll]
                for row in 0..BLOCK {
                    scores[comptime!(row * BLOCK + column)] += lefts[row] * right;
                }
            }
        }
        feature += STEP;
    }
}

/// `output += weights source` over the columns of the weights: row `4 y + i` and feature `width p + x + across c` of
/// the output in element `(4 p + i) share + c`.
#[cube]
pub(super) fn accumulate<F: Float>(
    weights: &Shared<[f32]>,
    source: &[F],
    source_rows: &Rows,
    output: &mut Array<f32>,
    memory: &mut Shared<[f32]>,
    #[comptime] tiles: Tiles,
) {
    let first_weight = UNIT_POS_Y as usize * comptime!(BLOCK * tiles.pitch());
    let x = UNIT_POS_X as usize;
    #[unroll(tiles.unrolled)]
    for pass in 0..comptime!(tiles.passes()) {
        sync_cube();
        stage::<F>(
            source,
            source_rows,
            pass * comptime!(tiles.width()),
            memory,
            0usize,
            comptime!(tiles.columns()),
            comptime!(tiles.width()),
            comptime!(tiles.width()),
            tiles,
        );
        sync_cube();
        for column in 0..comptime!(tiles.columns()) {
            let mut factors = Array::<f32>::new(BLOCK);
            #[unroll]
            for row in 0..BLOCK {
                factors[row] = weights[first_weight + comptime!(row * tiles.pitch()) + column];
            }
            #[unroll(tiles.unrolled)]
            for part in 0..comptime!(tiles.share()) {
                let value = memory[column * comptime!(tiles.width()) + x + part * comptime!(tiles.across)];
                #[unroll]
                for row in 0..BLOCK {
                    output[(pass * BLOCK + row) * comptime!(tiles.share()) + part] += factors[row] * value;
                }
            }
        }
    }
}

/// Multiplies the rows of an output with a factor each.
#[cube]
pub(super) fn scale_rows(output: &mut Array<f32>, factors: &Shared<[f32]>, #[comptime] tiles: Tiles) {
    let first = UNIT_POS_Y as usize * BLOCK;
    #[unroll]
    for row in 0..BLOCK {
        let factor = factors[first + row];
        #[unroll(tiles.unrolled)]
        for pass in 0..comptime!(tiles.passes()) {
            #[unroll(tiles.unrolled)]
            for part in 0..comptime!(tiles.share()) {
                output[(pass * BLOCK + row) * comptime!(tiles.share()) + part] *= factor;
            }
        }
    }
}

/// Writes the rows of an output that there are.
#[cube]
pub(super) fn write_rows<F: Float>(output: &Array<f32>, rows: &Rows, target: &mut [F], #[comptime] tiles: Tiles) {
    let first = UNIT_POS_Y as usize * BLOCK;
    let x = UNIT_POS_X as usize;
    #[unroll]
    for row in 0..BLOCK {
        if first + row < rows.present {
            let start = (rows.first + first + row) * rows.stride + rows.offset;
            #[unroll(tiles.unrolled)]
            for pass in 0..comptime!(tiles.passes()) {
                #[unroll(tiles.unrolled)]
                for part in 0..comptime!(tiles.share()) {
                    let feature = pass * comptime!(tiles.width()) + x + part * comptime!(tiles.across);
                    if feature < comptime!(tiles.features) {
                        let value = output[(pass * BLOCK + row) * comptime!(tiles.share()) + part];
                        target[start + feature] = F::cast_from(value);
                    }
                }
            }
        }
    }
}

/// What happens to scores between factor and softmax; a constant of a kernel's compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ops::attention) enum Bend {
    /// Nothing.
    None,
    /// A bound: its `extent` is the cap.
    Bound,
    /// A slope: its `extent` is that of the head.
    Slope,
}

/// A score after its factor, and bound or slope; position is the key row of the query.
#[cube]
pub(super) fn bent(product: f32, scale: f32, extent: f32, position: usize, key: usize, #[comptime] bend: Bend) -> f32 {
    if comptime!(bend == Bend::Bound) {
        extent * (product * scale / extent).tanh()
    } else if comptime!(bend == Bend::Slope) {
        product * scale + extent * (f32::cast_from(key) - f32::cast_from(position))
    } else {
        product * scale
    }
}

/// The extent of a head's bend: one for all heads, or one for each.
#[cube]
pub(super) fn extent_of(extents: &[f32], head: usize, #[comptime] bend: Bend) -> f32 {
    if comptime!(bend == Bend::Slope) {
        extents[head]
    } else {
        extents[0usize]
    }
}

/// Whether the query at key row `position` sees a key.
#[cube]
pub(super) fn sees(position: usize, key: usize, window: usize) -> bool {
    key <= position && key + window > position
}
