//! Ranks as threads of one process, for tests: what several processes would compute, without a launcher, a network or MPI.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::Collectives;

/// The ranks of a world of threads, by rank; each thread takes its own. For tests.
///
/// Sums of tensors are added in f32 in the order of the ranks and rounded once, so that all ranks have the same bits. A rank that
/// panics, or that drops its end while others wait for it, makes those panic too; so do ranks that call different operations.
///
/// # Panics
/// When `world_size` is 0.
pub fn threads(world_size: usize) -> Vec<Arc<dyn Collectives>> {
    assert!(world_size > 0, "a world has one rank at least");
    let board = Arc::new(Board {
        state: Mutex::new(State {
            laid: (0..world_size).map(|_| None).collect(),
            complete: Arc::new(Vec::new()),
            rounds: 0,
            gone: vec![false; world_size],
        }),
        changed: Condvar::new(),
    });
    let end = |rank| -> Arc<dyn Collectives> {
        Arc::new(ThreadRank {
            rank,
            world_size,
            board: board.clone(),
        })
    };
    (0..world_size).map(end).collect()
}

/// Runs `work` once per rank, each in a thread of its own with its end of a world of [`threads`], and returns the results by rank.
/// For tests.
///
/// # Panics
/// When a rank panics, with the message of the lowest rank that did so on its own account.
pub fn on_threads<T: Send>(world_size: usize, work: impl Fn(Arc<dyn Collectives>) -> T + Sync) -> Vec<T> {
    let work = &work;
    let results: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = threads(world_size)
            .into_iter()
            .map(|rank| scope.spawn(move || work(rank)))
            .collect();
        running.into_iter().map(|thread| thread.join()).collect()
    });
    let mut done = Vec::with_capacity(world_size);
    let mut followed = None;
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(panic) if panic.is::<Gone>() => followed = Some(panic),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    if let Some(panic) = followed {
        std::panic::resume_unwind(panic);
    }
    done
}

/// Why a rank panics that itself did nothing wrong.
struct Gone;

/// What the ranks share.
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What the ranks have laid down for the round under way.
    laid: Vec<Option<Word>>,
    /// What they laid down in the last complete round. Nobody can complete another before all have read it.
    complete: Arc<Vec<Word>>,
    /// Complete rounds.
    rounds: u64,
    /// The ranks that will lay down nothing more.
    gone: Vec<bool>,
}

/// What one rank says in one round.
struct Word {
    /// The operation, which is the same for all.
    operation: &'static str,
    /// The format of its numbers; none for bytes of any length.
    dtype: Option<DType>,
    bytes: Vec<u8>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while it held the lock had changed nothing halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays down a word and returns those of all ranks, by rank, once they are there.
    fn exchange(&self, rank: usize, word: Word) -> Arc<Vec<Word>> {
        let mut state = self.lock();
        state.laid[rank] = Some(word);
        if state.laid.iter().all(Option::is_some) {
            let words = state.laid.iter_mut().filter_map(Option::take).collect();
            state.complete = Arc::new(words);
            state.rounds += 1;
            self.changed.notify_all();
            return state.complete.clone();
        }
        let round = state.rounds;
        while state.rounds == round {
            let missing = state
                .laid
                .iter()
                .zip(&state.gone)
                .position(|(laid, gone)| laid.is_none() && *gone);
            if let Some(missing) = missing {
                drop(state);
                tracing::error!("rank {rank} waits for rank {missing}, which is gone");
                std::panic::panic_any(Gone);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.complete.clone()
    }
}

/// One rank's end.
struct ThreadRank {
    rank: usize,
    world_size: usize,
    board: Arc<Board>,
}

impl fmt::Debug for ThreadRank {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "thread {} of {}", self.rank, self.world_size)
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.board.lock().gone[self.rank] = true;
        self.board.changed.notify_all();
    }
}

impl ThreadRank {
    /// What all ranks say in an operation, which has to be the same one with the same format.
    fn exchange(&self, operation: &'static str, dtype: Option<DType>, bytes: Vec<u8>) -> Arc<Vec<Word>> {
        let length = bytes.len();
        let words = self.board.exchange(
            self.rank,
            Word {
                operation,
                dtype,
                bytes,
            },
        );
        for (other, word) in words.iter().enumerate() {
            assert!(
                word.operation == operation && word.dtype == dtype && (dtype.is_none() || word.bytes.len() == length),
                "rank {} calls {operation} with {length} bytes of {dtype:?}, and rank {other} {} with {} bytes of {:?}",
                self.rank,
                word.operation,
                word.bytes.len(),
                word.dtype
            );
        }
        words
    }

    fn exchange_data(&self, operation: &'static str, data: &TensorData) -> Arc<Vec<Word>> {
        self.exchange(operation, Some(data.dtype()), data.as_bytes().to_vec())
    }
}

/// The sum of the ranks' elements from `first` on, `count` of them.
fn sum(words: &[Word], first: usize, count: usize, device: &Device, dtype: DType) -> Tensor<1> {
    let mut sums = vec![0.0f32; count];
    for word in words {
        let all = word.bytes.len() / dtype.size();
        let data = TensorData::from_bytes_vec(word.bytes.clone(), [all], dtype);
        for (sum, value) in sums.iter_mut().zip(data.iter::<f32>().skip(first)) {
            *sum += value;
        }
    }
    let data = TensorData::new(sums, [count]).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

/// The bytes of all ranks behind one another.
fn joined(words: &[Word], dtype: DType) -> TensorData {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.bytes.iter().copied()).collect();
    let length = bytes.len() / dtype.size();
    TensorData::from_bytes_vec(bytes, [length], dtype)
}

impl Collectives for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, vector: Tensor<1>) -> Tensor<1> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let data = vector.into_data();
        let words = self.exchange_data("all_reduce", &data);
        sum(&words, 0, data.num_elements(), &device, dtype)
    }

    fn reduce_scatter(&self, vector: Tensor<1>) -> Tensor<1> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let data = vector.into_data();
        let length = data.num_elements();
        assert!(
            length.is_multiple_of(self.world_size),
            "reduce_scatter of {length} numbers over {} ranks",
            self.world_size
        );
        let part = length / self.world_size;
        let words = self.exchange_data("reduce_scatter", &data);
        sum(&words, self.rank * part, part, &device, dtype)
    }

    fn all_gather(&self, vector: Tensor<1>) -> Tensor<1> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let words = self.exchange_data("all_gather", &vector.into_data());
        Tensor::from_data(joined(&words, dtype), (&device, dtype))
    }

    fn all_gather_int(&self, vector: Tensor<1, Int>) -> Tensor<1, Int> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let words = self.exchange_data("all_gather_int", &vector.into_data());
        Tensor::from_data(joined(&words, dtype), (&device, dtype))
    }

    fn broadcast(&self, vector: Tensor<1>, root: usize) -> Tensor<1> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let words = self.exchange_data("broadcast", &vector.into_data());
        Tensor::from_data(joined(&words[root..=root], dtype), (&device, dtype))
    }

    fn barrier(&self) {
        self.exchange("barrier", None, Vec::new());
    }

    fn sum(&self, values: &mut [f64]) {
        let words = self.exchange("sum", Some(DType::F64), bytemuck::cast_slice(values).to_vec());
        values.fill(0.0);
        for word in words.iter() {
            for (sum, bytes) in values.iter_mut().zip(word.bytes.chunks_exact(size_of::<f64>())) {
                *sum += bytemuck::pod_read_unaligned::<f64>(bytes);
            }
        }
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let words = self.exchange("gather", None, bytes.to_vec());
        words.iter().map(|word| word.bytes.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    fn floats(values: &[f32], dtype: DType) -> Tensor<1> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::<1>::from_data(data, (&Device::flex(), DType::F32)).cast(dtype)
    }

    fn numbers(tensor: Tensor<1>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn ranks_get_sums_parts_and_one_anothers_words() {
        let seen = on_threads(3, |ranks| {
            let rank = ranks.rank() as f32;
            let all = numbers(ranks.all_reduce(floats(&[rank, 1.0], DType::F32)));
            let six: Vec<f32> = (0..6).map(|index| index as f32 * (rank + 1.0)).collect();
            let part = numbers(ranks.reduce_scatter(floats(&six, DType::F32)));
            let gathered = ranks.all_gather(floats(&[rank, -rank], DType::BF16));
            assert_eq!(gathered.dtype(), DType::BF16);
            let sent = numbers(ranks.broadcast(floats(&[rank; 5], DType::F32), 2));
            ranks.barrier();
            let mut sums = [0.1 * f64::from(rank), 1.0];
            ranks.sum(&mut sums);
            let words = ranks.gather(&vec![ranks.rank() as u8; ranks.rank()]);
            (all, part, numbers(gathered), sent, sums, words)
        });
        for (rank, (all, part, gathered, sent, sums, words)) in seen.into_iter().enumerate() {
            let first = 2.0 * rank as f32;
            assert_eq!(all, [3.0, 3.0]);
            assert_eq!(part, [6.0 * first, 6.0 * (first + 1.0)]);
            assert_eq!(gathered, [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]);
            assert_eq!(sent, [2.0; 5]);
            assert_eq!(sums, [0.1 + 0.2, 3.0]);
            assert_eq!(words, [vec![], vec![1], vec![2, 2]]);
        }
    }

    #[test]
    fn integers_keep_their_width() {
        let gathered = on_threads(2, |ranks| {
            let value = 250 + ranks.rank() as u8;
            let data = TensorData::new(vec![value; 3], [3]);
            ranks
                .all_gather_int(Tensor::from_data(data, (&Device::flex(), DType::U8)))
                .into_data()
        });
        for data in gathered {
            assert_eq!(data.dtype(), DType::U8);
            assert_eq!(data.as_bytes(), [250, 250, 250, 251, 251, 251]);
        }
    }

    #[test]
    fn a_rank_that_panics_takes_the_others_with_it_and_its_message_remains() {
        let panic = catch_unwind(|| {
            on_threads(3, |ranks| {
                ranks.barrier();
                assert!(ranks.rank() != 1, "rank 1 has had enough");
                ranks.barrier();
            })
        })
        .unwrap_err();
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap();
        assert_eq!(message, "rank 1 has had enough");
    }

    #[test]
    fn ranks_that_call_different_operations_are_told() {
        let panic = catch_unwind(|| {
            on_threads(2, |ranks| {
                if ranks.rank() == 0 {
                    ranks.barrier();
                } else {
                    ranks.gather(&[]);
                }
            })
        })
        .unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("barrier") && message.contains("gather"), "{message}");
    }
}
