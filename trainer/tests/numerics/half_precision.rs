//! Computing in 16 bits: what is trained stays in f32, and so do its gradients.

use burn::tensor::DType;

use crate::fixtures::{adapted, batch, host, loss_and_gradients, model, tensors};

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
