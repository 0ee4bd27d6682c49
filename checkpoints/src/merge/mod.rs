//! Merging: several models, or several adapters, into one.
//!
//! [`Merge::open`] opens everything and checks that it fits together, [`Merge::write`] writes the result tensor by tensor.
//! One file per method, as a pure function of tensors: [`linear`](linear::linear), [`slerp`](slerp::slerp),
//! [`ties`](ties::ties), [`dare_ties`](dare::dare_ties).

mod adapters;
pub mod dare;
pub mod linear;
mod models;
mod settings;
pub mod slerp;
pub mod ties;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::atomic::{partial_path, sync_folder};
use crate::error::CheckpointError;
use crate::peft;

use adapters::AdapterMerge;
use models::ModelMerge;
pub use settings::{Combination, Method, Options, Settings};

/// What is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Model folders.
    Models,
    /// Adapter folders.
    Adapters,
}

/// Models or adapters that fit together, open, with how they are to be merged.
#[derive(Debug)]
pub struct Merge {
    parts: Parts,
    settings: Settings,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Parts {
    Models(Box<ModelMerge>),
    Adapters(AdapterMerge),
}

/// What came out of a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What was merged.
    pub kind: Kind,
    /// Tensors of the result.
    pub tensors: usize,
    /// For each parent: ‖result − parent‖₂ / ‖parent‖₂, over all weights of a model, or over the weight updates `s·B·A` and
    /// the saved modules of an adapter.
    pub distances: Vec<f64>,
}

impl Merge {
    /// Opens folders (or hub ids of models) and checks that they can be merged: all models or all adapters, the same tensors in
    /// the same shapes. `base` is the model that the task vectors of `ties` and `dare-ties` start from.
    ///
    /// # Errors
    /// When something cannot be read, does not fit together, or the options ask for what cannot be done.
    pub fn open(inputs: &[PathBuf], base: Option<&Path>, options: &Options) -> Result<Self, CheckpointError> {
        let (settings, mut notes) = Settings::resolve(options, inputs.len())?;
        let (adapters, models): (Vec<&PathBuf>, Vec<&PathBuf>) =
            inputs.iter().partition(|path| path.join(peft::CONFIG).is_file());
        if let ([adapter, ..], [model, ..]) = (adapters.as_slice(), models.as_slice()) {
            return Err(CheckpointError::Merge(format!(
                "{} is an adapter and {} is none; merge models with models and adapters with adapters (`interlingua export \
                 --merge` puts an adapter into its model)",
                adapter.display(),
                model.display()
            )));
        }
        let parts = if adapters.is_empty() {
            Parts::Models(Box::new(ModelMerge::open(
                inputs, base, &settings, options, &mut notes,
            )?))
        } else {
            Parts::Adapters(AdapterMerge::open(inputs, base, &settings, options, &mut notes)?)
        };
        Ok(Self { parts, settings, notes })
    }

    /// What the user should know before anything is written.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How it is done, with every default filled in.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Writes the result: a whole folder or none. It is written under another name beside `out` and renamed.
    ///
    /// # Errors
    /// When `out` is a folder with something in it, or cannot be written, or a tensor cannot be read.
    pub fn write(&self, out: &Path) -> Result<Report, CheckpointError> {
        check_out(out)?;
        let out = std::path::absolute(out).map_err(|source| CheckpointError::io(out, source))?;
        let partial = partial_path(&out);
        remove(&partial)?;
        std::fs::create_dir_all(&partial).map_err(|source| CheckpointError::io(&partial, source))?;
        let written = match &self.parts {
            Parts::Models(models) => models.write(&partial, &self.settings),
            Parts::Adapters(adapters) => adapters.write(&partial, &self.settings),
        };
        let renamed = written.and_then(|report| {
            std::fs::rename(&partial, &out).map_err(|source| CheckpointError::io(&out, source))?;
            Ok(report)
        });
        if renamed.is_err() {
            // The partial folder is of no use; that it cannot be removed changes nothing.
            std::fs::remove_dir_all(&partial).ok();
        }
        sync_folder(out.parent().unwrap_or(&out))?;
        renamed
    }
}

/// An error unless there is nothing at the path yet, or a folder with nothing in it.
///
/// # Errors
/// When something is there, naming it.
pub fn check_out(out: &Path) -> Result<(), CheckpointError> {
    let refuse = |what: &str| {
        Err(CheckpointError::Merge(format!(
            "{}: {what}; choose another folder to write to",
            out.display()
        )))
    };
    if out.is_file() {
        return refuse("this is a file");
    }
    for (file, what) in [
        ("config.json", "a model"),
        (peft::CONFIG, "an adapter"),
        ("", "something"),
    ] {
        let is_there = match file {
            "" => std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()),
            file => out.join(file).exists(),
        };
        if is_there {
            return refuse(&format!("there is {what} in this folder already"));
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), CheckpointError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(CheckpointError::io(folder, source)),
        _ => Ok(()),
    }
}

/// Merges the tensors of one name. `base` is none for zeros.
fn blend(name: &str, base: Option<&[f32]>, tensors: &[&[f32]], settings: &Settings) -> Vec<f32> {
    let weights = &settings.weights;
    match (settings.method, tensors) {
        (Method::Slerp, [first, second]) => slerp::slerp(first, second, weights[1]),
        (Method::Linear | Method::Slerp, _) => linear::linear(tensors, weights),
        (Method::Ties, _) => ties::ties(base, tensors, weights, settings.density, settings.scale),
        (Method::DareTies, _) => {
            let random = (settings.seed, name);
            dare::dare_ties(base, tensors, weights, settings.density, settings.scale, random)
        }
    }
}

/// Sums of squares, from which the distance to one parent is taken.
#[derive(Clone, Copy, Debug, Default)]
struct Distance {
    difference: f64,
    parent: f64,
}

impl Distance {
    /// Adds a tensor.
    fn add(&mut self, result: &[f32], parent: &[f32]) {
        for (result, parent) in result.iter().zip(parent) {
            let (result, parent) = (f64::from(*result), f64::from(*parent));
            self.difference += (result - parent).powi(2);
            self.parent += parent.powi(2);
        }
    }

    fn relative(&self) -> f64 {
        if self.difference <= 0.0 {
            0.0
        } else {
            (self.difference / self.parent).sqrt()
        }
    }
}

/// The README of a merged folder: parents with their weights, and the method.
fn readme(title: &str, front_matter: &str, parents: impl Iterator<Item = impl Display>, settings: &Settings) -> String {
    let mut text = format!("---\n{front_matter}tags:\n- interlingua\n- merge\n---\n\n# {title}\n\n");
    text.push_str(&format!("Merged with Interlingua: {}.\n\n", settings.describe()));
    text.push_str("| parent | weight |\n|---|---|\n");
    for (parent, weight) in parents.zip(&settings.weights) {
        text.push_str(&format!("| {parent} | {} |\n", settings::short(*weight)));
    }
    text
}
