//! Ranks on the GPUs of this host: processes of this binary, which find each other as those of torchrun do.

use std::env;
use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::output::{Output, Writer};
use super::watch::Watched;
use super::{Start, lifeline};
use crate::distributed::SECRET;
use crate::exit::Failure;

/// The ranks of one host.
#[derive(Debug)]
pub(crate) struct Ranks {
    /// This program.
    pub(crate) program: PathBuf,
    /// How many this host has; all hosts have as many.
    pub(crate) local_size: usize,
    /// Number of this host.
    pub(crate) node_rank: usize,
    /// Number of hosts.
    pub(crate) nodes: usize,
    /// Where rank 0 is reached; None: on this host, at a free port.
    pub(crate) rendezvous: Option<(String, u16)>,
    /// What the ranks know each other by.
    pub(crate) secret: String,
}

/// Variables that say which process this is. Those of the launcher itself are not those of its ranks.
const PLACE: [&str; 14] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
];

/// Takes the launcher's own place out of what a process is told.
pub(super) fn forget_place(command: &mut Command) {
    for name in PLACE {
        command.env_remove(name);
    }
}

/// This program.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    env::current_exe().map_err(|error| Failure::running(format!("The path of this program cannot be found: {error}.")))
}

/// A port of this host that is free now.
fn free_port() -> Result<u16, Failure> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|error| Failure::running(format!("No port can be opened on this host: {error}.")))
}

impl Start for Ranks {
    fn start(&self, arguments: &[String], output: &Output) -> Result<Vec<Watched>, Failure> {
        let (host, port) = match &self.rendezvous {
            Some(given) => given.clone(),
            None => ("127.0.0.1".to_owned(), free_port()?),
        };
        let mut processes = Vec::with_capacity(self.local_size);
        for local_rank in 0..self.local_size {
            let rank = self.node_rank * self.local_size + local_rank;
            // Where a person looks on, rank 0 draws its progress itself.
            let draws = rank == 0 && io::stderr().is_terminal();
            let mut command = Command::new(&self.program);
            forget_place(&mut command);
            lifeline::hold(&mut command, true);
            command
                .args(arguments)
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", (self.nodes * self.local_size).to_string())
                .env("LOCAL_RANK", local_rank.to_string())
                .env("LOCAL_WORLD_SIZE", self.local_size.to_string())
                .env("MASTER_ADDR", &host)
                .env("MASTER_PORT", port.to_string())
                .env(SECRET, &self.secret)
                .stdin(Stdio::piped())
                .stderr(if draws { Stdio::inherit() } else { Stdio::piped() })
                .process_group(0);
            let mut child = command
                .spawn()
                .map_err(|error| Failure::running(format!("Rank {rank} does not start: {error}.")))?;
            if let Some(stderr) = child.stderr.take() {
                output.read(stderr, Writer::Rank(rank));
            }
            processes.push(Watched::new(format!("Rank {rank}"), child));
        }
        Ok(processes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use signal_hook::iterator::Signals;

    use super::*;
    use crate::exit::Exit;
    use crate::launcher::watch::until_the_end;

    /// Two ranks of the second of two hosts, which run a script of the shell.
    fn start(script: &str) -> Vec<Watched> {
        let ranks = Ranks {
            program: "sh".into(),
            local_size: 2,
            node_rank: 1,
            nodes: 2,
            rendezvous: Some(("node0".to_owned(), 4000)),
            secret: "secret".to_owned(),
        };
        ranks
            .start(&["-c".to_owned(), script.to_owned()], &Output::new(false))
            .unwrap()
    }

    fn read(folder: &Path, rank: usize) -> String {
        std::fs::read_to_string(folder.join(rank.to_string())).unwrap_or_default()
    }

    #[test]
    fn each_rank_is_told_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $INTERLINGUA_SECRET";
        let processes = start(&format!("echo {numbers} > {}/$RANK", folder.path().display()));
        let ending = until_the_end(processes, &mut Signals::new([0_i32; 0]).unwrap());
        assert_eq!(ending.exit, Exit::Done);
        assert_eq!(read(folder.path(), 2), "2 4 0 2 node0:4000 secret\n");
        assert_eq!(read(folder.path(), 3), "3 4 1 2 node0:4000 secret\n");
    }

    #[test]
    fn ranks_can_tell_that_their_launcher_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let gone = format!("read line; echo gone > {}/$RANK", folder.path().display());
        let processes = start(&gone);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(read(folder.path(), 2), "");
        drop(processes);
        let start = Instant::now();
        while [2, 3].iter().any(|rank| read(folder.path(), *rank) != "gone\n") {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
