//! Quantised matrices against bitsandbytes (tests/fixtures/packed.py), and what holds of any of them.

use std::path::Path;
use std::sync::Arc;

use interlingua_checkpoints::dtype::{Dtype, encode_f32};
use interlingua_checkpoints::packed::{Absmax, Bytes, Format, LEVELS, Packed, Scheme, dynamic_map};
use interlingua_checkpoints::tensors::TensorsFile;
use proptest::prelude::*;

fn fixture() -> TensorsFile {
    TensorsFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/packed.safetensors")).unwrap()
}

fn values(file: &TensorsFile, name: &str) -> Vec<f32> {
    let shape = file.shape(name).unwrap().to_vec();
    file.read_f32(name, &shape, "").unwrap().unwrap()
}

fn input(file: &TensorsFile, case: &str) -> (Vec<f32>, [usize; 2]) {
    let name = format!("{case}.input");
    let shape = file.shape(&name).unwrap().try_into().unwrap();
    (values(file, &name), shape)
}

/// The names before `.{suffix}`, sorted.
fn cases(file: &TensorsFile, suffix: &str) -> Vec<String> {
    let mut cases: Vec<String> = file
        .names()
        .filter_map(|name| Some(name.strip_suffix(suffix)?.to_owned()))
        .collect();
    cases.sort();
    assert!(cases.len() > 5, "{cases:?}");
    cases
}

fn absmax(packed: &Packed) -> &Absmax {
    match packed.format() {
        Format::Nf4 { absmax, .. } => absmax,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes() {
    let file = fixture();
    assert_eq!(values(&file, "levels"), LEVELS);
    assert_eq!(values(&file, "dynamic_map"), dynamic_map());
}

#[test]
fn nf4_is_what_bitsandbytes_makes_of_it() {
    let file = fixture();
    for case in cases(&file, ".absmax") {
        let (name, block) = case.rsplit_once('.').unwrap();
        let block = block.parse().unwrap();
        let (input, shape) = input(&file, name);
        let packed = Packed::nf4(&input, shape, block, false);
        assert_eq!(packed.codes(), file.bytes(&format!("{case}.codes")).unwrap(), "{case}");
        assert_eq!(
            *absmax(&packed),
            Absmax::Plain(values(&file, &format!("{case}.absmax"))),
            "{case}"
        );

        let double = Packed::nf4(&input, shape, block, true);
        assert_eq!(double.codes(), packed.codes(), "{case}");
        let Absmax::Nested {
            codes, absmax, offset, ..
        } = absmax(&double)
        else {
            panic!("{case}");
        };
        assert_eq!(*offset, values(&file, &format!("{case}.offset"))[0], "{case}");
        assert_eq!(*absmax, values(&file, &format!("{case}.nested_absmax")), "{case}");
        assert_eq!(codes, file.bytes(&format!("{case}.nested_codes")).unwrap(), "{case}");
    }
}

#[test]
fn int8_is_what_bitsandbytes_makes_of_it() {
    let file = fixture();
    for case in cases(&file, ".int8.scales") {
        let (input, shape) = input(&file, &case);
        let packed = Packed::int8(&input, shape);
        let scales = values(&file, &format!("{case}.int8.scales"));
        assert_eq!(
            packed.codes(),
            file.bytes(&format!("{case}.int8.codes")).unwrap(),
            "{case}"
        );
        assert_eq!(*packed.format(), Format::Int8 { scales }, "{case}");
    }
}

/// The means of blocks' magnitudes are PyTorch's to the last bit, seen through the offset of double quantisation: blocks of
/// 32 with one number each that is not zero.
#[test]
fn the_offset_is_the_mean_as_pytorch_adds() {
    let file = fixture();
    for case in cases(&file, ".values") {
        let magnitudes = values(&file, &format!("{case}.values"));
        let matrix: Vec<f32> = magnitudes
            .iter()
            .flat_map(|value| std::iter::once(*value).chain([0.0; 31]))
            .collect();
        let packed = Packed::nf4(&matrix, [magnitudes.len(), 32], 32, true);
        let Absmax::Nested { offset, .. } = absmax(&packed) else {
            panic!("{case}");
        };
        assert_eq!(*offset, values(&file, &case)[0], "{case}");
    }
}

#[test]
fn blocks_of_zeros_are_zero() {
    for double in [false, true] {
        let packed = Packed::nf4(&[0.0; 200], [4, 50], 64, double);
        let decoded = packed.decode();
        assert!(decoded.iter().all(|value| value.abs() < 1e-30), "{decoded:?}");
    }
    assert_eq!(Packed::int8(&[0.0; 6], [2, 3]).decode(), [0.0; 6]);
    assert_eq!(Packed::nf4(&[], [0, 8], 64, true).decode(), [0.0f32; 0]);
    assert_eq!(Packed::int8(&[], [3, 0]).decode(), [0.0f32; 0]);
}

#[test]
fn parts_that_do_not_fit_the_shape_are_no_matrix() {
    let codes = |length: usize| Bytes::Owned(vec![0; length].into());
    let nf4 = |blocks: usize| Format::Nf4 {
        block: 64,
        absmax: Absmax::Plain(vec![1.0; blocks]),
    };
    assert!(Packed::from_parts([3, 33], nf4(2), codes(50)).is_some());
    assert!(Packed::from_parts([3, 33], nf4(1), codes(50)).is_none());
    assert!(Packed::from_parts([3, 33], nf4(2), codes(49)).is_none());
    let int8 = Format::Int8 { scales: vec![1.0; 3] };
    assert!(Packed::from_parts([3, 33], int8.clone(), codes(99)).is_some());
    assert!(Packed::from_parts([2, 33], int8, codes(66)).is_none());
    assert!(Packed::from_parts([2, 2], Format::Float(Dtype::F16), codes(8)).is_some());
    assert!(Packed::from_parts([2, 2], Format::Float(Dtype::F32), codes(8)).is_none());
}

#[test]
fn what_it_holds_is_counted() {
    let packed = Packed::nf4(&vec![0.5; 4096 * 64], [4096, 64], 64, false);
    assert_eq!(packed.resident_bytes(), 4096 * 32 + 4096 * 4);
    let double = Packed::nf4(&vec![0.5; 4096 * 64], [4096, 64], 64, true);
    assert_eq!(double.resident_bytes(), 4096 * 32 + 4096 + 16 * 4);
    assert_eq!(Packed::int8(&[1.0; 12], [3, 4]).resident_bytes(), 12 + 12);
}

fn matrices() -> impl Strategy<Value = (Vec<f32>, [usize; 2])> {
    (1..12_usize, 1..150_usize).prop_flat_map(|(rows, columns)| {
        let number = prop_oneof![-3.0..3.0_f32, -1e-4..1e-4_f32, Just(0.0), Just(-0.25)];
        (prop::collection::vec(number, rows * columns), Just([rows, columns]))
    })
}

fn schemes() -> impl Strategy<Value = Scheme> {
    let block = prop_oneof![Just(32_usize), Just(64), Just(256), Just(4096)];
    prop_oneof![
        (block, any::<bool>()).prop_map(|(block, double)| Scheme::Nf4 { block, double }),
        Just(Scheme::Int8),
    ]
}

fn packed(values: &[f32], shape: [usize; 2], scheme: Scheme) -> Packed {
    match scheme {
        Scheme::Nf4 { block, double } => Packed::nf4(values, shape, block, double),
        Scheme::Int8 => Packed::int8(values, shape),
    }
}

proptest! {
    #[test]
    fn every_number_is_the_nearest_level_of_its_block((values, shape) in matrices(), block in prop_oneof![Just(32_usize), Just(64)]) {
        let packed = Packed::nf4(&values, shape, block, false);
        let Absmax::Plain(absmax) = absmax(&packed) else { panic!() };
        for (index, (decoded, value)) in packed.decode().iter().zip(&values).enumerate() {
            let scale = absmax[index / block];
            let numbers = &values[index / block * block..values.len().min((index / block + 1) * block)];
            prop_assert_eq!(scale.max(1e-38), numbers.iter().fold(1e-38_f32, |largest, value| largest.max(value.abs())));
            prop_assert!(LEVELS.iter().any(|level| level * scale == *decoded));
            let distance = |level: f32| (level * scale - value).abs();
            let nearest = LEVELS.iter().map(|level| distance(*level)).fold(f32::INFINITY, f32::min);
            prop_assert!((decoded - value).abs() <= nearest + scale * 1e-6);
        }
    }

    #[test]
    fn int8_is_off_by_at_most_half_a_step((values, shape) in matrices()) {
        let packed = Packed::int8(&values, shape);
        let Format::Int8 { scales } = packed.format() else { panic!() };
        for (index, (decoded, value)) in packed.decode().iter().zip(&values).enumerate() {
            let scale = scales[index / shape[1]];
            prop_assert!((decoded - value).abs() <= scale * (0.5 / 127.0 + 1e-6), "{} {}", decoded, value);
        }
    }

    #[test]
    fn any_rows_are_a_slice_of_the_whole((values, shape) in matrices(), scheme in schemes(), from in 0.0..1.0_f64, to in 0.0..1.0_f64) {
        let packed = packed(&values, shape, scheme);
        let whole = packed.decode();
        let at = |share: f64| (share * (shape[0] + 1) as f64) as usize;
        let rows = at(from.min(to))..at(from.max(to));
        let mut out = vec![f32::NAN; rows.len() * shape[1]];
        packed.decode_rows(rows.clone(), &mut out);
        prop_assert_eq!(&out, &whole[rows.start * shape[1]..rows.end * shape[1]]);
    }

    #[test]
    fn double_quantisation_moves_magnitudes_a_little((values, shape) in matrices()) {
        let plain = Packed::nf4(&values, shape, 32, false);
        let double = Packed::nf4(&values, shape, 32, true);
        let (plain, double) = (absmax(&plain).to_vec(), absmax(&double).to_vec());
        let mean = plain.iter().sum::<f32>() / plain.len() as f32;
        let spread = plain.iter().fold(0.0_f32, |spread, value| spread.max((value - mean).abs()));
        for (plain, double) in plain.iter().zip(double) {
            // Half of the widest step of the map, and what rounding the mean leaves where all are the same.
            prop_assert!((plain - double).abs() <= spread * 0.0072 + mean * 1e-6, "{} {}", plain, double);
        }
    }

    #[test]
    fn floats_stay_as_they_are((values, shape) in matrices(), dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::BF16), Just(Dtype::F16)]) {
        let bytes = encode_f32(dtype, &values);
        let packed = Packed::float(dtype, shape, Bytes::Owned(bytes.clone().into()));
        prop_assert_eq!(encode_f32(dtype, &packed.decode()), bytes);
    }
}

#[test]
fn several_threads_decode_at_once() {
    let values: Vec<f32> = (0..100 * 70).map(|index| (index as f32 * 0.37).sin()).collect();
    let packed = Arc::new(Packed::nf4(&values, [100, 70], 64, true));
    let whole = packed.decode();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let packed = Arc::clone(&packed);
            std::thread::spawn(move || {
                let mut out = vec![0.0; 25 * 70];
                packed.decode_rows(thread * 25..(thread + 1) * 25, &mut out);
                out
            })
        })
        .collect();
    let parts: Vec<f32> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(parts, whole);
}
