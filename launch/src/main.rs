//! `interlingua`: the command line. `cli.rs` says what there is to type, `commands/` has one file for each command, and
//! the other files are what commands share: exit codes, standard output, logging, tables, progress, signals.

mod answers;
mod cli;
mod commands;
mod distributed;
mod exit;
mod grid;
mod inspect;
mod launcher;
mod layers;
mod learnt;
mod logging;
mod machine;
mod model;
mod output;
mod plan;
mod preparation;
mod progress;
mod recipe;
mod report;
mod scaling;
mod scores;
mod signals;
mod style;
mod table;
mod tokenizer_training;
mod watch;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::Parser;

use interlingua_trainer::memory::{CountingAllocator, keep_freed_blocks};

use crate::exit::{Exit, Failure};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    keep_freed_blocks();
    let cli = cli::Cli::parse_from(cli::arguments(std::env::args_os()));
    logging::start(cli.global.quiet, cli.global.verbose);
    logging::catch_panics(cli.global.verbose > 0);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| commands::run(&cli))).unwrap_or_else(|_| {
        Err(Failure {
            exit: Exit::Failed,
            message: logging::panic_message(),
        })
    });
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                logging::error(&failure.message);
            }
            failure.exit.into()
        }
    }
}
