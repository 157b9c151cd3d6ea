//! Entries of a grown model that train more slowly than the new ones, or not at all.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Tensor, TensorData},
};
use rwkv7_core::{Rwkv7, checkpoint, layers::ChannelMixer};
use scaling::{Growable, Plan, Step};

/// The old entries of a model that has grown.
#[derive(Clone)]
pub struct FrozenEntries {
    rate: f64,
    /// 1 for old entries and 0 for others, by parameter and of its shape.
    old: Arc<Mutex<GradientsParams>>,
}

impl FrozenEntries {
    /// The entries that `model` had before it grew by `plan`; they train at `rate` times the learning rate.
    pub(super) fn new<S: Growable>(plan: &Plan<S>, model: &Rwkv7<S::Layer>, rate: f64) -> Self {
        struct Masks<'a> {
            entries: HashMap<ParamId, (&'a Step, bool)>,
            found: GradientsParams,
        }
        impl ModuleVisitor for Masks<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some((step, transposed)) = self.entries.get(&param.id) else {
                    return;
                };
                let old: Vec<f32> = step
                    .old_entries()
                    .into_iter()
                    .map(|old| f32::from(u8::from(old)))
                    .collect();
                let device = param.val().device().inner();
                let mask = Tensor::<D>::from_data(TensorData::new(old, step.to.clone()), &device);
                let mask = match transposed {
                    true => mask.transpose(),
                    false => mask,
                };
                self.found.register(param.id, mask);
            }
        }
        let steps: HashMap<&str, &Step> = plan.steps.iter().map(|s| (s.name.as_str(), s)).collect();
        let parameters = checkpoint::parameters(model).into_iter();
        let mut masks = Masks {
            entries: parameters
                .map(|p| (p.id, (steps[p.name.as_str()], p.transposed)))
                .collect(),
            found: GradientsParams::new(),
        };
        model.visit(&mut masks);
        Self {
            rate,
            old: Arc::new(Mutex::new(masks.found)),
        }
    }

    /// The model after a step from `before` to `after`, of which the old entries take only the part that their rate allows: none
    /// at rate 0, bit for bit.
    pub fn hold<M: ChannelMixer>(&self, before: &Rwkv7<M>, after: Rwkv7<M>) -> Rwkv7<M> {
        struct Collect(GradientsParams);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.register(param.id, param.val().inner());
            }
        }
        struct Hold<'a> {
            rate: f64,
            old: MutexGuard<'a, GradientsParams>,
            before: GradientsParams,
        }
        impl ModuleMapper for Hold<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let before = self.before.remove::<D>(param.id);
                let old = self.old.get::<D>(param.id);
                let (Some(before), Some(old)) = (before, old) else {
                    return param;
                };
                let rate = self.rate;
                param.map(|after| {
                    let grad = after.is_require_grad();
                    let after = after.inner();
                    let kept = match rate {
                        0.0 => before,
                        rate => before.clone() + (after.clone() - before) * rate,
                    };
                    let after = after.mask_where(old.equal_elem(1.0), kept);
                    Tensor::from_inner(after).set_require_grad(grad)
                })
            }
        }
        let mut collect = Collect(GradientsParams::new());
        before.visit(&mut collect);
        after.map(&mut Hold {
            rate: self.rate,
            old: self.old.lock().unwrap_or_else(PoisonError::into_inner),
            before: collect.0,
        })
    }
}

impl fmt::Debug for FrozenEntries {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "old entries at {} times the rate", self.rate)
    }
}
