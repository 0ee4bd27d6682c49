//! NCCL between the GPUs of the ranks: rank 0 names the communicator, and the store carries the name.

use std::sync::Arc;

use interlingua_recipes::Device;
use interlingua_trainer::collectives::Collectives;
use interlingua_trainer::collectives::nccl::{ID_BYTES, Nccl};

use super::placement::Placement;
use super::session::Session;
use crate::exit::{Exit, Failure};
use crate::logging;

/// The key of the communicator's name.
const NAME: &str = "nccl";

/// Connects this rank's GPU with the others.
///
/// # Errors
/// When NCCL is not there, or cannot connect.
pub(super) fn connect(
    session: &Session,
    placement: &Placement,
    device: Device,
) -> Result<Arc<dyn Collectives>, Failure> {
    let device = interlingua_trainer::device::device(device)?;
    if placement.rank == 0 {
        session.set(NAME, &Nccl::unique_id()?);
    }
    let mut name = [0; ID_BYTES];
    let said = session.wait(NAME);
    if said.len() != name.len() {
        return Err(Failure::running(
            "Rank 0 has given NCCL's communicator a name of the wrong length.",
        ));
    }
    name.copy_from_slice(&said);
    let failing = session.clone();
    let on_failure = move |message: &str| {
        failing.fail(Exit::Failed, message);
        logging::error(message);
    };
    let ranks = Nccl::connect(
        placement.rank,
        placement.world_size,
        name,
        &device,
        Box::new(on_failure),
    )?;
    let aborted = ranks.clone();
    session.on_end(Box::new(move |_| aborted.abort()));
    Ok(ranks.collectives())
}
