//! The global batch of a run: the rows of an optimizer step over all processes. It stays the same however many processes go on with
//! the run.

use interlingua_recipes::{EveryUnit, ObjectiveKind, Recipe, Scope};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// How a step's rows are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalBatch {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a process in a step.
    pub gradient_accumulation: usize,
    /// Processes.
    pub world_size: usize,
}

impl Default for GlobalBatch {
    fn default() -> Self {
        Self {
            batch_size: 0,
            gradient_accumulation: 0,
            world_size: 1,
        }
    }
}

impl GlobalBatch {
    /// That of a recipe on so many processes.
    pub fn of(recipe: &Recipe, world_size: usize) -> Self {
        Self {
            batch_size: recipe.train.batch_size,
            gradient_accumulation: recipe.train.gradient_accumulation,
            world_size,
        }
    }

    /// Whether the checkpoint says it; earlier ones did not.
    pub fn is_known(&self) -> bool {
        self.batch_size > 0
    }

    /// Rows of a step.
    fn rows(&self) -> usize {
        self.batch_size * self.gradient_accumulation * self.world_size
    }

    /// Rows of a micro-step over all processes.
    fn micro_step(&self) -> usize {
        self.batch_size * self.world_size
    }

    /// The recipe as so many processes go on with a run that began with this batch, and what a person should know.
    ///
    /// # Errors
    /// When the rows cannot be dealt evenly, or the recipe asks for another number of them.
    pub fn go_on(self, recipe: &Recipe, world_size: usize) -> Result<(Recipe, Option<String>), TrainError> {
        let wanted = Self::of(recipe, world_size);
        let whole = compares_micro_steps(recipe);
        let asks = (wanted.batch_size, wanted.gradient_accumulation) != (self.batch_size, self.gradient_accumulation);
        // Whoever changes the number of processes may deal the same rows out himself.
        let keeps = if world_size == self.world_size {
            !asks
        } else {
            wanted.rows() == self.rows() && (!whole || wanted.micro_step() == self.micro_step())
        };
        if !self.is_known() || keeps {
            return Ok((recipe.clone(), None));
        }
        if asks {
            return Err(TrainError::Setup(format!(
                "{}: this run began with train.batch_size = {}, train.gradient_accumulation = {} and world size {}, {} rows a step{}; the \
                 recipe now says {}, {} and {world_size}, {} rows. Leave the two keys as they were, and they are adapted to the number of \
                 processes, or start anew with --fresh, which moves the folder aside",
                recipe.output.display(),
                self.batch_size,
                self.gradient_accumulation,
                self.world_size,
                self.rows(),
                if whole {
                    " (and its losses depend on what a micro-step is)"
                } else {
                    ""
                },
                wanted.batch_size,
                wanted.gradient_accumulation,
                wanted.rows(),
            )));
        }
        let batch = self.dealt_to(world_size, whole).ok_or_else(|| {
            let (rows, what) = match whole {
                true => (self.micro_step(), "a micro-step, whose samples its losses compare,"),
                false => (self.rows(), "a step"),
            };
            TrainError::Setup(format!(
                "{what} of this run reads {rows} rows, which {world_size} processes cannot share evenly; go on with a number of \
                 processes that divides {rows}"
            ))
        })?;
        let mut recipe = recipe.clone();
        recipe.train.batch_size = batch.batch_size;
        recipe.train.gradient_accumulation = batch.gradient_accumulation;
        for (index, auxiliary) in recipe.objective.auxiliary.iter_mut().enumerate() {
            let Some(size) = auxiliary.batch_size else { continue };
            let all = size * self.gradient_accumulation * self.world_size;
            let share = batch.gradient_accumulation * world_size;
            if !all.is_multiple_of(share) {
                return Err(TrainError::Setup(format!(
                    "objective.auxiliary.{index}.batch_size: a step of this run reads {all} pairs, which {world_size} processes \
                     cannot share evenly; go on with a number of processes that divides it"
                )));
            }
            auxiliary.batch_size = Some(all / share);
        }
        let note = format!(
            "the run began with {} processes and goes on with {world_size}: a step still reads {} rows, with train.batch_size = {} \
             and train.gradient_accumulation = {}",
            self.world_size,
            self.rows(),
            batch.batch_size,
            batch.gradient_accumulation
        );
        Ok((recipe, Some(note)))
    }

    /// The same rows on so many processes. `whole`: micro-steps stay what they are; else micro-batches do, where they can.
    fn dealt_to(self, world_size: usize, whole: bool) -> Option<Self> {
        let of = |batch_size: usize| {
            let share = batch_size * world_size;
            self.rows().is_multiple_of(share).then(|| Self {
                batch_size,
                gradient_accumulation: self.rows() / share,
                world_size,
            })
        };
        if whole {
            let rows = self.micro_step();
            return rows.is_multiple_of(world_size).then(|| of(rows / world_size))?;
        }
        (1..=self.batch_size).rev().find_map(of)
    }
}

/// Whether something depends on what a micro-step is: a loss that compares its samples, or one that runs on every so many of them.
fn compares_micro_steps(recipe: &Recipe) -> bool {
    let depends = recipe.objective.auxiliary.iter().any(|auxiliary| {
        (auxiliary.kind.compares_samples() && auxiliary.scope == Scope::MicroStep)
            || (auxiliary.every > 0 && auxiliary.unit == EveryUnit::MicroStep)
    });
    depends || recipe.objective.kind == ObjectiveKind::Kto
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(extra: &str) -> Recipe {
        let text = format!(
            "output = \"run\"\nmodel.path = \"m\"\ntrain.batch_size = 4\ntrain.gradient_accumulation = 2\n\
             data.sources = [{{ path = \"a.jsonl\", format = \"text\" }}]\n{extra}"
        );
        Recipe::parse(&text, "recipe.toml".as_ref(), &[]).unwrap()
    }

    fn batch(recipe: &Recipe) -> (usize, usize) {
        (recipe.train.batch_size, recipe.train.gradient_accumulation)
    }

    const ALIGNED: &str =
        "[[objective.auxiliary]]\nkind = \"middle-layer\"\n[data.parallel]\nlanguages = [\"en\", \"sw\"]";

    #[test]
    fn micro_batches_stay_and_their_number_changes() {
        let recipe = recipe("");
        let began = GlobalBatch::of(&recipe, 2);
        assert_eq!(batch(&began.go_on(&recipe, 1).unwrap().0), (4, 4));
        assert_eq!(batch(&began.go_on(&recipe, 4).unwrap().0), (4, 1));
        assert_eq!(batch(&began.go_on(&recipe, 8).unwrap().0), (2, 1));
        assert!(began.go_on(&recipe, 2).unwrap().1.is_none());
        let error = began.go_on(&recipe, 3).unwrap_err().to_string();
        assert!(error.contains("16 rows") && error.contains("3 processes"), "{error}");
    }

    #[test]
    fn micro_steps_stay_where_their_samples_are_compared() {
        let recipe = recipe(ALIGNED);
        let began = GlobalBatch::of(&recipe, 2);
        assert_eq!(batch(&began.go_on(&recipe, 1).unwrap().0), (8, 2));
        assert_eq!(batch(&began.go_on(&recipe, 8).unwrap().0), (1, 2));
        assert!(began.go_on(&recipe, 16).is_err());
    }

    #[test]
    fn a_recipe_that_asks_for_other_rows_is_refused() {
        let mut recipe = recipe("");
        let began = GlobalBatch::of(&recipe, 2);
        recipe.train.gradient_accumulation = 4;
        assert_eq!(batch(&began.go_on(&recipe, 1).unwrap().0), (4, 4));
        let error = began.go_on(&recipe, 2).unwrap_err().to_string();
        assert!(error.contains("32 rows") && error.contains("16 rows"), "{error}");
        // The same rows in another way on as many processes are another recipe.
        (recipe.train.batch_size, recipe.train.gradient_accumulation) = (2, 4);
        assert!(began.go_on(&recipe, 2).is_err());
    }
}
