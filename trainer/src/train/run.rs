//! One stage: from an output folder as it stands to a finished run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::DType;
use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::run_state;
use interlingua_data::cache;
use interlingua_data::prepare::{Prepared, prepare};
use interlingua_data::report::Report;
use interlingua_recipes::{AdapterKind, AuxiliaryKind, Recipe};

use super::auxiliary::{AuxiliaryLoss, anchor};
use super::checkpoint::{self, RunState};
use super::global_batch::GlobalBatch;
use super::loss_scale::LossScale;
use super::main_loss::MainLoss;
use super::metrics::{EventRow, Metrics, Row, TrainRow};
use super::plan::DataPlan;
use super::ranks::{self, Deal, agree};
use super::reference::{Reference, check, reference};
use super::selection::Selection;
use super::setup::Base;
use super::step::{Accumulated, Losses, StepData, StepKey, not_finite};
use super::summary::Summary;
use super::update::Update;
use super::{Event, Outcome, Started, StopFlag, memory};
use crate::collectives::Collectives;
use crate::device::{compiles_into, describe};
use crate::engine::keeping::Keeping;
use crate::error::TrainError;
use crate::evaluate::{Answers, Evaluator, Heldout, Subject, answers_of_step, improves, remove_answers_after};
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
    data: Prepared,
    plan: DataPlan,
    losses: Losses,
    total_steps: u64,
    selection: Selection,
    trained: Vec<ParameterId>,
    model: Model,
    optimizer: AdamW,
    update: Update,
    collectives: &'a Arc<dyn Collectives>,
    /// Whether passes of the model need all processes.
    together: bool,
    state: RunState,
    /// The first process's.
    metrics: Option<Metrics>,
    /// The step of the last evaluation.
    evaluated: Option<u64>,
    start: Instant,
}

/// Trains one stage, from its last checkpoint where there is one.
pub fn run(
    recipe: &Recipe,
    collectives: &Arc<dyn Collectives>,
    stop: &StopFlag,
    observe: &mut dyn FnMut(Event),
) -> Result<Outcome, TrainError> {
    let (rank, world) = (collectives.rank(), collectives.world_size());
    let latest = latest(recipe, &**collectives, observe)?;
    let batch = match &latest {
        Some((_, path)) => checkpoint::global_batch(path)?,
        None => GlobalBatch::of(recipe, world),
    };
    let is_resumed = check_output(recipe, latest.is_some() && batch.is_known())?;
    let asked = recipe;
    let (recipe, note) = &batch.go_on(recipe, world)?;
    note.iter().for_each(|note| observe(Event::Note(note.clone())));
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
    let plan = DataPlan::of(recipe, base.config.num_hidden_layers, &data, (rank, world))?;
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

    let planner = memory::planner(recipe, &base, &data, &**collectives)?;
    if world > 1 && recipe.adapter.kind == AdapterKind::None {
        observe(Event::Note(
            "nothing is sent while something is computed: gradients are added up behind the backward pass, and under zero3 weights \
             come together block by block"
                .into(),
        ));
    }
    let memory_plan = planner.plan();
    observe(Event::Planned(Box::new(memory_plan.clone())));
    memory::cap(recipe);
    let selection = Selection::of(recipe)?;
    working_on(c"the weights of the model");
    let mut model = base.load(recipe, &selection, &data, collectives)?;
    let trained = selection.all(&model);
    let together = model.is_spread();
    let mut optimizer = AdamW::of(&recipe.optimizer);
    let evaluator = Evaluator::new(recipe, &tokenizer, &base.config)?;
    // Before a checkpoint is put in: the reference is the model as at step 0.
    let keeping = memory::keeping(recipe, &planner);
    let mut losses = losses(recipe, &base, &model, &data, keeping, collectives)?;
    let update = Update::new(recipe.distributed.strategy, collectives.clone());
    let mut state = match &latest {
        Some((step, path)) => {
            observe(Event::Note(format!(
                "going on after step {step}, from {}",
                path.display()
            )));
            checkpoint::restore(path, &mut model, &trained, &mut optimizer, update.own_piece())?
        }
        None => RunState {
            batch,
            ..RunState::default()
        },
    };
    if model.dtype == DType::F16 {
        state.loss_scale.get_or_insert_default();
    }

    // From here on files are written, by the first process.
    let mut metrics = None;
    let mut evaluated = None;
    if rank == 0 {
        if !is_resumed {
            std::fs::create_dir_all(&recipe.output).map_err(|source| TrainError::io(&recipe.output, source))?;
        }
        run_state::remove_partials(&recipe.output)?;
        // As it was asked for: what is adapted to the number of processes is adapted anew at each start.
        write_atomically(&recipe.output.join("recipe.toml"), asked.to_toml()?.as_bytes())?;
        memory::write(&memory_plan, &recipe.output)?;
        let (opened, rows) = Metrics::open(&recipe.output, state.step)?;
        let evaluations = rows.iter().filter(|row| matches!(row, Row::Eval(_)));
        evaluated = evaluations.map(Row::step).max();
        remove_answers_after(&recipe.output, evaluated)?;
        metrics = Some(opened);
        // The summary of an earlier end no longer holds.
        Summary::remove(&recipe.output)?;
    }
    let evaluated = agree(&**collectives, evaluated);
    if !recipe.output.is_dir() {
        let problem = format!(
            "{}: the first process has made this output folder, and this one does not see it; all hosts of a run need a file system \
             that they share for its output",
            recipe.output.display()
        );
        if update.is_cut() {
            return Err(TrainError::Setup(problem));
        }
        observe(Event::Note(problem));
    }
    if recipe.reference.as_ref().is_some_and(|reference| reference.cache) {
        losses.cache_reference(recipe, &data, Deal::new(&**collectives, together))?;
    }
    let run = Run {
        recipe,
        base,
        data,
        plan,
        losses,
        total_steps,
        selection,
        trained,
        model,
        optimizer,
        update,
        collectives,
        together,
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

/// The checkpoint to go on from, as the first process finds it, by its step.
fn latest(
    recipe: &Recipe,
    collectives: &dyn Collectives,
    observe: &mut dyn FnMut(Event),
) -> Result<Option<(u64, PathBuf)>, TrainError> {
    if collectives.rank() == 0 {
        let (latest, corrupt) = run_state::latest_valid(&recipe.output)?;
        for corrupt in corrupt {
            let (path, reason) = (corrupt.path.display(), corrupt.reason);
            observe(Event::Note(format!(
                "{path} is damaged ({reason}) and is passed over; the run goes on from the one before"
            )));
        }
        agree(collectives, latest.as_ref().map(|(step, _)| *step));
        return Ok(latest);
    }
    let Some(step) = agree(collectives, None) else {
        return Ok(None);
    };
    let path = run_state::checkpoint(&recipe.output, step);
    if !path.is_dir() {
        return Err(TrainError::Setup(format!(
            "the run goes on from {}, which this process does not see; all hosts of a run need a file system that they share for its \
             output",
            path.display()
        )));
    }
    Ok(Some((step, path)))
}

/// Whether the output folder belongs to this recipe already; an error when it belongs to another one. `dealt`: the keys that say
/// how a step's rows are dealt are compared elsewhere.
fn check_output(recipe: &Recipe, dealt: bool) -> Result<bool, TrainError> {
    let path = recipe.output.join("recipe.toml");
    if !path.is_file() {
        return Ok(false);
    }
    let saved = Recipe::load(&path, &[])?;
    let mut conflicts = recipe.resume_conflicts(&saved)?;
    conflicts.retain(|key| !(dealt && ["train.batch_size", "train.gradient_accumulation"].contains(&key.as_str())));
    if conflicts.is_empty() {
        return Ok(true);
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
    collectives: &Arc<dyn Collectives>,
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
        auxiliary: AuxiliaryLoss::prepare(recipe, model, data, collectives.world_size())?,
        initial,
        anchor: anchor(recipe),
        keeping,
        collectives: collectives.clone(),
    })
}

impl Losses {
    /// Asks the reference about every sample once, and lets it go.
    fn cache_reference(&mut self, recipe: &Recipe, data: &Prepared, deal: Deal) -> Result<(), TrainError> {
        let Some(reference) = self.reference.take() else {
            return Ok(());
        };
        let heldout = data.heldout.as_ref();
        let heldout = heldout.map(|heldout| reference.cached(recipe, heldout, "heldout", deal));
        self.heldout_reference = heldout.transpose()?;
        self.reference = Some(reference.cached(recipe, &data.train, "train", deal)?);
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
            // A signal may have reached some of the processes only.
            let asked = ranks::numbers(&**self.collectives, u64::from(stop.is_set()));
            if asked.into_iter().any(|asked| asked > 0) {
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
        if self.together
            && self
                .selection
                .all(&self.model)
                .iter()
                .any(|id| self.model.parameters.spread(*id).is_some())
        {
            self.model.put_together(self.metrics.is_some());
        }
        if let Some(metrics) = &self.metrics {
            // The rows of a long run are many, so they are read back rather than kept.
            let rows = metrics.read()?;
            let mut summary = Summary::of_rows(&rows, true, self.state.stopped_early);
            summary.shares = self.plan.shares_of_the_run(&self.data.train);
            let (recipe, base) = (self.recipe, &self.base);
            write_results(recipe, base, &self.model, &self.selection, &summary)?;
            summary.write(&self.recipe.output)?;
            observe(Event::Finished(Box::new(summary)));
        }
        // What follows reads the results.
        self.collectives.barrier();
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
        let folder = compiles_into(&self.model.device).filter(|_| self.state.step < self.total_steps);
        // What one of the processes computes needs all of them.
        let compile = ranks::numbers(&**self.collectives, u64::from(folder.is_some()));
        if !compile.contains(&1) {
            return Ok(());
        }
        if let Some(folder) = folder {
            observe(Event::Note(format!(
                "compiling kernels for this GPU, once: that takes some minutes, and they are kept in {}",
                folder.display()
            )));
        }
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
        self.metrics.as_ref().map_or(0.0, |metrics| metrics.time_before) + self.start.elapsed().as_secs_f64()
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

        let peak = ranks::numbers(&**self.collectives, peak_bytes_on(&self.model.device));
        let peak = peak.into_iter().max().unwrap_or(0);
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
            memory_bytes: peak,
            loss_scale,
            skipped_steps: self.state.loss_scale.map(|loss_scale| loss_scale.skipped_steps),
            rewards: passed.rewards,
            shares: self.plan.shares(step),
            by_language: passed.by_language,
        };
        observe(Event::Step(row.clone()));
        self.write(&Row::Train(row))
    }

    /// Appends a row to the metrics, on the first process.
    fn write(&mut self, row: &Row) -> Result<(), TrainError> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(row))
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
        let gradients = std::mem::take(&mut passed.gradients);
        let mut reduced = self.update.reduce(&model.parameters, gradients);
        let grad_norm = self.update.norm(&reduced);
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
            return Err(not_finite("gradient", train, &data.own.main, step));
        }
        if let Some(loss_scale) = &mut self.state.loss_scale {
            loss_scale.keep();
        }
        if recipe.optimizer.max_grad_norm > 0.0 {
            reduced.gradients.clip(grad_norm, recipe.optimizer.max_grad_norm);
        }
        let parameters = &mut self.model.parameters;
        self.update.step(&mut self.optimizer, parameters, &reduced, rate);
        Ok((passed, grad_norm, rate))
    }

    fn evaluate(&mut self, evaluator: &Evaluator, observe: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let heldout = self.data.heldout.as_ref().map(|data| Heldout {
            data,
            main: self.losses.main,
            reference: self.losses.heldout_reference.as_ref(),
        });
        let (step, time) = (self.state.step, self.time());
        let kept = self.recipe.eval.save_answers.then(|| Answers {
            folder: answers_of_step(&self.recipe.output, step),
            model: Some(format!("step {step}")),
        });
        let subject = Subject {
            model: Some(&self.model),
            at: (step, time),
            answers: kept.as_ref(),
        };
        let deal = Deal::new(&**self.collectives, self.together);
        working_on(c"an evaluation");
        let rows = rayon::scope(|_| evaluator.run(subject, heldout, deal))?;
        let metric = self.recipe.train.early_stop.metric;
        // The first task that measures the metric decides.
        let value = rows.iter().find_map(|row| row.value_of(metric));
        for row in rows {
            observe(Event::Evaluated(row.clone()));
            self.write(&Row::Eval(row))?;
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
                self.write(&Row::Event(EventRow { step, time, event }))?;
            }
        }
        Ok(())
    }

    /// Saves a checkpoint: the first process what is the same on all of them, and each what it alone has.
    fn save(&mut self, observe: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let output: &Path = &self.recipe.output;
        let (collectives, step) = (&**self.collectives, self.state.step);
        working_on(c"a checkpoint");
        let write = |folder: &Path| {
            let run = (&self.model, &self.trained[..], &self.optimizer);
            checkpoint::write(folder, run, &self.state, self.update.own_piece())
        };
        if collectives.rank() == 0 {
            let path = run_state::save(output, step, |folder| {
                // The folder is there; and then, all have written into it.
                collectives.barrier();
                write(folder)?;
                collectives.barrier();
                Ok::<_, TrainError>(())
            })?;
            run_state::prune(output, self.recipe.train.keep_checkpoints)?;
            observe(Event::Checkpoint { step, path });
        } else {
            collectives.barrier();
            if self.update.is_cut() {
                write(&run_state::partial(output, step))?;
            }
            collectives.barrier();
        }
        collectives.barrier();
        Ok(())
    }
}
