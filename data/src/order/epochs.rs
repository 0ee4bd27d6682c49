//! The rows of epochs, made when they are asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::packing::Rows;

/// Epochs whose rows are kept; a step can lie across several when there are few rows.
const KEPT: usize = 4;

/// The rows of a few epochs.
#[derive(Debug, Default)]
pub(super) struct Epochs(Mutex<HashMap<u64, Arc<Rows>>>);

impl Epochs {
    /// The rows of an epoch, which `build` makes when they are not there.
    pub(super) fn get(&self, epoch: u64, build: impl FnOnce() -> Rows) -> Arc<Rows> {
        if let Some(rows) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&epoch) {
            return rows.clone();
        }
        let rows = Arc::new(build());
        let mut epochs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if epochs.len() >= KEPT {
            let others = epochs.keys().copied().filter(|&kept| kept != 0);
            let furthest = others.max_by_key(|kept| kept.abs_diff(epoch));
            furthest.and_then(|kept| epochs.remove(&kept));
        }
        epochs.insert(epoch, rows.clone());
        rows
    }
}
