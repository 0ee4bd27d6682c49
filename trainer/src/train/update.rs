//! From the gradients of each process to new values on all of them, under the strategies of `[distributed]`.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use interlingua_recipes::Strategy;

use crate::collectives::Collectives;
use crate::engine::gradients::Gradients;
use crate::optimizers::adamw::AdamW;
use crate::parameters::{ParameterId, Parameters};
use crate::pieces::{joined, padded, padded_piece, piece, piece_length};
use crate::spread::Spread;

/// Numbers that are sent at once; a vector of more goes alone.
pub const BUCKET: usize = 64 << 20;

/// How gradients become updates.
#[derive(Clone, Debug)]
pub struct Update {
    strategy: Strategy,
    collectives: Arc<dyn Collectives>,
}

/// The gradients of a step over all processes.
#[derive(Debug)]
pub struct Reduced {
    /// Whole under data parallelism; else this process's pieces.
    pub gradients: Gradients,
    /// All parameters that got a gradient on some process, but for those that lie in pieces themselves.
    ids: Vec<ParameterId>,
}

impl Update {
    /// That of a strategy among these processes.
    pub fn new(strategy: Strategy, collectives: Arc<dyn Collectives>) -> Self {
        Self { strategy, collectives }
    }

    /// Whether each process holds a piece of the moments only.
    pub fn is_cut(&self) -> bool {
        self.strategy != Strategy::Ddp && self.collectives.world_size() > 1
    }

    /// This process's number and that of all, where each holds a piece of the moments only; else one of one.
    pub fn own_piece(&self) -> (usize, usize) {
        if self.is_cut() {
            (self.collectives.rank(), self.collectives.world_size())
        } else {
            (0, 1)
        }
    }

    /// Adds up the gradients of all processes. A parameter that got one on any of them gets one on all.
    pub fn reduce(&self, parameters: &Parameters, gradients: Gradients) -> Reduced {
        let collectives = &*self.collectives;
        if collectives.world_size() == 1 {
            let ids = gradients.iter().map(|(id, _)| id).collect();
            return Reduced { gradients, ids };
        }
        let trained = parameters.trainable().map(|(id, _)| id);
        let (spread, trained): (Vec<ParameterId>, Vec<ParameterId>) =
            trained.partition(|id| parameters.spread(*id).is_some());
        let has = |id: &ParameterId| f64::from(u8::from(gradients.get(*id).is_some()));
        let mut counts: Vec<f64> = trained.iter().map(has).collect();
        collectives.sum(&mut counts);
        let ids = trained.into_iter().zip(counts).filter(|(_, count)| *count > 0.0);
        let ids: Vec<ParameterId> = ids.map(|(id, _)| id).collect();
        let mut gradients = gradients;
        let mut reduced = Gradients::scaled(gradients.scale());
        for bucket in buckets(parameters, &ids) {
            let own = bucket.iter().map(|id| {
                let gradient = gradients.take(*id);
                gradient.unwrap_or_else(|| {
                    let device = parameters.get(*id).values().device();
                    Tensor::zeros([parameters.get(*id).len()], (&device, DType::F32))
                })
            });
            let own: Vec<Tensor<1>> = own.collect();
            if self.is_cut() {
                self.reduce_to_pieces(parameters, bucket, own, &mut reduced);
            } else {
                let sum = collectives.all_reduce(Tensor::cat(own, 0));
                let mut start = 0;
                for id in bucket {
                    let length = parameters.get(*id).len();
                    reduced.add(*id, sum.clone().narrow(0, start, length));
                    start += length;
                }
            }
        }
        for id in spread {
            if let Some(piece) = gradients.take_piece(id) {
                reduced.add(id, piece);
            }
        }
        Reduced {
            gradients: reduced,
            ids,
        }
    }

    fn reduce_to_pieces(
        &self,
        parameters: &Parameters,
        bucket: &[ParameterId],
        own: Vec<Tensor<1>>,
        reduced: &mut Gradients,
    ) {
        let (rank, world) = (self.collectives.rank(), self.collectives.world_size());
        let by_rank = (0..world).flat_map(|rank| own.iter().map(move |vector| padded_piece(vector, rank, world)));
        let sum = self.collectives.reduce_scatter(Tensor::cat(by_rank.collect(), 0));
        let mut start = 0;
        for id in bucket {
            let length = parameters.get(*id).len();
            let range = piece(length, rank, world);
            if !range.is_empty() {
                reduced.add(*id, sum.clone().narrow(0, start, range.len()));
            }
            start += piece_length(length, world);
        }
    }

    /// The l2 norm over all gradients.
    pub fn norm(&self, reduced: &Reduced) -> f64 {
        let norm = reduced.gradients.norm();
        if !self.is_cut() {
            return norm;
        }
        let mut square = [norm * norm];
        self.collectives.sum(&mut square);
        square[0].sqrt()
    }

    /// One step of the optimizer, after which all processes have the same values.
    pub fn step(&self, optimizer: &mut AdamW, parameters: &mut Parameters, reduced: &Reduced, learning_rate: f64) {
        if !self.is_cut() {
            optimizer.step(parameters, &reduced.gradients, learning_rate);
            return;
        }
        let (rank, world) = (self.collectives.rank(), self.collectives.world_size());
        for (id, gradient) in reduced.gradients.iter() {
            let parameter = parameters.get(id);
            if let Some(own) = parameters.spread(id).and_then(Spread::own) {
                let named = (id, parameter.name.as_str(), parameter.len());
                let own = optimizer.update(named, own, gradient.clone(), learning_rate);
                parameters.set_piece(id, own);
            }
        }
        let buckets: Vec<Vec<ParameterId>> = buckets(parameters, &reduced.ids).map(<[_]>::to_vec).collect();
        for bucket in buckets {
            let mut own = Vec::with_capacity(bucket.len());
            for id in &bucket {
                let parameter = parameters.get(*id);
                let length = parameter.len();
                let range = piece(length, rank, world);
                let value = parameter.values();
                let full = piece_length(length, world);
                own.push(match reduced.gradients.get(*id) {
                    Some(gradient) => {
                        let value = value.narrow(0, range.start, range.len());
                        let named = (*id, parameter.name.as_str(), length);
                        padded(optimizer.update(named, value, gradient.clone(), learning_rate), full)
                    }
                    None => Tensor::zeros([full], (&value.device(), DType::F32)),
                });
            }
            let all = self.collectives.all_gather(Tensor::cat(own, 0));
            let of_rank = all.dims()[0] / world;
            let mut start = 0;
            for id in &bucket {
                let length = parameters.get(*id).len();
                let pieces = (0..world).filter_map(|rank| {
                    let range = piece(length, rank, world);
                    (!range.is_empty()).then(|| all.clone().narrow(0, rank * of_rank + start, range.len()))
                });
                parameters.set_value(*id, joined(pieces.collect()));
                start += piece_length(length, world);
            }
        }
    }
}

/// Parameters that are sent together, in their order.
fn buckets<'a>(parameters: &'a Parameters, ids: &'a [ParameterId]) -> impl Iterator<Item = &'a [ParameterId]> {
    let mut rest = ids;
    std::iter::from_fn(move || {
        let mut numbers = 0;
        let count = rest.iter().take_while(|id| {
            numbers += parameters.get(**id).len();
            numbers <= BUCKET
        });
        let count = count.count().max(1).min(rest.len());
        let (bucket, after) = rest.split_at(count);
        rest = after;
        (!bucket.is_empty()).then_some(bucket)
    })
}
