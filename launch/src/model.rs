//! What the commands that use a model share.

use interlingua_recipes::Dtype;

/// Reads a number format as a recipe spells it.
///
/// # Errors
/// A sentence for the command line.
pub(crate) fn parse_dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "auto" => Ok(Dtype::Auto),
        "f32" => Ok(Dtype::F32),
        "bf16" => Ok(Dtype::Bf16),
        "f16" => Ok(Dtype::F16),
        _ => Err("known are auto, f32, bf16 and f16".to_owned()),
    }
}
