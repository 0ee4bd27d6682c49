//! `interlingua launch RECIPE`.

use clap::Args;

use crate::cli::Global;
use crate::distributed::{self, Backend, SECRET};
use crate::exit::{CommandResult, Failure};
use crate::launcher::{self, FRESH, Mpirun, Ranks, program};
use crate::recipe::{self, RecipeArgument};

/// Trains with several processes: one for each GPU of this host, or as many as are asked for on its CPU, through mpirun.
///
/// The first SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 is passed on: all ranks finish the step, save and end with exit code 75.
#[derive(Args)]
#[command(after_help = "Example: interlingua launch --nproc 4 recipes/quickstart.toml\n\n\
    Example, on each of two hosts with eight GPUs, R being 0 and 1, with one INTERLINGUA_SECRET on both:\n\
    interlingua launch --nproc 8 --nnodes 2 --node-rank R --rendezvous node0:29500 recipe.toml\n\n\
    Under srun, mpirun or torchrun there is nothing to launch: `interlingua train` finds its rank itself.\n\
    INTERLINGUA_JOIN_SECONDS: how long ranks wait for each other in the beginning (600).")]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArgument,
    /// Number of processes on this host; on GPUs it is their number if nothing is said
    #[arg(long, value_name = "N", value_parser = number_from_1)]
    nproc: Option<usize>,
    /// Number of hosts
    #[arg(long, value_name = "M", default_value = "1", value_parser = number_from_1)]
    nnodes: usize,
    /// Number of this host, counted from 0
    #[arg(long, value_name = "R", default_value_t = 0)]
    node_rank: usize,
    /// Where rank 0 is reached: a name or address of host 0, and a free port there
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    rendezvous: Option<(String, u16)>,
    /// Start again from the last checkpoint when a rank dies, so many times at the most
    #[arg(long, value_name = "K", default_value_t = 0)]
    max_restarts: u32,
    /// Start anew: the old output folder is moved to NAME.old-N first, never deleted
    #[arg(long)]
    fresh: bool,
}

fn number_from_1(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "not a whole number".to_owned())?;
    if number == 0 {
        return Err("there has to be one at least".to_owned());
    }
    Ok(number)
}

fn address(text: &str) -> Result<(String, u16), String> {
    let parts = text.rsplit_once(':');
    let parsed = parts.and_then(|(host, port)| Some((host, port.parse().ok().filter(|port| *port > 0)?)));
    let (host, port) = parsed.ok_or("give a host and a port, such as node0:29500")?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() {
        return Err("give a host before the port, such as node0:29500".to_owned());
    }
    Ok((host.to_owned(), port))
}

/// Starts the processes and stays until all have ended.
///
/// # Errors
/// With exit code 2 when the recipe or the arguments are wrong, or something is missing; else with that of the processes.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let recipe = recipe::load(&arguments.recipe.recipe, global)?;
    let backend = Backend::of(&recipe);
    backend.is_built_in()?;
    let of_train = train_arguments(arguments, global);
    let (restarts, verbose) = (arguments.max_restarts, global.verbose > 0);
    match backend {
        Backend::Mpi => {
            let mpirun = Mpirun {
                program: program()?,
                count: processes_on_a_cpu(arguments)?,
            };
            launcher::run(&mpirun, of_train, restarts, verbose)
        }
        Backend::Nccl => launcher::run(&ranks(arguments)?, of_train, restarts, verbose),
    }
}

fn processes_on_a_cpu(arguments: &Arguments) -> Result<usize, Failure> {
    if arguments.nnodes > 1 || arguments.rendezvous.is_some() {
        return Err(Failure::usage(
            "MPI starts the processes of several hosts itself. Start the run through it: mpirun -n N --host HOST1,HOST2 interlingua \
             train RECIPE; or under SLURM: srun --mpi=pmix interlingua train RECIPE.",
        ));
    }
    arguments.nproc.ok_or_else(|| {
        Failure::usage(
            "How many processes are to share the CPU? Say it with --nproc N; for one, `interlingua train` is enough.",
        )
    })
}

fn ranks(arguments: &Arguments) -> Result<Ranks, Failure> {
    let Arguments { nnodes, node_rank, .. } = *arguments;
    if node_rank >= nnodes {
        return Err(Failure::usage(format!(
            "--node-rank is {node_rank} and --nnodes {nnodes}. Hosts are counted from 0, and the number has to be below --nnodes."
        )));
    }
    let given = distributed::given_secret();
    if nnodes > 1 && arguments.rendezvous.is_none() {
        return Err(Failure::usage(
            "Several hosts have to know where they meet. Add --rendezvous HOST:PORT, with a name or address of host 0 and a port that \
             is free there, the same on all.",
        ));
    }
    let secret = match given {
        Some(secret) => secret,
        None if nnodes == 1 => distributed::random_secret()?,
        None => {
            return Err(Failure::usage(format!(
                "The hosts have no secret by which they know each other. Set {SECRET} to the same random text on all of them, for \
                 instance to what this prints: openssl rand -hex 16"
            )));
        }
    };
    let gpus = distributed::visible_gpus();
    let local_size = arguments.nproc.or((gpus > 0).then_some(gpus)).ok_or_else(|| {
        Failure::usage("No GPU is to be seen on this host. `interlingua doctor` says what is missing; --nproc N asks for N processes.")
    })?;
    Ok(Ranks {
        program: program()?,
        local_size,
        node_rank,
        nodes: nnodes,
        rendezvous: arguments.rendezvous.clone(),
        secret,
    })
}

/// What the ranks are started with: `train`, with all that was said here and is not about processes.
fn train_arguments(arguments: &Arguments, global: &Global) -> Vec<String> {
    let mut of_train = vec!["train".to_owned(), arguments.recipe.recipe.display().to_string()];
    for setting in &global.set {
        of_train.extend(["--set".to_owned(), setting.clone()]);
    }
    let flags = [
        (arguments.fresh, FRESH),
        (global.json, "--json"),
        (global.quiet, "--quiet"),
    ];
    of_train.extend(
        flags
            .into_iter()
            .filter(|(set, _)| *set)
            .map(|(_, flag)| flag.to_owned()),
    );
    of_train.extend((0..global.verbose).map(|_| "--verbose".to_owned()));
    of_train
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(address("node0:29500"), Ok(("node0".to_owned(), 29500)));
        assert_eq!(address("[fe80::1]:4000"), Ok(("fe80::1".to_owned(), 4000)));
        for wrong in ["node0", "node0:", ":1", "node0:0", "node0:70000", "node0:port"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
