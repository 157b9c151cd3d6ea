//! All parameters of a model together, on GPUs: clipping of the gradients, and a step of AdamW, in a launch for each group of
//! tensors.
//!
//! Burn's optimizer hands over one parameter after another and expects each result at once. [`step`] therefore runs Burn's
//! optimizer twice: the first time [`adamw`] keeps what it is given and leaves a placeholder of one element, the second time
//! [`adamw`] hands out the results. The placeholders let go of the old moments, so that the kernel can write over them.

use std::{cell::RefCell, collections::VecDeque};

use burn::{
    backend::{DispatchDevice, DispatchTensor, tensor::FloatTensor},
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::{
        AdaptiveMomentumState, GradientsParams, ModuleOptimizer,
        lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    },
    tensor::{DType, Device, Tensor},
};
use burn_cubecl::Cube;

use super::{
    Path,
    backends::parameters::{ParameterOps, Update},
};
use crate::optimizer::OptimizerConfig;

type Primitive = FloatTensor<Cube>;

/// Whether the kernels take the tensor: f32, on a GPU, outside autodiff.
pub fn takes_kernel<const D: usize>(x: &Tensor<D>) -> bool {
    let is_gpu = matches!(x.device().as_dispatch(), DispatchDevice::Cube(_));
    is_gpu && x.dtype() == DType::F32 && Path::asked().0.is_none()
}

/// Scales gradients down to a global norm of `largest`; the norm before, `[1]`. None, and nothing done, if one of the gradients is
/// not for the kernels.
pub fn clip(
    model: &impl Module,
    gradients: &mut GradientsParams,
    largest: f64,
) -> Option<Tensor<1>> {
    if !all_take_kernels(model, gradients) {
        return None;
    }
    let mut taken = Take(gradients, Vec::new());
    model.visit(&mut taken);
    let (ids, tensors): (Vec<ParamId>, Vec<Primitive>) = taken.1.into_iter().unzip();
    let (scaled, norm) = Cube::clip(tensors, largest as f32);
    model.visit(&mut Put(gradients, ids.into_iter().zip(scaled).collect()));
    Some(Tensor::from_primitive::<Cube>(norm))
}

/// Whether there are gradients, all on one device, and all for the kernels.
fn all_take_kernels(model: &impl Module, gradients: &GradientsParams) -> bool {
    struct Look<'a> {
        gradients: &'a GradientsParams,
        device: Option<Device>,
        ready: bool,
    }
    impl ModuleVisitor for Look<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                let device = gradient.device();
                let same = *self.device.get_or_insert_with(|| device.clone()) == device;
                self.ready &= same && takes_kernel(&gradient);
            }
        }
    }
    let mut look = Look {
        gradients,
        device: None,
        ready: true,
    };
    model.visit(&mut look);
    look.ready && look.device.is_some()
}

/// Takes the gradients out, in the order of the model's parameters.
struct Take<'a>(&'a mut GradientsParams, Vec<(ParamId, Primitive)>);

impl ModuleVisitor for Take<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.0.remove::<D>(param.id) {
            self.1.push((param.id, primitive(gradient)));
        }
    }
}

/// Puts gradients back in the order in which [`Take`] took them.
struct Put<'a>(&'a mut GradientsParams, VecDeque<(ParamId, Primitive)>);

impl ModuleVisitor for Put<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some((id, gradient)) = self.1.pop_front_if(|(id, _)| *id == param.id) {
            self.0
                .register(id, Tensor::<D>::from_primitive::<Cube>(gradient));
        }
    }
}

/// What [`adamw`] does with a parameter.
#[derive(Default)]
enum Pass {
    /// It launches a kernel.
    #[default]
    Single,
    /// It keeps the tensors, and returns placeholders: one tensor of one element for each rank.
    Collect(Vec<Update<Primitive>>, Vec<(usize, DispatchTensor)>),
    /// It returns the results, in the order in which the tensors were given.
    Deliver(VecDeque<[Primitive; 3]>),
}

thread_local! {
    static PASS: RefCell<Pass> = RefCell::default();
}

/// Begins a pass, and returns the one before.
fn begin(pass: Pass) -> Pass {
    PASS.with_borrow_mut(|now| std::mem::replace(now, pass))
}

/// Ends the last pass, also when a panic leaves it.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        begin(Pass::Single);
    }
}

/// [`ModuleOptimizer::step`] with the parameters of AdamW in a launch for each group.
pub fn step<M: Module>(
    optimizer: &mut ModuleOptimizer,
    rate: ModuleLearningRate,
    model: M,
    gradients: GradientsParams,
) -> M {
    let ended = Ended;
    let mut long = LongParameters(&gradients, Vec::new());
    model.visit(&mut long);
    let long = long.1;
    begin(Pass::Collect(Vec::new(), Vec::new()));
    let model = optimizer.step(rate.clone(), model, gradients);
    let model = match begin(Pass::Single) {
        Pass::Collect(updates, _) if !updates.is_empty() => {
            begin(Pass::Deliver(Cube::adamw(updates).into()));
            let mut collected = Collected(long, GradientsParams::new());
            model.visit(&mut collected);
            optimizer.step(rate, model, collected.1)
        }
        _ => model,
    };
    drop(ended);
    model
}

/// The parameters that have a gradient and more elements than a placeholder.
struct LongParameters<'a>(&'a GradientsParams, Vec<ParamId>);

impl ModuleVisitor for LongParameters<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = self.0.get::<D>(param.id);
        if gradient.is_some_and(|x| x.shape().num_elements() > 1) {
            self.1.push(param.id);
        }
    }
}

/// A gradient for each of the long parameters that is a placeholder now.
struct Collected(Vec<ParamId>, GradientsParams);

impl ModuleVisitor for Collected {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val().inner();
        if value.shape().num_elements() == 1 && self.0.contains(&param.id) {
            self.1.register(param.id, value);
        }
    }
}

/// One step of AdamW for tensors that the kernels take, as the pass says.
pub fn adamw<const D: usize>(
    config: &OptimizerConfig,
    rate: f64,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    state: AdaptiveMomentumState<D>,
) -> (Tensor<D>, AdaptiveMomentumState<D>) {
    PASS.with_borrow_mut(|pass| match pass {
        Pass::Deliver(results) => {
            let Some(result) = results.pop_front() else {
                unreachable!("the second pass asks for what the first pass collected")
            };
            updated(result, state.time + 1)
        }
        Pass::Collect(updates, placeholders) if parameter.shape().num_elements() > 1 => {
            let place = placeholder(placeholders, &parameter.device());
            let time = state.time;
            updates.push(update(config, rate, parameter, gradient, state));
            let moments = AdaptiveMomentumState::new(time, place.clone(), place.clone());
            (place, moments)
        }
        _ => {
            let time = state.time + 1;
            let update = update(config, rate, parameter, gradient, state);
            match Cube::adamw(vec![update]).pop() {
                Some(result) => updated(result, time),
                None => unreachable!("a result for each update"),
            }
        }
    })
}

fn updated<const D: usize>(
    result: [Primitive; 3],
    time: usize,
) -> (Tensor<D>, AdaptiveMomentumState<D>) {
    let [parameter, first, second] = result.map(Tensor::from_primitive::<Cube>);
    (parameter, AdaptiveMomentumState::new(time, first, second))
}

fn placeholder<const D: usize>(
    placeholders: &mut Vec<(usize, DispatchTensor)>,
    device: &Device,
) -> Tensor<D> {
    if let Some((_, place)) = placeholders.iter().find(|(rank, _)| *rank == D) {
        return Tensor::from_dispatch(place.clone());
    }
    let place = Tensor::<D>::empty([1; D], device);
    placeholders.push((D, place.clone().into_dispatch()));
    place
}

fn update<const D: usize>(
    config: &OptimizerConfig,
    rate: f64,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    state: AdaptiveMomentumState<D>,
) -> Update<Primitive> {
    let correction = |beta: f32| 1.0 - beta.powi(state.time as i32 + 1);
    let numbers = [
        rate as f32,
        (1.0 - rate * f64::from(config.weight_decay)) as f32,
        config.beta_1,
        1.0 - config.beta_1,
        config.beta_2,
        1.0 - config.beta_2,
        config.epsilon,
        correction(config.beta_1),
        correction(config.beta_2),
    ];
    let tensors = [parameter, gradient, state.moment_1, state.moment_2].map(primitive);
    Update { tensors, numbers }
}

/// The tensor in the GPU backend's own form.
fn primitive<const D: usize>(x: Tensor<D>) -> Primitive {
    match x.try_into_primitive::<Cube>() {
        Ok(x) => x,
        Err(error) => unreachable!("a tensor on a GPU outside autodiff: {error:?}"),
    }
}
