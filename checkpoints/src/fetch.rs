//! Fetches a model from the Hugging Face hub into the local cache.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};
use indicatif::ProgressBar;

use crate::error::CheckpointError;
use crate::hub::Hub;
use crate::model_folder::INDEX;

/// How long the hub may take to answer at first.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// How long a download may stand still.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Small files that go with weights.
const COMPANIONS: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// What the fetching thread says: it is alive, or it is done.
enum Message {
    Alive,
    Done(Result<(), CheckpointError>),
}

/// Fetches the config, tokenizer and, where asked for, weights of `main`; the folder they are in. Interrupted downloads are
/// gone on with.
///
/// # Errors
/// When the hub does not answer, refuses, or has no safetensors of this model.
pub(crate) fn fetch(hub: &Hub, id: &str, weights: bool) -> Result<PathBuf, CheckpointError> {
    let (sender, receiver) = channel();
    let (own_hub, own_id) = (hub.clone(), id.to_owned());
    // The library has no time-outs, so that it runs on a thread of its own that can be left behind.
    std::thread::spawn(move || {
        let result = fetch_files(&own_hub, &own_id, weights, &sender);
        sender.send(Message::Done(result)).ok();
    });
    let mut patience = FIRST_ANSWER;
    let unreachable = |reason: String| {
        CheckpointError::NotFound(format!(
            "{id}: there is no such folder, and it cannot be fetched from {}: {reason}; check the network, or \
             run `hf download {id}` on a machine that reaches it and copy the model into the cache {}, or anywhere and \
             give that folder",
            hub.endpoint,
            hub.cache.display()
        ))
    };
    loop {
        match receiver.recv_timeout(patience) {
            Ok(Message::Alive) => patience = STANDSTILL,
            Ok(Message::Done(Err(CheckpointError::Other(reason)))) => return Err(unreachable(reason)),
            Ok(Message::Done(result)) => {
                result?;
                return hub
                    .snapshot(id)
                    .ok_or_else(|| unreachable("its config.json did not arrive".into()));
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(unreachable(format!("no answer for {} seconds", patience.as_secs())));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(unreachable("the download broke off".into())),
        }
    }
}

fn fetch_files(hub: &Hub, id: &str, weights: bool, sender: &Sender<Message>) -> Result<(), CheckpointError> {
    let describe = |error: ApiError| describe(hub, id, &error);
    let api = ApiBuilder::from_cache(Cache::new(hub.cache.clone()))
        .with_endpoint(hub.endpoint.clone())
        .with_token(hub.token.clone())
        .with_retries(2)
        .build()
        .map_err(describe)?;
    let repository = api.repo(Repo::model(id.to_owned()));
    let siblings = repository.info().map_err(describe)?.siblings;
    sender.send(Message::Alive).ok();
    let names: Vec<String> = siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted = wanted(&names).ok_or_else(|| CheckpointError::Refused {
        id: id.to_owned(),
        reason: "the hub has no safetensors weights of this model; convert it with Transformers' save_pretrained"
            .into(),
    })?;
    for name in wanted.into_iter().filter(|name| weights || COMPANIONS.contains(name)) {
        download(hub, id, &repository, name, sender).map_err(describe)?;
    }
    Ok(())
}

fn download(hub: &Hub, id: &str, repository: &ApiRepo, name: &str, sender: &Sender<Message>) -> Result<(), ApiError> {
    if hub.snapshot(id).is_some_and(|snapshot| snapshot.join(name).is_file()) {
        return Ok(());
    }
    let watched = Watched {
        bar: ProgressBar::new(0),
        sender: sender.clone(),
    };
    repository.download_with_progress(name, watched).map(drop)
}

/// The files worth having: none when there are no weights. Weights come last.
fn wanted(names: &[String]) -> Option<Vec<&str>> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let weights: Vec<&str> = if has("model.safetensors") {
        vec!["model.safetensors"]
    } else if has(INDEX) {
        let shards = names.iter().map(String::as_str).filter(|name| is_shard(name));
        std::iter::once(INDEX).chain(shards).collect()
    } else {
        return None;
    };
    Some(COMPANIONS.into_iter().filter(|name| has(name)).chain(weights).collect())
}

/// What the hub's refusal means; [`CheckpointError::Other`] when it could not be asked.
fn describe(hub: &Hub, id: &str, error: &ApiError) -> CheckpointError {
    let refused = |reason: &str| CheckpointError::Refused {
        id: id.to_owned(),
        reason: reason.to_owned(),
    };
    let text = error.to_string();
    match error {
        ApiError::RequestError(_)
            if ["401", "403", "404"]
                .iter()
                .any(|status| text.contains(&format!("status: {status}"))) =>
        {
            refused(match hub.token {
                None => {
                    "there is no such folder, and the hub has no model of this id that anyone may read; check the \
                     spelling, or set HF_TOKEN to a token that may read it"
                }
                Some(_) => {
                    "there is no such folder, and the hub has no model of this id that your token may read; check the \
                     spelling, and accept the model's terms on its page"
                }
            })
        }
        ApiError::IoError(source) if source.kind() == std::io::ErrorKind::StorageFull => refused("the disk is full"),
        _ => CheckpointError::Other(text),
    }
}

/// A progress bar that also says that the download is alive.
struct Watched {
    bar: ProgressBar,
    sender: Sender<Message>,
}

impl Progress for Watched {
    fn init(&mut self, size: usize, name: &str) {
        Progress::init(&mut self.bar, size, name);
    }

    fn update(&mut self, size: usize) {
        Progress::update(&mut self.bar, size);
        self.sender.send(Message::Alive).ok();
    }

    fn finish(&mut self) {
        Progress::finish(&mut self.bar);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_of_weights_is_fetched_and_comes_last() {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let both = names(&[
            "model.safetensors",
            "pytorch_model.bin",
            "config.json",
            "onnx/model.onnx",
            "README.md",
        ]);
        assert_eq!(wanted(&both).unwrap(), ["config.json", "model.safetensors"]);
        let sharded = names(&[
            INDEX,
            "model-00001-of-00001.safetensors",
            "consolidated.safetensors",
            "tokenizer.json",
        ]);
        assert_eq!(
            wanted(&sharded).unwrap(),
            ["tokenizer.json", INDEX, "model-00001-of-00001.safetensors"]
        );
        assert_eq!(wanted(&names(&["config.json", "pytorch_model.bin"])), None);
    }
}
