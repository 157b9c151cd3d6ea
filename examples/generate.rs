//! A trained Meta-State model of the zoo continues a prompt: it writes the digits of a number backwards.

use std::{
    error::Error,
    io::{Write, stdout},
};

use burn::tensor::Device;
use metastate_zoo::{AnyModel, Source, for_architecture};
use rwkv7_core::{
    Generator,
    sampling::{Sampler, SamplerConfig},
};

/// Prints the continuation of a prompt.
pub fn main() -> Result<(), Box<dyn Error>> {
    let prompt = "31415,";
    let source = Source::find("reverse-meta-state".as_ref())?;
    let model = AnyModel::load(source.open()?, &Device::default())?;
    let (_, tokenizer) = source.tokenizer(None, model.vocab_size())?;
    // A temperature of 0 takes the most probable token.
    let sampler = Sampler::new(SamplerConfig {
        temperature: 0.0,
        ..Default::default()
    })?;

    let mut text = String::new();
    // The model may be of any architecture: the same lines run for each.
    for_architecture!(AnyModel, model, model => {
        let mut generator = Generator::new(&model.network, sampler).with_max_tokens(16);
        for piece in generator.text(tokenizer.as_ref(), prompt)? {
            let piece = piece?;
            write!(stdout(), "{piece}")?;
            text.push_str(&piece);
        }
    });
    writeln!(stdout())?;
    assert_eq!(text.trim(), "51413");
    Ok(())
}
