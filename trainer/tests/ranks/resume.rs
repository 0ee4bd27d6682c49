//! Going on with a run on another number of processes.

use super::{ALONE, Dealt, LORA, close, left, middle_layer, run, same, sft};

/// Wherever a run ends, it is evaluated.
const EVALUATIONS: &str = "train.eval_every=5";

/// Ten steps dealt in one way, and twice five more in others, against twenty in one go.
fn check(extra: &str, first: Dealt, strategies: [&str; 2], then: &[usize], kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let [before, after] = strategies.map(|strategy| format!("distributed.strategy={strategy}"));
    let kind = format!("optimizer.kind={kind}");
    run(&whole, extra, first, &[&before, &kind, EVALUATIONS]);
    let wanted = left(&whole);
    for world in then {
        let own = folder.path().join(world.to_string());
        run(&own, extra, first, &["train.steps=10", &before, &kind, EVALUATIONS]);
        // The recipe is the same, and so is the number of rows in a step; also when the run is interrupted once more.
        let dealt = (*world, first.1, first.2);
        run(&own, extra, dealt, &["train.steps=15", &after, &kind, EVALUATIONS]);
        run(&own, extra, dealt, &[&after, &kind, EVALUATIONS]);
        let found = left(&own);
        let what = format!("{first:?}, then {world}, {strategies:?}");
        if kind.ends_with("adamw") {
            same(&found, &wanted, &what);
            continue;
        }
        assert_eq!((found.steps.len(), wanted.steps.len()), (20, 20), "{what}");
        for (found, wanted) in found.steps.iter().zip(&wanted.steps) {
            // A code that rounds the other way is a step of its own.
            close(found.loss, wanted.loss, 1e-3, &format!("{what}, step {}", wanted.step));
        }
    }
}

#[test]
fn moments_in_pieces_are_put_together_and_cut_again() {
    let extra = sft();
    check(&extra, (2, 4, 1), ["zero1", "zero1"], &[1, 2, 4], "adamw");
    check(&extra, (4, 2, 1), ["zero1", "ddp"], &[1, 2], "adamw");
    check(&extra, ALONE, ["ddp", "zero1"], &[2, 4], "adamw");
    check(&extra, (2, 4, 1), ["zero3", "zero3"], &[1, 2, 4], "adamw");
    check(&extra, (4, 2, 1), ["zero3", "ddp"], &[1, 2], "adamw");
}

#[test]
fn pieces_of_8_bits() {
    check(&sft(), (2, 4, 1), ["zero1", "zero1"], &[2, 4], "adamw8bit");
}

/// Micro-steps stay what they are where their samples are compared.
#[test]
fn contrasts_stay_those_of_the_first_start() {
    let extra = middle_layer("source = \"pairs\"\nbatch_size = 4\nevery = 0");
    check(&extra, (2, 4, 1), ["ddp", "zero1"], &[1, 2], "adamw");
    let extra = format!("{LORA}{}", sft());
    check(&extra, (2, 2, 2), ["ddp", "ddp"], &[1, 4], "adamw");
}
