//! Where ranks that MPI connects meet: rank 0 opens a port, and MPI carries its address and a secret to the others.

use std::net::{TcpListener, UdpSocket};

use interlingua_trainer::collectives::Collectives;

use super::Mpi;
use crate::distributed::placement::Placement;
use crate::distributed::secret;
use crate::distributed::session::Session;
use crate::exit::Failure;

/// How this rank gets to the others.
pub(crate) struct Meeting {
    /// The open port, on rank 0.
    pub(crate) listener: Option<TcpListener>,
    /// Where rank 0 is reached.
    pub(crate) address: (String, u16),
    /// What all ranks know. The environment's goes first.
    pub(crate) secret: String,
}

/// Arranges the meeting. All ranks call it.
///
/// # Errors
/// On every rank when rank 0 cannot open a port.
pub(crate) fn arrange(ranks: &Mpi, placement: &Placement) -> Result<Meeting, Failure> {
    let hosts = ranks.gather(placement.host.as_bytes());
    let one_host = hosts.iter().all(|host| *host == hosts[0]);
    let opened = (placement.rank == 0).then(|| open(placement, one_host));
    let (said, listener) = match opened {
        None => (String::new(), None),
        Some(Ok((listener, address, secret))) => (format!("{}\n{}\n{secret}", address.0, address.1), Some(listener)),
        Some(Err(failure)) => (failure.message, None),
    };
    let told = String::from_utf8_lossy(&ranks.tell(said.as_bytes())).into_owned();
    let mut parts = told.splitn(3, '\n');
    let (Some(host), Some(Ok(port)), Some(secret)) = (parts.next(), parts.next().map(str::parse), parts.next()) else {
        return Err(Failure::usage(told));
    };
    Ok(Meeting {
        listener,
        address: (host.to_owned(), port),
        secret: secret::given().unwrap_or_else(|| secret.to_owned()),
    })
}

/// Opens a port on rank 0: the one that MASTER_PORT names beside MASTER_ADDR, else one that is free.
fn open(placement: &Placement, one_host: bool) -> Result<(TcpListener, (String, u16), String), Failure> {
    let (host, port) = match placement.master.clone().or_else(of_environment) {
        Some(given) => given,
        None if one_host => ("127.0.0.1".to_owned(), 0),
        None => (own_address().unwrap_or_else(|| placement.host.clone()), 0),
    };
    let (listener, port) = Session::listen(&(host.clone(), port))?;
    Ok((listener, (host, port), secret::random()?))
}

/// The address that the environment asks for. mpirun needs none, and one by half is left over from something else.
fn of_environment() -> Option<(String, u16)> {
    let [host, port] = ["MASTER_ADDR", "MASTER_PORT"].map(|name| std::env::var(name).ok());
    Some((host?, port?.trim().parse().ok().filter(|port| *port > 0)?))
}

/// The address of the interface that leads out of this host. Nothing is sent.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}
