//! Learning rate and gradient norm.

use super::{band, figure, group, table_of};
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::Colour;
use crate::report::lines::Line;
use crate::report::page::Group;
use crate::report::run::RunFolder;
use crate::report::smoothing::{described, means, windows};

pub(super) fn groups(run: &RunFolder) -> Result<Vec<Group>, Failure> {
    let rate = windows(&run.steps, |row| Some((row.learning_rate, 1.0)));
    let norm = windows(&run.steps, |row| Some((row.grad_norm, 1.0)));
    let text = described(&run.steps, None);
    let one = |title: &str, axes: Axes, text: String, windows| {
        let lines = [Line::new(axes.y, Colour::All, means(windows))];
        let table = table_of(title, "step", &lines);
        figure(title, text, axes, &lines, &band(windows), Some(table))
    };
    let before = format!("Global l2 norm, before clipping. {text}");
    let figures = [
        one("Learning rate", Axes::steps("learning rate"), text, &rate)?,
        one(
            "Norm of the gradients",
            Axes::steps("gradient norm").or_log(),
            before,
            &norm,
        )?,
    ];
    Ok(group(figures, None))
}
