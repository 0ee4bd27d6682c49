//! Ranks on the CPUs of this host: mpirun starts them.

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::output::{Output, Writer};
use super::watch::Watched;
use super::{Start, lifeline, ranks};
use crate::exit::Failure;

/// As many ranks as this, through mpirun.
#[derive(Debug)]
pub(crate) struct Mpirun {
    /// This program.
    pub(crate) program: PathBuf,
    /// Number of ranks.
    pub(crate) count: usize,
}

/// What mpirun is told, in variables, so that another MPI's mpirun passes over what is not its own. First Open MPI up to 4, then 5.
const SETTINGS: [(&str, &str); 8] = [
    // In containers there is often nobody but root.
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("PRTE_ALLOW_RUN_AS_ROOT", "1"),
    ("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    // More ranks than cores are in order, and none is bound to one core: a rank has threads.
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ("PRTE_MCA_hwloc_default_binding_policy", "none"),
];

impl Start for Mpirun {
    fn start(&self, arguments: &[String], output: &Output) -> Result<Vec<Watched>, Failure> {
        let mut command = Command::new("mpirun");
        command
            .args(["-n", &self.count.to_string()])
            .arg(&self.program)
            .args(arguments)
            .envs(SETTINGS)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // A rank that waits for others leaves its core to them where there are fewer cores than ranks.
        if self.count > crate::machine::cores() {
            command.env("OMPI_MCA_mpi_yield_when_idle", "1");
        }
        // mpirun gives its ranks a terminal for their standard output, whatever this one's goes to.
        if !io::stdout().is_terminal() {
            command.env("NO_COLOR", "1");
        }
        ranks::forget_place(&mut command);
        lifeline::hold(&mut command, false);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::usage(
                "mpirun is not there. Install Open MPI (openmpi-bin) or MPICH, the one that this binary was built with, or add its folder \
                 to PATH.",
            ),
            _ => Failure::running(format!("mpirun does not start: {error}.")),
        })?;
        if let Some(stderr) = child.stderr.take() {
            output.read(stderr, Writer::Mpirun);
        }
        Ok(vec![Watched::new("mpirun".to_owned(), child)])
    }
}
