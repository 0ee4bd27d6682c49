//! A connection after its handshake: frames go out through a queue, so that who sends never waits for the other side, and come in
//! with a count of how long there were none.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::frame::Frame;
use super::message::Message;
use super::pace::Pace;

/// The outgoing half. Beats go out by themselves.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Arc<TcpStream>,
    queue: Sender<Order>,
}

/// What the thread that writes is to do.
enum Order {
    Send(Vec<u8>),
    /// Says when everything before it has been handed to the system.
    Flush(Sender<()>),
}

/// The incoming half.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: Arc<TcpStream>,
    pace: Pace,
}

/// Why nothing more comes in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// The other side has closed the connection, or its process is gone.
    Closed,
    /// Nothing came for this long.
    Silent(Duration),
    /// Something came that is no frame.
    Unreadable(String),
}

impl fmt::Display for Break {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(
                formatter,
                "its process or its connection ended without a word; its log may say why, or that of the kernel (for instance for a lack of \
                 memory)"
            ),
            Self::Silent(time) => write!(
                formatter,
                "nothing was heard of it for {} s; its process stands still, or the network to it is down",
                time.as_secs_f64()
            ),
            Self::Unreadable(what) => write!(formatter, "what it sends cannot be read: {what}"),
        }
    }
}

impl Link {
    /// Both halves of a connection.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(crate) fn open(stream: TcpStream, pace: Pace) -> io::Result<(Arc<Self>, Reader)> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(pace.tick))?;
        stream.set_write_timeout(Some(pace.silence))?;
        let stream = Arc::new(stream);
        let (queue, orders) = mpsc::channel();
        let outgoing = Arc::clone(&stream);
        thread::Builder::new().name("store-out".to_owned()).spawn(move || {
            if write(&outgoing, &orders, pace.beat).is_err() {
                // The incoming half sees the end, and says so.
                let _ = outgoing.shutdown(Shutdown::Both);
            }
        })?;
        let link = Self {
            stream: Arc::clone(&stream),
            queue,
        };
        Ok((Arc::new(link), Reader { stream, pace }))
    }

    /// Sends a frame, now or after those before it. On a broken connection it goes nowhere; the incoming half says so.
    pub(crate) fn send(&self, frame: &Frame) {
        match frame.encode() {
            Ok(bytes) => {
                let _ = self.queue.send(Order::Send(bytes));
            }
            Err(error) => {
                tracing::error!("A message to another rank cannot be sent: {error}.");
                let _ = self.stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Asks to be told when everything so far is out.
    pub(crate) fn flushed(&self) -> Receiver<()> {
        let (done, receiver) = mpsc::channel();
        let _ = self.queue.send(Order::Flush(done));
        receiver
    }

    /// Waits until everything so far is out, for so long at the most.
    pub(crate) fn flush(&self, time: Duration) {
        let _ = self.flushed().recv_timeout(time);
    }
}

/// Carries orders out, and says that this side is alive when there are none.
fn write(mut stream: &TcpStream, orders: &Receiver<Order>, beat: Duration) -> io::Result<()> {
    let alive = Frame::from(Message::Beat).encode()?;
    loop {
        match orders.recv_timeout(beat) {
            Ok(Order::Send(bytes)) => stream.write_all(&bytes)?,
            Ok(Order::Flush(done)) => {
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => stream.write_all(&alive)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

impl Reader {
    /// The next frame that is no beat.
    ///
    /// # Errors
    /// When nothing more will come.
    pub(crate) fn next(&mut self) -> Result<Frame, Break> {
        loop {
            let mut watched = Watched {
                stream: &*self.stream,
                pace: self.pace,
                quiet: Duration::ZERO,
            };
            match Frame::read(&mut watched) {
                Ok(Frame {
                    message: Message::Beat, ..
                }) => {}
                Ok(frame) => return Ok(frame),
                Err(error) => {
                    return Err(match error.kind() {
                        io::ErrorKind::TimedOut => Break::Silent(self.pace.silence),
                        io::ErrorKind::InvalidData => Break::Unreadable(error.to_string()),
                        _ => Break::Closed,
                    });
                }
            }
        }
    }
}

/// A stream that fails with `TimedOut` after a time of silence, counted in ticks of this thread. A thread that did not run, because
/// its process was stopped or the machine slept, has counted one tick at the most.
struct Watched<R> {
    /// Fails with a time-out after a tick.
    stream: R,
    pace: Pace,
    quiet: Duration,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(length) => {
                    self.quiet = Duration::ZERO;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A time-out has one name or the other, depending on the system.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.quiet += self.pace.tick;
                    if self.quiet >= self.pace.silence {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn frame(key: &str, body: Vec<u8>) -> Frame {
        Frame {
            message: Message::Value { key: key.to_owned() },
            body,
        }
    }

    #[test]
    fn frames_arrive_in_order_and_beats_are_not_heard() {
        let (a, b) = pair();
        let pace = Pace {
            beat: Duration::from_millis(1),
            ..Pace::default()
        };
        let (link, _) = Link::open(a, pace).unwrap();
        let (_other, mut reader) = Link::open(b, pace).unwrap();
        for number in 0..20 {
            link.send(&frame(&number.to_string(), vec![number; 1000]));
            // Long enough for beats between the frames; without any the test still holds.
            thread::sleep(Duration::from_millis(2));
        }
        for number in 0..20 {
            assert_eq!(reader.next().unwrap(), frame(&number.to_string(), vec![number; 1000]));
        }
    }

    #[test]
    fn who_has_nothing_to_say_says_that_it_is_alive() {
        let (a, mut b) = pair();
        let pace = Pace {
            beat: Duration::from_millis(1),
            ..Pace::default()
        };
        let _both = Link::open(a, pace).unwrap();
        for _ in 0..3 {
            assert_eq!(Frame::read(&mut b).unwrap().message, Message::Beat);
        }
    }

    #[test]
    fn a_closed_connection_and_a_silent_one_are_told_apart() {
        let pace = Pace {
            tick: Duration::from_millis(2),
            silence: Duration::from_millis(20),
            ..Pace::default()
        };
        let (a, b) = pair();
        let (_link, mut reader) = Link::open(a, pace).unwrap();
        assert_eq!(reader.next().unwrap_err(), Break::Silent(pace.silence));
        drop(b);
        assert_eq!(reader.next().unwrap_err(), Break::Closed);
    }

    /// Reads what it is told to, one answer after the other; a time-out takes its time.
    struct Scripted(Vec<(Duration, io::Result<u8>)>);

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (time, answer) = self.0.remove(0);
            thread::sleep(time);
            buffer[0] = answer?;
            Ok(1)
        }
    }

    fn watched(answers: Vec<(Duration, io::Result<u8>)>) -> Watched<Scripted> {
        let pace = Pace {
            tick: Duration::from_millis(1),
            silence: Duration::from_millis(5),
            ..Pace::default()
        };
        Watched {
            stream: Scripted(answers),
            pace,
            quiet: Duration::ZERO,
        }
    }

    fn quiet(kind: io::ErrorKind) -> (Duration, io::Result<u8>) {
        (Duration::ZERO, Err(kind.into()))
    }

    #[test]
    fn silence_is_counted_in_ticks_without_a_break() {
        let tick = || quiet(io::ErrorKind::WouldBlock);
        let signal = || quiet(io::ErrorKind::Interrupted);
        let data = || (Duration::ZERO, Ok(7));
        let mut reader = watched(vec![
            tick(),
            tick(),
            tick(),
            tick(),
            signal(),
            signal(),
            data(),
            tick(),
            data(),
        ]);
        let mut bytes = [0; 2];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [7, 7]);
        let mut reader = watched(vec![tick(), tick(), tick(), tick(), tick()]);
        assert_eq!(reader.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_process_that_did_not_run_itself_does_not_take_the_other_for_silent() {
        // Suspended for ten times the silence: one time-out that was long, then the other side goes on as well.
        let suspended = (Duration::from_millis(50), Err(io::ErrorKind::WouldBlock.into()));
        let mut reader = watched(vec![suspended, (Duration::ZERO, Ok(7))]);
        assert_eq!(reader.read(&mut [0]).unwrap(), 1);
    }

    #[test]
    fn what_is_no_frame_is_said() {
        let (a, mut b) = pair();
        let (_link, mut reader) = Link::open(a, Pace::default()).unwrap();
        b.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(reader.next().unwrap_err(), Break::Unreadable(_)));
    }

    #[test]
    fn who_sends_does_not_wait_for_a_side_that_does_not_read() {
        let (a, b) = pair();
        let (link, _) = Link::open(a, Pace::default()).unwrap();
        // More than the system keeps for a connection.
        let large = frame("large", vec![7; 32 << 20]);
        link.send(&large);
        let out = link.flushed();
        assert!(out.try_recv().is_err());
        let (_other, mut reader) = Link::open(b, Pace::default()).unwrap();
        assert_eq!(reader.next().unwrap(), large);
        out.recv_timeout(Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn a_link_that_nobody_holds_closes() {
        let (a, b) = pair();
        drop(Link::open(a, Pace::default()).unwrap());
        let (_link, mut reader) = Link::open(b, Pace::default()).unwrap();
        assert_eq!(reader.next().unwrap_err(), Break::Closed);
    }
}
