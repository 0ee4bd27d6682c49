//! What SLURM tells a process of a step.

use super::hosts::hosts;
use super::{Environment, Numbers, SLURM, needed, number};
use crate::exit::Failure;

/// Ports from here to the end are derived from the job's number: above those that Linux hands out by itself.
const FIRST_PORT: u16 = 61440;

/// How many ports there are to derive.
const PORTS: u64 = 4096;

/// Whether srun has started this process. A batch script has the number of tasks of its job, and even a rank, without being one of
/// several processes; only a step has tasks of its own.
pub(super) fn is_step(environment: Environment<'_>) -> bool {
    environment("SLURM_STEP_NUM_TASKS").is_some()
}

/// Rank and sizes within the step. SLURM_NTASKS is no help: in the shell of salloc it is that of the job.
///
/// # Errors
/// When a variable is missing or makes no sense.
pub(super) fn numbers(environment: Environment<'_>) -> Result<Numbers, Failure> {
    let node = number("SLURM_NODEID", environment)?;
    let local_size = match (environment(SLURM.local_size), node) {
        (Some(text), Some(node)) => Some(tasks(&text, node).ok_or_else(|| {
            Failure::usage(format!(
                "The environment variable {} is {text:?} and SLURM_NODEID is {node}: that does not tell how many tasks this host has. \
                 The form is 4(x2),3.",
                SLURM.local_size
            ))
        })?),
        _ => None,
    };
    Ok(Numbers {
        rank: needed(SLURM.rank, SLURM.world_size, environment)?,
        world_size: needed(SLURM.world_size, SLURM.rank, environment)?,
        local_rank: number(SLURM.local_rank, environment)?,
        local_size,
    })
}

/// Where rank 0 is reached: MASTER_ADDR and MASTER_PORT where the batch script has set them, else the first host of the step, at a
/// port that follows from the job.
///
/// # Errors
/// When a variable is missing or makes no sense.
pub(super) fn master(environment: Environment<'_>) -> Result<(String, u16), Failure> {
    let needed = |name: &str| {
        environment(name).ok_or_else(|| {
            Failure::usage(format!(
                "{} is set and {name} is not, so that the processes do not know where to meet. Start them with srun, or set \
                 MASTER_ADDR and MASTER_PORT.",
                SLURM.world_size
            ))
        })
    };
    if environment("MASTER_ADDR").is_some() && environment("MASTER_PORT").is_some() {
        return super::master(environment);
    }
    let host = match environment("MASTER_ADDR") {
        Some(host) => host,
        None => {
            let list = needed("SLURM_STEP_NODELIST")?;
            let listed = hosts(&list).map_err(|error| {
                Failure::usage(format!(
                    "The environment variable SLURM_STEP_NODELIST cannot be read: {error}."
                ))
            })?;
            let first = listed.into_iter().next();
            first.ok_or_else(|| Failure::usage("The environment variable SLURM_STEP_NODELIST names no host."))?
        }
    };
    needed("SLURM_JOB_ID")?;
    let job = number("SLURM_JOB_ID", environment)?.unwrap_or(0);
    let step = number("SLURM_STEP_ID", environment)?.unwrap_or(0);
    Ok((host, port(job as u64, step as u64)))
}

/// The port of a step. Steps that run at the same time on one host, of one job or of two that follow each other, get different ones.
fn port(job: u64, step: u64) -> u16 {
    let offset = job.wrapping_mul(61).wrapping_add(step) % PORTS;
    FIRST_PORT + u16::try_from(offset).unwrap_or(0)
}

/// Tasks on host number `node`, from a list such as `4(x2),3`: two hosts with four, one with three.
fn tasks(list: &str, node: usize) -> Option<usize> {
    let mut before = 0_usize;
    for entry in list.split(',') {
        let (tasks, hosts) = match entry.trim().split_once("(x") {
            Some((tasks, hosts)) => (tasks, hosts.strip_suffix(')')?.parse().ok()?),
            None => (entry.trim(), 1_usize),
        };
        before = before.checked_add(hosts)?;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_those_of_the_host() {
        let list = "4(x2),3,1(x3)";
        let found: Vec<_> = (0..7).map(|node| tasks(list, node)).collect();
        let expected = [Some(4), Some(4), Some(3), Some(1), Some(1), Some(1), None];
        assert_eq!(found, expected);
        assert_eq!(tasks("4(x", 0), None);
        assert_eq!(tasks("", 0), None);
    }

    #[test]
    fn ports_of_neighbours_differ() {
        let ports: std::collections::BTreeSet<_> = (0..20)
            .flat_map(|job| (0..20).map(move |step| port(1_000_000 + job, step)))
            .collect();
        assert_eq!(ports.len(), 400);
        assert!(ports.iter().all(|port| *port >= FIRST_PORT));
        assert!(port(u64::MAX, u64::MAX) >= FIRST_PORT);
    }
}
