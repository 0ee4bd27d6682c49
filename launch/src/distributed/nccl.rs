//! NCCL between the GPUs of the ranks: rank 0 names the communicator, and the store carries the name.

use std::sync::Arc;

use interlingua_recipes::Device;
use interlingua_trainer::collectives::Collectives;

use super::placement::Placement;
use super::session::{Hook, Session};
use crate::exit::Failure;

/// What carries numbers to the others, and what aborts it.
type Connected = (Arc<dyn Collectives>, Hook);

/// Connects this rank's GPU with the others.
///
/// # Errors
/// When NCCL is not there, or cannot connect.
#[cfg(feature = "cuda")]
pub(super) fn connect(session: &Session, placement: &Placement, device: Device) -> Result<Connected, Failure> {
    use interlingua_trainer::collectives::nccl::{ID_BYTES, Nccl};

    use crate::exit::Exit;
    use crate::logging;

    /// The key of the communicator's name.
    const NAME: &str = "nccl";

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
    let collectives = ranks.collectives();
    Ok((collectives, Box::new(move |_| ranks.abort())))
}

/// Connects this rank's GPU with the others.
///
/// # Errors
/// Always: this binary was built without CUDA.
#[cfg(not(feature = "cuda"))]
pub(super) fn connect(_: &Session, _: &Placement, _: Device) -> Result<Connected, Failure> {
    Err(Failure::usage(super::backend::WITHOUT_CUDA))
}
