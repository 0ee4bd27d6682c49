//! Metrics for Interlingua: numbers that say what a model does, language by language and across languages.
//!
//! Pure functions over texts, choices, vectors and counts: nothing here reads files, runs a model, or knows of devices.
//! A metric makes a vector of additive statistics ([`statistics`]) of each item, and its score is a function of their sum.
//! So one piece of code draws bootstrap intervals and tests the difference of two runs ([`bootstrap`]), and what several
//! processes have counted is added up like what one has.

pub mod accuracy;
pub mod bleu;
pub mod bootstrap;
pub mod chrf;
pub mod cka;
pub mod classification;
pub mod consistency;
pub mod exact_match;
pub mod extract;
pub mod identify;
pub mod language;
pub mod qa;
pub mod retrieval;
pub mod side_by_side;
pub mod statistics;
mod text;
pub mod tokenizer;
pub mod vectors;
