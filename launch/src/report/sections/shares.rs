//! Shares of languages and sources: what the recipe asks for, and what the run has.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_data::order::Planned;

use super::{figure, table_of};
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::{Colour, Languages};
use crate::report::dots::{Row, Value, dots};
use crate::report::lines::Line;
use crate::report::page::{Figure, Group, Key, Table};
use crate::report::run::RunFolder;
use crate::report::smoothing::{described, means, windows};
use crate::table::percent;

pub(super) fn groups(run: &RunFolder, colours: &Languages) -> Result<Vec<Group>, Failure> {
    let plan = &run.summary.shares;
    let mut figures = Vec::new();
    for (title, shares) in [
        ("Share of each language in the run", &plan.languages),
        ("Share of each source in the run", &plan.sources),
    ] {
        if shares.len() > 1 {
            figures.push(of_the_run(title, shares)?);
        }
    }
    figures.extend(on_the_way(run, colours)?);
    Ok(super::group(figures.into_iter().map(Some), None))
}

fn of_the_run(title: &str, shares: &BTreeMap<String, Planned>) -> Result<Figure, Failure> {
    let percentage = |share: f64| Value {
        at: 100.0 * share,
        interval: None,
    };
    let rows: Vec<Row> = shares
        .iter()
        .map(|(name, share)| Row {
            name: name.clone(),
            before: share.asked.map(percentage),
            after: Some(percentage(share.reached)),
        })
        .collect();
    let mut keys = vec![Key::new(Colour::Line(0), "dot", "reached")];
    let mut table = Table::new(title, ["name", "asked", "reached", "epochs"]);
    if shares.values().any(|share| share.asked.is_some()) {
        keys.insert(0, Key::new(Colour::Other, "ring", "asked"));
    }
    for (name, share) in shares {
        let epochs = format!("{:.2}", share.epochs);
        table.rows.push(vec![
            name.clone(),
            percent(share.asked),
            percent(Some(share.reached)),
            epochs,
        ]);
    }
    Ok(Figure {
        title: title.to_owned(),
        text: "Over the whole run, in the unit of the mix; in tokens where the recipe asks for no shares.".to_owned(),
        drawings: dots("share (%)", &rows)?,
        keys,
        table: Some(table),
    })
}

/// Asked and reached at each step, where the recipe asks for shares.
fn on_the_way(run: &RunFolder, colours: &Languages) -> Result<Option<Figure>, Failure> {
    let names: BTreeSet<&String> = run.steps.iter().flat_map(|row| row.shares.keys()).collect();
    let sources = names.iter().any(|name| !run.summary.by_language.contains_key(*name));
    let (mut lines, mut all) = (Vec::new(), Vec::new());
    for (index, name) in names.into_iter().enumerate() {
        let colour = if sources {
            Colour::Line(index)
        } else {
            colours.colour(name)
        };
        let of = |share: fn(&interlingua_data::order::Share) -> f64| {
            means(&windows(&run.steps, |row| {
                Some((100.0 * share(row.shares.get(name)?), 1.0))
            }))
        };
        let (asked, reached) = (of(|share| share.asked), of(|share| share.reached));
        all.push(Line::new(format!("{name} asked"), colour, asked.clone()));
        all.push(Line::new(format!("{name} reached"), colour, reached.clone()));
        lines.push(Line::new(name, colour, reached));
        if colour != Colour::Other {
            lines.push(Line::new(name, colour, asked).dashed());
        }
    }
    let title = "Shares asked and reached so far";
    let table = table_of(format!("{title}, in %"), "step", &all);
    let text = format!(
        "Reached: what was drawn since the beginning of the phase of the schedule. {}",
        described(&run.steps, None)
    );
    let drawn = figure(title, text, Axes::steps("share (%)"), &lines, &Vec::new(), Some(table))?;
    Ok(drawn.map(|figure| Figure {
        keys: Key::of_lines(&lines, Some(("reached", "asked"))),
        ..figure
    }))
}
