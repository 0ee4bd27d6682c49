//! The mask in CubeCL: four elements per unit, which share one mixed word.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;

use super::{Dropout, DropoutOps};
use crate::ops::cube::{buffer, close, dimensions, element, empty, open, per_element, upload};

impl DropoutOps for Cube {
    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        let x = open(x);
        let [tokens, features] = dimensions(&x);
        assert_eq!(dropout.token_keys.len(), tokens, "one key per token");
        let output = empty(&x, [tokens, features], x.dtype);
        let groups = features.div_ceil(4);
        if tokens * features > 0 {
            let (count, dim) = per_element(&x.client, tokens * groups);
            // SAFETY: the kernel touches only the elements that there are.
            unsafe {
                kernels::drop_out::launch_unchecked(
                    &x.client,
                    count,
                    dim,
                    buffer(&x),
                    upload(&x.client, &dropout.token_keys),
                    buffer(&output),
                    tokens * groups,
                    groups,
                    features,
                    dropout.module_key,
                    dropout.threshold(),
                    dropout.keep(),
                    element(x.dtype),
                );
            }
        }
        close(output)
    }
}

mod kernels {
    use cubecl::prelude::*;

    /// [`crate::random::mix`].
    #[cube]
    fn mix(word: u64) -> u64 {
        let word = word + 0x9E37_79B9_7F4A_7C15u64;
        let word = (word ^ (word >> 30u64)) * 0xBF58_476D_1CE4_E5B9u64;
        let word = (word ^ (word >> 27u64)) * 0x94D0_49BB_1331_11EBu64;
        word ^ (word >> 31u64)
    }

    /// One group of up to four elements of one token.
    #[cube(launch_unchecked)]
    pub fn drop_out<F: Float>(
        x: &[F],
        token_keys: &[u64],
        output: &mut [F],
        all_groups: usize,
        groups: usize,
        features: usize,
        module_key: u64,
        threshold: u64,
        keep: f32,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= all_groups {
            terminate!();
        }
        let token = index / groups;
        let group = index % groups;
        let row_key = mix(token_keys[token] ^ module_key);
        let mut word = mix(row_key + group as u64);
        #[unroll]
        for element in 0..4usize {
            let feature = group * 4 + element;
            if feature < features {
                let position = token * features + feature;
                if (word & 0xFFFFu64) >= threshold {
                    output[position] = F::cast_from(f32::cast_from(x[position]) * keep);
                } else {
                    output[position] = F::cast_from(0.0f32);
                }
            }
            word >>= 16u64;
        }
    }
}
