//! Colours of the page, for light and dark. A chart is written with the light ones in its attributes; the style sheet puts a
//! variable in the place of each, which has another value where dark is preferred.
//!
//! The colours of lines follow Okabe and Ito's palette (2008), without its yellow and with the shades changed so that each has
//! a contrast of 3 : 1 or more with both backgrounds.

use std::collections::BTreeMap;

use plotters::style::RGBColor;
use serde::Serialize;

use super::run::RunFolder;

/// What something is drawn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Colour {
    /// Lines in the background.
    Other,
    /// One of the colours for single lines, below [`LINES`].
    Line(usize),
    /// What stands for all: a mean, a total.
    All,
    /// Axes.
    Axis,
    /// The grid.
    Grid,
    /// Text.
    Text,
}

/// How many lines can be told apart by colour.
pub(super) const LINES: usize = 6;

/// Name in the style sheet, and what it is on a light and on a dark page.
const COLOURS: [(&str, u32, u32); LINES + 5] = [
    ("line-0", 0x00_72B2, 0x4D_A6E0),
    ("line-1", 0xC8_5200, 0xF2_8A4B),
    ("line-2", 0x00_8A65, 0x2F_BF94),
    ("line-3", 0xA8_4F86, 0xE0_97C4),
    ("line-4", 0x8F_6A00, 0xE3_B341),
    ("line-5", 0x3F_8FC4, 0x9F_D8F7),
    ("other", 0x8C_8C8C, 0x7C_7C7C),
    ("all", 0x1A_1A1A, 0xEC_ECEC),
    ("axis", 0x76_7676, 0x8E_8E8E),
    ("grid", 0xDE_DEDE, 0x33_3333),
    ("label", 0x40_4040, 0xC8_C8C8),
];

impl Colour {
    fn entry(self) -> (&'static str, u32, u32) {
        COLOURS[match self {
            Self::Line(index) => index % LINES,
            Self::Other => LINES,
            Self::All => LINES + 1,
            Self::Axis => LINES + 2,
            Self::Grid => LINES + 3,
            Self::Text => LINES + 4,
        }]
    }

    /// Its name in the style sheet.
    pub(super) fn name(self) -> &'static str {
        self.entry().0
    }

    /// What is written into a chart.
    pub(super) fn rgb(self) -> RGBColor {
        let [_, red, green, blue] = self.entry().1.to_be_bytes();
        RGBColor(red, green, blue)
    }
}

/// A colour as the style sheet has it.
#[derive(Serialize)]
pub(super) struct Shade {
    name: &'static str,
    light: String,
    dark: String,
}

/// All colours, for the style sheet.
pub(super) fn shades() -> Vec<Shade> {
    let shade = |&(name, light, dark): &(&'static str, u32, u32)| Shade {
        name,
        light: format!("#{light:06X}"),
        dark: format!("#{dark:06X}"),
    };
    COLOURS.iter().map(shade).collect()
}

/// Which languages have a colour of their own. The others are grey, so that a chart of a hundred languages can be read.
pub(super) struct Languages {
    colours: BTreeMap<String, Colour>,
    all: usize,
}

impl Languages {
    /// All languages of a run where there are colours enough. Else the reference English, and of the others those with the most
    /// and with the fewest tokens to train on.
    pub(super) fn of(run: &RunFolder) -> Self {
        let mut languages = run.languages();
        let all = languages.len();
        if all > LINES {
            let tokens = |language: &str| {
                run.summary
                    .by_language
                    .get(language)
                    .map_or(0, |trained| trained.tokens)
            };
            languages.sort_by_key(|language| (*language != "en", std::cmp::Reverse(tokens(language))));
            languages.drain(LINES / 2..all - LINES / 2);
        }
        let coloured = languages.into_iter().enumerate();
        let colours = coloured.map(|(index, language)| (language.to_owned(), Colour::Line(index)));
        Self {
            colours: colours.collect(),
            all,
        }
    }

    /// The colour of a language.
    pub(super) fn colour(&self, language: &str) -> Colour {
        self.colours.get(language).copied().unwrap_or(Colour::Other)
    }

    /// A sentence about the languages without a colour of their own, where there are any.
    pub(super) fn note(&self) -> Option<String> {
        (self.all > self.colours.len()).then(|| {
            format!(
                "Of {} languages {} have a colour in the charts: those with the most and with the fewest tokens to train on, and English where it is \
                 among them. The others are grey; all of them stand in the tables.",
                self.all,
                self.colours.len()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance and contrast as in WCAG 2.2.
    fn contrast(one: u32, other: u32) -> f64 {
        let luminance = |colour: u32| {
            let [_, red, green, blue] = colour.to_be_bytes().map(|channel| {
                let channel = f64::from(channel) / 255.0;
                if channel <= 0.040_45 {
                    channel / 12.92
                } else {
                    ((channel + 0.055) / 1.055).powf(2.4)
                }
            });
            0.2126 * red + 0.7152 * green + 0.0722 * blue
        };
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn black_on_white_has_the_largest_contrast() {
        assert!((contrast(0, 0xFF_FFFF) - 21.0).abs() < 1e-9);
    }

    #[test]
    fn everything_can_be_seen_on_both_pages() {
        let sheet = include_str!("page.html");
        let (white, black) = (0xFF_FFFF, 0x14_1414);
        assert!(sheet.contains("--page: #FFFFFF") && sheet.contains("--page: #141414"));
        for (name, light, dark) in COLOURS {
            let least = match name {
                "grid" => 1.1,
                "label" | "all" => 4.5,
                _ => 3.0,
            };
            assert!(
                contrast(light, white) >= least,
                "{name} on white: {}",
                contrast(light, white)
            );
            assert!(
                contrast(dark, black) >= least,
                "{name} on black: {}",
                contrast(dark, black)
            );
        }
    }
}
