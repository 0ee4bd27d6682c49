//! Several processes on one host, through the real mpirun: the same numbers as one process, and an end with a reason whatever happens.
//! It runs where the binary is built with MPI: `--features interlingua-launch/mpi,interlingua-tests/mpi`.

#![cfg(feature = "mpi")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use interlingua_tests::adapter_run::write;
use interlingua_tests::binary::{Ran, Scratch, path};
use interlingua_tests::hosts::Hosts;
use interlingua_tests::numbers::{assert_close, column};
use interlingua_tests::ranks::Running;

/// Eight rows in each optimizer step, whatever the number of processes.
const ONE: [&str; 2] = ["train.batch_size=4", "train.gradient_accumulation=2"];
const TWO: [&str; 2] = ["train.batch_size=4", "train.gradient_accumulation=1"];
const FOUR: [&str; 2] = ["train.batch_size=2", "train.gradient_accumulation=1"];

/// A run that goes on for a while, with a checkpoint after every other step.
const LONG: [&str; 1] = ["train.steps=60"];

/// The time in which all ranks must be gone after one is lost.
const GONE: Duration = Duration::from_secs(30);

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    write(&scratch);
    scratch
}

fn with_settings<'a>(command: &[&'a str], settings: &[&[&'a str]]) -> Vec<&'a str> {
    let settings = settings.iter().flat_map(|settings| settings.iter());
    let mut arguments = command.to_vec();
    arguments.extend(settings.flat_map(|setting| ["--set", setting]));
    arguments
}

fn launch<'a>(ranks: &'a str, settings: &[&[&'a str]]) -> Vec<&'a str> {
    with_settings(&["launch", "--nproc", ranks, "recipe.toml"], settings)
}

fn adapter(scratch: &Scratch) -> PathBuf {
    scratch.path("run/adapter/adapter_model.safetensors")
}

/// mpirun in a scratch folder, with what it takes in a container.
fn mpirun(scratch: &Scratch, arguments: &[&str]) -> Command {
    let ours = scratch.command([""; 0]);
    let mut command = Command::new("mpirun");
    command
        .args(arguments)
        .current_dir(scratch.path(""))
        .stdin(Stdio::null())
        .envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none");
    command
}

fn binary() -> &'static str {
    path().to_str().expect("the path of the binary is text")
}

/// The same run without any disturbance, on two processes.
fn undisturbed() -> &'static Scratch {
    static RUN: OnceLock<Scratch> = OnceLock::new();
    RUN.get_or_init(|| {
        let scratch = scratch();
        scratch.run(launch("2", &[&TWO, &LONG])).succeeds();
        scratch
    })
}

/// Both have the same adapter, byte by byte, and the same losses, one a step.
fn assert_as_undisturbed(scratch: &Scratch) {
    let (run, whole) = (scratch.path("run"), undisturbed().path("run"));
    assert_eq!(column(&run, "step"), column(&whole, "step"));
    assert_eq!(column(&run, "loss"), column(&whole, "loss"));
    let [found, expected] = [scratch, undisturbed()].map(|scratch| fs::read(adapter(scratch)).expect("an adapter"));
    assert!(found == expected, "the adapters differ");
}

/// Starts the long run on two processes, and waits until it is under way.
fn under_way(scratch: &Scratch, more: &[&str], step: usize) -> Running {
    let mut arguments = launch("2", &[&TWO, &LONG]);
    arguments.extend(more);
    let mut running = Running::start(scratch, scratch.command(arguments));
    running.wait_for_step(&scratch.path("run"), step);
    running
}

fn goes_on_as_undisturbed(scratch: &Scratch) {
    let ran = scratch.run(launch("2", &[&TWO, &LONG]));
    ran.succeeds();
    assert_as_undisturbed(scratch);
}

fn assert_same_losses(found: &Path, expected: &Path) {
    let (found, expected) = (column(found, "loss"), column(expected, "loss"));
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let off = (found - expected).abs() / expected.abs();
        assert!(off <= 1e-5, "step {}: {found} and {expected}", step + 1);
    }
}

#[test]
fn two_and_four_processes_compute_what_one_computes() {
    let one = scratch();
    let steps = ["train.steps=20"];
    one.run(with_settings(&["train", "recipe.toml"], &[&ONE, &steps]))
        .succeeds();
    for (ranks, settings, strategy) in [
        ("2", TWO, "distributed.strategy=ddp"),
        ("2", TWO, "distributed.strategy=zero1"),
        ("2", TWO, "distributed.strategy=zero3"),
        ("4", FOUR, "distributed.strategy=ddp"),
    ] {
        let several = scratch();
        let ran = several.run(launch(ranks, &[&settings, &steps, &[strategy]]));
        ran.succeeds();
        assert_same_losses(&several.path("run"), &one.path("run"));
        assert_close(&adapter(&several), &adapter(&one), 1e-3);
        let said = &ran.stderr;
        assert!(
            said.contains(&format!("[rank 0] {ranks} ranks, known from Open MPI's variables")),
            "{said}"
        );
        assert!(
            said.contains(&format!("[rank 0] fabric: {ranks} ranks, all-reduce of 16.00 MiB: ")),
            "{said}"
        );
        assert!(!said.contains("[rank 1]") && !said.contains("-----"), "{said}");
        assert!(ran.stdout.contains("adapter"), "{}", ran.stdout);
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let (one, changing) = (scratch(), scratch());
    one.run(with_settings(&["train", "recipe.toml"], &[&ONE, &["train.steps=12"]]))
        .succeeds();
    changing.run(launch("2", &[&TWO, &["train.steps=4"]])).succeeds();
    changing.run(launch("4", &[&FOUR, &["train.steps=8"]])).succeeds();
    changing
        .run(with_settings(&["train", "recipe.toml"], &[&ONE, &["train.steps=12"]]))
        .succeeds();
    assert_same_losses(&changing.path("run"), &one.path("run"));
    assert_close(&adapter(&changing), &adapter(&one), 1e-3);
}

#[test]
fn a_killed_rank_is_named_and_the_run_goes_on_to_the_same_bytes() {
    let scratch = scratch();
    for (rank, step) in [(1, 7), (0, 20), (1, 33)] {
        let mut running = under_way(&scratch, &[], step);
        running.signal_rank(rank, "-KILL");
        let ran = running.end();
        ran.refuses(1, &[&format!("Rank {rank} on ")]);
        running.wait_until_all_are_gone(GONE);
    }
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn a_rank_may_be_killed_while_a_checkpoint_is_written() {
    let scratch = scratch();
    let run = scratch.path("run");
    for rank in [0, 1] {
        let mut running = under_way(&scratch, &[], 1);
        let names = |run: &Path| -> Vec<String> {
            let entries = fs::read_dir(run).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        };
        let known = names(&run);
        // Anything new in the folder is a checkpoint that has been begun.
        running.wait_for("a checkpoint", || names(&run).iter().any(|name| !known.contains(name)));
        running.signal_rank(rank, "-KILL");
        running.end().refuses(1, &[&format!("Rank {rank} on ")]);
        running.wait_until_all_are_gone(GONE);
    }
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn ranks_end_when_their_launcher_is_killed() {
    let scratch = scratch();
    let mut running = under_way(&scratch, &[], 5);
    running.signal("-KILL");
    assert_eq!(running.end().code, -1);
    running.wait_until_all_are_gone(GONE);
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn a_rank_that_stops_responding_is_lost() {
    let scratch = scratch();
    let mut running = under_way(&scratch, &[], 5);
    running.signal_rank(1, "-STOP");
    let ran = running.end();
    ran.refuses(1, &["Rank 1 on ", "20 s"]);
    assert!(!ran.stderr.contains("Rank 0 on "), "{ran:#?}");
    running.wait_until_all_are_gone(GONE);
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn two_hosts_meet_and_part() {
    let scratch = scratch();
    let Some(hosts) = Hosts::new(&scratch) else {
        eprintln!("passed over: hosts of a test take root, ip and unshare");
        return;
    };
    let command = |settings: &[&[&str]]| {
        let arguments = with_settings(&["-n", "2", binary(), "train", "recipe.toml"], settings);
        hosts.spread(&mpirun(&scratch, &arguments))
    };
    let ran = Ran::from(command(&[&TWO, &LONG]).output().expect("ip starts"));
    ran.refuses(0, &["0     gpu00  cpu", "1     gpu01  cpu"]);
    assert_same_losses(&scratch.path("run"), &undisturbed().path("run"));
    assert_close(&adapter(&scratch), &adapter(undisturbed()), 1e-3);

    let endless = command(&[
        &TWO,
        &["train.steps=100000", "train.checkpoint_every=100000", "output=cut"],
    ]);
    let mut running = Running::start(&scratch, endless);
    running.wait_for_step(&scratch.path("cut"), 5);
    hosts.cut();
    running.wait_until_all_are_gone(GONE);
    // mpirun and its other half wait for each other.
    hosts.end_all();
    let ran = running.end();
    assert!(ran.stderr.contains("error: Rank 1 on gpu01 is lost"), "{ran:#?}");
}

#[test]
fn a_disk_that_is_full_on_one_rank_ends_all() {
    let scratch = scratch();
    let train = with_settings(&[binary(), "train", "recipe.toml"], &[&TWO, &LONG]);
    // Files of a limited size fail as those of a full disk do: 10 KiB, and a checkpoint has more.
    let full = format!("trap '' XFSZ; ulimit -f 20; exec {}", train.join(" "));
    let arguments = [&["-n", "1", "sh", "-c", &full, ":", "-n", "1"][..], &train].concat();
    let ran = Ran::from(mpirun(&scratch, &arguments).output().expect("mpirun starts"));
    ran.refuses(1, &["checkpoint-2", "File too large"]);
    assert!(!scratch.path("run/checkpoint-2").exists());
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn a_signal_to_the_launcher_stops_all_ranks_with_everything_saved() {
    let scratch = scratch();
    for (signal, step) in [("-TERM", 5), ("-INT", 15), ("-USR1", 25)] {
        let mut running = under_way(&scratch, &[], step);
        running.signal(signal);
        let ran = running.end();
        ran.refuses(75, &["passed on"]);
        assert!(!ran.stderr.contains("error"), "{ran:#?}");
        let done = column(&scratch.path("run"), "step").len();
        assert!(
            scratch.path(&format!("run/checkpoint-{done}")).exists(),
            "{done} steps, not saved"
        );
    }
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn a_second_signal_ends_all_ranks_at_once() {
    let scratch = scratch();
    let mut running = under_way(&scratch, &[], 3);
    running.signal("-INT");
    std::thread::sleep(Duration::from_millis(80));
    running.signal("-INT");
    let ran = running.end();
    // On a fast machine the run may have been saved in the meantime.
    assert!([75, 130].contains(&ran.code), "{ran:#?}");
    running.wait_until_all_are_gone(GONE);
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn the_launcher_starts_a_run_again_whose_rank_died() {
    let scratch = scratch();
    let mut running = under_way(&scratch, &["--max-restarts", "1", "--fresh"], 9);
    running.signal_rank(1, "-KILL");
    let ran = running.end();
    ran.refuses(0, &["Rank 1 on ", "starting again", "step 8"]);
    assert_as_undisturbed(&scratch);
}

#[test]
fn a_run_is_not_started_again_for_ever() {
    let scratch = scratch();
    let mut running = under_way(&scratch, &["--max-restarts", "1"], 3);
    running.signal_rank(1, "-KILL");
    running.wait_for_step(&scratch.path("run"), 20);
    running.signal_rank(0, "-KILL");
    running.end().refuses(1, &["Rank 1 on ", "starting again"]);
    goes_on_as_undisturbed(&scratch);
}

#[test]
fn another_recipe_or_secret_on_a_rank_is_refused() {
    let scratch = scratch();
    let recipe = scratch.read("recipe.toml");
    scratch.write("other.toml", recipe.replace("rank = 4", "rank = 8"));
    let both = |first: &[&str], second: &[&str]| -> Ran {
        let one = ["-n", "1"];
        let arguments = [&one[..], first, &[":"], &one, second].concat();
        mpirun(&scratch, &arguments).output().expect("mpirun starts").into()
    };
    let [train, other] = ["recipe.toml", "other.toml"].map(|recipe| [binary(), "train", recipe]);
    both(&train, &other).refuses(2, &["rank 1", "rank = 8"]);
    let [one, two] = ["INTERLINGUA_SECRET=one", "INTERLINGUA_SECRET=two"].map(|secret| ["-x", secret]);
    both(&[&one[..], &train].concat(), &[&two[..], &train].concat()).refuses(2, &["secret"]);
    assert!(!scratch.path("run").exists());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let scratch = scratch();
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut command = mpirun(&scratch, &["-n", "2", binary(), "train", "recipe.toml"]);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
    Ran::from(command.output().expect("mpirun starts")).refuses(2, &[&port]);
}

#[test]
fn a_host_may_come_late() {
    let scratch = scratch();
    let late = format!("sleep 4; exec {} train recipe.toml", binary());
    let arguments = [
        "-n",
        "1",
        binary(),
        "train",
        "recipe.toml",
        ":",
        "-n",
        "1",
        "sh",
        "-c",
        &late,
    ];
    Ran::from(mpirun(&scratch, &arguments).output().expect("mpirun starts")).succeeds();
}

#[test]
fn what_is_wrong_for_all_ranks_is_said_once() {
    let scratch = scratch();
    let ran = scratch.run(launch("2", &[&["train.stepps=1"]]));
    ran.refuses(2, &["train.stepps", "`steps`"]);
    let arguments = ["-n", "2", binary(), "train", "recipe.toml", "--set", "train.stepps=1"];
    let ran = Ran::from(mpirun(&scratch, &arguments).output().expect("mpirun starts"));
    ran.refuses(2, &["[rank 0] error: ", "train.stepps"]);
    assert!(!ran.stderr.contains("[rank 1]"), "{ran:#?}");
    // The trainer finds this one, on all ranks, when they have met.
    let ran = scratch.run(launch("2", &[&["model.path=nowhere"]]));
    ran.refuses(2, &["nowhere"]);
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{ran:#?}");
    assert!(!scratch.path("run").exists());
}

#[test]
fn commands_for_one_process_refuse_several() {
    let scratch = scratch();
    let arguments = ["-n", "2", binary(), "prepare", "recipe.toml"];
    let ran = Ran::from(mpirun(&scratch, &arguments).output().expect("mpirun starts"));
    ran.refuses(2, &["`interlingua prepare` is for one process"]);
}

#[test]
fn doctor_checks_what_ranks_say_to_each_other() {
    let scratch = scratch();
    let doctor = ["doctor", "--collectives", "--device", "cpu"];
    let ran = Ran::from(
        mpirun(&scratch, &[&["-n", "3", binary()], &doctor[..]].concat())
            .output()
            .expect("mpirun starts"),
    );
    let last = ran.succeeds().stdout.lines().last();
    assert!(
        last.is_some_and(|line| line.ends_with("checks passed on cpu, rank 0 of 3")),
        "{ran:#?}"
    );
    assert!(
        !ran.stdout.contains("FAILED") && !ran.stdout.contains("rank 1 of 3"),
        "{ran:#?}"
    );
}

#[test]
fn what_is_missing_is_said_before_anything_starts() {
    let scratch = scratch();
    let mut command = scratch.command(launch("2", &[]));
    command.env("PATH", scratch.path(""));
    Ran::from(command.output().expect("the binary starts")).refuses(2, &["mpirun", "Open MPI"]);
    scratch.run(["launch", "recipe.toml"]).refuses(2, &["--nproc N"]);
    let several = ["launch", "--nproc", "2", "--nnodes", "2", "recipe.toml"];
    scratch.run(several).refuses(2, &["mpirun -n N --host", "srun"]);
    let cuda = launch("2", &[&["model.device=cuda"]]);
    scratch.run(cuda).refuses(2, &["built without CUDA"]);
    assert!(!scratch.path("run").exists());
}
