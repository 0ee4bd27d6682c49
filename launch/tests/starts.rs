//! The binary starts. The tests of what it does are in the crate `interlingua-tests`; this one is here because Cargo
//! builds a binary for the integration tests of its own crate, and so for everyone's.

use std::process::Command;

#[test]
fn the_binary_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_interlingua"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("interlingua {}\n", env!("CARGO_PKG_VERSION"))
    );
}
