//! Load balancing of a mixture of experts (Fedus et al., "Switch Transformers", 2021, equations 4 to 6), as Transformers computes it
//! (`load_balancing_loss_func`): with f the share of a micro-batch's tokens, over all blocks with experts, that pass through an
//! expert, and p the mean of its probability there, `E * Σ f p`. Balanced routing to k of E experts gives k.

use crate::engine::routing::Routing;

/// The loss of a micro-batch, and its derivative by the probability of each expert at any token and block, `[experts]`. The shares f
/// carry no gradient. Nothing where no block has experts.
pub fn balance<'a>(routing: impl Iterator<Item = &'a Routing>) -> Option<(f64, Vec<f64>)> {
    let (mut counts, mut sums, mut rows) = (Vec::new(), Vec::new(), 0.0);
    for routing in routing {
        let experts = routing.experts();
        counts.resize(experts, 0.0);
        sums.resize(experts, 0.0);
        for expert in routing.choices.experts.iter() {
            counts[usize::from(*expert)] += 1.0;
        }
        sums.iter_mut()
            .zip(&routing.probabilities)
            .for_each(|(sum, value)| *sum += value);
        rows += (routing.choices.experts.len() / routing.choices.top_k) as f64;
    }
    if rows == 0.0 {
        return None;
    }
    let experts = counts.len() as f64;
    let products = counts
        .iter()
        .zip(&sums)
        .map(|(count, sum): (&f64, &f64)| count / rows * (sum / rows));
    let loss = experts * products.sum::<f64>();
    let derivative = counts.iter().map(|count| experts * count / rows / rows).collect();
    Some((loss, derivative))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::routing::Choices;

    fn routing(experts: &[u16], probabilities: &[f64]) -> Routing {
        Routing {
            block: 0,
            choices: Choices {
                experts: experts.into(),
                top_k: 2,
            },
            probabilities: probabilities.to_vec(),
        }
    }

    #[test]
    fn balanced_routing_gives_the_number_of_chosen_experts() {
        let even = routing(&[0, 1, 2, 3], &[0.5; 4]);
        assert_eq!(balance([&even].into_iter()).unwrap().0, 2.0);
        let one_sided = routing(&[0, 1, 0, 1], &[1.0, 1.0, 0.0, 0.0]);
        assert_eq!(balance([&one_sided].into_iter()).unwrap().0, 4.0);
        assert!(balance([].into_iter()).is_none());
    }

    #[test]
    fn the_derivative_is_that_of_the_loss_with_fixed_choices() {
        let (one, mut other) = (
            routing(&[0, 1, 0, 2], &[1.2, 0.5, 0.3]),
            routing(&[2, 1, 1, 0], &[0.4, 0.9, 0.7]),
        );
        let (before, derivative) = balance([&one, &other].into_iter()).unwrap();
        other.probabilities[1] += 0.01;
        let (after, _) = balance([&one, &other].into_iter()).unwrap();
        assert!(((after - before) / 0.01 - derivative[1]).abs() < 1e-9);
    }
}
