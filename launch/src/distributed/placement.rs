//! Which of the processes of a run this one is, from what a launcher has left in the environment.

mod hosts;
mod slurm;

use std::fmt;

use interlingua_trainer::device::host_name;

use crate::exit::Failure;

/// The environment, as far as it is asked for.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// This process among those of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Number of this process, counted from 0.
    pub(crate) rank: usize,
    /// Number of processes.
    pub(crate) world_size: usize,
    /// Number of this process among those of its host, counted from 0.
    pub(crate) local_rank: usize,
    /// Number of processes on this host. Where the launcher does not tell, as many as are sure: `local_rank` + 1.
    pub(crate) local_size: usize,
    /// Name of this host.
    pub(crate) host: String,
    /// Where all of that was found.
    pub(crate) source: Source,
    /// Where rank 0 is reached, host and port. None for one process, and where MPI carries the address.
    pub(crate) master: Option<(String, u16)>,
}

/// What says which process this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The variables that torchrun and `interlingua launch` set.
    Torchrun,
    /// A step of a SLURM job.
    Slurm,
    /// Open MPI's mpirun.
    OpenMpi,
    /// MPICH's mpirun, and others that know its process manager's variables.
    Mpich,
    /// Nothing: there is one process.
    Alone,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Torchrun => "RANK and WORLD_SIZE, as torchrun sets them",
            Self::Slurm => "SLURM's variables",
            Self::OpenMpi => "Open MPI's variables",
            Self::Mpich => "MPICH's variables",
            Self::Alone => "no launcher: one process",
        })
    }
}

/// Names under which a launcher says the numbers.
struct Names {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const TORCHRUN: Names = Names {
    rank: "RANK",
    world_size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_size: "LOCAL_WORLD_SIZE",
};

const OPEN_MPI: Names = Names {
    rank: "OMPI_COMM_WORLD_RANK",
    world_size: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
};

const MPICH: Names = Names {
    rank: "PMI_RANK",
    world_size: "PMI_SIZE",
    local_rank: "MPI_LOCALRANKID",
    local_size: "MPI_LOCALNRANKS",
};

const SLURM: Names = Names {
    rank: "SLURM_PROCID",
    world_size: "SLURM_STEP_NUM_TASKS",
    local_rank: "SLURM_LOCALID",
    local_size: "SLURM_STEP_TASKS_PER_NODE",
};

impl Placement {
    /// Looks at torchrun's variables, which `interlingua launch` sets from its flags, then at those of mpirun and of SLURM.
    ///
    /// # Errors
    /// With exit code 2 when a launcher's variables contradict each other, are no numbers, or are there by half; the message names
    /// the variable.
    pub(crate) fn find(environment: Environment<'_>) -> Result<Self, Failure> {
        // An empty variable is how shells and job templates unset one.
        let environment = |name: &str| environment(name).filter(|value| !value.trim().is_empty());
        let source = Source::of(&environment);
        let placement = match source {
            Source::Torchrun => Numbers::read(&TORCHRUN, &environment)?.place(source, &TORCHRUN),
            Source::Slurm => slurm::numbers(&environment)?.place(source, &SLURM),
            Source::OpenMpi => Numbers::read(&OPEN_MPI, &environment)?.place(source, &OPEN_MPI),
            Source::Mpich => Numbers::read(&MPICH, &environment)?.place(source, &MPICH),
            Source::Alone => Numbers::default().place(source, &TORCHRUN),
        }?;
        let master = match source {
            _ if placement.world_size == 1 => None,
            Source::Torchrun => Some(beside_agent(master(&environment)?, &environment)),
            Source::Slurm => Some(slurm::master(&environment)?),
            Source::OpenMpi | Source::Mpich | Source::Alone => None,
        };
        Ok(Self { master, ..placement })
    }
}

impl Source {
    /// Who has started this process.
    fn of(environment: Environment<'_>) -> Self {
        let says = |names: &Names| {
            [names.rank, names.world_size]
                .iter()
                .any(|name| environment(name).is_some())
        };
        let of_hydra = environment(MPICH.local_rank).is_some();
        if says(&TORCHRUN) {
            Self::Torchrun
        } else if says(&OPEN_MPI) {
            // Both mpiruns start their daemons as a SLURM step where there is SLURM. What a process of theirs sees of SLURM's variables
            // is the daemon's.
            Self::OpenMpi
        } else if says(&MPICH) && of_hydra {
            Self::Mpich
        } else if slurm::is_step(environment) {
            Self::Slurm
        } else if says(&MPICH) {
            Self::Mpich
        } else {
            Self::Alone
        }
    }
}

/// The four numbers, before they are checked against each other.
#[derive(Debug)]
struct Numbers {
    rank: usize,
    world_size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            rank: 0,
            world_size: 1,
            local_rank: None,
            local_size: None,
        }
    }
}

impl Numbers {
    fn read(names: &Names, environment: Environment<'_>) -> Result<Self, Failure> {
        Ok(Self {
            rank: needed(names.rank, names.world_size, environment)?,
            world_size: needed(names.world_size, names.rank, environment)?,
            local_rank: number(names.local_rank, environment)?,
            local_size: number(names.local_size, environment)?,
        })
    }

    /// Checks the numbers against each other.
    fn place(self, source: Source, names: &Names) -> Result<Placement, Failure> {
        let Self { rank, world_size, .. } = self;
        let below = |name: &str, number: usize, bound_name: &str, bound: usize| {
            Err(Failure::usage(format!(
                "{name} is {number} and {bound_name} is {bound} ({source}). The first counts from 0 and must be below the second."
            )))
        };
        if rank >= world_size {
            return below(names.rank, rank, names.world_size, world_size);
        }
        let local_rank = self.local_rank.unwrap_or(0);
        let local_size = self.local_size.unwrap_or(local_rank + 1);
        if local_rank >= local_size {
            return below(names.local_rank, local_rank, names.local_size, local_size);
        }
        if local_rank > rank {
            return Err(Failure::usage(format!(
                "{} is {local_rank} and {} is {rank} ({source}): no process has a higher number on its host than among all.",
                names.local_rank, names.rank
            )));
        }
        if local_size > world_size {
            return Err(Failure::usage(format!(
                "{} is {local_size} and {} is {world_size} ({source}): a host cannot have more processes than there are.",
                names.local_size, names.world_size
            )));
        }
        Ok(Placement {
            rank,
            world_size,
            local_rank,
            local_size,
            host: host_name(),
            source,
            master: None,
        })
    }
}

/// A variable that is a number, if it is there.
fn number(name: &str, environment: Environment<'_>) -> Result<Option<usize>, Failure> {
    let Some(value) = environment(name) else {
        return Ok(None);
    };
    value.trim().parse().map(Some).map_err(|_| {
        Failure::usage(format!(
            "The environment variable {name} is {value:?}, which is not a whole number from 0 up."
        ))
    })
}

/// A variable that must be there because another one is.
fn needed(name: &str, other: &str, environment: Environment<'_>) -> Result<usize, Failure> {
    number(name, environment)?.ok_or_else(|| {
        Failure::usage(format!(
            "{other} is set and {name} is not, so that this process does not know its place among the others. Set both, or unset \
             {other} for one process."
        ))
    })
}

/// MASTER_ADDR and MASTER_PORT.
fn master(environment: Environment<'_>) -> Result<(String, u16), Failure> {
    let needed = |name: &str| {
        environment(name).ok_or_else(|| {
            Failure::usage(format!(
                "There are several processes, and {name} is not set. They meet at MASTER_ADDR:MASTER_PORT, on the host of rank 0: set \
                 both."
            ))
        })
    };
    let (host, port) = (needed("MASTER_ADDR")?, needed("MASTER_PORT")?);
    match port.trim().parse() {
        Ok(port) if port != 0 => Ok((unbracketed(host.trim()).to_owned(), port)),
        _ => Err(Failure::usage(format!(
            "The environment variable MASTER_PORT is {port:?}, which is no port. Ports go from 1 to 65535."
        ))),
    }
}

/// The port for the rendezvous where torchrun's own agent may listen at that of MASTER_PORT: the next one.
fn beside_agent((host, port): (String, u16), environment: Environment<'_>) -> (String, u16) {
    let taken = environment("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
    let port = match port.checked_add(1) {
        _ if !taken => port,
        Some(next) => next,
        None => port - 1,
    };
    (host, port)
}

/// An IPv6 address without the brackets that it has in front of a port.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests;
