//! What a forward pass keeps of a block for the backward pass: its graph, or its input alone, in fewer bits or in host memory
//! where that is asked for.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};

use burn::tensor::{DType, Device, Tensor, TensorData};

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Only the inputs of blocks, and their graphs are made again in the backward pass.
    pub recompute: bool,
    /// Those inputs in bf16, whatever is computed in.
    pub half: bool,
    /// Those inputs in host memory, where the device has a memory of its own.
    pub offload: bool,
}

/// The input of a block until the backward pass asks for it.
pub enum KeptInput {
    /// On the device.
    Device(Tensor<2>),
    /// On its way to host memory, or there.
    Host(OnTheHost),
}

/// A tensor that another thread copies to host memory, so that the device goes on with the next block meanwhile.
pub struct OnTheHost {
    data: Receiver<TensorData>,
    device: Device,
    dtype: DType,
}

impl KeptInput {
    /// Keeps x `[tokens, hidden]`, without a graph.
    pub fn new(x: Tensor<2>, keeping: Keeping) -> Self {
        let dtype = x.dtype();
        let x = if keeping.half && dtype == DType::F32 {
            x.cast(DType::BF16)
        } else {
            x
        };
        if keeping.offload && x.device() != Device::flex() {
            Self::Host(OnTheHost::copy(x, dtype))
        } else {
            Self::Device(x)
        }
    }

    /// The tensor on the device again, in the dtype that is computed in.
    pub fn restore(self, dtype: DType) -> Tensor<2> {
        let x = match self {
            Self::Device(x) => x,
            Self::Host(host) => return host.restore(),
        };
        if x.dtype() == dtype { x } else { x.cast(dtype) }
    }
}

/// A tensor to copy, and where its values are waited for.
type Job = (Tensor<2>, Sender<TensorData>);

impl OnTheHost {
    fn copy(x: Tensor<2>, dtype: DType) -> Self {
        static COPIES: OnceLock<Sender<Job>> = OnceLock::new();
        let copies = COPIES.get_or_init(|| {
            let (jobs, queue) = channel::<Job>();
            std::thread::spawn(move || {
                for (tensor, done) in queue {
                    let data = tensor.into_data();
                    // Reading a byte makes a copy that was put off happen now, on this thread.
                    let _ = data.as_bytes().first();
                    done.send(data).ok();
                }
            });
            jobs
        });
        let (done, data) = channel();
        let device = x.device();
        copies.send((x, done)).ok();
        Self { data, device, dtype }
    }

    fn restore(self) -> Tensor<2> {
        let data = self
            .data
            .recv()
            .unwrap_or_else(|_| panic!("a block's input could not be copied to host memory"));
        let stored = data.dtype();
        Tensor::<2>::from_data(data, (&self.device, stored)).cast(self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn an_input_comes_back_from_wherever_it_was_kept() {
        let x: Tensor<2> = random([5, 33]);
        let rounded = x.clone().cast(DType::BF16).cast(DType::F32).into_data();
        let exact = x.clone().into_data();
        for half in [false, true] {
            let keeping = Keeping {
                recompute: true,
                half,
                offload: true,
            };
            let expected = if half { &rounded } else { &exact };
            KeptInput::new(x.clone(), keeping)
                .restore(DType::F32)
                .into_data()
                .assert_eq(expected, true);
        }
        OnTheHost::copy(x.clone(), DType::F32)
            .restore()
            .into_data()
            .assert_eq(&exact, true);
        let half = OnTheHost::copy(x.cast(DType::BF16), DType::F32).restore();
        half.into_data().assert_eq(&rounded, true);
    }
}
