use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use super::course::Cause;
use super::*;
use crate::distributed::store::{Frame, Message, admit, connect};

mod killed;

/// Longer than any of these tests waits.
const LONG: Duration = Duration::from_secs(60);

/// Times at which no rank is lost by itself, however busy the machine, and nothing else takes long.
fn pace() -> Pace {
    Pace {
        beat: Duration::from_millis(50),
        tick: Duration::from_millis(5),
        silence: LONG,
        handshake: LONG,
        retry: Duration::from_millis(2),
        report: LONG,
        grace: Duration::from_millis(5),
        farewell: LONG,
        hooks: LONG,
    }
}

fn hello(rank: usize) -> Hello {
    Hello {
        host: format!("host{rank}"),
        device: "cpu".to_owned(),
        device_id: None,
        version: "0.1.0".to_owned(),
        recipe: "[train]\nsteps = 5\n".to_owned(),
        data: "11aa data.jsonl\n".to_owned(),
    }
}

/// A world that meets at a port of this host.
struct World {
    size: usize,
    address: (String, u16),
    listener: Option<TcpListener>,
    pace: Pace,
    timeout: Duration,
}

/// A rank with what happened to it.
struct Rank {
    session: Session,
    /// The codes with which its process would have ended.
    ended: Mutex<Receiver<u8>>,
}

impl World {
    fn new(size: usize) -> Self {
        let (listener, port) = Session::listen(&("127.0.0.1".to_owned(), 0)).unwrap();
        Self {
            size,
            address: ("127.0.0.1".to_owned(), port),
            listener: Some(listener),
            pace: pace(),
            timeout: LONG,
        }
    }

    fn place(&self, rank: usize) -> Place {
        Place {
            rank,
            world_size: self.size,
            address: self.address.clone(),
            key: Key::new("secret"),
            timeout: self.timeout,
            pace: self.pace,
        }
    }

    /// Starts a rank; the thread returns when it is among the others, or cannot be.
    fn start_at(&mut self, place: Place, hello: Hello) -> JoinHandle<Result<Rank, Failure>> {
        let listener = if place.rank == 0 { self.listener.take() } else { None };
        thread::spawn(move || {
            let (sender, ended) = mpsc::channel();
            let leave = Box::new(move |code| {
                let _ = sender.send(code);
            });
            let ended = Mutex::new(ended);
            Session::enter(place, listener, hello, leave).map(|session| Rank { session, ended })
        })
    }

    fn start(&mut self, rank: usize) -> JoinHandle<Result<Rank, Failure>> {
        self.start_at(self.place(rank), hello(rank))
    }

    /// All of them together.
    fn all(&mut self) -> Vec<Rank> {
        let starting: Vec<_> = (0..self.size).map(|rank| self.start(rank)).collect();
        starting.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    }

    /// A rank that is let in, says who it is, and then does what the test does with its connection.
    fn puppet(&self, rank: usize) -> TcpStream {
        let place = self.place(rank);
        let mut stream = connect(&place.address, &place.key, LONG, &self.pace).unwrap();
        let join = Message::Join {
            rank,
            world_size: self.size,
            hello: hello(rank),
        };
        stream.write_all(&Frame::from(join).encode().unwrap()).unwrap();
        stream
    }

    /// A rank 0 that lets one rank in and hears who it is, and then does what the test does with the connection.
    fn puppet_host(&mut self) -> JoinHandle<TcpStream> {
        let listener = self.listener.take().unwrap();
        let peers = (0..self.size).map(|rank| Peer {
            rank,
            host: hello(rank).host,
            device: hello(rank).device,
        });
        let welcome = Frame::from(Message::Welcome { peers: peers.collect() });
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            admit(&stream, &Key::new("secret"), LONG).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            assert!(matches!(
                Frame::read(&mut stream).unwrap().message,
                Message::Join { rank: 1, .. }
            ));
            stream.write_all(&welcome.encode().unwrap()).unwrap();
            stream
        })
    }
}

impl Rank {
    /// Why this rank was ended, with the code. Waits for it.
    fn end(&self) -> (u8, String) {
        let code = self.ended.lock().unwrap().recv_timeout(LONG).unwrap();
        let Cause { exit, message } = match &self.session.part {
            Part::Host(host) => host.course.cause(),
            Part::Guest(guest) => guest.course.cause(),
        }
        .unwrap();
        assert_eq!(exit, code);
        (code, message)
    }

    fn goes_on(&self) -> bool {
        self.ended.lock().unwrap().try_recv().is_err()
    }
}

/// Lets all leave, from threads of their own.
fn leave_all(ranks: &[Rank]) {
    thread::scope(|scope| {
        for rank in ranks {
            scope.spawn(|| rank.session.leave());
        }
    });
}

fn failure(starting: JoinHandle<Result<Rank, Failure>>) -> (Exit, String) {
    match starting.join().unwrap() {
        Ok(_) => panic!("the rank is among the others"),
        Err(failure) => (failure.exit, failure.message),
    }
}

#[test]
fn all_learn_who_the_others_are() {
    let ranks = World::new(3).all();
    let expected: Vec<_> = (0..3)
        .map(|rank| Peer {
            rank,
            host: format!("host{rank}"),
            device: "cpu".to_owned(),
        })
        .collect();
    for rank in &ranks {
        assert_eq!(rank.session.peers(), expected);
    }
    leave_all(&ranks);
    assert!(ranks.iter().all(Rank::goes_on));
}

#[test]
fn values_reach_who_asked_before_and_who_asks_after() {
    let ranks = World::new(3).all();
    thread::scope(|scope| {
        for from in 0..3 {
            let waiting: Vec<_> = ranks
                .iter()
                .map(|rank| scope.spawn(move || rank.session.wait(&format!("key {from}"))))
                .collect();
            let value = vec![u8::try_from(from).unwrap(); 100_000];
            ranks[from].session.set(&format!("key {from}"), &value);
            for waiting in waiting {
                assert_eq!(waiting.join().unwrap(), value);
            }
            for rank in &ranks {
                assert_eq!(rank.session.wait(&format!("key {from}")), value);
            }
        }
    });
    leave_all(&ranks);
}

#[test]
fn a_key_keeps_its_first_value() {
    let ranks = World::new(2).all();
    ranks[1].session.set("key", b"first");
    assert_eq!(ranks[0].session.wait("key"), b"first");
    ranks[0].session.set("key", b"second");
    assert_eq!(ranks[0].session.wait("key"), b"first");
    assert_eq!(ranks[1].session.wait("key"), b"first");
    leave_all(&ranks);
}

#[test]
fn one_process_is_a_session_without_a_port() {
    let mut world = World::new(1);
    world.listener = None;
    let rank = world.start(0).join().unwrap().unwrap();
    rank.session.set("key", b"value");
    assert_eq!(rank.session.wait("key"), b"value");
    rank.session.leave();
    assert!(rank.goes_on());
}

#[test]
fn who_has_left_is_no_loss() {
    let mut ranks = World::new(3).all();
    let first = ranks.remove(1);
    first.session.leave();
    drop(first);
    ranks[0].session.set("a", b"1");
    assert_eq!(ranks[1].session.wait("a"), b"1");
    ranks[1].session.set("b", b"2");
    assert_eq!(ranks[0].session.wait("b"), b"2");
    leave_all(&ranks);
    assert!(ranks.iter().all(Rank::goes_on));
}

#[test]
fn rank_0_stays_until_all_have_left() {
    let ranks = World::new(2).all();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            ranks[0].session.leave();
            assert!(done.load(Ordering::SeqCst));
        });
        // It serves the store meanwhile.
        ranks[1].session.set("late", b"value");
        assert_eq!(ranks[1].session.wait("late"), b"value");
        done.store(true, Ordering::SeqCst);
        ranks[1].session.leave();
        host.join().unwrap();
    });
}

#[test]
fn a_rank_whose_connection_closes_ends_the_others_and_is_named() {
    let mut world = World::new(3);
    let (host, guest) = (world.start(0), world.start(1));
    let puppet = world.puppet(2);
    let ranks = [host, guest].map(|rank| rank.join().unwrap().unwrap());
    drop(puppet);
    for rank in &ranks {
        let (code, message) = rank.end();
        assert_eq!(code, 1);
        assert!(
            message.starts_with("Rank 2 on host2 is lost: its process or its connection ended"),
            "{message}"
        );
    }
}

#[test]
fn a_rank_that_is_lost_while_rank_0_waits_in_leave_ends_it_too() {
    let mut world = World::new(2);
    let host = world.start(0);
    let puppet = world.puppet(1);
    let host = host.join().unwrap().unwrap();
    let session = host.session.clone();
    // It is not to return; the process of the test goes on where a real one would have ended.
    thread::spawn(move || session.leave());
    drop(puppet);
    assert_eq!(host.end().0, 1);
}

#[test]
fn a_silent_rank_is_lost() {
    let mut world = World::new(2);
    world.pace.silence = Duration::from_millis(50);
    let host = world.start(0);
    let _silent = world.puppet(1);
    let (code, message) = host.join().unwrap().unwrap().end();
    assert_eq!(code, 1);
    let start = "Rank 1 on host1 is lost: nothing was heard of it for 0.05 s";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn a_rank_that_talks_nonsense_is_lost() {
    for nonsense in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        Frame::from(Message::Bye).encode().unwrap(),
    ] {
        let mut world = World::new(2);
        let host = world.start(0);
        let mut puppet = world.puppet(1);
        let host = host.join().unwrap().unwrap();
        puppet.write_all(&nonsense).unwrap();
        let (code, message) = host.end();
        assert_eq!(code, 1);
        assert!(message.contains("what it sends cannot be read"), "{message}");
    }
}

#[test]
fn rank_0_is_watched_too() {
    let mut world = World::new(2);
    let host = world.puppet_host();
    let guest = world.start(1).join().unwrap().unwrap();
    drop(host.join().unwrap());
    let (code, message) = guest.end();
    assert_eq!(code, 1);
    assert!(
        message.starts_with("Rank 0 on host0 is lost: its process or its connection ended"),
        "{message}"
    );
}

#[test]
fn a_rank_0_that_falls_silent_is_told_why_it_is_alone() {
    let mut world = World::new(2);
    world.pace.silence = Duration::from_millis(50);
    let host = world.puppet_host();
    let guest = world.start(1).join().unwrap().unwrap();
    let mut host = host.join().unwrap();
    let (code, message) = guest.end();
    assert_eq!(code, 1);
    assert!(
        message.starts_with("Rank 0 on host0 is lost: nothing was heard of it"),
        "{message}"
    );
    loop {
        match Frame::read(&mut host).unwrap().message {
            Message::Beat => {}
            other => {
                assert_eq!(other, Message::Fail { exit: 1, message });
                break;
            }
        }
    }
}

#[test]
fn a_rank_that_fails_says_why_and_gives_the_others_its_exit_code() {
    let ranks = World::new(3).all();
    ranks[1].session.fail(Exit::Usage, "the data has no sample");
    for rank in [&ranks[0], &ranks[2]] {
        let expected = (2, "Rank 1 on host1: the data has no sample".to_owned());
        assert_eq!(rank.end(), expected);
    }
    assert!(ranks[1].goes_on(), "the caller ends it");
    // Twice is once.
    ranks[1].session.fail(Exit::Usage, "again");
}

#[test]
fn rank_0_may_fail_as_well() {
    let ranks = World::new(3).all();
    ranks[0].session.fail(Exit::Failed, "the disk is full");
    for rank in &ranks[1..] {
        assert_eq!(rank.end(), (1, "Rank 0 on host0: the disk is full".to_owned()));
    }
    assert!(ranks[0].goes_on());
}

#[test]
fn a_rank_that_fails_does_not_wait_for_a_rank_0_that_is_gone() {
    for end in [
        None,
        Some(Message::End {
            exit: 2,
            message: "the same".to_owned(),
        }),
    ] {
        let mut world = World::new(2);
        world.pace.farewell = LONG * 2;
        let host = world.puppet_host();
        let guest = world.start(1).join().unwrap().unwrap();
        let mut host = host.join().unwrap();
        let (done, returned) = mpsc::channel();
        let session = guest.session.clone();
        thread::spawn(move || {
            session.fail(Exit::Usage, "the data has no sample");
            done.send(()).unwrap();
        });
        let fail = Message::Fail {
            exit: 2,
            message: "the data has no sample".to_owned(),
        };
        while Frame::read(&mut host).unwrap().message != fail {}
        match end {
            None => drop(host),
            Some(end) => host.write_all(&Frame::from(end).encode().unwrap()).unwrap(),
        }
        returned.recv_timeout(LONG).unwrap();
        assert!(guest.goes_on());
    }
}

#[test]
fn a_failure_that_another_rank_has_caused_is_put_down_to_that_rank() {
    let mut world = World::new(3);
    world.pace.grace = LONG;
    world.pace.farewell = Duration::from_millis(5);
    world.pace.hooks = Duration::from_millis(5);
    let (host, guest) = (world.start(0), world.start(1));
    let puppet = world.puppet(2);
    let ranks = [host, guest].map(|rank| rank.join().unwrap().unwrap());
    thread::scope(|scope| {
        for rank in &ranks {
            scope.spawn(|| rank.session.fail(Exit::Failed, "the all-reduce did not come to an end"));
        }
        drop(puppet);
    });
    for rank in &ranks {
        assert!(rank.end().1.starts_with("Rank 2 on host2 is lost"));
    }
}

#[test]
fn hooks_come_before_the_end() {
    let mut world = World::new(2);
    let host = world.start(0);
    let puppet = world.puppet(1);
    let host = host.join().unwrap().unwrap();
    let (called, calls) = mpsc::channel();
    host.session.on_end(Box::new(|_| panic!("a hook that fails")));
    host.session.on_end(Box::new(move |exit| called.send(exit).unwrap()));
    drop(puppet);
    assert_eq!(host.end().0, 1);
    assert_eq!(calls.try_recv(), Ok(1));
}

#[test]
fn a_hook_that_hangs_does_not_keep_the_process_from_ending() {
    let mut world = World::new(2);
    world.pace.hooks = Duration::from_millis(10);
    let host = world.start(0);
    let puppet = world.puppet(1);
    let host = host.join().unwrap().unwrap();
    let (release, released): (Sender<()>, _) = mpsc::channel();
    let released = Mutex::new(released);
    host.session.on_end(Box::new(move |_| {
        let _ = released.lock().unwrap().recv();
    }));
    drop(puppet);
    assert_eq!(host.end().0, 1);
    drop(release);
}

/// All ranks of a world of three, the last with another hello, refuse to begin, with one message.
fn refused(change: impl Fn(&mut Hello)) -> String {
    let mut world = World::new(3);
    let mut odd = hello(2);
    change(&mut odd);
    let starting = [world.start(0), world.start(1), world.start_at(world.place(2), odd)];
    let [first, second, third] = starting.map(failure);
    assert_eq!(first.0, Exit::Usage);
    assert_eq!(first, second);
    assert_eq!(first, third);
    first.1
}

#[test]
fn ranks_that_differ_do_not_begin() {
    let message = refused(|odd| odd.version = "0.2.0".to_owned());
    assert!(message.starts_with("Rank 2 on host2 runs version 0.2.0"), "{message}");
    let message = refused(|odd| odd.recipe = odd.recipe.replace('5', "6"));
    assert!(
        message.contains("in [train]: rank 0 has `steps = 5`, rank 2 has `steps = 6`"),
        "{message}"
    );
    let message = refused(|odd| odd.data = "22bb data.jsonl\n".to_owned());
    assert!(message.contains("rank 2 has `22bb data.jsonl`"), "{message}");
}

#[test]
fn two_ranks_on_one_gpu_do_not_begin() {
    let mut world = World::new(3);
    let on_gpu = |rank: usize| Hello {
        host: "node".to_owned(),
        device: format!("cuda:{}", rank / 2),
        ..hello(rank)
    };
    let starting: Vec<_> = (0..3)
        .map(|rank| world.start_at(world.place(rank), on_gpu(rank)))
        .collect();
    for starting in starting {
        let (exit, message) = failure(starting);
        assert_eq!(exit, Exit::Usage);
        assert!(
            message.starts_with("Rank 1 on node computes on cuda:0, and so does rank 0 on node."),
            "{message}"
        );
    }
}

#[test]
fn two_processes_with_one_rank_do_not_begin() {
    let mut world = World::new(3);
    let starting = [world.start(0), world.start(1), world.start(1)];
    for starting in starting {
        let (exit, message) = failure(starting);
        assert_eq!(exit, Exit::Usage);
        assert!(
            message.starts_with("There are two processes with rank 1, on host1 and on host1."),
            "{message}"
        );
    }
}

#[test]
fn ranks_of_another_world_do_not_begin() {
    let mut world = World::new(2);
    let odd = Place {
        rank: 3,
        world_size: 4,
        ..world.place(1)
    };
    let starting = [world.start(0), world.start_at(odd, hello(3))];
    for starting in starting {
        let (exit, message) = failure(starting);
        assert_eq!(exit, Exit::Usage);
        let start = "Rank 3 on host3 was started as one of 4 processes, rank 0 as one of 2.";
        assert!(message.starts_with(start), "{message}");
    }
    let mut world = World::new(2);
    let starting = [world.start(0), world.start(2)];
    for starting in starting {
        assert!(failure(starting).1.starts_with("Rank 2 on host2 has too high a number"));
    }
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let mut world = World::new(4);
    let guest = world.start(2);
    world.timeout = Duration::from_millis(200);
    let host = world.start(0);
    let (exit, message) = failure(host);
    assert_eq!(exit, Exit::Failed);
    // Rank 2 may be too slow on a busy machine, and is then missing as well.
    let starts = [
        "Ranks 1 and 3 of 4 did not come within 0.2 s. There: rank 0 on host0, rank 2 on host2.",
        "Ranks 1, 2 and 3 of 4",
    ];
    assert!(starts.iter().any(|start| message.starts_with(start)), "{message}");
    assert_eq!(failure(guest), (Exit::Failed, message));
}

#[test]
fn a_rank_that_is_lost_before_all_are_there_ends_the_wait() {
    let mut world = World::new(3);
    let host = world.start(0);
    drop(world.puppet(1));
    let (exit, message) = failure(host);
    assert_eq!(exit, Exit::Failed);
    assert!(message.starts_with("Rank 1 on host1 is lost"), "{message}");
}

#[test]
fn another_secret_is_turned_away_and_the_others_begin() {
    let mut world = World::new(2);
    let host = world.start(0);
    let odd = Place {
        key: Key::new("other"),
        ..world.place(1)
    };
    let (exit, message) = failure(world.start_at(odd, hello(1)));
    assert_eq!(exit, Exit::Usage);
    assert!(message.contains("has another secret"), "{message}");
    let guest = world.start(1).join().unwrap().unwrap();
    leave_all(&[host.join().unwrap().unwrap(), guest]);
}

#[test]
fn strangers_neither_stop_nor_keep_out_the_ranks() {
    let mut world = World::new(2);
    // More connections that say nothing than are taken; each is dropped when its time is up.
    world.pace.handshake = Duration::from_millis(300);
    let host = world.start(0);
    let address = world.address.clone();
    let open = || TcpStream::connect((address.0.as_str(), address.1)).unwrap();
    let silent: Vec<_> = (0..100).map(|_| open()).collect();
    let mut browser = open();
    browser.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    drop(open());
    world.pace.handshake = LONG;
    let guest = world.start(1).join().unwrap().unwrap();
    let host = host.join().unwrap().unwrap();
    drop(silent);
    guest.session.set("key", b"value");
    assert_eq!(host.session.wait("key"), b"value");
    leave_all(&[host, guest]);
}

#[test]
fn who_comes_twice_is_turned_away_while_the_others_go_on() {
    let mut world = World::new(2);
    let ranks = world.all();
    let (exit, message) = failure(world.start(1));
    assert_eq!(exit, Exit::Usage);
    assert!(message.starts_with("There are two processes with rank 1"), "{message}");
    ranks[0].session.set("key", b"value");
    assert_eq!(ranks[1].session.wait("key"), b"value");
    leave_all(&ranks);
    assert!(ranks.iter().all(Rank::goes_on));
}

#[test]
fn a_hundred_ranks_meet() {
    let ranks = World::new(100).all();
    ranks[57].session.set("key", b"value");
    assert_eq!(ranks[99].session.wait("key"), b"value");
    assert_eq!(ranks[98].session.peers().len(), 100);
    leave_all(&ranks);
    assert!(ranks.iter().all(Rank::goes_on));
}
