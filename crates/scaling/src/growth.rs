//! A checkpoint file that grows: made, compared, and only then given its name.

use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use burn::tensor::{DType, Device, Int, Tensor};
use burn_store::burn_pack::AtomicFile;
use rwkv7_core::checkpoint::{self, Checkpoint, CheckpointError, Format};

use crate::{
    Difference, Growable, Method, Plan, ScalingError, tensors::with_tensors, verify::spread_tokens,
};

/// Time between two lines of progress.
const INTERVAL: Duration = Duration::from_secs(5);

/// Writes a larger model to a safetensors file, tensor by tensor. Progress goes to [`log`].
///
/// ```
/// use burn::tensor::Device;
/// use metastate_scaling::{Embedding, Growth, Method, Plan};
/// use rwkv7_core::{Rwkv7Config, checkpoint::Checkpoint};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let output = folder.path().join("large.safetensors");
/// let device = Device::default();
/// let from = Rwkv7Config { head_size: 16, ..Rwkv7Config::new(256, 2, 32) };
/// let source = Checkpoint::of_model(&from, &from.init(&device));
///
/// let to = Rwkv7Config { n_layer: 3, n_embd: 48, ..from.clone() };
/// let plan = Plan::new(&from, &to, Method::Lossless, Embedding::Lift)?.exact()?;
/// let difference = Growth::new(&plan).verify(&device).run(source, &output)?;
/// assert!(difference.is_some_and(|difference| difference.is_lossless()));
/// # Ok(()) }
/// ```
pub struct Growth<'a, S> {
    plan: &'a Plan<S>,
    dtype: Option<DType>,
    seed: u64,
    tokens: Option<Tensor<2, Int>>,
    alongside: Option<Box<dyn FnOnce() -> Result<(), ScalingError> + 'a>>,
}

impl<'a, S: Growable> Growth<'a, S> {
    /// The growth by this plan, which compares nothing.
    pub fn new(plan: &'a Plan<S>) -> Self {
        Self {
            plan,
            dtype: None,
            seed: 0,
            tokens: None,
            alongside: None,
        }
    }

    /// The seed of the random values; 0 by default.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The dtype of every tensor. With `None`, the default, all tensors are f32 if the plan scales values in half precision, which
    /// would round them. Otherwise each tensor keeps its own dtype, and new tensors have that of the embedding.
    pub fn dtype(self, dtype: Option<DType>) -> Self {
        Self { dtype, ..self }
    }

    /// Compares the logits of both models on `tokens [1, time]`, on the device of the tokens.
    pub fn verify_on(self, tokens: Tensor<2, Int>) -> Self {
        Self {
            tokens: Some(tokens),
            ..self
        }
    }

    /// [`verify_on`](Self::verify_on) 64 tokens from all over the vocabulary.
    pub fn verify(self, device: &Device) -> Self {
        let tokens = spread_tokens(self.plan.from.vocab_size, device);
        self.verify_on(tokens)
    }

    /// Does something more before the file gets its name, such as writing the grown state of a generation. If that fails, no model
    /// is written.
    pub fn alongside(self, write: impl FnOnce() -> Result<(), ScalingError> + 'a) -> Self {
        Self {
            alongside: Some(Box::new(write)),
            ..self
        }
    }

    /// Writes the larger model to `output` and returns the difference between the two models, if they were to be compared.
    /// Whatever fails, `output` holds what it held before.
    ///
    /// # Errors
    ///
    /// [`ScalingError::Checkpoint`] if the source is not the plan's, is damaged, or the larger model cannot be written.
    /// [`ScalingError::NotFinite`] if a value of the larger model is no finite number. [`ScalingError::NotLossless`] if the plan
    /// promises to lose nothing and the [`Difference`] is not lossless.
    pub fn run(
        self,
        source: Checkpoint,
        output: &Path,
    ) -> Result<Option<Difference>, ScalingError> {
        let cannot = |error| CheckpointError::Write {
            path: output.to_path_buf(),
            source: io::Error::other(error),
        };
        let (file, _) = AtomicFile::create(output).map_err(cannot)?;
        let difference = self.make(source, file.path(), output)?;
        file.commit().map_err(cannot)?;
        Ok(difference)
    }

    /// Writes the larger model to `temporary`, compares it and does what is to be done alongside.
    fn make(
        self,
        source: Checkpoint,
        temporary: &Path,
        output: &Path,
    ) -> Result<Option<Difference>, ScalingError> {
        let plan = self.plan;
        log::info!("writing {} tensors", plan.steps.len());
        let widened = (is_half(&source) && plan.scale() != 1.0).then_some(DType::F32);
        let dtype = self.dtype.or(widened);
        with_tensors(&source, plan, dtype, self.seed, progress(), |tensors| {
            let saved =
                checkpoint::save_tensors(temporary, &plan.to, tensors, Format::Official, None);
            saved.map_err(|error| match error {
                // The temporary file means nothing to anybody.
                CheckpointError::Write { source, .. } => CheckpointError::Write {
                    path: output.to_path_buf(),
                    source,
                },
                error => error,
            })
        })?;
        let difference = match self.tokens {
            Some(tokens) => Some(compare(plan, source, temporary, output, tokens)?),
            None => None,
        };
        match self.alongside {
            Some(write) => write().map(|()| difference),
            None => Ok(difference),
        }
    }
}

/// Whether there are tensors in half precision.
fn is_half(checkpoint: &Checkpoint) -> bool {
    let dtypes = checkpoint.dtypes();
    dtypes.iter().any(|name| name.ends_with("f16"))
}

/// Logs a percentage now and then.
fn progress() -> impl Fn(usize, usize) + Send + Sync + 'static {
    let shown = Mutex::new(Instant::now());
    move |done, all| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.elapsed() >= INTERVAL {
            *shown = Instant::now();
            log::info!("{} %", 100 * done / all);
        }
    }
}

/// Compares the model in `source` with the larger one in the file `temporary`.
fn compare<S: Growable>(
    plan: &Plan<S>,
    source: Checkpoint,
    temporary: &Path,
    output: &Path,
    tokens: Tensor<2, Int>,
) -> Result<Difference, ScalingError> {
    log::info!("comparing both models on {} tokens", tokens.dims()[1]);
    let device = tokens.device();
    // One after the other, so that only one of them is in memory.
    let logits = |checkpoint: Checkpoint| -> Result<Tensor<3>, CheckpointError> {
        let (_, model) = checkpoint.load::<S>(&device)?;
        Ok(model.forward(tokens.clone(), None).0)
    };
    let expected = logits(source)?;
    let larger = Checkpoint::open(temporary)?;
    let half = is_half(&larger);
    let difference = Difference::of(expected, logits(larger)?);
    let promised = plan.method == Method::Lossless && plan.obstacle.is_none();
    if promised && !difference.is_lossless() {
        return Err(ScalingError::NotLossless {
            output: output.to_path_buf(),
            largest: difference.largest,
            half,
        });
    }
    Ok(difference)
}
