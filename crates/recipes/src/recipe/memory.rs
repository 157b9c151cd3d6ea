//! How much memory training takes, so that a number with some zeros too many is an error and not the end of the program.

use burn::tensor::Device;
use rwkv7_core::{Rwkv7Config, config::ChannelMixerConfig, device::kind};

use super::{Recipe, RecipeError, Task};

/// Bytes for each parameter: the value, its gradient and two moments, in f32.
const PARAMETER: f64 = 16.0;

/// Values that each layer keeps of a token for the backward pass, in widths of the embedding.
const KEPT: f64 = 20.0;

/// Bytes, more than any device has.
const MOST: f64 = 4.0 * (1_u64 << 40) as f64;

/// The estimate is rough: only what is this many times too large is refused.
const MARGIN: f64 = 4.0;

impl Recipe {
    /// Refuses a model and batches that are many times larger than the memory.
    ///
    /// # Errors
    ///
    /// [`RecipeError::TooLarge`] says how much memory it would take.
    pub(crate) fn check_memory<S: ChannelMixerConfig>(
        &self,
        config: &Rwkv7Config<S>,
        device: &Device,
    ) -> Result<(), RecipeError> {
        let parameters = parameters(config);
        let tokens = self.batch_size as f64 * self.tokens_a_row() as f64;
        let kept = KEPT * config.n_layer as f64 * config.n_embd as f64;
        // The logits, their gradient and their probabilities.
        let logits = 3.0 * config.vocab_size as f64;
        let needed = PARAMETER * parameters + 4.0 * tokens * (kept + logits);
        let processor = kind(device) == "processor";
        let limit = processor.then(memory).flatten().unwrap_or(MOST);
        if needed <= MARGIN * limit {
            return Ok(());
        }
        Err(RecipeError::TooLarge {
            needed: size(needed),
            parameters,
            tokens,
            limit: size(limit),
        })
    }

    fn tokens_a_row(&self) -> usize {
        match self.task {
            Task::Text => self.context,
            Task::Reverse => self.max_digits.saturating_mul(2),
        }
    }
}

/// About the number of parameters, without overflow.
fn parameters<S: ChannelMixerConfig>(config: &Rwkv7Config<S>) -> f64 {
    let [layers, width, vocab] =
        [config.n_layer, config.n_embd, config.vocab_size].map(|n| n as f64);
    let ranks = [
        config.decay_rank,
        config.in_context_rank,
        config.value_rank,
        config.gate_rank,
    ];
    let ranks: f64 = ranks.map(|rank| rank as f64).iter().sum();
    let mixer = match serde_json::json!(config.ffn)["ffn_size"].as_f64() {
        Some(ffn_size) => 2.0 * ffn_size,
        None => width,
    };
    layers * width * (4.0 * width + 2.0 * ranks + mixer) + 2.0 * vocab * width
}

/// Bytes of this machine's memory, where the system tells.
fn memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(1024.0 * kilobytes)
}

/// Bytes in words.
fn size(bytes: f64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1.0).log2() / 10.0).floor().clamp(0.0, 4.0);
    format!(
        "{:.1} {}",
        bytes / 1024_f64.powf(unit),
        units[unit as usize]
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zoo::for_architecture;

    fn check(settings: &[&str]) -> Result<(), RecipeError> {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let recipe = Recipe::load("reverse")
            .unwrap()
            .with_overrides(&settings)
            .unwrap();
        let config = recipe.model.config(recipe.arch, 256).unwrap();
        for_architecture!(AnyConfig, config, config => recipe.check_memory(&config, &Device::flex()))
    }

    #[test]
    fn what_no_machine_can_hold_is_refused_with_the_memory_it_takes() {
        check(&[]).unwrap();
        check(&["arch=meta-state", "batch_size=64"]).unwrap();
        for setting in [
            "batch_size=1000000000000",
            "model.n_embd=65536",
            "max_digits=1000000000000",
        ] {
            let error = check(&[setting]).unwrap_err().to_string();
            for part in ["TiB of memory", "parameters", "batch_size"] {
                assert!(error.contains(part), "{setting}: {error}");
            }
        }
    }

    #[test]
    fn the_estimate_of_a_real_model_is_near_its_parameters() {
        for name in ["150m-rwkv7", "150m-meta-state-paper"] {
            let config = zoo::config(name).unwrap();
            let found = for_architecture!(AnyConfig, &config, config => parameters(config));
            let expected = config.num_params() as f64;
            assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
        }
    }
}
