//! One stage: from an output folder as it stands to a finished run.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::DType;
use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::run_state;
use interlingua_data::cache;
use interlingua_data::prepare::{Prepared, prepare};
use interlingua_data::report::Report;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{AuxiliaryKind, Recipe};

use super::auxiliary::{AuxiliaryLoss, anchor};
use super::checkpoint::{self, RunState};
use super::evaluate::{Evaluator, Heldout, improves};
use super::loss_scale::LossScale;
use super::main_loss::MainLoss;
use super::metrics::{EventRow, Metrics, Row, TrainRow};
use super::plan::DataPlan;
use super::reference::{Reference, check, reference};
use super::selection::Selection;
use super::setup::Base;
use super::step::{Accumulated, Losses, StepData, StepKey, not_finite};
use super::summary::Summary;
use super::{Event, Outcome, Started, StopFlag, memory};
use crate::device::{compiles_into, describe};
use crate::engine::keeping::Keeping;
use crate::error::TrainError;
use crate::export::write_results;
use crate::memory::{peak_bytes_on, working_on};
use crate::models::Model;
use crate::optimizers::adamw::AdamW;
use crate::optimizers::schedule::learning_rate;
use crate::parameters::ParameterId;

/// Everything of a run that has started.
struct Run<'a> {
    recipe: &'a Recipe,
    base: Base,
    tokenizer: Tokenizer,
    data: Prepared,
    plan: DataPlan,
    losses: Losses,
    total_steps: u64,
    selection: Selection,
    trained: Vec<ParameterId>,
    model: Model,
    optimizer: AdamW,
    state: RunState,
    metrics: Metrics,
    /// The step of the last evaluation.
    evaluated: Option<u64>,
    start: Instant,
}

/// Trains one stage, from its last checkpoint where there is one.
pub fn run(recipe: &Recipe, stop: &StopFlag, observe: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
    let saved = check_output(recipe)?;
    let (latest, corrupt) = run_state::latest_valid(&recipe.output)?;
    for corrupt in corrupt {
        let (path, reason) = (corrupt.path.display(), corrupt.reason);
        observe(Event::Note(format!(
            "{path} is damaged ({reason}) and is passed over; the run goes on from the one before"
        )));
    }
    let base = Base::open(recipe)?;
    let tokenizer = base.tokenizer(recipe)?;
    working_on(c"the data");
    let mut progress = |progress| observe(Event::Preparing(progress));
    let mut data = prepare(
        recipe,
        &tokenizer,
        base.config.vocab_size,
        &cache::default_folder(),
        &mut progress,
    )?;
    let plan = DataPlan::of(recipe, base.config.num_hidden_layers, &data)?;
    data.report.notes.extend(plan.notes());
    data.report.notes.extend(check(recipe, &base)?);
    notes_on(&data.report)
        .into_iter()
        .for_each(|note| observe(Event::Note(note)));
    let total_steps = plan.total_steps;
    if let (Some((step, _)), Some(summary)) = (&latest, Summary::read(&recipe.output))
        && summary.finished
        && (*step >= total_steps || summary.stopped_early)
    {
        return Ok(Outcome::AlreadyFinished);
    }

    let planner = memory::planner(recipe, &base, &data)?;
    let memory_plan = planner.plan();
    observe(Event::Planned(Box::new(memory_plan.clone())));
    memory::cap(recipe);
    let selection = Selection::of(recipe)?;
    working_on(c"the weights of the model");
    let mut model = base.load(recipe, &selection, &data)?;
    let trained = selection.all(&model);
    let mut optimizer = AdamW::of(&recipe.optimizer);
    let evaluator = Evaluator::new(recipe, &tokenizer, &base.config)?;
    // Before a checkpoint is put in: the reference is the model as at step 0.
    let keeping = memory::keeping(recipe, &planner);
    let mut losses = losses(recipe, &base, &model, &data, keeping)?;
    let mut state = match &latest {
        Some((step, path)) => {
            observe(Event::Note(format!(
                "going on after step {step}, from {}",
                path.display()
            )));
            checkpoint::restore(path, &mut model, &trained, &mut optimizer)?
        }
        None => RunState::default(),
    };
    if model.dtype == DType::F16 {
        state.loss_scale.get_or_insert_default();
    }

    // From here on files are written.
    if saved.is_none() {
        std::fs::create_dir_all(&recipe.output).map_err(|source| TrainError::io(&recipe.output, source))?;
    }
    run_state::remove_partials(&recipe.output)?;
    write_atomically(&recipe.output.join("recipe.toml"), recipe.to_toml()?.as_bytes())?;
    memory::write(&memory_plan, &recipe.output)?;
    let (metrics, rows) = Metrics::open(&recipe.output, state.step)?;
    let evaluated = rows
        .iter()
        .filter(|row| matches!(row, Row::Eval(_)))
        .map(Row::step)
        .max();
    // The summary of an earlier end no longer holds.
    Summary::remove(&recipe.output)?;
    if recipe.reference.as_ref().is_some_and(|reference| reference.cache) {
        losses.cache_reference(recipe, &data)?;
    }
    let run = Run {
        recipe,
        base,
        tokenizer,
        data,
        plan,
        losses,
        total_steps,
        selection,
        trained,
        model,
        optimizer,
        state,
        metrics,
        evaluated,
        start: Instant::now(),
    };
    run.go(&evaluator, stop, observe).map_err(TrainError::while_running)
}

/// What a person should know about the data before it is trained on: rows that were skipped or dropped, and why.
fn notes_on(report: &Report) -> Vec<String> {
    let skipped = report.sources.iter().flat_map(|source| {
        let name = &source.name;
        source.skipped.values().map(move |skipped| {
            format!(
                "source `{name}`: {} bad rows were skipped; the first one: {}",
                skipped.rows, skipped.first
            )
        })
    });
    let dropped = report
        .dropped()
        .into_iter()
        .map(|((language, reason), rows)| format!("{language}: {rows} rows were dropped: {reason}"));
    report.notes.iter().cloned().chain(skipped).chain(dropped).collect()
}

/// The recipe that the output folder was made with; an error when it is another one.
fn check_output(recipe: &Recipe) -> Result<Option<Recipe>, TrainError> {
    let path = recipe.output.join("recipe.toml");
    if !path.is_file() {
        return Ok(None);
    }
    let saved = Recipe::load(&path, &[])?;
    let conflicts = recipe.resume_conflicts(&saved)?;
    if conflicts.is_empty() {
        return Ok(Some(saved));
    }
    Err(TrainError::Setup(format!(
        "{}: this output folder belongs to a run with other values of {}; choose another `output`, or start anew with \
         --fresh, which moves the folder aside",
        recipe.output.display(),
        conflicts.join(", ")
    )))
}

/// The losses of a recipe, for a model as at step 0.
fn losses(
    recipe: &Recipe,
    base: &Base,
    model: &Model,
    data: &Prepared,
    keeping: Keeping,
) -> Result<Losses, TrainError> {
    let objective = &recipe.objective;
    let frozen = |needed: bool| {
        needed
            .then(|| reference(recipe, base, model))
            .transpose()
            .map(|model| model.map(|model| Reference::Model(Arc::new(model))))
    };
    let reference = frozen(objective.kind.needs_reference())?;
    let keeps_close = objective
        .auxiliary
        .iter()
        .any(|auxiliary| matches!(auxiliary.kind, AuxiliaryKind::WordAlignment | AuxiliaryKind::Lens));
    let initial = keeps_close.then(|| {
        let mut initial = model.clone();
        initial.freeze();
        initial
    });
    Ok(Losses {
        main: MainLoss::of(objective),
        name: objective.kind.name(),
        weight: objective.weight,
        dropout: objective.dropout.unwrap_or(true),
        heldout_reference: reference.clone(),
        reference,
        auxiliary: AuxiliaryLoss::prepare(recipe, model, data)?,
        initial,
        anchor: anchor(recipe),
        keeping,
    })
}

impl Losses {
    /// Asks the reference about every sample once, and lets it go.
    fn cache_reference(&mut self, recipe: &Recipe, data: &Prepared) -> Result<(), TrainError> {
        let Some(reference) = self.reference.take() else {
            return Ok(());
        };
        let heldout = data.heldout.as_ref();
        let heldout = heldout.map(|heldout| reference.cached(recipe, heldout, "heldout"));
        self.heldout_reference = heldout.transpose()?;
        self.reference = Some(reference.cached(recipe, &data.train, "train")?);
        Ok(())
    }
}

impl Run<'_> {
    fn go(
        mut self,
        evaluator: &Evaluator,
        stop: &StopFlag,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainError> {
        observe(Event::Started(self.started()));
        self.compile_kernels(observe)?;
        if self.state.step == 0 {
            self.evaluate(evaluator, observe)?;
        }
        while self.state.step < self.total_steps && !self.state.stopped_early {
            if stop.is_set() {
                self.save(observe)?;
                return Ok(Outcome::Stopped);
            }
            self.step(observe)?;
            let (done, train) = (self.state.step, &self.recipe.train);
            let due = |every: u64| every > 0 && done.is_multiple_of(every);
            if due(train.eval_every) && done < self.total_steps {
                self.evaluate(evaluator, observe)?;
            }
            if due(self.recipe.train.checkpoint_every) && done < self.total_steps {
                self.save(observe)?;
            }
        }
        // A run that early stopping has ended, or that died while it was being finished, has this evaluation already.
        if self.evaluated != Some(self.state.step) {
            self.evaluate(evaluator, observe)?;
        }
        self.save(observe)?;
        // The rows of a long run are many, so they are read back rather than kept.
        let rows = self.metrics.read()?;
        let mut summary = Summary::of_rows(&rows, true, self.state.stopped_early);
        summary.shares = self.plan.shares_of_the_run(&self.data.train);
        let (recipe, base) = (self.recipe, &self.base);
        write_results(recipe, base, &self.model, &self.selection, &summary)?;
        summary.write(&self.recipe.output)?;
        observe(Event::Finished(Box::new(summary)));
        Ok(Outcome::Finished)
    }

    fn started(&self) -> Started {
        let count = |trained: bool| -> u64 {
            let all = self.model.parameters.iter();
            let chosen = all.filter(|(id, _)| !trained || self.trained.contains(id));
            chosen.map(|(_, parameter)| parameter.len() as u64).sum()
        };
        Started {
            step: self.state.step,
            total_steps: self.total_steps,
            trainable_parameters: count(true),
            parameters: count(false),
            samples: (
                self.data.train.len() as u64,
                self.data.heldout.as_ref().map_or(0, |data| data.len() as u64),
            ),
            fill_rate: self.plan.fill_rate(),
            device: describe(&self.model.device, self.model.dtype),
        }
    }

    /// Where a device compiles kernels when they are first used, and has none yet: computes a step whose result nobody looks at.
    fn compile_kernels(&self, observe: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let Some(folder) = compiles_into(&self.model.device).filter(|_| self.state.step < self.total_steps) else {
            return Ok(());
        };
        observe(Event::Note(format!(
            "compiling kernels for this GPU, once: that takes some minutes, and they are kept in {}",
            folder.display()
        )));
        let (start, step) = (Instant::now(), self.state.step);
        let data = self.plan.step(&self.data.train, &self.losses.auxiliary, step);
        let key = StepKey {
            seed: self.recipe.seed,
            step,
        };
        working_on(c"a step that compiles kernels");
        rayon::scope(|_| self.losses.accumulate(&self.model, &self.data.train, &data, key, 1.0))?;
        observe(Event::Note(format!(
            "kernels are ready after {:.0} seconds",
            start.elapsed().as_secs_f64()
        )));
        Ok(())
    }

    fn time(&self) -> f64 {
        self.metrics.time_before + self.start.elapsed().as_secs_f64()
    }

    /// One optimizer step.
    fn step(&mut self, observe: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let start = Instant::now();
        let step = self.state.step;
        self.selection.apply(&mut self.model, step, self.total_steps);
        let data = self.plan.step(&self.data.train, &self.losses.auxiliary, step);
        working_on(c"a training step");
        // On the pool's own threads, so that its many small tasks need not wake this one.
        let loss_scale = self.state.loss_scale.map(|loss_scale| loss_scale.scale);
        let (passed, grad_norm, rate) = rayon::scope(|_| self.compute(&data))?;
        self.state.step += 1;

        let seconds = start.elapsed().as_secs_f64();
        let row = TrainRow {
            step: self.state.step,
            time: self.time(),
            loss: passed.loss,
            losses: passed.losses,
            tokens: passed.tokens,
            tokens_total: passed.tokens_total,
            grad_norm,
            learning_rate: rate,
            tokens_per_second: passed.tokens_total as f64 / seconds,
            step_seconds: seconds,
            memory_bytes: peak_bytes_on(&self.model.device),
            loss_scale,
            skipped_steps: self.state.loss_scale.map(|loss_scale| loss_scale.skipped_steps),
            rewards: passed.rewards,
            shares: self.plan.shares(step),
            by_language: passed.by_language,
        };
        observe(Event::Step(row.clone()));
        self.metrics.write(&Row::Train(row))
    }

    /// Forward and backward passes, clipping and update: the totals, the norm of the gradients before clipping, and the
    /// learning rate. In f16, gradients that overflow change nothing but the loss scale.
    fn compute(&mut self, data: &StepData) -> Result<(Accumulated, f64, f64), TrainError> {
        let (recipe, step) = (self.recipe, self.state.step);
        let key = StepKey {
            seed: recipe.seed,
            step,
        };
        let (scale, skipped) = self
            .state
            .loss_scale
            .map_or((1.0, 0), |loss_scale| (loss_scale.scale, loss_scale.skipped_steps));
        let (model, train) = (&self.model, &self.data.train);
        let mut passed = self.losses.accumulate(model, train, data, key, scale)?;
        passed.gradients.unscale();
        let grad_norm = passed.gradients.norm();
        // The schedule stands still in a skipped step, as in Transformers.
        let rate = learning_rate(
            &recipe.schedule,
            recipe.optimizer.learning_rate,
            step - skipped,
            self.total_steps,
        );
        if !grad_norm.is_finite() {
            if self.state.loss_scale.as_mut().is_some_and(LossScale::back_off) {
                return Ok((passed, f64::NAN, rate));
            }
            return Err(not_finite("gradient", train, &data.main, step));
        }
        if let Some(loss_scale) = &mut self.state.loss_scale {
            loss_scale.keep();
        }
        if recipe.optimizer.max_grad_norm > 0.0 {
            passed.gradients.clip(grad_norm, recipe.optimizer.max_grad_norm);
        }
        self.optimizer.step(&mut self.model.parameters, &passed.gradients, rate);
        Ok((passed, grad_norm, rate))
    }

    fn evaluate(&mut self, evaluator: &Evaluator, observe: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let heldout = self.data.heldout.as_ref().map(|data| Heldout {
            data,
            main: self.losses.main,
            reference: self.losses.heldout_reference.as_ref(),
        });
        let (model, tokenizer, step, time) = (&self.model, &self.tokenizer, self.state.step, self.time());
        working_on(c"an evaluation");
        let rows = rayon::scope(|_| evaluator.run(model, tokenizer, heldout, step, time))?;
        let metric = self.recipe.train.early_stop.metric;
        // The first task that measures the metric decides.
        let value = rows.iter().find_map(|row| row.mean.get(metric.name()).copied());
        for row in rows {
            observe(Event::Evaluated(row.clone()));
            self.metrics.write(&Row::Eval(row))?;
        }
        self.evaluated = Some(step);
        let patience = self.recipe.train.early_stop.patience;
        if let Some(value) = value.filter(|_| patience > 0) {
            if improves(metric, value, self.state.best) {
                self.state.best = Some(value);
                self.state.evaluations_without_improvement = 0;
            } else {
                self.state.evaluations_without_improvement += 1;
            }
            if self.state.evaluations_without_improvement >= patience && !self.state.stopped_early {
                self.state.stopped_early = true;
                let event = format!(
                    "{} has not improved for {patience} evaluations: the run ends early",
                    metric.name()
                );
                observe(Event::Note(event.clone()));
                let (step, time) = (self.state.step, self.time());
                self.metrics.write(&Row::Event(EventRow { step, time, event }))?;
            }
        }
        Ok(())
    }

    fn save(&mut self, observe: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let output: &Path = &self.recipe.output;
        working_on(c"a checkpoint");
        let path = run_state::save(output, self.state.step, |folder| {
            checkpoint::write(folder, &self.model, &self.trained, &self.optimizer, &self.state)
        })?;
        run_state::prune(output, self.recipe.train.keep_checkpoints)?;
        observe(Event::Checkpoint {
            step: self.state.step,
            path,
        });
        Ok(())
    }
}
