//! The command line, as users and scripts see it.

use std::{path::PathBuf, str::FromStr};

use burn::tensor::DType;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use meta_state::MetaStateConfig;
use recipes::Recipe;
use rwkv7_core::checkpoint::Format;
use scaling::Method;
use zoo::Arch;

use crate::device::NAMES;

/// Train, evaluate, convert and run RWKV-7 and Meta-State language models on any GPU or the CPU.
#[derive(Parser)]
#[command(name = "metastate", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Train a model by a recipe.
    Train(Train),
    /// Measure a model on a text.
    Eval(Eval),
    /// Continue a prompt.
    Generate(Generate),
    /// Print the logits after a sequence of token ids, for people who port a model.
    Logits(Logits),
    /// Convert a checkpoint to another format or dtype.
    Convert(Convert),
    /// Print architecture, dimensions, exact parameter count and dtype of a checkpoint.
    Inspect(Inspect),
    /// Make a trained model larger without changing what it computes.
    Grow(Grow),
    /// List the models that have a name.
    Models(Models),
}

/// The device of a command.
#[derive(Args)]
pub struct OnDevice {
    #[arg(long, value_name = "NAME", help = device_help())]
    pub device: Option<String>,
}

#[derive(Args)]
pub struct Train {
    #[arg(long, value_name = "NAME|FILE.json", default_value = "reverse", help = recipe_help())]
    pub recipe: String,
    /// Text to train on: files or folders of .txt, .md, .jsonl, also .gz and .zst. Replaces the recipe's.
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// byte, an RWKV World vocabulary or a Hugging Face tokenizer.json. Replaces the recipe's.
    #[arg(long, value_name = "byte|PATH")]
    pub tokenizer: Option<String>,
    #[command(flatten)]
    pub on: OnDevice,
    /// Folder for checkpoints, logs and the trained model. Default: runs/RECIPE.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the output folder.
    #[arg(long)]
    pub resume: bool,
    /// Override a key of the recipe, as in learning_rate.peak=1e-3. Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Plain progress lines instead of the dashboard.
    #[arg(long)]
    pub no_tui: bool,
}

/// How a model is evaluated.
#[derive(Clone, Copy, ValueEnum)]
pub enum Task {
    /// Loss, perplexity and bits per byte of a text.
    Perplexity,
    /// Numbers of --digits digits that a model of the recipe `reverse` writes backwards.
    Reverse,
}

#[derive(Args)]
pub struct Eval {
    /// A model of the zoo, a training output folder or a checkpoint file.
    #[arg(long, value_name = "NAME|PATH")]
    pub model: PathBuf,
    /// The measurement.
    #[arg(long, value_enum, default_value = "perplexity")]
    pub task: Task,
    /// Text to measure perplexity on; repeatable.
    #[arg(
        long,
        value_name = "PATH",
        required_if_eq("task", "perplexity"),
        required_unless_present = "task"
    )]
    pub data: Vec<PathBuf>,
    /// Digits of the numbers of task `reverse`, from 3, as training sees all shorter numbers.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..), allow_negative_numbers = true)]
    pub digits: u16,
    /// byte, an RWKV World vocabulary or a Hugging Face tokenizer.json. Default: the one that the model was trained with.
    #[arg(long, value_name = "byte|PATH")]
    pub tokenizer: Option<String>,
    /// The key of the text in .jsonl files.
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub text_field: String,
    /// Tokens per forward pass; the state is carried from one to the next.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive, allow_negative_numbers = true)]
    pub context: usize,
    #[command(flatten)]
    pub on: OnDevice,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Generate {
    /// A model of the zoo, a training output folder or a checkpoint file.
    #[arg(long, value_name = "NAME|PATH")]
    pub model: PathBuf,
    /// byte, an RWKV World vocabulary or a Hugging Face tokenizer.json. Default: the one that the model was trained with.
    #[arg(long, value_name = "byte|PATH")]
    pub tokenizer: Option<String>,
    /// Text to continue. Empty: start after an end of text, or go on after the text of --state-in.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub prompt: String,
    /// Stop after this many tokens; the end-of-text token stops earlier.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub temperature: f32,
    /// Keep the likeliest tokens that hold this much of the probability.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.9,
        allow_negative_numbers = true
    )]
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Subtracted from the logit of every token that occurred.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for every time it occurred.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Factor on the weight of an occurrence after each token.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.996,
        allow_negative_numbers = true
    )]
    pub penalty_decay: f32,
    /// Seed of the random choice.
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: u64,
    /// Go on from a state that --state-out saved, with --prompt or else with the next token.
    #[arg(long, value_name = "FILE")]
    pub state_in: Option<PathBuf>,
    /// Save the state and the last token, for --state-in.
    #[arg(long, value_name = "FILE")]
    pub state_out: Option<PathBuf>,
    #[command(flatten)]
    pub on: OnDevice,
    /// Print one JSON object instead of the text as it comes.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Logits {
    /// A model of the zoo, a training output folder or a checkpoint file.
    #[arg(long, value_name = "NAME|PATH")]
    pub model: PathBuf,
    /// Token ids, as in 1,2,3.
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true, value_parser = whole::<u32>, allow_hyphen_values = true)]
    pub tokens: Vec<u32>,
    #[command(flatten)]
    pub on: OnDevice,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Convert {
    /// Checkpoint to read: .pth, .safetensors, .bpk or a folder.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file or folder to write.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Format to write.
    #[arg(long, default_value = "blinkdl", value_parser = one_of(FORMATS))]
    pub format: Format,
    /// Dtype to write. Default: each tensor's own.
    #[arg(long, value_parser = one_of(DTYPES))]
    pub dtype: Option<DType>,
    /// Architecture to write: an RWKV-7 checkpoint becomes a Meta-State model with new layers at their initial values.
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// The new layers of --arch meta-state: paper, practical (the default) or a JSON object of its fields.
    #[arg(long, value_name = "NAME|JSON", value_parser = meta_state, requires = "arch")]
    pub meta_state: Option<MetaStateConfig>,
}

#[derive(Args)]
pub struct Grow {
    /// A model of the zoo, a training output folder or a checkpoint file.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The safetensors file to write.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The larger model: a name, or a JSON file or object with the dimensions that change, as in {"n_layer": 6, "n_embd": 192}.
    #[arg(long, value_name = "NAME|CONFIG.json|JSON")]
    pub to: String,
    /// The method.
    #[arg(long, value_enum, default_value = "lossless")]
    pub method: Method,
    /// Dtype to write. Default: f32 where the width grows, as every value is scaled then, else each tensor's own.
    #[arg(long, value_parser = one_of(DTYPES))]
    pub dtype: Option<DType>,
    /// Seed of the random values.
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: u64,
    /// The new blocks of the larger model, counted from 0, as in 2,5. Default: spread over the depth.
    #[arg(long, value_name = "I,…", value_delimiter = ',', value_parser = whole::<usize>, allow_hyphen_values = true)]
    pub new_blocks: Vec<usize>,
    /// Print how every tensor would be made, and write nothing.
    #[arg(long)]
    pub plan: bool,
    /// Make an RWKV-7 wider without a new tensor, so that other software can run the result. New channels of the embedding come in
    /// pairs of opposite sign.
    #[arg(long)]
    pub paired: bool,
    /// Grow even if the larger model then computes something else.
    #[arg(long)]
    pub inexact: bool,
    /// A state that `generate --state-out` saved, to grow with the model.
    #[arg(long, value_name = "F", requires = "state_out")]
    pub state_in: Option<PathBuf>,
    /// The file of the grown state.
    #[arg(long, value_name = "F", requires = "state_in")]
    pub state_out: Option<PathBuf>,
    /// A text that both models read for the comparison, instead of tokens from all over the vocabulary.
    #[arg(long, value_name = "PATH", conflicts_with = "no_verify")]
    pub text: Option<PathBuf>,
    /// The text's tokenizer. Default: the one that the model was trained with.
    #[arg(long, value_name = "byte|PATH", requires = "text")]
    pub tokenizer: Option<String>,
    /// Do not compare the logits of both models.
    #[arg(long)]
    pub no_verify: bool,
    #[command(flatten)]
    pub on: OnDevice,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Inspect {
    /// A training output folder or a checkpoint file.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Models {
    /// Print one JSON array.
    #[arg(long)]
    pub json: bool,
}

/// Checkpoint formats that can be written.
const FORMATS: Choices<Format> = &[
    (
        "blinkdl",
        "Safetensors with the official names",
        Format::Official,
    ),
    (
        "hf",
        "A folder in flash-linear-attention's Hugging Face layout: config.json and model.safetensors",
        Format::Fla,
    ),
    ("burn", "Burn's own format", Format::Burn),
];

/// Floating-point formats of checkpoints.
const DTYPES: Choices<DType> = &[
    ("f32", "32-bit float", DType::F32),
    ("f16", "16-bit float", DType::F16),
    ("bf16", "16-bit brain float", DType::BF16),
];

/// Values of an option: name, help and the value.
type Choices<T> = &'static [(&'static str, &'static str, T)];

/// Parses one of these values by its name.
fn one_of<T: Copy + Send + Sync + 'static>(
    choices: Choices<T>,
) -> impl TypedValueParser<Value = T> {
    let names = choices
        .iter()
        .map(|&(name, help, _)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(names).map(|given| {
        let mut choices = choices.iter();
        match choices.find(|(name, ..)| *name == given) {
            Some((.., value)) => *value,
            None => unreachable!("the parser gives only names that it knows"),
        }
    })
}

/// The help of `--device`.
fn device_help() -> String {
    format!("One of {NAMES}, with an index as in cuda:1. Default: the best one compiled in")
}

/// The help of `--recipe`.
fn recipe_help() -> String {
    let names: Vec<&str> = Recipe::built_in().collect();
    format!("A built-in recipe ({}) or a JSON file", names.join(", "))
}

/// Parses the configuration of the Meta-State layer.
fn meta_state(text: &str) -> Result<MetaStateConfig, String> {
    let json =
        serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.into()));
    serde_json::from_value(json).map_err(|error| error.to_string())
}

/// Parses a number from 0.
fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    let expected = || {
        format!(
            "expected a whole number from 0 of at most {} bits",
            8 * size_of::<T>()
        )
    };
    text.trim().parse().map_err(|_| expected())
}

/// Parses a number from 1.
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number from 1".into()),
        Ok(number) => Ok(number),
    }
}
