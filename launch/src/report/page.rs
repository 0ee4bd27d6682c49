//! The page: what sections are made of, and the template that they are put into.

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use serde::Serialize;

use super::chart::Drawing;
use super::colours::{self, Colour, Shade};
use super::lines::Line;
use crate::exit::Failure;

/// The whole page.
#[derive(Serialize)]
pub(super) struct Page {
    /// The name of the output folder.
    pub(super) title: String,
    /// A run, or one for each stage of a pipeline.
    pub(super) parts: Vec<Part>,
}

/// What the template sees.
#[derive(Serialize)]
struct Context<'a> {
    page: &'a Page,
    colours: Vec<Shade>,
}

/// One run.
#[derive(Serialize)]
pub(super) struct Part {
    /// The name of the stage, of a pipeline.
    pub(super) stage: Option<String>,
    /// What there is to know in short: name and value.
    pub(super) facts: Vec<(&'static str, String)>,
    /// A sentence about the colours of languages.
    pub(super) colours: Option<String>,
    /// What happened on the way; none where nothing did.
    pub(super) events: Option<Table>,
    /// The sections that have something to show.
    pub(super) sections: Vec<Section>,
}

/// A section of a run.
#[derive(Serialize)]
pub(super) struct Section {
    /// A word for links.
    pub(super) id: &'static str,
    /// Its heading.
    pub(super) title: &'static str,
    /// What it holds.
    pub(super) groups: Vec<Group>,
}

/// Charts and a table that belong together.
#[derive(Default, Serialize)]
pub(super) struct Group {
    /// What they are of, where a section has several groups.
    pub(super) title: Option<String>,
    /// Sentences.
    pub(super) text: Vec<String>,
    /// The charts.
    pub(super) figures: Vec<Figure>,
    /// The numbers of all charts.
    pub(super) table: Option<Table>,
}

/// A chart, or several with the same axes.
#[derive(Serialize)]
pub(super) struct Figure {
    /// What it shows.
    pub(super) title: String,
    /// How to read it.
    pub(super) text: String,
    /// Its drawings.
    pub(super) drawings: Vec<Drawing>,
    /// What its lines and marks are.
    pub(super) keys: Vec<Key>,
    /// Its numbers, where they do not stand in the table of the group.
    pub(super) table: Option<Table>,
}

/// A line or mark and what it is.
#[derive(Serialize)]
pub(super) struct Key {
    /// The name of its colour.
    colour: &'static str,
    /// "line", "dashed", "ring", "dot" or "band".
    mark: &'static str,
    /// What it is.
    name: String,
}

/// A table; the first column names the row.
#[derive(Serialize)]
pub(super) struct Table {
    /// What it shows.
    pub(super) title: String,
    /// The names of its columns.
    pub(super) head: Vec<String>,
    /// As many cells as the head has.
    pub(super) rows: Vec<Vec<String>>,
    /// Whether its cells are sentences.
    pub(super) prose: bool,
}

impl Table {
    /// A table without rows.
    pub(super) fn new<T: Into<String>>(title: impl Into<String>, head: impl IntoIterator<Item = T>) -> Self {
        Self {
            title: title.into(),
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
            prose: false,
        }
    }
}

impl Key {
    /// A key for a mark of a colour.
    pub(super) fn new(colour: Colour, mark: &'static str, name: impl Into<String>) -> Self {
        Self {
            colour: colour.name(),
            mark,
            name: name.into(),
        }
    }

    /// The keys of lines: one for each solid one that has a colour, and one for all that have none. `strokes`: what solid and
    /// dashed lines are, where there are both.
    pub(super) fn of_lines(lines: &[Line], strokes: Option<(&str, &str)>) -> Vec<Self> {
        let mut keys = Vec::new();
        if let Some((solid, dashed)) = strokes.filter(|_| lines.iter().any(|line| line.dashed)) {
            keys.push(Self::new(Colour::Axis, "line", solid));
            keys.push(Self::new(Colour::Axis, "dashed", dashed));
        }
        let (grey, coloured): (Vec<&Line>, Vec<&Line>) = lines
            .iter()
            .filter(|line| !line.dashed)
            .partition(|line| line.colour == Colour::Other);
        keys.extend(
            coloured
                .into_iter()
                .map(|line| Self::new(line.colour, "line", &line.name)),
        );
        keys.extend(grey.first().map(|_| Self::new(Colour::Other, "line", "others")));
        keys
    }
}

impl Page {
    /// The page as HTML. All text is escaped by the template engine but the drawings, whose text the drawing library escapes.
    ///
    /// # Errors
    /// Never: the template is part of the program.
    pub(super) fn render(&self) -> Result<String, Failure> {
        let mut environment = Environment::new();
        let rendered = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map(|syntax| environment.set_syntax(syntax))
            .and_then(|()| environment.add_template("page.html", include_str!("page.html")))
            .and_then(|()| environment.get_template("page.html"))
            .and_then(|template| {
                template.render(Serde(Context {
                    page: self,
                    colours: colours::shades(),
                }))
            });
        rendered.map_err(|error| Failure::running(format!("The report could not be put together: {error:#}.")))
    }
}
