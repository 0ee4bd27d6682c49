//! `text`: {text}. All tokens are supervised. A .txt file has one row in each line that is not blank.

use super::fields::{Fields, LEAVE_OUT};
use crate::error::RowProblem;
use crate::sample::Content;

pub(super) const FIELDS: &[&str] = &["text"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    Ok(Content::Text(fields.full_text("text", LEAVE_OUT)?))
}
