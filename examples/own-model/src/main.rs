//! A Burn model of its own with Meta-State blocks in it, trained for a few steps; then a model of the zoo, which generates.
//!
//! ```sh
//! cargo run --release                                  # on the CPU
//! cargo run --release --features wgpu                  # on a GPU
//! ```

use std::error::Error;

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig},
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData},
};
use meta_state::{MetaState, MetaStateConfig, MetaStateLm, MetaStateModelConfig};
use metastate_zoo::{self as zoo, Entry};
use rwkv7_core::{
    Generator, Rwkv7Config,
    layers::{Block, Lengths},
    loss,
    optimizer::OptimizerConfig,
    sampling::{Sampler, SamplerConfig},
    tokenizer::ByteTokenizer,
};

/// Tags every digit of a sequence with the sum of the digits so far, modulo 5.
#[derive(Module, Debug)]
struct Tagger {
    digits: Embedding,
    blocks: Vec<Block<MetaState>>,
    norm: LayerNorm,
    tags: Linear,
}

impl Tagger {
    fn new(device: &Device) -> Self {
        // The vocabulary belongs to language models; blocks do not look at it.
        let config = Rwkv7Config {
            head_size: 16,
            ..Rwkv7Config::new(10, 2, 32)
        }
        .with_ffn(MetaStateConfig::practical());
        Self {
            digits: EmbeddingConfig::new(10, config.n_embd).init(device),
            blocks: (0..config.n_layer)
                .map(|layer| config.init_block(layer, device, 0))
                .collect(),
            norm: LayerNormConfig::new(config.n_embd).init(device),
            tags: LinearConfig::new(config.n_embd, 5).init(device),
        }
    }

    /// Logits of the tags, `[batch, time, 5]`, for digits `[batch, time]`.
    fn forward(&self, digits: Tensor<2, Int>) -> Tensor<3> {
        let batch = digits.dims()[0];
        let mut x = self.digits.forward(digits);
        let mut value_first = None;
        for block in &self.blocks {
            let state = block.zero_state(batch, &x.device());
            let (next, _state) = block.forward(x, &mut value_first, &Lengths::full(), state);
            x = next;
        }
        self.tags.forward(self.norm.forward(x))
    }
}

/// Random digits and their tags.
fn batch(step: usize, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
    const ROWS: usize = 32;
    const TIME: usize = 16;
    let mut random = step as u64 + 1;
    let mut digit = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as i32 % 10
    };
    let (mut digits, mut tags) = (Vec::new(), Vec::new());
    for _ in 0..ROWS {
        let mut sum = 0;
        for _ in 0..TIME {
            let next = digit();
            sum = (sum + next) % 5;
            digits.push(next);
            tags.push(sum);
        }
    }
    let tensor = |values| Tensor::from_data(TensorData::new(values, [ROWS, TIME]), device);
    (tensor(digits), tensor(tags))
}

/// Trains the tagger; returns the mean losses of the first and the last ten steps.
fn train(steps: usize, device: &Device) -> (f32, f32) {
    let device = device.clone().autodiff();
    let mut model = Tagger::new(&device);
    let mut optimizer = OptimizerConfig::default().init();
    let mut losses = Vec::new();
    for step in 0..steps {
        let (digits, tags) = batch(step, &device);
        let loss = loss::cross_entropy(model.forward(digits), tags, None);
        losses.push(loss.clone().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(3e-3, model, grads);
    }
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    (mean(&losses[..10]), mean(&losses[steps - 10..]))
}

/// Asks a Meta-State model of the zoo to write a number backwards.
fn generate(number: &str, device: &Device) -> Result<String, Box<dyn Error>> {
    let zoo = zoo::find("reverse-meta-state").and_then(Entry::weights);
    let weights = zoo.ok_or("the zoo has no such model")??;
    let (_config, model): (MetaStateModelConfig, MetaStateLm) = weights.load(device)?;
    let sampler = Sampler::new(SamplerConfig {
        temperature: 0.0,
        ..Default::default()
    })?;
    let mut generator = Generator::new(&model, sampler).with_max_tokens(2 * number.len());
    let answer = generator
        .text(&ByteTokenizer, &format!("{number},"))?
        .collect::<Result<String, _>>()?;
    Ok(answer.trim().to_string())
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default();
    let (first, last) = train(100, &device);
    println!("tagger: loss {first:.3} in the first ten steps, {last:.3} in the last ten");
    if last >= first {
        return Err("the tagger learned nothing".into());
    }
    let answer = generate("31415", &device)?;
    println!("reverse-meta-state: 31415 -> {answer}");
    if answer != "51413" {
        return Err("a wrong answer".into());
    }
    Ok(())
}
