//! The layer: equations and names as in the [crate documentation](crate).

// The paper's W_oms and W_sse, in checkpoints and here.
#![allow(non_snake_case)]

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, activation},
};
use rwkv7_core::{
    MatmulPrecision,
    config::LayerDims,
    init::LayerInit,
    layers::{
        ChannelMixer, LayerNorm, Lengths, TimeMixTrace, check_state, head_norm, last_token,
        token_shift, zero_state,
    },
    ops::{Side, Wkv7Input, narrow, read_states, unit, widen, wkv7},
    state::{StateError, StateTensors, TensorReader, TensorWriter},
};

use crate::{
    config::{MetaStateConfig, Oms, Removal, Scale, Sse},
    diagnostics::{Diagnostics, MEASUREMENTS},
};

/// The Meta-State layer. The fields bear the names of the checkpoint's tensors `blocks.{i}.ms.…`.
#[derive(Module, Debug)]
pub struct MetaState {
    /// Token-shift mix, `[1, 1, C]`; with [`token_shift`](MetaStateConfig::token_shift).
    pub x_k: Option<Param<Tensor<3>>>,
    /// First factor of the query, `[H, N, r]`; with [`Sse::LowRank`].
    pub sse1: Option<Param<Tensor<3>>>,
    /// Second factor of the query, `[H, r, N]`; with [`Sse::LowRank`].
    pub sse2: Option<Param<Tensor<3>>>,
    /// Factor of the query before the state, `[N, N]`; with [`Sse::Projected`].
    pub W_in: Option<Param<Tensor<2>>>,
    /// Weights of each head's read (columns) in each head's z (rows), `[H, H]`; with [`Sse::HeadMixed`].
    pub mix: Option<Param<Tensor<2>>>,
    /// Read instead of the state, `[H, N, N]`; with [`Sse::Learned`].
    pub W_sse: Option<Param<Tensor<3>>>,
    /// Scale and shift of each head's layer norm, `[H n]`; with [`norm_affine`](MetaStateConfig::norm_affine).
    pub ln: Option<LayerNorm>,
    /// From the read of ms to the residual stream, `[1, n, C]` or `[H, n, C]`.
    pub W_oms: Param<Tensor<3>>,
    #[module(skip)]
    config: MetaStateConfig,
    #[module(skip)]
    diagnostics: Diagnostics,
    n_head: usize,
    head_size: usize,
    #[module(skip)]
    norm_prefix: Option<usize>,
    #[module(skip)]
    precision: MatmulPrecision,
}

/// State of [`MetaState`].
#[derive(Clone, Debug)]
pub struct MetaStateState {
    /// The state of the state, `[batch, heads, n, n]`, f32.
    pub ms: Tensor<4>,
    /// Input of the last token, `[batch, C]`; with [`token_shift`](MetaStateConfig::token_shift).
    pub shift: Option<Tensor<2>>,
}

impl MetaState {
    /// The layer with its initial values. W_oms is zero: the block starts as time mixing alone.
    pub(crate) fn new(config: &MetaStateConfig, dims: &LayerDims, init: &LayerInit) -> Self {
        let (heads, head_size, width) = (dims.n_head(), dims.head_size, dims.n_embd);
        let size = config.size(head_size);
        let per_head = |name: &str, dims| init.orthogonal_heads(name, dims, 1.0);
        let (sse1, sse2) = match config.sse {
            Sse::LowRank(rank) => (
                Some(per_head("ms.sse1", [heads, head_size, rank])),
                Some(per_head("ms.sse2", [heads, rank, head_size])),
            ),
            _ => (None, None),
        };
        let groups = match config.oms {
            Oms::Shared => 1,
            Oms::PerHead => heads,
        };
        Self {
            x_k: config
                .token_shift
                .then(|| init.shift_mix(width, init.depth_left().powi(4))),
            sse1,
            sse2,
            W_in: (config.sse == Sse::Projected)
                .then(|| init.orthogonal("ms.W_in", [head_size, head_size], 1.0)),
            mix: (config.sse == Sse::HeadMixed).then(|| init.identity(heads)),
            W_sse: (config.sse == Sse::Learned)
                .then(|| per_head("ms.W_sse", [heads, head_size, head_size])),
            ln: config
                .norm_affine
                .then(|| init.norm(heads * size, config.norm_eps)),
            W_oms: init.zeros([groups, size, width]),
            config: config.clone(),
            diagnostics: Diagnostics::default(),
            n_head: heads,
            head_size,
            norm_prefix: dims.norm_prefix.filter(|prefix| *prefix < size),
            precision: MatmulPrecision::F32,
        }
    }

    /// The layer's choices.
    pub fn config(&self) -> &MetaStateConfig {
        &self.config
    }

    /// z before its ReLU (eq. 1), `[batch, time, heads, n]`, for `x [batch, time, heads, N]`.
    fn read(&self, x: Tensor<4>, trace: &TimeMixTrace) -> Tensor<4> {
        if let Some(weight) = &self.W_sse {
            return per_head(x, widen(weight.val()));
        }
        let x = match (&self.sse1, &self.sse2, &self.W_in, self.config.sse) {
            (Some(first), Some(second), ..) => {
                per_head(per_head(x, widen(first.val())), widen(second.val()))
            }
            (_, _, Some(weight), _) => {
                let size = self.head_size;
                let rows = x.clone().reshape([-1, size as i32]);
                let rows = self.precision.matmul(rows, widen(weight.val()));
                rows.reshape(x.shape())
            }
            (.., Sse::TopLeft(n)) => first_channels_only(x, n),
            _ => x,
        };
        let z = match (self.config.side, &trace.states) {
            (side, Some(states)) => read_states(x, states, side),
            (Side::Value, None) => unreachable!("`reads_states` asks for them"),
            // Without gradients that is y with another receptance.
            (Side::Key, None) => {
                let input = Wkv7Input {
                    r: x,
                    ..trace.input.clone()
                };
                wkv7(input.map(widen), trace.state_before.clone()).0
            }
        };
        match (&self.mix, self.config.sse) {
            (Some(mix), _) => widen(mix.val()).unsqueeze::<4>().matmul(z),
            (_, Sse::TopLeft(n)) => z.narrow(3, 0, n),
            _ => z,
        }
    }

    /// z as it enters ms (eq. 1), zero at padding.
    fn encode(&self, x: Tensor<4>, trace: &TimeMixTrace, lengths: &Lengths) -> Tensor<4> {
        let z = activation::relu(self.read(x, trace));
        self.diagnostics.encoded(&z);
        let z = if self.config.center {
            z.clone() - z.mean_dim(3)
        } else {
            z
        };
        let z = match self.config.scale {
            Scale::None => z,
            Scale::Constant(factor) => z * factor,
            Scale::L2 => unit(z),
        };
        let [batch, time, heads, size] = z.dims();
        let flat = z.reshape([batch, time, heads * size]);
        lengths
            .clear_padding(flat)
            .reshape([batch, time, heads, size])
    }

    /// Input of the recurrence of ms (eq. 2, 3).
    fn evolution(&self, z: Tensor<4>, trace: &TimeMixTrace) -> Wkv7Input {
        let size = z.dims()[3];
        let cut = |x: Tensor<4>| {
            let x = if size == self.head_size {
                x
            } else {
                x.narrow(3, 0, size)
            };
            let x = widen(x);
            if self.config.detach_decay {
                x.detach()
            } else {
                x
            }
        };
        let Wkv7Input { log_w, a, b, .. } = trace.input.clone();
        let (a, b) = match self.config.removal {
            Removal::TimeMix => (cut(a), cut(b)),
            Removal::Own => trace.removal_key(z.clone(), self.config.detach_decay),
        };
        Wkv7Input {
            r: z.clone(),
            log_w: cut(log_w),
            k: z.clone(),
            v: z,
            a,
            b,
        }
    }

    /// The layer norm of eq. 4, of each head of `u [batch, time, heads, n]`.
    fn norm(&self, u: Tensor<4>) -> Tensor<4> {
        let [_, _, heads, size] = u.dims();
        let normal = head_norm(u.clone(), self.norm_prefix, self.config.norm_eps);
        self.diagnostics.read(&u, &normal);
        match &self.ln {
            None => normal,
            Some(ln) => {
                let channels = |x: Tensor<1>| widen(x).reshape([1, 1, heads, size]);
                normal * channels(ln.gamma.val()) + channels(ln.beta.val())
            }
        }
    }

    /// The product with W_oms of eq. 4, `[batch, time, heads, n] -> [batch, time, C]`.
    fn recombine(&self, normal: Tensor<4>) -> Tensor<3> {
        let [batch, time, heads, size] = normal.dims();
        let weight = self.W_oms.val();
        let [groups, _, width] = weight.dims();
        let rows = if groups == 1 {
            normal.sum_dim(2).reshape([batch * time, size])
        } else {
            normal.reshape([batch * time, heads * size])
        };
        let rows = narrow(rows, weight.dtype());
        let weight = weight.reshape([groups * size, width]);
        self.precision
            .matmul(rows, weight)
            .reshape([batch, time, width])
    }
}

impl ChannelMixer for MetaState {
    type State = MetaStateState;

    const NAME: &'static str = "ms";

    const MEASUREMENTS: &'static [&'static str] = &MEASUREMENTS;

    fn measure(&mut self, on: bool) {
        self.diagnostics.switch(on);
    }

    fn measurements(&self) -> Vec<f64> {
        self.diagnostics.last()
    }

    fn reads_states(&self, differentiated: bool) -> bool {
        self.config.sse != Sse::Learned && (self.config.side == Side::Value || differentiated)
    }

    fn forward(
        &self,
        h: Tensor<3>,
        trace: &TimeMixTrace,
        lengths: &Lengths,
        state: MetaStateState,
    ) -> (Tensor<3>, MetaStateState) {
        let [batch, time, width] = h.dims();
        let size = self.config.size(self.head_size);
        check_state("ms.ms", &state.ms, [batch, self.n_head, size, size]);
        let (x, shift) = match (&self.x_k, state.shift) {
            (Some(x_k), Some(last)) => {
                check_state("ms.shift", &last, [batch, width]);
                let shift = last_token(&h, &last, lengths);
                (token_shift(h, last, x_k.val()), Some(shift))
            }
            (None, None) => (h, None),
            (x_k, shift) => {
                let has = |there| if there { "has" } else { "has no" };
                panic!(
                    "ms: the layer {} token shift, the state {} `ms.shift`: it is of another model",
                    has(x_k.is_some()),
                    has(shift.is_some())
                );
            }
        };
        let x = widen(x).reshape([batch, time, self.n_head, self.head_size]);
        let z = self.encode(x, trace, lengths);
        let (u, ms) = wkv7(self.evolution(z, trace), state.ms);
        let out = self.recombine(self.norm(u));
        (out, MetaStateState { ms, shift })
    }

    fn set_matmul_precision(&mut self, precision: MatmulPrecision) {
        self.precision = precision;
    }

    fn zero_state(&self, batch: usize, device: &Device) -> MetaStateState {
        let size = self.config.size(self.head_size);
        let shift = self.config.token_shift;
        MetaStateState {
            ms: zero_state([batch, self.n_head, size, size], device),
            shift: shift.then(|| zero_state([batch, self.n_head * self.head_size], device)),
        }
    }
}

impl StateTensors for MetaStateState {
    fn write(&self, out: &mut TensorWriter) {
        out.put("ms.ms", &self.ms);
        if let Some(shift) = &self.shift {
            out.put("ms.shift", shift);
        }
    }

    fn read(&self, from: &mut TensorReader) -> Result<Self, StateError> {
        let shift = match &self.shift {
            Some(like) => Some(from.take("ms.shift", like)?),
            None => None,
        };
        Ok(Self {
            ms: from.take("ms.ms", &self.ms)?,
            shift,
        })
    }

    fn detach(self) -> Self {
        Self {
            ms: self.ms.detach(),
            shift: self.shift.map(Tensor::detach),
        }
    }
}

/// `x_h W_h` for every head: `[batch, time, heads, in]` and `[heads, in, out]` to `[batch, time, heads, out]`.
fn per_head(x: Tensor<4>, weight: Tensor<3>) -> Tensor<4> {
    let [batch, time, heads, size] = x.dims();
    let out = weight.dims()[2];
    x.reshape([batch * time, heads, size])
        .swap_dims(0, 1)
        .matmul(weight)
        .swap_dims(0, 1)
        .reshape([batch, time, heads, out])
}

/// `x` with zeros in all channels but the first n.
fn first_channels_only(x: Tensor<4>, n: usize) -> Tensor<4> {
    let [batch, time, heads, size] = x.dims();
    let zeros = Tensor::zeros([batch, time, heads, size - n], (&x.device(), x.dtype()));
    Tensor::cat(vec![x.narrow(3, 0, n), zeros], 3)
}
