//! Ranks as processes of their own, one of which is killed.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::distributed::placement::Source;

/// Where a process of these tests learns what it is.
const RANK: &str = "TEST_SESSION_RANK";
const PORT: &str = "TEST_SESSION_PORT";

/// Ranks of a run, killed when the test is over.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(rank: usize, port: u16) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "distributed::session::tests::killed::one_rank",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(RANK, rank.to_string())
        .env(PORT, port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The rest of the first line of standard output with this word. The reader must live, or the process cannot write any more.
fn hear(output: &mut impl BufRead, word: &str) -> String {
    for line in output.lines() {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once(word) {
            return rest.trim().to_owned();
        }
    }
    panic!("{word:?} was not said");
}

/// One rank of three: says its port, then that all are together, then stands in the store until it is ended.
#[test]
#[ignore = "a process of the tests below"]
fn one_rank() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let (Some(rank), Some(port)) = (number(RANK), number(PORT)) else {
        return;
    };
    let mut address = ("127.0.0.1".to_owned(), u16::try_from(port).unwrap());
    let mut listener = None;
    if rank == 0 {
        let (opened, port) = Session::listen(&address).unwrap();
        (listener, address.1) = (Some(opened), port);
        println!("port {port}");
    }
    let placement = Placement {
        rank,
        world_size: 3,
        local_rank: rank,
        local_size: 3,
        host: "localhost".to_owned(),
        source: Source::Torchrun,
        master: Some(address.clone()),
    };
    let session = Session::join(&placement, listener, &address, "secret", hello(rank), LONG).unwrap();
    println!("together {}", session.peers().len());
    session.wait("what nobody sets");
}

/// Kills one of three and returns the codes of the others with their standard errors.
fn kill(victim: usize) -> Vec<(Option<i32>, String)> {
    let mut ranks = Ranks(vec![start(0, 0)]);
    let mut outputs = vec![BufReader::new(ranks.0[0].stdout.take().unwrap())];
    let port = hear(&mut outputs[0], "port ").parse().unwrap();
    for rank in 1..3 {
        let mut child = start(rank, port);
        outputs.push(BufReader::new(child.stdout.take().unwrap()));
        ranks.0.push(child);
    }
    for output in &mut outputs {
        assert_eq!(hear(output, "together "), "3");
    }
    ranks.0[victim].kill().unwrap();
    let others = ranks.0.iter_mut().enumerate().filter(|(rank, _)| *rank != victim);
    others
        .map(|(_, child)| {
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            (child.wait().unwrap().code(), error)
        })
        .collect()
}

#[test]
fn a_killed_rank_ends_the_others_with_a_message_that_names_it() {
    for victim in [0, 2] {
        for (code, error) in kill(victim) {
            assert_eq!(code, Some(1), "{error}");
            let message = format!("error: Rank {victim} on host{victim} is lost: its process or its connection ended");
            assert!(error.contains(&message), "{error}");
        }
    }
}
