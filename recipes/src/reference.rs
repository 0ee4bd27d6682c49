//! `[reference]`: the frozen model that preference objectives compare with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The frozen model that preference objectives compare with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reference {
    /// Its adapter: "off" (the bare base), "initial" (the trained adapter as at step 0) or an adapter folder (relative
    /// to the recipe file).
    #[schemars(length(min = 1))]
    pub adapter: String,
    /// Another model folder or hub id with the same vocabulary. Empty: the model that is trained, as it was at step 0.
    pub model: String,
    /// Compute the log-probabilities of the reference once, before the first step, and keep them in the output folder.
    pub cache: bool,
}

impl Default for Reference {
    fn default() -> Self {
        Self {
            adapter: OFF.to_owned(),
            model: String::new(),
            cache: false,
        }
    }
}

/// What `reference.adapter` calls the bare base.
pub(crate) const OFF: &str = "off";
/// What `reference.adapter` calls the trained adapter as at step 0.
pub(crate) const INITIAL: &str = "initial";

/// Which adapter the reference carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceAdapter<'a> {
    /// None.
    Off,
    /// The trained one as at step 0.
    Initial,
    /// That of a folder.
    Folder(&'a std::path::Path),
}

impl Reference {
    /// Which adapter the reference carries.
    #[must_use]
    pub fn adapter(&self) -> ReferenceAdapter<'_> {
        match self.adapter.as_str() {
            OFF => ReferenceAdapter::Off,
            INITIAL => ReferenceAdapter::Initial,
            folder => ReferenceAdapter::Folder(folder.as_ref()),
        }
    }
}
