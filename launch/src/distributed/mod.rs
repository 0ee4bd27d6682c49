//! The processes of one run: which of them this one is, how they find and watch each other, and what carries their numbers.
//!
//! [`start`] does all of it in order: the backend is chosen, the ranks meet at rank 0's store ([`session`]), share the cores of their
//! host, connect, and form a first sum. From then on every rank ends when one is lost.

mod backend;
mod data_files;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod placement;
mod preflight;
mod secret;
mod session;
mod store;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use interlingua_recipes::{Device, Recipe};
use interlingua_trainer::collectives::{Alone, Collectives};
use interlingua_trainer::memory::forget_peak;

pub(crate) use self::backend::{Backend, visible_gpus};
use self::placement::Placement;
pub(crate) use self::secret::{SECRET, given as given_secret, random as random_secret};
use self::session::{Hello, Session};
use crate::exit::{CommandResult, Exit, Failure};
use crate::table::{self, Table};

/// How long ranks wait for each other in the beginning, unless [`JOIN_SECONDS`] says otherwise.
const JOIN: Duration = Duration::from_secs(600);
/// The variable that says how long ranks wait for each other in the beginning, in seconds.
const JOIN_SECONDS: &str = "INTERLINGUA_JOIN_SECONDS";

/// How long a rank that is not the first of its host waits before it repeats what the first one says as well. Launchers end it before.
const REPEAT: Duration = Duration::from_secs(2);

/// This process and those it works with.
pub(crate) struct Group {
    placement: Placement,
    device: Device,
    collectives: Arc<dyn Collectives>,
    /// None for one process.
    session: Option<Session>,
    #[cfg(feature = "mpi")]
    library: Option<mpi::Library>,
}

/// Which process this is.
///
/// # Errors
/// With exit code 2 when a launcher's variables contradict each other.
pub(crate) fn placement() -> Result<Placement, Failure> {
    Placement::find(&|name| std::env::var(name).ok())
}

/// A command that is for one process.
///
/// # Errors
/// With exit code 2 when it is one of several.
pub(crate) fn alone(command: &str, run: impl FnOnce() -> CommandResult) -> CommandResult {
    let placement = placement()?;
    if placement.world_size == 1 {
        return run();
    }
    let failure = Failure::usage(format!(
        "`interlingua {command}` is for one process, and this is rank {} of {} ({}). Start it without a launcher.",
        placement.rank, placement.world_size, placement.source
    ));
    Err(before_all_met(&placement, failure))
}

/// An error of a time when ranks do not know each other yet. Most are those of all ranks, so that the first rank of each host says them,
/// and the others only if nothing has ended them soon after.
pub(crate) fn before_all_met(placement: &Placement, failure: Failure) -> Failure {
    if placement.local_rank > 0 {
        std::thread::sleep(REPEAT);
    }
    failure
}

/// Brings the processes of a run together. One process is a group of its own.
///
/// # Errors
/// With exit code 2 when this binary lacks what the backend needs, or the ranks do not fit together; with 1 when some have not come, or
/// the connection between them is at fault.
pub(crate) fn start(placement: Placement, recipe: &Recipe) -> Result<Group, Failure> {
    if placement.world_size == 1 {
        return Ok(Group::of_one(placement, recipe.model.device));
    }
    let backend = Backend::of(recipe);
    let (text, data) = (recipe.to_toml().map_err(Failure::usage)?, data_files::describe(recipe)?);
    meet(placement, backend, recipe.model.device, text, data)
}

/// Brings processes together that have no recipe, on devices of a kind.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_on(placement: Placement, device: Device) -> Result<Group, Failure> {
    if placement.world_size == 1 {
        return Ok(Group::of_one(placement, device));
    }
    meet(
        placement,
        Backend::of_device(device),
        device,
        String::new(),
        String::new(),
    )
}

fn meet(
    placement: Placement,
    backend: Backend,
    device: Device,
    recipe: String,
    data: String,
) -> Result<Group, Failure> {
    tracing::info!("{} ranks, known from {}", placement.world_size, placement.source);
    backend.is_built_in()?;
    let device = backend::device_of_rank(device, placement.local_rank);
    // MPI is between CPUs, which "auto" means then.
    let named = match (backend, device) {
        (Backend::Mpi, Device::Auto) => Device::Cpu,
        (_, device) => device,
    };
    let hello = Hello {
        host: placement.host.clone(),
        device: named.to_string(),
        device_id: backend::device_id(device, &placement.host),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe,
        data,
    };
    let group = match backend {
        Backend::Mpi => with_mpi(placement, device, hello),
        Backend::Nccl => with_nccl(placement, device, hello),
    }?;
    if let Err(failure) = group.check() {
        return Err(group.fail(failure));
    }
    Ok(group)
}

fn join_time() -> Result<Duration, Failure> {
    let Ok(seconds) = std::env::var(JOIN_SECONDS) else {
        return Ok(JOIN);
    };
    let number = seconds.trim().parse().ok().filter(|number| *number > 0);
    number.map(Duration::from_secs).ok_or_else(|| {
        Failure::usage(format!(
            "The environment variable {JOIN_SECONDS} is {seconds:?}, which is no number of seconds."
        ))
    })
}

#[cfg(not(feature = "mpi"))]
fn with_mpi(_: Placement, _: Device, _: Hello) -> Result<Group, Failure> {
    Err(Failure::usage(backend::WITHOUT_MPI))
}

/// MPI connects the ranks first, and carries the address and the secret of the store.
#[cfg(feature = "mpi")]
fn with_mpi(placement: Placement, device: Device, hello: Hello) -> Result<Group, Failure> {
    let (library, ranks) = mpi::start(&placement)?;
    tracing::debug!("{}", ranks.version());
    let meeting = mpi::meeting::arrange(&ranks, &placement)?;
    let session = Session::join(
        &placement,
        meeting.listener,
        &meeting.address,
        &meeting.secret,
        hello,
        join_time()?,
    )?;
    session.on_end(Box::new(mpi::abort));
    threads::share(&session, placement.rank);
    Ok(Group {
        placement,
        device,
        collectives: Arc::new(ranks),
        session: Some(session),
        library: Some(library),
    })
}

/// The store comes first, and carries the name of NCCL's communicator.
fn with_nccl(placement: Placement, device: Device, hello: Hello) -> Result<Group, Failure> {
    let Some(address) = placement.master.clone() else {
        return Err(Failure::usage(format!(
            "{} say nothing of where rank 0 is reached. Set MASTER_ADDR to the host of rank 0, and MASTER_PORT to a free port there, \
             on all ranks.",
            placement.source
        )));
    };
    let secret = secret::of_environment(placement.source)?;
    let listener = match placement.rank {
        0 => Some(Session::listen(&address)?.0),
        _ => None,
    };
    let session = Session::join(&placement, listener, &address, &secret, hello, join_time()?)?;
    threads::share(&session, placement.rank);
    match nccl::connect(&session, &placement, device) {
        Ok((collectives, abort)) => {
            session.on_end(abort);
            Ok(Group {
                placement,
                device,
                collectives,
                session: Some(session),
                #[cfg(feature = "mpi")]
                library: None,
            })
        }
        Err(failure) => {
            session.fail(failure.exit, &failure.message);
            Err(failure)
        }
    }
}

impl Group {
    fn of_one(placement: Placement, device: Device) -> Self {
        Self {
            placement,
            device,
            collectives: Arc::new(Alone),
            session: None,
            #[cfg(feature = "mpi")]
            library: None,
        }
    }

    /// Whether this process speaks for all.
    pub(crate) fn is_first(&self) -> bool {
        self.placement.rank == 0
    }

    /// What carries numbers to the others.
    pub(crate) fn collectives(&self) -> Arc<dyn Collectives> {
        self.collectives.clone()
    }

    /// What this rank computes on.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Who is there, and how fast numbers go between them.
    fn check(&self) -> Result<(), Failure> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let mut peers = Table::new(["rank", "host", "device"]);
        for peer in session.peers() {
            peers.row([peer.rank.to_string(), peer.host.clone(), peer.device.clone()]);
        }
        let peers = peers.render();
        tracing::info!("all ranks are there:\n{}", anstream::adapter::strip_str(&peers));
        let device = interlingua_trainer::device::device(self.device)?;
        let fabric = preflight::check(&*self.collectives, &device)?;
        forget_peak();
        tracing::info!(
            "fabric: {} ranks, all-reduce of {}: {}/s per rank",
            self.placement.world_size,
            table::bytes(preflight::TIMED_BYTES),
            table::bytes(fabric.bytes_per_second as u64)
        );
        Ok(())
    }

    /// Does what one rank of each host is enough for, such as filling its cache; the others wait. One process does it when it needs it.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) fn once_per_host(&self, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let key = format!("prepared/{}", self.placement.host);
        if self.placement.local_rank == 0 {
            work()?;
            session.set(&key, b"");
        } else {
            session.wait(&key);
        }
        Ok(())
    }

    /// The end of this process's part: a good-bye after a result, word to the others of a failure.
    ///
    /// # Errors
    /// The failure; its message is empty if it has been said.
    pub(crate) fn end(self, result: CommandResult) -> CommandResult {
        match result {
            Ok(exit) => {
                self.finish();
                Ok(exit)
            }
            Err(failure) => Err(self.fail(failure)),
        }
    }

    /// This process is going to end with a failure: the others are told, and end with the same exit code. Rank 0 says what it was, here
    /// or where it is told; a failure that comes back says nothing a second time.
    fn fail(&self, failure: Failure) -> Failure {
        let Some(session) = &self.session else {
            return failure;
        };
        session.fail(failure.exit, &failure.message);
        if self.is_first() {
            failure
        } else {
            Failure {
                message: String::new(),
                ..failure
            }
        }
    }

    /// What ends all ranks when this one has to leave at once, from any thread.
    pub(crate) fn emergency(&self) -> impl Fn(Exit, &str) + Send + Sync + 'static {
        let session = self.session.clone();
        move |exit, message| {
            if let Some(session) = &session {
                session.fail(exit, message);
            }
        }
    }

    /// The good-bye of a rank that is done. Returns when all are.
    fn finish(self) {
        let Some(session) = self.session else {
            return;
        };
        self.collectives.barrier();
        #[cfg(feature = "mpi")]
        if let Some(library) = self.library {
            library.finish();
        }
        session.leave();
    }
}
