//! Consistency over languages, an option of this project: for multiple-choice rows that are translations of one another,
//! the divergence of each language's distribution over the options from the anchor's,
//! `KL(p_anchor || p_l) = Σ_o p_anchor(o) (log p_anchor(o) - log p_l(o))`, with p the softmax over the summed
//! log-probabilities of whole answers, and no gradient through the anchor. The loss of a step is the mean over all
//! (group, language) with an anchor.

/// The divergence of one language, and its derivatives by the summed log-probabilities of its options. Both lists
/// `[options]`.
pub fn divergence(anchor: &[f64], language: &[f64]) -> (f64, Vec<f64>) {
    let (anchor, language) = (log_softmax(anchor), log_softmax(language));
    let pairs = anchor.iter().zip(&language);
    let loss = pairs
        .clone()
        .map(|(anchor, log_p)| anchor.exp() * (anchor - log_p))
        .sum();
    let gradient = pairs.map(|(anchor, log_p)| log_p.exp() - anchor.exp()).collect();
    (loss, gradient)
}

fn log_softmax(values: &[f64]) -> Vec<f64> {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = values.iter().map(|value| (value - most).exp()).sum();
    values.iter().map(|value| value - most - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_have_no_divergence() {
        let (loss, gradient) = divergence(&[-1.0, -2.0, -4.0], &[-11.0, -12.0, -14.0]);
        assert!(loss.abs() < 1e-12 && gradient.iter().all(|value| value.abs() < 1e-12));
    }

    #[test]
    fn the_derivatives_are_those_of_the_divergence() {
        let (anchor, language) = ([-1.0, -3.0, -2.5], [-2.0, -1.0, -7.0]);
        let (_, gradient) = divergence(&anchor, &language);
        for option in 0..3 {
            let moved = |by: f64| {
                let mut language = language;
                language[option] += by;
                divergence(&anchor, &language).0
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (numeric - gradient[option]).abs() < 1e-9,
                "{numeric} {}",
                gradient[option]
            );
        }
    }
}
