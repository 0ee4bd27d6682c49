//! What a person looks at before training: a sample with its supervised part marked.

use crate::batch::UNSUPERVISED;
use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// The text of a sample in pieces, each with whether it is supervised. Special tokens are shown. A character whose tokens lie on both
/// sides of a border belongs to the piece that completes it.
///
/// # Errors
/// When the tokenizer cannot decode the ids.
pub fn pieces(tokenizer: &Tokenizer, input_ids: &[u32], labels: &[i32]) -> Result<Vec<(String, bool)>, DataError> {
    let supervised = |index: usize| index > 0 && labels[index] != UNSUPERVISED;
    let mut pieces: Vec<(String, bool)> = Vec::new();
    let mut shown = String::new();
    for start in 0..input_ids.len() {
        let border = start + 1 == input_ids.len() || supervised(start) != supervised(start + 1);
        if !border {
            continue;
        }
        // Decoding from the front gives the text that decoders with a memory (spaces, bytes) give the whole.
        let text = tokenizer.decode(&input_ids[..=start], false)?;
        let whole = if start + 1 == input_ids.len() {
            text.as_str()
        } else {
            text.trim_end_matches('\u{fffd}')
        };
        let Some(piece) = whole.strip_prefix(shown.as_str()).filter(|piece| !piece.is_empty()) else {
            continue;
        };
        match pieces.last_mut() {
            Some((last, flag)) if *flag == supervised(start) => last.push_str(piece),
            _ => pieces.push((piece.to_owned(), supervised(start))),
        }
        shown = whole.to_owned();
    }
    Ok(pieces)
}
