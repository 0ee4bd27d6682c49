//! Runs with several processes, and what may happen to them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::binary::{Ran, Scratch};

/// Nothing that is tested here takes longer.
const LIMIT: Duration = Duration::from_secs(90);

/// A run with several processes while it goes on.
pub struct Running {
    child: Child,
    folder: PathBuf,
    stderr: Option<JoinHandle<String>>,
    started: Instant,
}

impl Running {
    /// Starts a command of a scratch folder.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(scratch: &Scratch, mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let read = move || {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            lines.fold(String::new(), |text, line| text + &line + "\n")
        };
        Self {
            child,
            folder: fs::canonicalize(scratch.path("")).expect("a folder"),
            stderr: Some(std::thread::spawn(read)),
            started: Instant::now(),
        }
    }

    /// Waits until a file is there that says what it should.
    ///
    /// # Panics
    /// When that takes too long, or the run has ended before.
    pub fn wait_for(&mut self, what: &str, mut there: impl FnMut() -> bool) {
        while !there() {
            if self.child.try_wait().expect("a child").is_some() || self.started.elapsed() > LIMIT {
                let ran = self.end();
                panic!("the run ended, or took too long, before {what}: {ran:#?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until so many steps are done.
    ///
    /// # Panics
    /// As [`Running::wait_for`].
    pub fn wait_for_step(&mut self, run: &Path, step: usize) {
        let metrics = run.join("metrics.jsonl");
        self.wait_for(&format!("step {step}"), || {
            let rows = fs::read_to_string(&metrics).unwrap_or_default();
            rows.matches("\"kind\":\"train\"").count() >= step
        });
    }

    /// Sends a signal, such as `-KILL`, to what was started.
    pub fn signal(&self, signal: &str) {
        send(signal, self.child.id());
    }

    /// Sends a signal to a rank.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn signal_rank(&self, rank: usize, signal: &str) {
        let ranks = self.ranks();
        let found = ranks.iter().find(|(number, _)| *number == rank);
        send(signal, found.unwrap_or_else(|| panic!("no rank {rank} in {ranks:?}")).1);
    }

    /// Number and process of each rank that lives.
    pub fn ranks(&self) -> Vec<(usize, u32)> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter_map(|id| Some((self.rank_of(id)?, id))).collect()
    }

    fn rank_of(&self, id: u32) -> Option<usize> {
        let process = PathBuf::from(format!("/proc/{id}"));
        let of_this_run = fs::read_link(process.join("cwd")).ok()? == self.folder
            && fs::read_link(process.join("exe")).ok()?.ends_with("interlingua");
        let environment = fs::read(process.join("environ")).ok()?;
        let variables = environment.split(|byte| *byte == 0);
        let mut ranks = variables.filter_map(|variable| variable.strip_prefix(b"OMPI_COMM_WORLD_RANK="));
        let rank = std::str::from_utf8(ranks.next()?).ok()?.parse().ok()?;
        of_this_run.then_some(rank)
    }

    /// Waits until no rank lives any more.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_all_are_gone(&self, limit: Duration) {
        let start = Instant::now();
        while !self.ranks().is_empty() {
            assert!(start.elapsed() < limit, "ranks are left: {:?}", self.ranks());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn end(&mut self) -> Ran {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if self.started.elapsed() > LIMIT {
                let ranks = self.ranks();
                self.child.kill().expect("a child");
                panic!("the run does not end; these ranks live: {ranks:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stderr = self.stderr.take().expect("a run ends once");
        Ran {
            code: status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr: stderr.join().expect("standard error is text"),
        }
    }
}

fn send(signal: &str, id: u32) {
    let sent = Command::new("kill").args([signal, &id.to_string()]).status();
    assert!(sent.expect("kill starts").success(), "kill {signal} {id}");
}
