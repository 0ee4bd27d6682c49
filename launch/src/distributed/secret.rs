//! What the processes of a run know, and nobody else.

use super::placement::Source;
use crate::exit::Failure;

/// The variable that holds the secret of a run, the same on all its processes.
pub(crate) const SECRET: &str = "INTERLINGUA_SECRET";

/// 128 random bits, as text.
///
/// # Errors
/// When the system has none.
pub(crate) fn random() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::running(format!("The system gives no random numbers: {error}.")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The secret that the environment holds.
pub(crate) fn given() -> Option<String> {
    std::env::var(SECRET).ok().filter(|secret| !secret.trim().is_empty())
}

/// The secret where nothing can carry one to all ranks: that of the environment. A step of SLURM has one made of what its job knows.
///
/// # Errors
/// With exit code 2 when there is none, saying how to set it.
pub(super) fn of_environment(source: Source) -> Result<String, Failure> {
    if let Some(secret) = given() {
        return Ok(secret);
    }
    if source != Source::Slurm {
        return Err(Failure::usage(format!(
            "The ranks have no secret by which they know each other. Set {SECRET} to the same random text on all of them, for \
             instance to what this prints: openssl rand -hex 16"
        )));
    }
    tracing::info!(
        "the secret of the run is made of the SLURM job's number, step and user; set {SECRET} for a better one"
    );
    let parts = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_JOB_UID", "USER"];
    let parts = parts.map(|name| std::env::var(name).unwrap_or_default());
    Ok(blake3::hash(parts.join("\n").as_bytes()).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_and_differ() {
        let [one, two] = [(); 2].map(|()| random().unwrap());
        assert!(one.len() == 32 && one != two);
    }

    #[test]
    fn ranks_without_a_secret_are_told_how_to_get_one() {
        if given().is_none() {
            let failure = of_environment(Source::Torchrun).unwrap_err();
            assert!(failure.message.contains(SECRET) && failure.message.contains("openssl"));
            assert_eq!(of_environment(Source::Slurm).unwrap().len(), 64);
        }
    }
}
