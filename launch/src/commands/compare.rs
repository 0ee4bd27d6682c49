//! `interlingua compare A B`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;
use interlingua_trainer::evaluate::{Compared, Comparison, Judged, WinRate, win_rates};
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output;
use crate::table::Table;

/// Compares the answers of two models to the same items, as `eval --save-answers` keeps them: the difference of each metric by
/// language, its 95 % interval, and how likely chance alone gives it.
#[derive(Args)]
#[command(after_help = "Example: interlingua compare answers/base answers/tuned\n\n\
    For people or models to judge: interlingua compare A B --side-by-side pairs.jsonl writes each pair of texts in both orders.\n\
    Give each row a \"judgment\", \"first\", \"second\" or \"tie\", and: interlingua compare --judgments pairs.jsonl")]
pub(crate) struct Arguments {
    /// The answers of the first model: a folder
    #[arg(value_name = "A", required_unless_present = "judgments", requires = "second")]
    first: Option<PathBuf>,
    /// The answers of the second model: a folder
    #[arg(value_name = "B")]
    second: Option<PathBuf>,
    /// Also write the texts of both to this file, each pair in both orders
    #[arg(long, value_name = "FILE")]
    side_by_side: Option<PathBuf>,
    /// Win rates of B out of a file of pairs that have been judged
    #[arg(long, value_name = "FILE", conflicts_with_all = ["first", "side_by_side"])]
    judgments: Option<PathBuf>,
}

/// Compares, and prints a table.
///
/// # Errors
/// With exit code 2 when answers are missing, damaged or of other items.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    if let Some(file) = &arguments.judgments {
        let rates = win_rates(&judged(file)?);
        if global.json {
            output::json(&json!({ "win_rates": rates }))?;
        } else {
            output::line(table_of_rates(&rates).render())?;
        }
        return Ok(Exit::Done);
    }
    let (Some(first), Some(second)) = (&arguments.first, &arguments.second) else {
        return Err(Failure::usage("Name two folders of answers: interlingua compare A B."));
    };
    let compared = Compared::open(first, second)?;
    if let Some(file) = &arguments.side_by_side {
        write_pairs(&compared, file)?;
    }
    for task in compared.left_out() {
        tracing::warn!("the task {task} has no items to compare: see its numbers in both evaluations");
    }
    let comparisons = compared.comparisons();
    if global.json {
        output::json(&json!({ "first": first, "second": second, "comparisons": comparisons }))?;
    } else {
        output::line(table(&comparisons).render())?;
        output::line("Difference is B minus A, with its 95 % interval; p: how often chance alone gives one as large.")?;
    }
    Ok(Exit::Done)
}

fn write_pairs(compared: &Compared, file: &Path) -> Result<(), Failure> {
    let rows = compared.side_by_side();
    if rows.is_empty() {
        return Err(Failure::usage(
            "The answers have no texts to put side by side: they are not of a task of kind \"generate\".",
        ));
    }
    let mut text = String::new();
    for row in &rows {
        text.push_str(&json!(row).to_string());
        text.push('\n');
    }
    std::fs::write(file, text).map_err(|error| Failure::running(format!("{}: {error}.", file.display())))
}

fn judged(file: &Path) -> Result<Vec<Judged>, Failure> {
    let unreadable = |error: std::io::Error| Failure::usage(format!("{}: {error}.", file.display()));
    let lines = BufReader::new(File::open(file).map_err(unreadable)?).lines();
    let mut judged = Vec::new();
    for (index, line) in lines.enumerate() {
        let row = serde_json::from_str(&line.map_err(unreadable)?).map_err(|error| {
            Failure::usage(format!(
                "{}:{}: this is no judged pair: {error}. Give each row that --side-by-side wrote a \"judgment\": \"first\", \
                 \"second\" or \"tie\".",
                file.display(),
                index + 1
            ))
        })?;
        judged.push(row);
    }
    Ok(judged)
}

fn table(comparisons: &[Comparison]) -> Table {
    let headers = [
        "task",
        "language",
        "metric",
        "items",
        "A",
        "B",
        "difference",
        "95 % interval",
        "p",
    ];
    let mut table = Table::new(headers.map(str::to_owned));
    for row in comparisons {
        table.row([
            row.task.clone(),
            row.language.clone(),
            row.metric.replace('_', " "),
            row.items.to_string(),
            format!("{:.4}", row.first),
            format!("{:.4}", row.second),
            format!("{:+.4}", row.difference),
            format!("{:+.4} to {:+.4}", row.interval[0], row.interval[1]),
            format!("{:.3}", row.p_value),
        ]);
    }
    table
}

fn table_of_rates(rates: &[WinRate]) -> Table {
    let mut table = Table::new(["task", "language", "items", "win rate of B", "95 % interval"].map(str::to_owned));
    for rate in rates {
        let interval = rate
            .interval
            .map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.3} to {high:.3}"));
        table.row([
            rate.task.clone(),
            rate.language.clone(),
            rate.items.to_string(),
            format!("{:.3}", rate.win_rate),
            interval,
        ]);
    }
    table
}
