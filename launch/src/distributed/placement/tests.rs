use super::*;

fn find(variables: &[(&str, &str)]) -> Result<Placement, Failure> {
    Placement::find(&|name| {
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
    assert!(without("MASTER_ADDR").contains("MASTER_ADDR is not set"));
    assert!(without("MASTER_PORT").contains("MASTER_PORT is not set"));
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
