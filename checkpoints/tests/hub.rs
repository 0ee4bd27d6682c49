//! Fetching from a hub: a small server on this machine stands for it.

#![cfg(feature = "hub")]
#![cfg(test)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use interlingua_checkpoints::hub::Hub;

const FILES: [(&str, &str); 3] = [
    ("config.json", "{}"),
    ("model.safetensors", "weights"),
    ("pytorch_model.bin", "never fetched"),
];

/// Answers like the hub for the model `org/tiny`; its address.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(&mut stream.unwrap())));
    address
}

fn answer(stream: &mut TcpStream) {
    let lines: Vec<String> = BufReader::new(&*stream)
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines[0].split(' ').nth(1).unwrap();
    let (status, headers, body) = if path.starts_with("/api/models/org/tiny") {
        let names: Vec<String> = FILES
            .iter()
            .map(|(name, _)| format!(r#"{{"rfilename": "{name}"}}"#))
            .collect();
        (
            "200 OK",
            String::new(),
            format!(r#"{{"sha": "abc", "siblings": [{}]}}"#, names.join(",")),
        )
    } else if let Some(name) = path.strip_prefix("/org/tiny/resolve/main/") {
        let body = FILES.iter().find(|(known, _)| *known == name).unwrap().1;
        let range = lines
            .iter()
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let body = if range.as_deref() == Some("0-0") {
            &body[..1]
        } else {
            body
        };
        let total = FILES.iter().find(|(known, _)| *known == name).unwrap().1.len();
        let headers = format!("etag: \"{name}\"\r\nx-repo-commit: abc\r\ncontent-range: bytes 0-0/{total}\r\n");
        ("206 Partial Content", headers, body.to_owned())
    } else {
        ("404 Not Found", String::new(), String::new())
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).unwrap();
}

fn hub(cache: &Path, endpoint: String) -> Hub {
    Hub {
        cache: cache.to_owned(),
        endpoint,
        token: None,
        offline: false,
    }
}

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let online = hub(cache.path(), server());
    let snapshot = online.resolve("org/tiny").unwrap();
    assert_eq!(std::fs::read_to_string(snapshot.join("config.json")).unwrap(), "{}");
    assert_eq!(
        std::fs::read_to_string(snapshot.join("model.safetensors")).unwrap(),
        "weights"
    );
    assert!(!snapshot.join("pytorch_model.bin").exists());
    let offline = Hub {
        offline: true,
        ..online
    };
    assert_eq!(offline.resolve("org/tiny").unwrap(), snapshot);
}

#[test]
fn a_download_that_broke_off_is_finished() {
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(cache.path(), server());
    let snapshot = hub.resolve("org/tiny").unwrap();
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    assert_eq!(hub.resolve("org/tiny").unwrap(), snapshot);
    assert!(snapshot.join("model.safetensors").is_file());
}

#[test]
fn an_unknown_model_is_refused_with_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let error = hub(cache.path(), server())
        .resolve("org/absent")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the hub has no model of this id") && error.contains("HF_TOKEN"),
        "{error}"
    );
}

#[test]
fn a_hub_that_does_not_answer_is_given_up_after_ten_seconds() {
    let cache = tempfile::tempdir().unwrap();
    // It listens and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let error = hub(cache.path(), endpoint).resolve("org/tiny").unwrap_err().to_string();
    assert!(
        error.contains("no answer for 10 seconds") && error.contains("hf download org/tiny"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_hub_that_is_not_there_is_an_error_at_once() {
    let cache = tempfile::tempdir().unwrap();
    let error = hub(cache.path(), "http://127.0.0.1:9".into())
        .resolve("org/tiny")
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot be fetched from http://127.0.0.1:9"), "{error}");
}
