//! The RWKV-7 language model, generic over the channel mixer of its blocks.

use burn::{
    module::Module,
    nn::{Embedding, Linear},
    tensor::{Device, Int, Tensor},
};

use crate::{
    MatmulPrecision,
    config::{ChannelMixerConfig, Rwkv7Config},
    init::{self, LayerInit},
    layers::{Block, ChannelMix, ChannelMixer, LayerNorm, Lengths, project},
    state::State,
};

/// RWKV-7 as published.
pub type Rwkv7Lm = Rwkv7<ChannelMix>;

/// A language model of RWKV-7 blocks whose channel mixers are `M`.
///
/// ```text
/// x      = emb[token]
/// x      = block_l(x)          l = 0..L
/// logits = head(ln_out(x))
/// ```
///
/// Running a model over a sequence and token by token gives the same logits:
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use rwkv7_core::Rwkv7Config;
///
/// let device = Device::default();
/// let model = Rwkv7Config::new(256, 2, 64).init(&device);
/// let tokens = Tensor::<2, Int>::from_data([[72, 101, 108, 108, 111]], &device);
/// let (logits, state) = model.forward(tokens, None);
/// assert_eq!(logits.dims(), [1, 5, 256]);
/// let (logits, _state) = model.step(Tensor::from_data([33], &device), state);
/// assert_eq!(logits.dims(), [1, 256]);
/// ```
///
/// # Loading
///
/// [`checkpoint::load`](crate::checkpoint::load) reads every format, finds the configuration in the shapes of the tensors, and
/// says all that is wrong with a file at once. The fields bear the names of the official checkpoints, so Burn's own loading
/// works too, for a model whose configuration is known.
///
/// A Burn record that [`Format::Burn`](crate::checkpoint::Format::Burn) or `save_file` wrote:
///
/// ```
/// use burn::{module::Module, tensor::Device};
/// # use rwkv7_core::checkpoint::Checkpoint;
/// use rwkv7_core::{Rwkv7Config, checkpoint::Format};
///
/// # let checkpoint = Checkpoint::open("../../tests/golden/tiny-a.pth".as_ref())?;
/// # let config: Rwkv7Config = checkpoint.config()?;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.bpk");
/// checkpoint.save(&config, &path, Format::Burn, None)?;
/// let model = config.init(&Device::default()).load_file(&path);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// An official `.pth`, by burn-store (`burn::store` with the features `store` and `pytorch`). The store skips the value residual
/// of layer 0, which is in the file and which no computation reads, and keeps the file's dtype:
///
/// ```
/// use burn::tensor::Device;
/// use burn_store::{ModuleSnapshot, PytorchStore};
/// use rwkv7_core::Rwkv7Config;
///
/// # let path = "../../tests/golden/tiny-a.pth";
/// # let config: Rwkv7Config = rwkv7_core::checkpoint::Checkpoint::open(path.as_ref())?.config()?;
/// let mut model = config.init(&Device::default());
/// model.load_from(&mut PytorchStore::from_file(path))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A safetensors file with the official names. The second adapter makes f32 parameters whatever the file's dtype is; for a `.pth`,
/// `ModuleSnapshot::apply` takes the tensors of the store and this adapter:
///
/// ```
/// use burn::tensor::{DType, Device};
/// use burn_store::{
///     FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore,
/// };
/// # use rwkv7_core::checkpoint::{Checkpoint, Format};
/// use rwkv7_core::Rwkv7Config;
///
/// # let checkpoint = Checkpoint::open("../../tests/golden/tiny-a.pth".as_ref())?;
/// # let config: Rwkv7Config = checkpoint.config()?;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.safetensors");
/// # checkpoint.save(&config, &path, Format::Official, None)?;
/// let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
/// let mut store = SafetensorsStore::from_file(&path).with_from_adapter(adapter);
/// let mut model = config.init(&Device::default());
/// model.load_from(&mut store)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Rwkv7<M: ChannelMixer> {
    /// Token embedding, `[V, C]`.
    pub emb: Embedding,
    /// The blocks.
    pub blocks: Vec<Block<M>>,
    /// Layer norm before the head.
    pub ln_out: LayerNorm,
    /// `C -> V`, no bias, not tied to the embedding.
    pub head: Linear,
    #[module(skip)]
    precision: MatmulPrecision,
}

impl<S: ChannelMixerConfig> Rwkv7Config<S> {
    /// A model with RWKV-7's initial values on `device`: [`init_seeded`](Self::init_seeded) with seed 0.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) refuses the configuration.
    pub fn init(&self, device: &Device) -> Rwkv7<S::Layer> {
        self.init_seeded(device, 0)
    }

    /// A model with RWKV-7's [initial values](crate::init) on `device`, the same for the same seed on every device.
    ///
    /// A parameter gets its values when it is first used: a model that is loaded from a checkpoint right away never makes its
    /// initial values.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) refuses the configuration.
    pub fn init_seeded(&self, device: &Device, seed: u64) -> Rwkv7<S::Layer> {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        Rwkv7 {
            emb: init::embedding(
                self.vocab_size,
                self.embed_width.unwrap_or(self.n_embd),
                device,
                seed,
            ),
            blocks: (0..self.n_layer)
                .map(|layer| self.init_block(layer, device, seed))
                .collect(),
            ln_out: init::layer_norm(self.n_embd, self.layer_norm_eps, device),
            head: init::head(self.n_embd, self.vocab_size, device, seed),
            precision: MatmulPrecision::F32,
        }
    }

    /// Block `layer` (from 0) of [`init_seeded`](Self::init_seeded)'s model, for models of your own. Block 0 normalises its input
    /// and leaves a value, which the other blocks read.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) refuses the configuration.
    pub fn init_block(&self, layer: usize, device: &Device, seed: u64) -> Block<S::Layer> {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let dims = self.dims();
        let init = LayerInit::new(layer, &dims, device, seed);
        let norm = || init::layer_norm(self.n_embd, self.layer_norm_eps, device);
        Block {
            ln0: (layer == 0 && self.embedding_norm).then(|| {
                let width = self.embed_width.unwrap_or(self.n_embd);
                init::layer_norm(width, self.layer_norm_eps, device)
            }),
            lift: match self.embed_width {
                Some(width) if layer == 0 => {
                    Some(init.orthogonal_linear("lift", width, self.n_embd, 1.0))
                }
                _ => None,
            },
            ln1: norm(),
            ln2: norm(),
            att: init::time_mix(self, &init),
            ffn: self.ffn.init(&dims, &init),
        }
    }
}

impl<M: ChannelMixer> Rwkv7<M> {
    /// Vocabulary size V.
    pub fn vocab_size(&self) -> usize {
        let [vocab_size, _] = self.emb.weight.shape().dims();
        vocab_size
    }

    /// Arithmetic of the products with the weight matrices; f32 unless
    /// [`with_matmul_precision`](Self::with_matmul_precision) changed it.
    pub fn precision(&self) -> MatmulPrecision {
        self.precision
    }

    /// The same model with another arithmetic of the products with its weight matrices. The model panics on a device that does
    /// not have this arithmetic; [`MatmulPrecision::check`] tells whether the device has it.
    pub fn with_matmul_precision(mut self, precision: MatmulPrecision) -> Self {
        self.precision = precision;
        for block in &mut self.blocks {
            block.set_matmul_precision(precision);
        }
        self
    }

    /// Logits `[batch, time, V]` for `tokens [batch, time]`, and the state after the last token.
    ///
    /// Without a `state` the sequence starts from nothing. Splitting a sequence anywhere and carrying the state gives
    /// the same logits.
    ///
    /// # Panics
    ///
    /// If the sequence is empty or the state is of a model of another size, or of another batch. A state of another model of the
    /// same shapes is taken as it is: only [state files](crate::state) say whose they are. A token id outside the vocabulary panics
    /// or reads rubbish, depending on the device: check ids where they come from.
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        state: Option<State<M::State>>,
    ) -> (Tensor<3>, State<M::State>) {
        self.run(tokens, &Lengths::full(), state)
    }

    /// [`forward`](Self::forward) for rows of different lengths, padded at the end with any valid token.
    ///
    /// Each row's logits at its real positions and its state are what it would give alone; logits at padding mean
    /// nothing. A length of 0 leaves the row's state as it is.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and if there is not one length a row or a length exceeds the padded one.
    pub fn forward_ragged(
        &self,
        tokens: Tensor<2, Int>,
        lengths: &[usize],
        state: Option<State<M::State>>,
    ) -> (Tensor<3>, State<M::State>) {
        let [batch, time] = tokens.dims();
        assert_eq!(lengths.len(), batch, "one length per row of the batch");
        let lengths = Lengths::new(lengths, time, &tokens.device());
        self.run(tokens, &lengths, state)
    }

    /// Logits `[batch, V]` after one more token a row, `tokens [batch]`.
    pub fn step(
        &self,
        tokens: Tensor<1, Int>,
        state: State<M::State>,
    ) -> (Tensor<2>, State<M::State>) {
        let (logits, state) = self.forward(tokens.unsqueeze_dim(1), Some(state));
        (logits.squeeze_dim(1), state)
    }

    /// Reads `tokens [batch, time]` and returns the logits after the last token only, `[batch, V]`, which is all that generation
    /// needs of a prompt; the head does no work for the other positions.
    pub fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        state: Option<State<M::State>>,
    ) -> (Tensor<2>, State<M::State>) {
        let (x, state) = self.hidden(tokens, &Lengths::full(), state);
        let time = x.dims()[1];
        (self.logits(x.narrow(1, time - 1, 1)).squeeze_dim(1), state)
    }

    fn run(
        &self,
        tokens: Tensor<2, Int>,
        lengths: &Lengths,
        state: Option<State<M::State>>,
    ) -> (Tensor<3>, State<M::State>) {
        let (x, state) = self.hidden(tokens, lengths, state);
        (self.logits(x), state)
    }

    fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        project(&self.head, self.ln_out.forward(x), self.precision)
    }

    /// What the head multiplies with its weight, `[batch, time, C]`, of sequences from their first token on.
    pub(crate) fn before_head(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let (x, _) = self.hidden(tokens, &Lengths::full(), None);
        self.ln_out.forward(x)
    }

    fn hidden(
        &self,
        tokens: Tensor<2, Int>,
        lengths: &Lengths,
        state: Option<State<M::State>>,
    ) -> (Tensor<3>, State<M::State>) {
        let batch = tokens.dims()[0];
        let mut x = self.emb.forward(tokens);
        let state = state.unwrap_or_else(|| self.zero_state(batch, &x.device()));
        let (found, expected) = (state.layers.len(), self.blocks.len());
        assert!(
            found == expected,
            "the state has {found} layers, the model {expected}: it is of another model"
        );
        let mut value_first = None;
        let mut layers = Vec::with_capacity(self.blocks.len());
        for (block, layer) in self.blocks.iter().zip(state.layers) {
            let (next, layer) = block.forward(x, &mut value_first, lengths, layer);
            x = next;
            layers.push(layer);
        }
        (x, State { layers })
    }

    /// The state before the first token.
    pub fn zero_state(&self, batch: usize, device: &Device) -> State<M::State> {
        let layers = self
            .blocks
            .iter()
            .map(|block| block.zero_state(batch, device))
            .collect();
        State { layers }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "model_tests.rs"]
mod tests;
