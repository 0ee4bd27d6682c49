//! The kernels in CubeCL against their references, on CubeCL's CPU runtime. Needs the feature `cubecl-cpu`, and with it
//! LLVM to build (`scripts/llvm.sh` where the build cannot download it).

use burn::tensor::Device;
use interlingua_trainer::ops::check::for_each_kernel_check;

#[test]
fn every_kernel_equals_its_reference() {
    let start = std::time::Instant::now();
    let (mut count, mut failed) = (0, 0);
    let mut names = std::collections::BTreeSet::new();
    for_each_kernel_check(&Device::cpu(), &mut |check| {
        let mark = if check.passed() { "" } else { "  <-- FAILED" };
        println!(
            "{:4} s  {:13} {:10.2e} of {:.0e}  {}{mark}",
            start.elapsed().as_secs(),
            check.name,
            check.max_difference,
            check.allowed,
            check.case
        );
        names.insert(check.name);
        count += 1;
        failed += usize::from(!check.passed());
    });
    assert_eq!(failed, 0, "of {count} checks");
    let expected = [
        "activation",
        "adamw",
        "attention",
        "cross_entropy",
        "dequantize",
        "dropout",
        "gated",
        "layer_norm",
        "packed_linear",
        "rms_norm",
        "rotary",
        "xielu",
    ];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
}
