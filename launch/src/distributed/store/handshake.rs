//! The beginning of a connection: both sides show that they know the secret, and neither says it.
//!
//! Each sends a name of the protocol, its version and 32 random bytes. Then each sends the keyed BLAKE3 hash of its side and of both
//! sides' random bytes, first the one that asks to be let in. The key is derived from the secret. Random bytes of both sides mean that
//! an old conversation cannot be played again to either.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What all connections begin with.
const MAGIC: [u8; 8] = *b"intrlng\n";

/// Version of the protocol: of this file, of frames and of messages.
const VERSION: u16 = 1;

/// Name, version, random bytes.
const GREETING: usize = MAGIC.len() + 2 + NONCE;

const NONCE: usize = 32;

/// Verdicts of the side that lets in.
const WELCOME: u8 = 0;
const WRONG_SECRET: u8 = 1;

/// What is derived from the secret of a run.
#[derive(Clone)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Of any secret, also an empty one.
    pub(crate) fn new(secret: &str) -> Self {
        let purpose = "interlingua 2026-11 store, proof of knowing the secret of a run";
        Self(blake3::derive_key(purpose, secret.as_bytes()))
    }

    /// What shows that a side knows the secret.
    fn proof(&self, side: Side, asking: &[u8; NONCE], letting_in: &[u8; NONCE]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[side as u8]).update(asking).update(letting_in);
        hasher.finalize()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key")
    }
}

/// The sides have different proofs, so that neither can send the other's back.
#[derive(Clone, Copy)]
enum Side {
    Asking = 1,
    LettingIn = 2,
}

/// Why a connection did not come about.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The other side speaks something else.
    Foreign,
    /// The other side has another version of the protocol.
    Version(u16),
    /// The other side has another secret.
    Secret,
    /// The connection broke, or the time was up.
    Broken(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// The side that lets in, rank 0.
///
/// # Errors
/// When the other side does not prove in time that it knows the secret.
pub(crate) fn admit(stream: &TcpStream, key: &Key, time: Duration) -> Result<(), Refusal> {
    let mut channel = Channel::new(stream, time);
    let theirs = channel.greeting()?;
    let ours = nonce()?;
    channel.send(&greeting(&ours))?;
    let theirs = theirs.nonce_of_equal_version()?;
    let proof = channel.receive()?;
    if key.proof(Side::Asking, &theirs, &ours) != blake3::Hash::from_bytes(proof) {
        channel.send(&[WRONG_SECRET; 33])?;
        return Err(Refusal::Secret);
    }
    let mut verdict = [WELCOME; 33];
    verdict[1..].copy_from_slice(key.proof(Side::LettingIn, &theirs, &ours).as_bytes());
    channel.send(&verdict)?;
    Ok(())
}

/// The side that asks to be let in, all other ranks.
///
/// # Errors
/// When the other side does not let this one in, or does not prove in time that it knows the secret itself.
pub(super) fn ask(stream: &TcpStream, key: &Key, time: Duration) -> Result<(), Refusal> {
    let mut channel = Channel::new(stream, time);
    let ours = nonce()?;
    channel.send(&greeting(&ours))?;
    let theirs = channel.greeting()?.nonce_of_equal_version()?;
    channel.send(key.proof(Side::Asking, &ours, &theirs).as_bytes())?;
    let [verdict, proof @ ..]: [u8; 33] = channel.receive()?;
    if verdict != WELCOME || key.proof(Side::LettingIn, &ours, &theirs) != blake3::Hash::from_bytes(proof) {
        return Err(Refusal::Secret);
    }
    Ok(())
}

/// The greeting of the other side.
struct Greeting {
    version: u16,
    nonce: [u8; NONCE],
}

impl Greeting {
    fn nonce_of_equal_version(self) -> Result<[u8; NONCE], Refusal> {
        if self.version == VERSION {
            Ok(self.nonce)
        } else {
            Err(Refusal::Version(self.version))
        }
    }
}

fn greeting(nonce: &[u8; NONCE]) -> [u8; GREETING] {
    let mut bytes = [0; GREETING];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_be_bytes());
    bytes[10..].copy_from_slice(nonce);
    bytes
}

fn nonce() -> io::Result<[u8; NONCE]> {
    let mut bytes = [0; NONCE];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// A connection with a time at which everything must have been said.
struct Channel<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl<'a> Channel<'a> {
    fn new(stream: &'a TcpStream, time: Duration) -> Self {
        Self {
            stream,
            deadline: Instant::now() + time,
        }
    }

    fn greeting(&mut self) -> Result<Greeting, Refusal> {
        // The first bytes are judged by themselves: what comes from a browser or another server may be shorter than a greeting.
        let magic: [u8; MAGIC.len()] = self.receive()?;
        if magic != MAGIC {
            return Err(Refusal::Foreign);
        }
        let version = u16::from_be_bytes(self.receive()?);
        let nonce = self.receive()?;
        Ok(Greeting { version, nonce })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes)
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while filled < N {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // A time-out of zero would be none.
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Longer than any of these tests waits.
    const LONG: Duration = Duration::from_secs(30);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    /// What both sides say about a connection.
    fn both(server_secret: &str, client_secret: &str) -> (Result<(), Refusal>, Result<(), Refusal>) {
        let (server, client) = pair();
        let server_key = Key::new(server_secret);
        let server = thread::spawn(move || admit(&server, &server_key, LONG));
        let asked = ask(&client, &Key::new(client_secret), LONG);
        (server.join().unwrap(), asked)
    }

    #[test]
    fn the_same_secret_lets_in() {
        assert!(matches!(both("secret", "secret"), (Ok(()), Ok(()))));
        assert!(matches!(both("", ""), (Ok(()), Ok(()))));
    }

    #[test]
    fn another_secret_is_noticed_on_both_sides() {
        let refused = both("secret", "Secret");
        assert!(
            matches!(refused, (Err(Refusal::Secret), Err(Refusal::Secret))),
            "{refused:?}"
        );
    }

    #[test]
    fn neither_the_secret_nor_the_key_goes_over_the_wire() {
        let secret = "a secret of some length";
        let (server, client) = pair();
        let (mut relay_in, relay_out) = pair();
        let server = thread::spawn(move || admit(&server, &Key::new(secret), LONG));
        let asking = thread::spawn(move || ask(&relay_out, &Key::new(secret), LONG));
        // Passes everything on, in the order of the conversation, and keeps it.
        let (mut client, mut heard) = (client, Vec::new());
        for (length, inwards) in [(GREETING, true), (GREETING, false), (32, true), (33, false)] {
            let mut bytes = vec![0; length];
            let (from, to) = if inwards {
                (&mut relay_in, &mut client)
            } else {
                (&mut client, &mut relay_in)
            };
            from.read_exact(&mut bytes).unwrap();
            to.write_all(&bytes).unwrap();
            heard.extend(bytes);
        }
        assert!(server.join().unwrap().is_ok() && asking.join().unwrap().is_ok());
        let contains = |part: &[u8]| heard.windows(part.len()).any(|window| window == part);
        assert!(contains(&MAGIC));
        assert!(!contains(secret.as_bytes()) && !contains(&Key::new(secret).0));
    }

    #[test]
    fn an_answer_played_again_proves_nothing() {
        // A server that does not know the secret and sends back what it is sent.
        let (mut server, client) = pair();
        let asking = thread::spawn(move || ask(&client, &Key::new("secret"), LONG));
        let mut greeting = [0; GREETING];
        server.read_exact(&mut greeting).unwrap();
        server.write_all(&greeting).unwrap();
        let mut proof = [0; 32];
        server.read_exact(&mut proof).unwrap();
        server.write_all(&[WELCOME]).unwrap();
        server.write_all(&proof).unwrap();
        assert!(matches!(asking.join().unwrap(), Err(Refusal::Secret)));
    }

    #[test]
    fn other_protocols_are_recognised_by_their_first_bytes() {
        let (server, mut client) = pair();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(admit(&server, &Key::new(""), LONG), Err(Refusal::Foreign)));
        let (mut server, client) = pair();
        server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        assert!(matches!(ask(&client, &Key::new(""), LONG), Err(Refusal::Foreign)));
    }

    #[test]
    fn another_version_is_named() {
        let mut of_later = greeting(&[7; NONCE]);
        of_later[9] = 2;
        let (server, mut client) = pair();
        client.write_all(&of_later).unwrap();
        assert!(matches!(admit(&server, &Key::new(""), LONG), Err(Refusal::Version(2))));
        let mut reply = [0; GREETING];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(
            reply[..10],
            greeting(&[0; NONCE])[..10],
            "the later version learns of this one"
        );
        let (mut server, client) = pair();
        server.write_all(&of_later).unwrap();
        assert!(matches!(ask(&client, &Key::new(""), LONG), Err(Refusal::Version(2))));
    }

    #[test]
    fn who_says_nothing_is_dropped() {
        let (server, client) = pair();
        let refusal = admit(&server, &Key::new(""), Duration::from_millis(20)).unwrap_err();
        assert!(matches!(refusal, Refusal::Broken(_)), "{refusal:?}");
        drop(server);
        assert!(matches!(ask(&client, &Key::new(""), LONG), Err(Refusal::Broken(_))));
    }
}
