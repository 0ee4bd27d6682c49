//! Where ranks that MPI connects meet: rank 0 opens a port, and MPI carries its address and a secret to the others.

use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use interlingua_trainer::collectives::Collectives;

use super::Mpi;
use crate::distributed::placement::Placement;
use crate::distributed::secret;
use crate::distributed::session::Session;
use crate::exit::Failure;

/// How long one name of rank 0's host is tried.
const REACH: Duration = Duration::from_secs(2);

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
    let networks = ranks.gather(own_network().as_bytes());
    let one_host = networks.iter().all(|network| *network == networks[0]);
    let opened = (placement.rank == 0).then(|| open(placement, one_host));
    let (said, listener) = match opened {
        None => (String::new(), None),
        Some(Ok((listener, names, port, secret))) => {
            (format!("{port}\n{secret}\n{}", names.join("\n")), Some(listener))
        }
        Some(Err(failure)) => (failure.message, None),
    };
    let told = String::from_utf8_lossy(&ranks.tell(said.as_bytes())).into_owned();
    let mut lines = told.lines();
    let (Some(Ok(port)), Some(secret)) = (lines.next().map(str::parse), lines.next()) else {
        return Err(Failure::usage(told));
    };
    let names: Vec<&str> = lines.collect();
    Ok(Meeting {
        address: (reached(&names, port, listener.is_some()).to_owned(), port),
        listener,
        secret: secret::given().unwrap_or_else(|| secret.to_owned()),
    })
}

/// Opens a port on rank 0: the one that MASTER_PORT names beside MASTER_ADDR, else one that is free. Returns it with all names under
/// which this host may be reached, and a secret.
fn open(placement: &Placement, one_host: bool) -> Result<(TcpListener, Vec<String>, u16, String), Failure> {
    let (names, port) = match placement.master.clone().or_else(of_environment) {
        Some((given, port)) => (vec![given], port),
        None if one_host => (vec!["127.0.0.1".to_owned()], 0),
        None => {
            let trie = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
            let names = std::iter::once(placement.host.clone());
            (names.chain(own_addresses(&trie)).collect(), 0)
        }
    };
    let (listener, port) = Session::listen(&(names[0].clone(), port))?;
    Ok((listener, names, port, secret::random()?))
}

/// The first name under which the port is open from here. Names of hosts are often known on the host itself alone, and of several
/// networks not all go everywhere.
fn reached<'a>(names: &[&'a str], port: u16, is_here: bool) -> &'a str {
    let is_open = |name: &&&str| {
        let addresses = (**name, port).to_socket_addrs();
        let mut addresses = addresses.into_iter().flatten();
        addresses.any(|address| TcpStream::connect_timeout(&address, REACH).is_ok())
    };
    let first = names.first().copied().unwrap_or_default();
    if is_here || names.len() < 2 {
        return first;
    }
    names.iter().find(is_open).copied().unwrap_or(first)
}

/// What processes have in common that reach each other under the loopback address: the machine and the network that it shows them.
/// Names of hosts do not tell, since containers may all have one.
fn own_network() -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("{} {}", machine.trim(), network.display())
}

/// The address that the environment asks for. mpirun needs none, and one by half is left over from something else.
fn of_environment() -> Option<(String, u16)> {
    let [host, port] = ["MASTER_ADDR", "MASTER_PORT"].map(|name| std::env::var(name).ok());
    Some((host?, port?.trim().parse().ok().filter(|port| *port > 0)?))
}

/// The addresses of this host's interfaces, out of what Linux says of its routes, those that lead nowhere else left out.
fn own_addresses(trie: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut last = None;
    for line in trie.lines().map(str::trim_start) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = last.filter(|address| !address.is_loopback())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_interfaces_are_found_once() {
        let trie = "Main:\n  +-- 0.0.0.0/1 2 0 2\n     +-- 10.77.0.0/24 2 0 2\n        |-- 10.77.0.0\n           /24 link UNICAST\n        \
                    |-- 10.77.0.1\n           /32 host LOCAL\n        |-- 127.0.0.1\n              /32 host LOCAL\nLocal:\n        \
                    |-- 10.77.0.1\n           /32 host LOCAL\n        |-- 10.77.0.255\n           /32 link BROADCAST\n";
        assert_eq!(own_addresses(trie), ["10.77.0.1"]);
    }

    #[test]
    fn the_name_that_is_reached_is_taken() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(
            reached(&["no-such-host.invalid", "127.0.0.1"], port, false),
            "127.0.0.1"
        );
        assert_eq!(
            reached(&["no-such-host.invalid", "127.0.0.1"], port, true),
            "no-such-host.invalid"
        );
    }
}
