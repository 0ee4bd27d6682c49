//! The recipe: one TOML file that says what a run does.
//!
//! [`Recipe::load`] reads a file, lays `--set` overrides over it, checks every key and value against the JSON Schema that
//! the types here describe (and against the rules that a schema cannot say), resolves paths, and fills in every default.
//! What comes out is the resolved [`Recipe`], whose struct and field names equal the table and key names of the TOML
//! file. [`Recipe::stages`] turns a pipeline into one recipe per stage (a stage that
//! merges has [`Recipe::merge`] set), [`Recipe::resume_conflicts`] compares a recipe
//! with that of the run it would resume, [`json_schema`] describes the format to editors, and [`shipped`] holds the
//! recipes that come with the binary.

mod adapter;
mod auxiliary;
mod build;
mod by_language;
mod data;
mod distributed;
mod document;
mod error;
mod eval;
mod keys;
mod later;
mod layer;
mod merge;
mod mix;
mod model;
mod objective;
mod optimizer;
mod parallel;
mod paths;
mod quantization;
mod recipe;
mod reference;
mod resume;
mod rules;
mod schedule;
mod schema;
mod selector;
pub mod shipped;
mod source;
mod stage;
mod train;
mod values;

pub use adapter::{Adapter, AdapterKind, Fit, Route, Targets, Under};
pub use auxiliary::{Auxiliary, AuxiliaryKind, Detach, Direction, EveryUnit, Pool, Scope};
pub use build::{Build, BuildKind, BuiltLanguage};
pub use by_language::ByLanguage;
pub use data::{BadRow, Data, TrainOn, Truncate};
pub use distributed::{CollectiveBackend, Distributed, Strategy};
pub use error::{Place, Problem, RecipeError};
pub use eval::{DivideBy, Eval, Extract, Measure, MissingItem, PromptLanguage, Scoring, Similarity, Task, TaskKind};
pub use layer::Layer;
pub use merge::{Merge, MergeCombination, MergeMethod, MergeStage};
pub use mix::{Mix, MixBy, MixPhase, MixUnit};
pub use model::{Device, Dtype, Init, Model};
pub use objective::{Nll, Objective, ObjectiveKind};
pub use optimizer::{Moments, Optimizer, OptimizerKind};
pub use parallel::{Arrangement, Missing, Parallel};
pub use quantization::{Quantization, QuantizationScheme};
pub use recipe::Recipe;
pub use reference::{Reference, ReferenceAdapter};
pub use schedule::{DecayType, Schedule, ScheduleKind};
pub use schema::json_schema;
pub use selector::Selector;
pub use source::{Format, Normalization, Source, SourcePath, SourceUse};
pub use stage::Stage;
pub use train::{
    BlockInputs, EarlyStop, Freeze, Length, Memory, Metric, Offload, Parameters, Recompute, Train, parse_bytes,
};
