//! Which parameters are trained: `train.parameters`, and `train.freeze` over the run.

use interlingua_checkpoints::peft::belongs_to;
use interlingua_recipes::{AdapterKind, Recipe, Selector};

use crate::error::TrainError;
use crate::models::Model;
use crate::parameters::ParameterId;

/// Decides by name which parameters a recipe trains.
pub struct Selection {
    selector: Option<Selector>,
    has_adapter: bool,
    modules_to_save: Vec<String>,
    freezes: Vec<(Selector, f64)>,
}

impl Selection {
    /// The selection of a recipe.
    pub fn of(recipe: &Recipe) -> Result<Self, TrainError> {
        let wrong = |key: &str, error: &dyn std::fmt::Display| TrainError::Setup(format!("{key}: {error}"));
        let freezes = recipe.train.freeze.iter().map(|freeze| {
            let selector = freeze.selector().map_err(|error| wrong("train.freeze", &error))?;
            Ok((selector, freeze.until))
        });
        Ok(Self {
            selector: recipe
                .train
                .parameters
                .selector()
                .map_err(|error| wrong("train.parameters", &error))?,
            has_adapter: recipe.adapter.kind != AdapterKind::None,
            modules_to_save: recipe.adapter.modules_to_save.clone(),
            freezes: freezes.collect::<Result<_, TrainError>>()?,
        })
    }

    /// Whether a parameter is trained at some time of the run. `adapter`: it belongs to an adapter.
    pub fn selects(&self, name: &str, adapter: bool) -> bool {
        match &self.selector {
            Some(selector) => selector.selects(name),
            None if self.has_adapter => adapter || self.is_saved_module(name),
            None => true,
        }
    }

    fn is_saved_module(&self, name: &str) -> bool {
        self.modules_to_save.iter().any(|module| belongs_to(name, module))
    }

    /// Whether weights of the model itself are trained, so that a `model/` folder is to be written.
    pub fn trains_base(&self, model: &Model) -> bool {
        let mut base = model.parameters.iter().filter(|(_, parameter)| !parameter.adapter);
        base.any(|(_, parameter)| {
            self.selects(&parameter.name, false) && !(self.has_adapter && self.is_saved_module(&parameter.name))
        })
    }

    /// All parameters that are trained at some time of the run.
    pub fn all(&self, model: &Model) -> Vec<ParameterId> {
        let parameters = model.parameters.iter();
        parameters
            .filter(|(_, parameter)| !parameter.frozen && self.selects(&parameter.name, parameter.adapter))
            .map(|(id, _)| id)
            .collect()
    }

    /// Marks what is trained in a step, counted from 0.
    pub fn apply(&self, model: &mut Model, step: u64, total: u64) {
        let done = step as f64 / total.max(1) as f64;
        let ids: Vec<ParameterId> = model.parameters.iter().map(|(id, _)| id).collect();
        for id in ids {
            let parameter = model.parameters.get(id);
            let frozen = self
                .freezes
                .iter()
                .any(|(selector, until)| done < *until && selector.selects(&parameter.name));
            let trainable = self.selects(&parameter.name, parameter.adapter) && !frozen && !parameter.frozen;
            if parameter.trainable != trainable {
                model.parameters.set_trainable(id, trainable);
            }
        }
    }
}
