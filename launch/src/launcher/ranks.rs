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
pub(super) fn binary() -> Result<PathBuf, Failure> {
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
            let mut command = Command::new(binary()?);
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
