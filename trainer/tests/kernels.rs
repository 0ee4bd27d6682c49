//! The kernels in CubeCL against their references, on CubeCL's CPU runtime. Needs the feature `cubecl-cpu`, and with it
//! LLVM to build (`scripts/llvm.sh` where the build cannot download it).

use burn::tensor::Device;
use interlingua_trainer::ops::check::kernel_checks;

#[test]
fn every_kernel_equals_its_reference() {
    let checks = kernel_checks(&Device::cpu());
    let mut failed = 0;
    for check in &checks {
        let mark = if check.passed() { "" } else { "  <-- FAILED" };
        println!(
            "{:14} {:60} {:10.2e} of {:.0e}{mark}",
            check.name, check.case, check.max_difference, check.allowed
        );
        failed += usize::from(!check.passed());
    }
    assert_eq!(failed, 0, "of {} checks", checks.len());
    let names: std::collections::BTreeSet<_> = checks.iter().map(|check| check.name).collect();
    let expected = [
        "adamw",
        "attention",
        "cross_entropy",
        "dequantize",
        "dropout",
        "rms_norm",
        "rotary",
        "swiglu",
    ];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
}
