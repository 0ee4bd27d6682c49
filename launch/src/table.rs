//! Plain tables: a header, rows, numbers to the right.

use comfy_table::{CellAlignment, ContentArrangement, presets};

use crate::style;

/// A table of text.
pub(crate) struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns. Numbers stand to the right, and so do their headers.
    pub(crate) fn new<T: Into<String>>(headers: impl IntoIterator<Item = T>) -> Self {
        Self {
            headers: headers.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has as many cells as the header.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines, the header in bold where colours are shown.
    pub(crate) fn render(&self) -> String {
        let mut table = comfy_table::Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.headers);
        for row in &self.rows {
            table.add_row(row);
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 0 } else { 1 }, 1));
            let numbers = index > 0
                && self
                    .rows
                    .iter()
                    .all(|row| row.get(index).is_none_or(|cell| is_number(cell)));
            column.set_cell_alignment(if numbers {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            });
        }
        let text = table.to_string();
        let mut lines = text.lines().map(str::trim_end);
        let header = style::paint(style::TITLE, lines.next().unwrap_or_default());
        std::iter::once(header)
            .chain(lines.map(str::to_owned))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Whether a cell is a number, or stands for one that is not there.
fn is_number(cell: &str) -> bool {
    cell.chars()
        .next()
        .is_none_or(|first| first.is_ascii_digit() || first == '-')
}

/// A number with three decimals, or a dash where there is none.
pub(crate) fn decimal(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// A share as a percentage, or a dash where there is none.
pub(crate) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}

/// A count with thousands separators.
pub(crate) fn count(value: u64) -> String {
    indicatif::HumanCount(value).to_string()
}

/// A number of bytes in binary units.
pub(crate) fn bytes(value: u64) -> String {
    indicatif::BinaryBytes(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        let mut table = Table::new(["lang", "tokens"]);
        table.row(["en".to_owned(), count(1234)]);
        table.row(["ar-EG".to_owned(), count(5)]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(plain, "lang   tokens\nen      1,234\nar-EG       5");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(Some(0.1234)), "12.3 %");
        assert_eq!(decimal(None), "-");
        assert_eq!(bytes(3 << 20), "3.00 MiB");
    }
}
