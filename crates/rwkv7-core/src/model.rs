//! The RWKV-7 language model, generic over what follows time mixing in each block.

use burn::{
    module::Module,
    nn::{Embedding, Linear},
    tensor::{Device, Int, Tensor},
};

use crate::{
    MatmulPrecision,
    config::{ChannelMixerConfig, Rwkv7Config},
    init::{self, LayerInit},
    layers::{Block, ChannelMix, ChannelMixer, LayerNorm, Span, project},
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
#[derive(Module, Debug)]
pub struct Rwkv7<M: ChannelMixer> {
    /// Token embedding, `[V, C]`.
    pub emb: Embedding,
    /// The blocks.
    pub blocks: Vec<Block<M>>,
    /// Before the head.
    pub ln_out: LayerNorm,
    /// `C -> V`, no bias, not tied to the embedding.
    pub head: Linear,
    #[module(skip)]
    precision: MatmulPrecision,
}

impl<S: ChannelMixerConfig> Rwkv7Config<S> {
    /// A model with RWKV-7's initial values (reference `rwkv7.md` 3.1), the same for the same seed on every device.
    ///
    /// Parameters are made when they are first used: a model that is loaded from a checkpoint right away never pays for
    /// its initial values.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) refuses the configuration.
    pub fn init(&self, device: &Device, seed: u64) -> Rwkv7<S::Layer> {
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

    /// Block `layer` (from 0) of such a model with its initial values, for models of your own. Block 0 normalises its input;
    /// the others read the value that it leaves.
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
    /// Arithmetic of the products with the weight matrices; in f32 unless changed.
    pub fn precision(&self) -> MatmulPrecision {
        self.precision
    }

    /// The same model with another arithmetic of the products with its weight matrices. [`MatmulPrecision::check`] says whether the device
    /// has it; the model panics where it does not.
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
        self.run(tokens, &Span::full(), state)
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
        let span = Span::new(lengths, time, &tokens.device());
        self.run(tokens, &span, state)
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

    /// Reads `tokens [batch, time]` and returns the logits after the last one, `[batch, V]`: what generation needs of a
    /// prompt, without the head's work for every position.
    pub fn read(
        &self,
        tokens: Tensor<2, Int>,
        state: Option<State<M::State>>,
    ) -> (Tensor<2>, State<M::State>) {
        let (x, state) = self.hidden(tokens, &Span::full(), state);
        let time = x.dims()[1];
        (self.logits(x.narrow(1, time - 1, 1)).squeeze_dim(1), state)
    }

    fn run(
        &self,
        tokens: Tensor<2, Int>,
        span: &Span,
        state: Option<State<M::State>>,
    ) -> (Tensor<3>, State<M::State>) {
        let (x, state) = self.hidden(tokens, span, state);
        (self.logits(x), state)
    }

    fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        project(&self.head, self.ln_out.forward(x), self.precision)
    }

    fn hidden(
        &self,
        tokens: Tensor<2, Int>,
        span: &Span,
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
            let (next, layer) = block.forward(x, &mut value_first, span, layer);
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
