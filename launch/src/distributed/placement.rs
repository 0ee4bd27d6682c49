//! Which of the processes of a run this one is, from what a launcher has left in the environment.

mod hosts;
mod slurm;

use std::fmt;

use crate::exit::Failure;
use crate::machine;

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
    /// The command line.
    Flags,
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
            Self::Flags => "the command line",
            Self::Torchrun => "RANK and WORLD_SIZE, as torchrun sets them",
            Self::Slurm => "SLURM's variables",
            Self::OpenMpi => "Open MPI's variables",
            Self::Mpich => "MPICH's variables",
            Self::Alone => "no launcher: one process",
        })
    }
}

/// What the command line says. It goes before all variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// Number of this process; given together with the number of processes.
    pub(crate) rank: Option<usize>,
    /// Number of processes.
    pub(crate) world_size: Option<usize>,
    /// Number of this process among those of its host.
    pub(crate) local_rank: Option<usize>,
    /// Number of processes on this host.
    pub(crate) local_size: Option<usize>,
    /// Where rank 0 is reached; goes before what variables say, whoever has set them.
    pub(crate) master: Option<(String, u16)>,
}

/// Names under which a launcher says the numbers.
struct Names {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const FLAGS: Names = Names {
    rank: "the rank",
    world_size: "the number of processes",
    local_rank: "the local rank",
    local_size: "the number of processes on this host",
};

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
    /// Looks at the command line, torchrun's variables, SLURM's, Open MPI's and MPICH's, in this order.
    ///
    /// # Errors
    /// With exit code 2 when a launcher's variables contradict each other, are no numbers, or are there by half; the message names
    /// the variable.
    pub(crate) fn find(flags: &Flags, environment: Environment<'_>) -> Result<Self, Failure> {
        // An empty variable is how shells and job templates unset one.
        let environment = |name: &str| environment(name).filter(|value| !value.trim().is_empty());
        let set = |name: &str| environment(name).is_some();
        let mut placement = if flags.rank.is_some() || flags.world_size.is_some() {
            Numbers::of_flags(flags)?.place(Source::Flags, &FLAGS)?
        } else if set(TORCHRUN.rank) || set(TORCHRUN.world_size) {
            let placement = Numbers::read(&TORCHRUN, &environment)?.place(Source::Torchrun, &TORCHRUN)?;
            match master(&environment)? {
                None if placement.world_size > 1 && flags.master.is_none() => return Err(no_master()),
                master => Self {
                    master: master.map(|master| beside_agent(master, &environment)),
                    ..placement
                },
            }
        } else if set(OPEN_MPI.rank) || set(OPEN_MPI.world_size) {
            // mpirun starts its daemons as a SLURM step where there is SLURM. What this process then sees of SLURM's variables are
            // the daemon's, so that mpirun's own go first.
            Numbers::read(&OPEN_MPI, &environment)?.place(Source::OpenMpi, &OPEN_MPI)?
        } else if set(MPICH.local_rank) && (set(MPICH.rank) || set(MPICH.world_size)) {
            Numbers::read(&MPICH, &environment)?.place(Source::Mpich, &MPICH)?
        } else if slurm::is_step(&environment) {
            let placement = slurm::numbers(&environment)?.place(Source::Slurm, &SLURM)?;
            let master = match (&flags.master, placement.world_size) {
                (Some(_), _) | (None, 1) => None,
                (None, _) => Some(slurm::master(&environment)?),
            };
            Self { master, ..placement }
        } else if set(MPICH.rank) || set(MPICH.world_size) {
            Numbers::read(&MPICH, &environment)?.place(Source::Mpich, &MPICH)?
        } else {
            Numbers::default().place(Source::Alone, &FLAGS)?
        };
        if placement.world_size > 1 {
            if let Some(master) = &flags.master {
                placement.master = Some(master.clone());
            }
        } else {
            placement.master = None;
        }
        if placement.source == Source::Flags && placement.world_size > 1 && placement.master.is_none() {
            return Err(Failure::usage(
                "The command line says that there are several processes, and not where rank 0 is reached. Add the address HOST:PORT \
                 of its rendezvous.",
            ));
        }
        Ok(placement)
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
    fn of_flags(flags: &Flags) -> Result<Self, Failure> {
        let (Some(rank), Some(world_size)) = (flags.rank, flags.world_size) else {
            return Err(Failure::usage(
                "The command line has only one of the rank and the number of processes. Give both, or neither.",
            ));
        };
        Ok(Self {
            rank,
            world_size,
            local_rank: flags.local_rank,
            local_size: flags.local_size,
        })
    }

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
            host: machine::host_name(),
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

/// MASTER_ADDR and MASTER_PORT, if they are there.
fn master(environment: Environment<'_>) -> Result<Option<(String, u16)>, Failure> {
    let half = |there: &str, missing: &str| {
        Failure::usage(format!(
            "{there} is set and {missing} is not. The processes meet at MASTER_ADDR:MASTER_PORT, on the host of rank 0: set both."
        ))
    };
    match (environment("MASTER_ADDR"), environment("MASTER_PORT")) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(half("MASTER_ADDR", "MASTER_PORT")),
        (None, Some(_)) => Err(half("MASTER_PORT", "MASTER_ADDR")),
        (Some(host), Some(port)) => match port.trim().parse() {
            Ok(port) if port != 0 => Ok(Some((unbracketed(host.trim()).to_owned(), port))),
            _ => Err(Failure::usage(format!(
                "The environment variable MASTER_PORT is {port:?}, which is no port. Ports go from 1 to 65535."
            ))),
        },
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

fn no_master() -> Failure {
    Failure::usage(
        "RANK and WORLD_SIZE are set, MASTER_ADDR and MASTER_PORT are not. The processes meet at MASTER_ADDR:MASTER_PORT, on the \
         host of rank 0: set both.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Placement, Failure> {
        find_with(&Flags::default(), variables)
    }

    fn find_with(flags: &Flags, variables: &[(&str, &str)]) -> Result<Placement, Failure> {
        Placement::find(flags, &|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    /// Rank, world size, local rank, local size.
    fn numbers(placement: &Placement) -> [usize; 4] {
        [
            placement.rank,
            placement.world_size,
            placement.local_rank,
            placement.local_size,
        ]
    }

    fn message(variables: &[(&str, &str)]) -> String {
        let failure = find(variables).unwrap_err();
        assert_eq!(failure.exit, crate::exit::Exit::Usage);
        failure.message
    }

    fn master(host: &str, port: u16) -> Option<(String, u16)> {
        Some((host.to_owned(), port))
    }

    const OF_TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29500"),
    ];

    const OF_SLURM: [(&str, &str); 9] = [
        ("SLURM_JOB_ID", "12345"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "6"),
        ("SLURM_LOCALID", "2"),
        ("SLURM_NODEID", "1"),
        ("SLURM_NTASKS", "7"),
        ("SLURM_STEP_NUM_TASKS", "7"),
        ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ("SLURM_STEP_TASKS_PER_NODE", "4,3"),
    ];

    const OF_OPEN_MPI: [(&str, &str); 4] = [
        ("OMPI_COMM_WORLD_RANK", "3"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ];

    #[test]
    fn without_a_launcher_there_is_one_process() {
        let placement = find(&[("MASTER_ADDR", "left-over")]).unwrap();
        assert_eq!(numbers(&placement), [0, 1, 0, 1]);
        assert_eq!((placement.source, placement.master), (Source::Alone, None));
        assert!(!placement.host.is_empty());
    }

    #[test]
    fn torchrun_says_all() {
        let placement = find(&OF_TORCHRUN).unwrap();
        assert_eq!(numbers(&placement), [5, 8, 1, 4]);
        assert_eq!(placement.source, Source::Torchrun);
        assert_eq!(placement.master, master("node1", 29500));
    }

    #[test]
    fn the_port_of_the_agent_of_torchrun_is_left_to_it() {
        let mut variables = [&OF_TORCHRUN[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(find(&variables).unwrap().master, master("node1", 29501));
        variables[5].1 = "65535";
        assert_eq!(find(&variables).unwrap().master, master("node1", 65534));
        variables[6].1 = "False";
        assert_eq!(find(&variables).unwrap().master, master("node1", 65535));
    }

    #[test]
    fn an_address_of_ipv6_may_have_brackets() {
        let mut variables = OF_TORCHRUN;
        variables[4].1 = "[fe80::1]";
        assert_eq!(find(&variables).unwrap().master, master("fe80::1", 29500));
    }

    #[test]
    fn a_pod_with_one_process_needs_no_local_rank() {
        let placement = find(&[
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("MASTER_ADDR", "job-master-0"),
            ("MASTER_PORT", "23456"),
        ])
        .unwrap();
        assert_eq!(numbers(&placement), [3, 4, 0, 1]);
    }

    #[test]
    fn half_of_the_variables_is_an_error_that_names_the_other_half() {
        let without = |missing: &str| {
            let rest: Vec<_> = OF_TORCHRUN.into_iter().filter(|(name, _)| *name != missing).collect();
            message(&rest)
        };
        assert!(without("RANK").starts_with("WORLD_SIZE is set and RANK is not"));
        assert!(without("WORLD_SIZE").starts_with("RANK is set and WORLD_SIZE is not"));
        assert!(without("MASTER_ADDR").starts_with("MASTER_PORT is set and MASTER_ADDR is not"));
        assert!(without("MASTER_PORT").starts_with("MASTER_ADDR is set and MASTER_PORT is not"));
        assert!(message(&OF_TORCHRUN[..4]).contains("MASTER_ADDR and MASTER_PORT are not"));
    }

    #[test]
    fn contradictions_name_both_variables() {
        let with = |name: &str, value: &'static str| {
            let mut variables = OF_TORCHRUN;
            for (variable, old) in &mut variables {
                if *variable == name {
                    *old = value;
                }
            }
            message(&variables)
        };
        assert!(with("RANK", "8").contains("RANK is 8 and WORLD_SIZE is 8"));
        assert!(with("LOCAL_RANK", "4").contains("LOCAL_RANK is 4 and LOCAL_WORLD_SIZE is 4"));
        assert!(with("LOCAL_WORLD_SIZE", "9").contains("LOCAL_WORLD_SIZE is 9 and WORLD_SIZE is 8"));
        assert!(with("RANK", "0").contains("LOCAL_RANK is 1 and RANK is 0"));
        assert!(with("RANK", "one").contains("variable RANK is \"one\""));
        assert!(with("RANK", "-1").contains("variable RANK is \"-1\""));
        assert!(with("WORLD_SIZE", "0").contains("RANK is 5 and WORLD_SIZE is 0"));
        assert!(with("MASTER_PORT", "0").contains("variable MASTER_PORT is \"0\""));
        assert!(with("MASTER_PORT", "70000").contains("variable MASTER_PORT is \"70000\""));
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        assert_eq!(
            find(&[("RANK", ""), ("WORLD_SIZE", " ")]).unwrap().source,
            Source::Alone
        );
    }

    #[test]
    fn a_step_of_slurm_says_all() {
        let placement = find(&OF_SLURM).unwrap();
        assert_eq!(numbers(&placement), [6, 7, 2, 3]);
        assert_eq!(placement.source, Source::Slurm);
        let (host, port) = placement.master.unwrap();
        assert_eq!(host, "gpu07");
        assert!(port >= 61440);
    }

    #[test]
    fn a_job_of_slurm_without_a_step_is_one_process() {
        // What a batch script sees before srun.
        let placement = find(&[
            ("SLURM_JOB_ID", "12345"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_PROCID", "0"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODELIST", "gpu[07-08]"),
        ])
        .unwrap();
        assert_eq!((numbers(&placement), placement.source), ([0, 1, 0, 1], Source::Alone));
    }

    #[test]
    fn the_shell_of_salloc_is_a_step_of_one_process() {
        // It runs in a step of its own, and keeps the number of tasks of the job.
        let mut variables = OF_SLURM.to_vec();
        for (name, value) in &mut variables {
            match *name {
                "SLURM_PROCID" | "SLURM_LOCALID" | "SLURM_NODEID" => *value = "0",
                "SLURM_STEP_NUM_TASKS" | "SLURM_STEP_TASKS_PER_NODE" => *value = "1",
                _ => {}
            }
        }
        let placement = find(&variables).unwrap();
        assert_eq!(numbers(&placement), [0, 1, 0, 1]);
        assert_eq!(placement.master, None);
    }

    #[test]
    fn torchrun_within_a_step_goes_first() {
        let variables = [&OF_SLURM[..], &OF_TORCHRUN[..]].concat();
        assert_eq!(find(&variables).unwrap().source, Source::Torchrun);
    }

    #[test]
    fn a_script_may_name_the_master_for_srun() {
        let variables = [&OF_SLURM[..], &OF_TORCHRUN[4..]].concat();
        let placement = find(&variables).unwrap();
        assert_eq!(placement.source, Source::Slurm);
        assert_eq!(placement.master, master("node1", 29500));
    }

    #[test]
    fn contradictions_of_slurm_are_named() {
        let mut variables = OF_SLURM;
        variables[2].1 = "7";
        assert!(message(&variables).contains("SLURM_PROCID is 7 and SLURM_STEP_NUM_TASKS is 7"));
        let without = |missing: &str| {
            let rest: Vec<_> = OF_SLURM.into_iter().filter(|(name, _)| *name != missing).collect();
            message(&rest)
        };
        assert!(without("SLURM_PROCID").contains("SLURM_PROCID is not"));
        assert!(without("SLURM_JOB_ID").contains("SLURM_JOB_ID is not"));
    }

    #[test]
    fn mpirun_carries_the_address_itself() {
        let placement = find(&OF_OPEN_MPI).unwrap();
        assert_eq!(numbers(&placement), [3, 4, 1, 2]);
        assert_eq!((placement.source, placement.master), (Source::OpenMpi, None));
    }

    #[test]
    fn what_mpirun_starts_within_a_step_is_of_mpirun() {
        let variables = [&OF_SLURM[..], &OF_OPEN_MPI[..]].concat();
        assert_eq!(find(&variables).unwrap().source, Source::OpenMpi);
        let of_hydra = [
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALRANKID", "1"),
            ("MPI_LOCALNRANKS", "2"),
        ];
        let variables = [&OF_SLURM[..], &of_hydra[..]].concat();
        let placement = find(&variables).unwrap();
        assert_eq!((numbers(&placement), placement.source), ([1, 2, 1, 2], Source::Mpich));
    }

    #[test]
    fn a_step_with_a_process_manager_for_mpi_is_of_slurm() {
        let variables = [&OF_SLURM[..], &[("PMI_RANK", "6"), ("PMI_SIZE", "7")]].concat();
        assert_eq!(find(&variables).unwrap().source, Source::Slurm);
    }

    #[test]
    fn a_process_manager_alone_will_do() {
        let placement = find(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]).unwrap();
        assert_eq!((numbers(&placement), placement.source), ([1, 2, 0, 1], Source::Mpich));
        assert!(message(&[("PMI_SIZE", "2")]).starts_with("PMI_SIZE is set and PMI_RANK is not"));
    }

    #[test]
    fn flags_go_first() {
        let flags = Flags {
            rank: Some(1),
            world_size: Some(2),
            local_rank: Some(1),
            local_size: Some(2),
            master: master("::1", 4000),
        };
        let placement = find_with(&flags, &OF_TORCHRUN).unwrap();
        assert_eq!(numbers(&placement), [1, 2, 1, 2]);
        assert_eq!(
            (placement.source, placement.master),
            (Source::Flags, master("::1", 4000))
        );
        let half = Flags {
            world_size: None,
            ..flags.clone()
        };
        assert!(find_with(&half, &[]).unwrap_err().message.contains("only one of"));
        let nowhere = Flags { master: None, ..flags };
        assert!(find_with(&nowhere, &[]).unwrap_err().message.contains("HOST:PORT"));
    }

    #[test]
    fn a_master_on_the_command_line_goes_with_the_numbers_of_variables() {
        let flags = Flags {
            master: master("10.0.0.1", 4000),
            ..Flags::default()
        };
        for variables in [&OF_TORCHRUN[..4], &OF_SLURM, &OF_OPEN_MPI] {
            assert_eq!(find_with(&flags, variables).unwrap().master, flags.master);
        }
    }
}
