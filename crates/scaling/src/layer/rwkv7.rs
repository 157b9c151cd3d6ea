//! The tensors of RWKV-7.

use rwkv7_core::{
    Rwkv7Config,
    config::LayerDims,
    layers::{ChannelMixConfig, ChannelMixState},
};

use super::{Fill, Growable, GrowthAxes, Heads, TensorRule, at_least, copied, shared};
use crate::{ScalingError, state::pad_channels};

impl Growable for ChannelMixConfig {
    fn check(&self, to: &Self) -> Result<(), ScalingError> {
        at_least("ffn_size", self.ffn_size, to.ffn_size)
    }

    fn rule(&self, _to: &Self, name: &str, axes: &GrowthAxes) -> TensorRule {
        let random = || Fill::Random.into();
        match name {
            "x_k" => TensorRule::vector(axes.width(Fill::Initial)),
            "key.weight" => TensorRule::grow([random(), axes.width(Fill::Random)]),
            "value.weight" => {
                TensorRule::scaled(axes.scale, [axes.width(Fill::Mean), Fill::Zero.into()])
            }
            other => unreachable!("no tensor of channel mixing is called {other}"),
        }
    }

    fn grow_state(&self, state: ChannelMixState, heads: Heads, to: &LayerDims) -> ChannelMixState {
        ChannelMixState {
            shift: pad_channels(state.shift, heads, to),
        }
    }
}

/// The rule for a tensor outside the channel mixers: of a block, by its name there, or of the whole model.
pub(crate) fn rule<S: Growable>(
    config: &Rwkv7Config<S>,
    name: &str,
    axes: &GrowthAxes,
) -> TensorRule {
    let scale = axes.scale;
    let random = || Fill::Random.into();
    match name {
        "emb.weight" => TensorRule::grow([random(), axes.width(Fill::Zero)]),
        // Nothing is known of new tokens, which become as likely as the average token.
        "head.weight" => TensorRule::grow([Fill::Mean.into(), axes.width(Fill::Random)]),
        "ln0.weight" | "ln0.bias" => TensorRule::grow([axes.width(Fill::Zero)]),
        "lift.weight" if config.embed_width.is_some() => {
            TensorRule::scaled(scale, [axes.width(Fill::Mean), Fill::Zero.into()])
        }
        "lift.weight" => TensorRule::Lift,
        "ln1.weight" | "ln_out.weight" => TensorRule::scaled(1.0 / scale, [axes.width(Fill::Mean)]),
        "ln2.weight" => {
            let input = config.ffn.input_scale(axes.heads);
            TensorRule::scaled(input / scale, [axes.width(Fill::Mean)])
        }
        "ln2.bias" => {
            let input = config.ffn.input_scale(axes.heads);
            TensorRule::scaled(input, [axes.width(Fill::Zero)])
        }
        "ln1.bias" | "ln_out.bias" => TensorRule::grow([axes.width(Fill::Zero)]),
        "att.x_r" | "att.x_w" | "att.x_k" | "att.x_v" | "att.x_a" | "att.x_g" => {
            TensorRule::vector(axes.width(Fill::Initial))
        }
        "att.w0" | "att.a0" | "att.v0" | "att.k_k" | "att.k_a" => {
            TensorRule::vector(axes.inner(Fill::Initial, copied(axes, Fill::Initial)))
        }
        "att.ln_x.weight" | "att.ln_x.bias" => {
            TensorRule::grow([axes.inner(Fill::Initial, copied(axes, Fill::Initial))])
        }
        "att.r_k" => TensorRule::grow([Fill::Initial.into(), copied(axes, Fill::Initial).into()]),
        "att.receptance.weight" => TensorRule::grow([
            axes.inner(Fill::Random, shared(axes, Fill::Random)),
            axes.width(Fill::Random),
        ]),
        "att.key.weight" => TensorRule::grow([
            axes.inner(Fill::Random, Fill::COPY),
            axes.width(Fill::Random),
        ]),
        "att.value.weight" => TensorRule::grow([
            axes.inner(Fill::Random, copied(axes, Fill::Random)),
            axes.width(Fill::Random),
        ]),
        "att.w1" | "att.a1" | "att.v1" | "att.g1" => {
            TensorRule::grow([axes.width(Fill::Random), random()])
        }
        // The sigmoid of zero is not zero, so only the second factor can keep new ranks silent.
        "att.w2" | "att.a2" | "att.v2" | "att.g2" => TensorRule::grow([
            Fill::Zero.into(),
            axes.inner(Fill::Random, copied(axes, Fill::Random)),
        ]),
        "att.output.weight" => TensorRule::scaled(
            scale,
            [axes.width(Fill::Mean), axes.inner(Fill::Zero, Fill::SHARE)],
        ),
        other => unreachable!("no tensor of RWKV-7 is called {other}"),
    }
}
