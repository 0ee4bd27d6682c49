//! Computing in 16 bits: what is trained stays in f32, and so do its gradients.

use burn::tensor::DType;

use crate::fixtures::{adapted, batch, distance, gradient, host, loss_and_gradients, model, norm, tensors};

/// Gradients of two micro-batches add up in f32: in 16 bits, most of the sum's last places would be lost.
#[test]
fn gradients_add_up_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        for mut model in [model("llama", true), adapted("llama.lora", 0.0)] {
            model.dtype = dtype;
            let rows = batch(&model, &tensors("models/llama.golden.safetensors"));
            let (_, one) = loss_and_gradients(&model, &rows, false);
            let (_, two) = loss_and_gradients(&model, &rows, true);
            let (_, mut sum) = loss_and_gradients(&model, &rows, false);
            let mut added = 0;
            for (id, gradient) in two.iter() {
                assert_eq!(gradient.dtype(), DType::F32);
                assert_eq!(model.parameters.get(id).values().dtype(), DType::F32);
                // A small share, which 16 bits would swallow.
                sum.add(id, gradient.clone() * 1e-4);
                let pairs = host(one.get(id).unwrap()).into_iter().zip(host(gradient));
                let expected: Vec<f32> = pairs.map(|(one, two)| one + two * 1e-4).collect();
                let found = sum.get(id).unwrap();
                assert_eq!(found.dtype(), DType::F32);
                assert_eq!(host(found), expected, "{}", model.parameters.get(id).name);
                added += 1;
            }
            assert!(added > 10);
        }
    }
}

/// Without scaling: this loss is large enough for f16.
#[test]
fn gradients_in_f16_are_close_to_those_in_f32() {
    let exact = adapted("llama.lora", 0.0);
    let mut half = adapted("llama.lora", 0.0);
    half.dtype = DType::F16;
    let rows = batch(&exact, &tensors("models/llama.golden.safetensors"));
    let (loss, gradients) = loss_and_gradients(&exact, &rows, false);
    let (half_loss, half_gradients) = loss_and_gradients(&half, &rows, false);
    assert!((half_loss - loss).abs() < 2e-3 * loss, "{half_loss}, in f32 {loss}");
    for (id, _) in gradients.iter() {
        let name = &exact.parameters.get(id).name;
        let expected = gradient(&exact, &gradients, name);
        let found = gradient(&half, &half_gradients, name);
        let off = distance(&found, &expected) / norm(&expected).max(1e-6);
        assert!(off < 0.02, "{name} is off by {off}");
    }
}
