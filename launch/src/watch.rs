//! What a person sees of a run while it goes on: a bar on a terminal, lines elsewhere; and its answers, before and after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar};
use interlingua_trainer::plan::Plan;
use interlingua_trainer::train::metrics::{EvalRow, Example, TrainRow};
use interlingua_trainer::train::summary::Summary;
use interlingua_trainer::train::{Event, Started};

use crate::cli::Global;
use crate::progress::{self, Preparation};
use crate::{answers, learnt, logging, plan, table};

/// How many answers are shown.
const EXAMPLES: usize = 4;

/// Follows one run.
pub(crate) struct Watch<'a> {
    global: &'a Global,
    /// Put before each line, such as the name of a sweep's point.
    label: String,
    log_every: u64,
    bar: Option<ProgressBar>,
    total_steps: u64,
    first_step: u64,
    started: Instant,
    /// By task: the first and the last evaluation of this process.
    evaluations: BTreeMap<String, (EvalRow, EvalRow)>,
    preparation: Preparation<'a>,
    /// What the run was planned to take.
    plan: Option<Plan>,
}

impl<'a> Watch<'a> {
    /// Nothing is drawn before the run has started.
    pub(crate) fn new(global: &'a Global, label: &str, log_every: u64) -> Self {
        Self {
            global,
            label: if label.is_empty() {
                String::new()
            } else {
                format!("{label}: ")
            },
            log_every: log_every.max(1),
            bar: None,
            total_steps: 0,
            first_step: 0,
            started: Instant::now(),
            evaluations: BTreeMap::new(),
            preparation: Preparation::new(global),
            plan: None,
        }
    }

    /// Takes in one event of the run.
    pub(crate) fn observe(&mut self, event: Event) {
        match event {
            Event::Preparing(progress) => self.preparation.observe(&progress),
            Event::Stage { name, number, count } => self.stage(&name, number, count),
            Event::Planned(plan) => self.planned(*plan),
            Event::Started(started) => self.start(&started),
            Event::Step(row) => self.step(&row),
            Event::Evaluated(row) => self.evaluated(row),
            Event::Note(text) => tracing::info!("{}{text}", self.label),
            Event::Checkpoint { step, path } => tracing::info!("{}step {step}: saved {}", self.label, path.display()),
            Event::Finished(summary) => self.finished(&summary),
        }
    }

    fn planned(&mut self, plan: Plan) {
        let (headline, table) = (plan::headline(&plan), plan::table(&plan).render());
        // The log writes colours out as they are spelt.
        let table = anstream::adapter::strip_str(&table);
        tracing::info!("{}{headline}\n{table}", self.label);
        self.plan = Some(plan);
    }

    /// What the run took, beside what was planned.
    fn finished(&mut self, summary: &Summary) {
        let measured = self
            .plan
            .as_ref()
            .and_then(|plan| plan::measured(plan, summary.peak_memory_bytes));
        if let Some(measured) = measured {
            self.finish();
            tracing::info!("{}{measured}", self.label);
        }
    }

    /// A stage of a pipeline starts with nothing measured.
    fn stage(&mut self, name: &str, number: usize, count: usize) {
        self.finish();
        self.label = format!("{name}: ");
        self.evaluations.clear();
        tracing::info!("stage {number} of {count}: {name}");
    }

    fn start(&mut self, started: &Started) {
        self.finish();
        (self.total_steps, self.first_step, self.started) = (started.total_steps, started.step, Instant::now());
        tracing::info!(
            "{}training {} of {} parameters on {}: {}, {} samples, {} held out, rows {} full",
            self.label,
            table::count(started.trainable_parameters),
            table::count(started.parameters),
            started.device,
            match started.total_steps {
                0 => "no steps".to_owned(),
                total => format!("steps {} to {total}", started.step + 1),
            },
            table::count(started.samples.0),
            table::count(started.samples.1),
            table::percent(Some(started.fill_rate)),
        );
        if progress::wanted(self.global) {
            let bar = progress::bar(
                self.global,
                started.total_steps,
                "{prefix}{bar:24} {pos}/{len}  {msg}  {eta} left",
            );
            bar.set_prefix(self.label.clone());
            bar.set_position(started.step);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, row: &TrainRow) {
        // What came before the first step, such as an evaluation, says nothing of the time that steps take.
        let is_first = row.step == self.first_step + 1;
        if is_first {
            self.started = Instant::now() - Duration::from_secs_f64(row.step_seconds.max(0.0));
        }
        let speed = format!(
            "loss {:.4}{}  {} tokens/s",
            row.loss,
            parts(row),
            table::count(row.tokens_per_second.round() as u64)
        );
        if let Some(bar) = &self.bar {
            let end = if row.step == self.total_steps {
                "  evaluating and saving"
            } else {
                ""
            };
            bar.set_message(format!("{speed}{end}"));
            bar.set_position(row.step);
            if is_first {
                bar.reset_eta();
            }
        } else if row.step.is_multiple_of(self.log_every) || row.step == self.total_steps {
            let done = row.step.saturating_sub(self.first_step).max(1);
            let left = self
                .started
                .elapsed()
                .mul_f64(self.total_steps.saturating_sub(row.step) as f64 / done as f64);
            tracing::info!(
                "{}step {}/{}  {speed}  {} left",
                self.label,
                row.step,
                self.total_steps,
                HumanDuration(left)
            );
        }
    }

    fn evaluated(&mut self, row: EvalRow) {
        let means: Vec<String> = learnt::METRICS
            .iter()
            .filter_map(|metric| Some(format!("{} {:.4}", metric.replace('_', " "), row.mean.get(*metric)?)))
            .collect();
        tracing::info!("{}step {}: {}  {}", self.label, row.step, row.task, means.join("  "));
        match self.evaluations.get_mut(&row.task) {
            Some((_, last)) => *last = row,
            None => {
                self.evaluations.insert(row.task.clone(), (row.clone(), row));
            }
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        self.preparation.finish();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            logging::bars().remove(&bar);
        }
    }

    /// A few prompts with the answers before and after, languages taking turns.
    pub(crate) fn examples(&self) -> Vec<String> {
        let pairs = self.evaluations.values().flat_map(|(first, last)| {
            let before = |example: &Example| {
                let same = |other: &&Example| other.prompt == example.prompt && other.language == example.language;
                first
                    .examples
                    .iter()
                    .find(same)
                    .filter(|_| first.step != last.step)
                    .map(|other| other.answer.clone())
            };
            last.examples.iter().map(move |example| (before(example), example))
        });
        let mut seen = BTreeMap::<&str, usize>::new();
        let mut turns: Vec<_> = pairs
            .map(|(before, example)| {
                let turn = seen.entry(&example.language).or_default();
                *turn += 1;
                (*turn, before, example)
            })
            .collect();
        turns.sort_by_key(|(turn, ..)| *turn);
        turns
            .into_iter()
            .take(EXAMPLES)
            .map(|(_, before, example)| answers::render(before.as_deref(), example))
            .collect()
    }
}

/// What a step's loss is made of, where that is more than one, and how preferences stand.
fn parts(row: &TrainRow) -> String {
    let mut text = String::new();
    if row.losses.len() > 1 {
        let losses: Vec<String> = row
            .losses
            .iter()
            .map(|(name, loss)| format!("{name} {loss:.4}"))
            .collect();
        text.push_str(&format!(" ({})", losses.join(", ")));
    }
    if let Some(rewards) = &row.rewards {
        let numbers = [("margin", rewards.margin), ("accuracy", rewards.accuracy)];
        for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
            text.push_str(&format!("  {name} {number:.3}"));
        }
    }
    text
}
