//! How fast several processes are: what each sends in a step, how long that takes over a network of some bandwidth, and what is
//! left of the speed of one.
//!
//! It is a model. Each process computes what one process would (weak scaling: every process has micro-batches of the recipe's
//! size), at the rate of the plan's step; operations wait for each other, as they do today; and every byte goes at the bandwidth
//! that was named. `docs/scaling.md` has the formulas.

use interlingua_recipes::Strategy;
use serde::Serialize;

use super::Planner;
use super::settings::Settings;
use super::shapes::Shapes;
use super::shares::{BlockShare, Share};
use super::weights::{F32, gathered};

/// Seconds that a round of messages takes beside its bytes: the start of an operation and the way to a neighbour. An assumption.
pub const LATENCY: f64 = 20e-6;

/// Operations of a step on a few numbers, whatever the strategy: which parameters have gradients, tokens, losses and norms, peak
/// memory, and whether to stop.
const SMALL_OPERATIONS: u64 = 6;

/// What one process sends in an optimizer step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes that it sends, and as many that it receives.
    pub bytes: u64,
    /// Operations that all processes carry out together.
    pub operations: u64,
}

/// A run of so many processes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    /// Processes.
    pub world_size: usize,
    /// `ddp`, `zero1` or `zero3`.
    pub strategy: String,
    /// Bytes of memory of one process at its highest moment.
    pub memory: u64,
    /// Bytes that one process sends in a step.
    pub sent: u64,
    /// Operations of a step.
    pub operations: u64,
    /// Seconds of a step that one process computes.
    pub compute_seconds: f64,
    /// Seconds of a step that it waits for the others' numbers.
    pub communication_seconds: f64,
    /// As it is: one behind the other.
    pub synchronous: Speed,
    /// A bound: with all communication behind the computation.
    pub overlapped: Speed,
}

/// The speed of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Seconds of an optimizer step.
    pub step_seconds: f64,
    /// Tokens a second of all processes.
    pub tokens_per_second: f64,
    /// The share of a step that is computation: speed for each process beside that of one alone.
    pub efficiency: f64,
}

/// What one process sends in a step under these settings.
///
/// With algorithms that use the whole bandwidth, a sum of n bytes over N processes sends 2 (N − 1) / N × n from each, its two halves
/// (reduce-scatter, all-gather) half of that (Patarasuk and Yuan, 2009, "Bandwidth optimal all-reduce algorithms for clusters of
/// workstations").
pub fn traffic(shapes: &Shapes, settings: &Settings) -> Traffic {
    if settings.world == 1 {
        return Traffic::default();
    }
    let Share { added_up, buckets, .. } = Share::of(shapes, settings);
    // A sum; where each process updates its piece, its one half, and the new values in the place of the other.
    let of_bucket = match settings.strategy {
        Strategy::Ddp => 1,
        Strategy::Zero1 | Strategy::Zero3 => 2,
    };
    let (mut halves, mut operations) = (2 * F32 * added_up, of_bucket * buckets + SMALL_OPERATIONS);
    let (accumulation, lowest) = (settings.accumulation as u64, shapes.lowest());
    let blocks = gathered(shapes, settings);
    for (index, (block, share)) in blocks.iter().zip(BlockShare::of(shapes, settings)).enumerate() {
        // Forward, and once more where there is a backward pass.
        let passes = if index >= lowest { 2 } else { 1 };
        halves += accumulation * (passes * block.bytes + F32 * share.added_up);
        operations += accumulation * (passes * block.operations + share.layers);
    }
    let world = settings.world as u128;
    let bytes = u128::from(halves) * (world - 1) / world;
    Traffic {
        bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        operations,
    }
}

/// The sizes of a table up to `world` processes: powers of two, and the last one itself.
pub fn worlds(world: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1usize), |size| size.checked_mul(2));
    powers.take_while(|size| *size < world).chain([world]).collect()
}

/// Rounds of messages that an operation of so many processes takes: as deep as a tree over them.
fn rounds(world: usize) -> u32 {
    world.next_power_of_two().ilog2()
}

impl Planner {
    /// What one process of a run sends in a step, under the recipe's settings.
    pub fn traffic(&self) -> Traffic {
        traffic(&self.shapes, &self.settings)
    }

    /// A run of so many processes under the recipe's settings. `bandwidth`: bytes a second that each process can send while it
    /// receives as many.
    pub fn scaling(&self, world: usize, bandwidth: f64) -> Scaling {
        let settings = Settings {
            world,
            ..self.settings.clone()
        };
        let Traffic { bytes, operations } = traffic(&self.shapes, &settings);
        let plan = self.under(&settings);
        let compute_seconds = plan.step_seconds;
        let communication_seconds = bytes as f64 / bandwidth + operations as f64 * LATENCY * f64::from(rounds(world));
        let tokens = (settings.tokens() * settings.accumulation as u64) as f64 * world as f64;
        let speed = |step_seconds: f64| Speed {
            step_seconds,
            tokens_per_second: tokens / step_seconds,
            efficiency: compute_seconds / step_seconds,
        };
        Scaling {
            world_size: world,
            strategy: settings.strategy.name().to_owned(),
            memory: plan.peak(),
            sent: bytes,
            operations,
            compute_seconds,
            communication_seconds,
            synchronous: speed(compute_seconds + communication_seconds),
            overlapped: speed(compute_seconds.max(communication_seconds)),
        }
    }
}
