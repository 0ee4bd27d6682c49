//! Where rank 0 is reached: opening that port, and finding it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::handshake::{Key, Refusal, ask};
use super::pace::Pace;
use crate::exit::Failure;

/// A host that does not answer at all is tried for so long.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Opens the port of rank 0; port 0 takes one that is free. Returns it with its number.
///
/// A loopback address is taken as it is, so that nobody on the network sees the port, and so is a numeric address of this host. With a
/// name the port is opened on all addresses: many hosts know their own name under a loopback address that the others cannot reach.
///
/// # Errors
/// With exit code 2 when the port is taken or may not be opened.
pub(crate) fn listen(address: &(String, u16)) -> Result<(TcpListener, u16), Failure> {
    let (host, port) = address;
    let numeric = host.parse::<IpAddr>().ok();
    let exactly = match (host.as_str(), numeric) {
        ("localhost", _) => Some(TcpListener::bind(("localhost", *port))),
        (_, Some(ip)) => Some(TcpListener::bind((ip, *port))),
        (_, None) => None,
    };
    let listener = match exactly {
        // An address in front of this host, such as that of a service of a cluster.
        Some(Err(error)) if error.kind() == io::ErrorKind::AddrNotAvailable => on_all(*port),
        Some(result) => result,
        None => on_all(*port),
    };
    listener
        .and_then(|listener| {
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        })
        .map_err(|error| not_opened(address, &error))
}

/// IPv6 with IPv4 where the system has it, else IPv4.
fn on_all(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
        _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
    })
}

fn not_opened(address: &(String, u16), error: &io::Error) -> Failure {
    let (place, port) = (written(address), address.1);
    Failure::usage(match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "Port {port} at {place} is taken by another process, perhaps by an earlier start of this run. Choose another port for the \
             rendezvous (MASTER_PORT), or look with `ss -ltnp sport = :{port}` who has it."
        ),
        io::ErrorKind::PermissionDenied => format!(
            "This user may not open port {port} at {place}. Choose one from 1024 up for the rendezvous (MASTER_PORT)."
        ),
        _ => format!(
            "Rank 0 cannot open the port of the rendezvous at {place}: {error}. MASTER_ADDR must be the host of rank 0, as the other \
             hosts reach it."
        ),
    })
}

/// Reaches rank 0 and gets in. Tries again until the time is up: hosts come at different times, and names may not be known yet.
///
/// # Errors
/// With exit code 2 when something else answers, or rank 0 with another secret or another version; with 1 when the time is up.
pub(crate) fn connect(address: &(String, u16), key: &Key, time: Duration, pace: &Pace) -> Result<TcpStream, Failure> {
    let (host, port) = address;
    let place = written(address);
    let start = Instant::now();
    let mut last;
    loop {
        last = match (host.as_str(), *port).to_socket_addrs() {
            Err(error) => format!("the name {host:?} is not known: {error}"),
            Ok(found) => {
                let mut last = format!("the name {host:?} has no address");
                for candidate in found {
                    let left = time.saturating_sub(start.elapsed()).clamp(pace.retry, ATTEMPT);
                    last = match TcpStream::connect_timeout(&candidate, left) {
                        // A port of this host that nobody has opened can be given to this very connection, as its own end.
                        Ok(stream) if stream.local_addr().ok() == Some(candidate) => "nobody listens there".to_owned(),
                        Ok(stream) => match ask(&stream, key, pace.handshake) {
                            Ok(()) => return Ok(stream),
                            Err(Refusal::Broken(error)) => format!("the connection was opened, then: {error}"),
                            Err(refusal) => return Err(refused(&place, &refusal)),
                        },
                        Err(error) => error.to_string(),
                    };
                }
                last
            }
        };
        if start.elapsed() + pace.retry >= time {
            break;
        }
        thread::sleep(pace.retry);
    }
    Err(Failure::running(format!(
        "Rank 0 was not reached at {place} within {} s (in the end: {last}). See whether it was started, whether MASTER_ADDR and \
         MASTER_PORT are its host and port, and whether a firewall is between.",
        time.as_secs_f64()
    )))
}

fn refused(place: &str, refusal: &Refusal) -> Failure {
    Failure::usage(match refusal {
        Refusal::Version(theirs) => format!(
            "Rank 0 at {place} speaks version {theirs} of the rendezvous, and this process another one. Install the same version of \
             interlingua on all hosts."
        ),
        Refusal::Secret => format!(
            "Rank 0 at {place} has another secret than this process, so that they belong to different runs. Start all processes of a run \
             with the same secret, and runs on one host with different ports."
        ),
        Refusal::Foreign | Refusal::Broken(_) => format!(
            "What answers at {place} is not interlingua but another server. Choose another port for the rendezvous (MASTER_PORT)."
        ),
    })
}

/// HOST:PORT, with brackets around an IPv6 address.
fn written((host, port): &(String, u16)) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::handshake::admit;
    use super::*;
    use crate::exit::Exit;

    const LONG: Duration = Duration::from_secs(30);

    fn quick() -> Pace {
        Pace {
            retry: Duration::from_millis(2),
            ..Pace::default()
        }
    }

    fn local(port: u16) -> (String, u16) {
        ("127.0.0.1".to_owned(), port)
    }

    fn key() -> Key {
        Key::new("secret")
    }

    /// Lets one connection in.
    fn serve(listener: TcpListener, key: Key) -> thread::JoinHandle<Result<(), Refusal>> {
        thread::spawn(move || admit(&listener.accept().unwrap().0, &key, LONG))
    }

    #[test]
    fn names_and_both_kinds_of_addresses_are_reached() {
        let mut hosts = vec!["127.0.0.1", "localhost"];
        // Containers may be without IPv6.
        if TcpListener::bind("[::1]:0").is_ok() {
            hosts.push("::1");
        }
        for host in hosts {
            let (listener, port) = listen(&(host.to_owned(), 0)).unwrap();
            assert!(listener.local_addr().unwrap().ip().is_loopback(), "{host}");
            let server = serve(listener, key());
            connect(&(host.to_owned(), port), &key(), LONG, &quick()).unwrap();
            server.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_name_opens_the_port_to_other_hosts() {
        let (listener, port) = listen(&("the-name-of-this-host.invalid".to_owned(), 0)).unwrap();
        assert!(listener.local_addr().unwrap().ip().is_unspecified());
        let server = serve(listener, key());
        connect(&local(port), &key(), LONG, &quick()).unwrap();
        server.join().unwrap().unwrap();
    }

    #[test]
    fn an_address_of_another_machine_opens_the_port_on_all() {
        // An address for documentation, which no machine has.
        let (listener, _) = listen(&("192.0.2.1".to_owned(), 0)).unwrap();
        assert!(listener.local_addr().unwrap().ip().is_unspecified());
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let (_listener, port) = listen(&local(0)).unwrap();
        let failure = listen(&local(port)).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let start = format!("Port {port} at 127.0.0.1:{port} is taken by another process");
        assert!(failure.message.starts_with(&start), "{}", failure.message);
        assert!(failure.message.contains("MASTER_PORT"));
    }

    #[test]
    fn rank_0_may_come_late() {
        let (listener, port) = listen(&local(0)).unwrap();
        drop(listener);
        let client = thread::spawn(move || connect(&local(port), &key(), LONG, &quick()));
        // Long enough for some attempts that fail; fewer would not make the test fail.
        thread::sleep(Duration::from_millis(20));
        let server = serve(listen(&local(port)).unwrap().0, key());
        client.join().unwrap().unwrap();
        server.join().unwrap().unwrap();
    }

    #[test]
    fn who_does_not_answer_is_given_up_after_the_time() {
        let (listener, port) = listen(&local(0)).unwrap();
        drop(listener);
        let failure = connect(&local(port), &key(), Duration::from_millis(10), &quick()).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        let start = format!("Rank 0 was not reached at 127.0.0.1:{port} within 0.01 s");
        assert!(failure.message.starts_with(&start), "{}", failure.message);
        let nowhere = ("no-such-host.invalid".to_owned(), 1);
        let failure = connect(&nowhere, &key(), Duration::from_millis(10), &quick()).unwrap_err();
        assert!(
            failure.message.contains("\"no-such-host.invalid\" is not known"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn another_secret_is_said_at_once() {
        let (listener, port) = listen(&local(0)).unwrap();
        let server = serve(listener, key());
        let failure = connect(&local(port), &Key::new("other"), LONG, &quick()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("has another secret"), "{}", failure.message);
        assert!(matches!(server.join().unwrap(), Err(Refusal::Secret)));
    }

    #[test]
    fn another_server_is_said_at_once() {
        let (listener, port) = listen(&local(0)).unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            stream
        });
        let failure = connect(&local(port), &key(), LONG, &quick()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("another server"), "{}", failure.message);
        server.join().unwrap();
    }

    #[test]
    fn addresses_of_ipv6_are_written_with_brackets() {
        assert_eq!(written(&("::1".to_owned(), 5)), "[::1]:5");
        assert_eq!(written(&("node".to_owned(), 5)), "node:5");
    }
}
