//! Devices that are not there, and memory that is not there: sentences and exit codes, never a panic.

use std::process::Command;

use interlingua_tests::binary::{Ran, Scratch, path};
use interlingua_tests::tiny;

/// Whether the binary under test can use LibTorch.
const LIBTORCH: bool = cfg!(feature = "tch");

#[test]
fn a_device_that_cannot_be_used_is_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    for device in ["cuda", "cuda:7", "tch:cuda:9"] {
        let set = format!("model.device={device}");
        scratch.run(["train", "recipe.toml", "--set", &set]).refuses(
            2,
            &[
                &format!("the device \"{device}\" cannot be used: "),
                "interlingua doctor",
            ],
        );
    }
    if !LIBTORCH {
        scratch
            .run(["train", "recipe.toml", "--set", "model.device=tch"])
            .refuses(2, &["built without LibTorch", "--features tch"]);
    }
    scratch
        .run(["train", "recipe.toml", "--set", "model.device=cuda:-1"])
        .refuses(2, &["model.device", "cuda:N"]);
    assert!(!scratch.path("run").exists());
}

#[test]
fn doctor_names_every_device() {
    let scratch = Scratch::new();
    let report = scratch.run(["doctor", "--json"]).succeeds().json();
    let areas: Vec<&str> = report["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|check| check["area"].as_str())
        .collect();
    for area in ["cpu", "cuda", "tch", "folders"] {
        assert!(areas.contains(&area), "{area}: {report}");
    }
    assert_eq!(
        report["devices"]
            .as_array()
            .is_some_and(|devices| devices.contains(&"tch".into())),
        LIBTORCH
    );
}

/// More than the process may have is asked for at once, so the system refuses whatever the machine has.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_the_system_refuses_is_a_message_about_the_weights() {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    let config = scratch.read("base/config.json");
    let wide = config.replace("\"vocab_size\":320", "\"vocab_size\":268435456");
    assert_ne!(config, wide);
    scratch.write("base/config.json", wide);
    // 32 GiB of embedding, 16 GiB of address space.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -v 16777216; exec \"$0\" train recipe.toml"])
        .arg(path())
        .current_dir(scratch.path(""))
        .env("RAYON_NUM_THREADS", "2")
        .env("INTERLINGUA_CACHE", scratch.path(".cache"))
        .env("NO_COLOR", "1")
        .env_remove("RUST_BACKTRACE");
    let ran: Ran = command.output().expect("a shell").into();
    ran.refuses(
        1,
        &[
            "error: Out of memory while working on the weights of the model: 32.0 GiB more were asked for",
            "the system gives no more",
        ],
    );
    assert!(!scratch.path("run").exists());
}

#[test]
fn doctor_compares_kernels_with_their_references() {
    let scratch = Scratch::new();
    let report = scratch
        .run(["doctor", "--kernels", "--device", "cpu", "--json"])
        .succeeds()
        .json();
    let checks = report["checks"].as_array().map_or(&[][..], Vec::as_slice);
    for kernel in ["attention", "rms_norm", "gated"] {
        assert!(
            checks.iter().any(|check| check["kernel"] == kernel),
            "{kernel}: {report}"
        );
    }
    assert!(checks.iter().all(|check| check["passed"] == true), "{report}");
    scratch
        .run(["doctor", "--kernels", "--device", "cuda:5"])
        .refuses(2, &["the device \"cuda:5\" cannot be used"]);
    scratch.run(["doctor", "--device", "cpu"]).refuses(2, &["--kernels"]);
}

#[test]
fn doctor_checks_collectives_on_one_rank() {
    let scratch = Scratch::new();
    let arguments = ["doctor", "--collectives", "--device", "cpu"];
    let report = scratch.run([&arguments[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(
        (&report["world_size"], &report["passed"]),
        (&1.into(), &true.into()),
        "{report}"
    );
    let checks = report["checks"].as_array().map_or(&[][..], Vec::as_slice);
    for operation in ["all_reduce", "reduce_scatter", "all_gather", "broadcast"] {
        assert!(
            checks.iter().any(|check| check["operation"] == operation),
            "{operation}: {report}"
        );
    }
    let text = scratch.run(arguments).succeeds().stdout.clone();
    let last = format!("{0} of {0} checks passed on cpu, rank 0 of 1", checks.len());
    assert_eq!(text.lines().last(), Some(last.as_str()));
    scratch
        .run(["doctor", "--collectives", "--kernels"])
        .refuses(2, &["--collectives", "--kernels"]);
}
