//! Generation: a model reads a prompt and continues it, token by token.

use burn::tensor::{Int, Tensor, TensorData, TensorReadError};

use crate::{
    Rwkv7, State,
    layers::ChannelMixer,
    sampling::{Sampler, SamplingError},
    tokenizer::{StreamDecoder, Tokenizer, TokenizerError},
};

/// Prompt tokens per forward pass, which bounds the memory that a long prompt takes.
const PROMPT_CHUNK: usize = 1024;

/// Continues a text: an iterator over the token ids that the sampler draws.
///
/// The last token is read only when the next one is wanted, so there is always one token that the model has not read.
///
/// ```
/// use burn::tensor::Device;
/// use rwkv7_core::{Generator, Rwkv7Config, sampling::{Sampler, SamplerConfig}, tokenizer::ByteTokenizer};
///
/// let model = Rwkv7Config::new(257, 2, 64).init(&Device::default());
/// let sampler = Sampler::new(SamplerConfig { top_p: 0.5, ..Default::default() })?;
/// let mut generator = Generator::new(&model, sampler).with_max_tokens(8);
/// for piece in generator.text(&ByteTokenizer, "Hello")? {
///     print!("{}", piece?);
/// }
/// // The state is all that the model remembers; `unread` goes on where the text stopped.
/// let (state, unread) = generator.into_state();
/// assert!(unread.is_some());
/// # let _ = state;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Generator<'a, M: ChannelMixer> {
    model: &'a Rwkv7<M>,
    sampler: Sampler,
    state: Option<State<M::State>>,
    unread: Option<u32>,
    stop: Vec<u32>,
    /// Ids from this one on are never drawn.
    vocab_size: usize,
    max_tokens: usize,
    drawn: usize,
    ended: bool,
}

/// A text that cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is no token to read.
    #[error(
        "there is no token that the model has not read: give a prompt, or a state with its unread token"
    )]
    NothingToRead,
    /// A token id outside the model's vocabulary.
    #[error(
        "token id {id} at position {position} is outside the model's vocabulary of {vocab_size} (ids from 0)"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Its position among the tokens given, from 0.
        position: usize,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The sampler refuses the logits.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The logits cannot be read from the device.
    #[error("the logits cannot be read from the device")]
    Device(#[from] TensorReadError),
}

impl<'a, M: ChannelMixer> Generator<'a, M> {
    /// A generator that has read nothing. The model should not be on a device with autodiff (see `Module::valid`).
    pub fn new(model: &'a Rwkv7<M>, sampler: Sampler) -> Self {
        Self {
            model,
            sampler,
            state: None,
            unread: None,
            stop: Vec::new(),
            vocab_size: model.vocab_size(),
            max_tokens: usize::MAX,
            drawn: 0,
            ended: false,
        }
    }

    /// Goes on from a state for one row and from the token that the state has not read.
    pub fn with_state(mut self, state: State<M::State>, unread: Option<u32>) -> Self {
        self.state = Some(state);
        self.unread = unread;
        self
    }

    /// Ends after this many tokens.
    pub fn with_max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// Ends when one of these ids is drawn, which stays unread.
    pub fn with_stop(mut self, ids: &[u32]) -> Self {
        self.stop.extend(ids);
        self
    }

    /// Reads tokens after those read so far, all but the last. Generation that ended goes on.
    ///
    /// # Errors
    ///
    /// [`GenerateError::TokenId`]; then nothing is read.
    pub fn read(&mut self, tokens: &[u32]) -> Result<(), GenerateError> {
        let vocab_size = self.model.vocab_size();
        if let Some(position) = tokens.iter().position(|&id| id as usize >= vocab_size) {
            return Err(GenerateError::TokenId {
                id: tokens[position],
                position,
                vocab_size,
            });
        }
        let mut tokens: Vec<u32> = self
            .unread
            .into_iter()
            .chain(tokens.iter().copied())
            .collect();
        self.unread = tokens.pop();
        for chunk in tokens.chunks(PROMPT_CHUNK) {
            self.prefill(chunk);
        }
        self.ended = false;
        Ok(())
    }

    /// Reads a prompt and continues it: an iterator over pieces of text, one for each token. The prompt and all pieces together are
    /// the text of all tokens. Generation ends at the tokenizer's end of text.
    ///
    /// A generator that has read nothing reads an end of text before the prompt, as training texts have one before every
    /// document.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Tokenizer`] and [`GenerateError::TokenId`].
    pub fn text<'t>(
        &'t mut self,
        tokenizer: &'t dyn Tokenizer,
        prompt: &str,
    ) -> Result<Text<'a, 't, M>, GenerateError> {
        let end = tokenizer.end_of_text();
        let fresh = self.state.is_none() && self.unread.is_none();
        let mut tokens: Vec<u32> = fresh.then_some(end).into_iter().collect();
        tokens.extend(tokenizer.encode(prompt)?);
        let context: Vec<u32> = self
            .unread
            .into_iter()
            .chain(tokens.iter().copied())
            .collect();
        self.read(&tokens)?;
        // A model may have more logits than the tokenizer has ids; those stand for no text.
        self.vocab_size = self.vocab_size.min(tokenizer.vocab_size());
        if !self.stop.contains(&end) {
            self.stop.push(end);
        }
        Ok(Text {
            generator: self,
            decoder: Some(StreamDecoder::after(tokenizer, &context)),
            prompt_tokens: context.len(),
        })
    }

    /// Number of tokens drawn so far, the one that ended the text included.
    pub fn drawn(&self) -> usize {
        self.drawn
    }

    /// The state after all tokens that the model has read, and the token after them.
    pub fn into_state(self) -> (State<M::State>, Option<u32>) {
        let state = self.state.unwrap_or_else(|| {
            let device = self.model.emb.weight.lazy_device();
            self.model.zero_state(1, &device)
        });
        (state, self.unread)
    }

    /// Logits after one more piece of text, `[1, V]`.
    fn prefill(&mut self, tokens: &[u32]) -> Tensor<2> {
        let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
        let device = self.model.emb.weight.lazy_device();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, tokens.len()]), &device);
        let (logits, state) = self.model.prefill(ids, self.state.take());
        self.state = Some(state);
        logits
    }

    fn draw(&mut self) -> Result<u32, GenerateError> {
        let unread = self.unread.ok_or(GenerateError::NothingToRead)?;
        let logits = self.prefill(&[unread]).try_into_vec_as::<f32>()?;
        let id = self.sampler.sample(&logits[..self.vocab_size])?;
        self.unread = Some(id);
        self.drawn += 1;
        Ok(id)
    }
}

impl<M: ChannelMixer> Iterator for Generator<'_, M> {
    type Item = Result<u32, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.drawn >= self.max_tokens {
            return None;
        }
        let drawn = self.draw();
        self.ended = drawn.as_ref().map_or(true, |id| self.stop.contains(id));
        match drawn {
            Ok(_) if self.ended => None,
            drawn => Some(drawn),
        }
    }
}

/// The continuation of a prompt: pieces of text, one for each token and one at the end. What later tokens may still change comes
/// with them, such as a character of several tokens, and the pieces before are empty.
pub struct Text<'a, 't, M: ChannelMixer> {
    generator: &'t mut Generator<'a, M>,
    decoder: Option<StreamDecoder<'t>>,
    prompt_tokens: usize,
}

impl<M: ChannelMixer> Text<'_, '_, M> {
    /// Number of tokens in the prompt, with the token that was unread before it.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
}

impl<M: ChannelMixer> Iterator for Text<'_, '_, M> {
    type Item = Result<String, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.generator.next() {
            Some(id) => {
                let decoder = self.decoder.as_mut()?;
                Some(id.and_then(|id| Ok(decoder.push(id)?)))
            }
            // The rest that waited for more tokens.
            None => {
                let rest = self.decoder.take()?.finish();
                (!rest.is_empty()).then_some(Ok(rest))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{Rwkv7Config, Rwkv7Lm, sampling::SamplerConfig, tokenizer::ByteTokenizer};

    fn model() -> Rwkv7Lm {
        Rwkv7Config::new(300, 2, 64).init(&Device::default())
    }

    fn greedy(model: &Rwkv7Lm) -> Generator<'_, crate::layers::ChannelMix> {
        let config = SamplerConfig {
            temperature: 0.0,
            // Without it a model that has learned nothing repeats itself.
            presence_penalty: 10.0,
            ..Default::default()
        };
        Generator::new(model, Sampler::new(config).unwrap())
    }

    #[test]
    fn a_text_goes_on_from_a_state_and_its_unread_token() {
        let model = model();
        let whole = {
            let mut generator = greedy(&model).with_max_tokens(6);
            generator.read(&[1, 2, 3]).unwrap();
            generator.map(Result::unwrap).collect::<Vec<u32>>()
        };
        assert_eq!(whole.len(), 6);
        // A new sampler has not counted the first three tokens, so both ways to the second three start with one.
        let three = |generator: Generator<'_, _>| -> (Vec<u32>, State, Option<u32>) {
            let mut generator = generator.with_max_tokens(3);
            let ids = generator.by_ref().map(Result::unwrap).collect();
            let (state, unread) = generator.into_state();
            (ids, state, unread)
        };
        let mut first = greedy(&model);
        first.read(&[1, 2, 3]).unwrap();
        let (ids, state, unread) = three(first);
        assert_eq!(ids, whole[..3]);
        assert_eq!(unread, Some(whole[2]));

        let (split, ..) = three(greedy(&model).with_state(state, unread));
        let mut again = greedy(&model);
        again.read(&[&[1, 2, 3], &whole[..3]].concat()).unwrap();
        assert_eq!(split, three(again).0);
    }

    #[test]
    fn a_stop_id_ends_the_text_and_stays_unread() {
        let model = model();
        let mut all = greedy(&model).with_max_tokens(4);
        all.read(&[5]).unwrap();
        let ids: Vec<u32> = all.map(Result::unwrap).collect();
        let mut stopped = greedy(&model).with_stop(&ids[2..3]);
        stopped.read(&[5]).unwrap();
        let found: Vec<u32> = stopped.by_ref().map(Result::unwrap).collect();
        assert_eq!(found, ids[..2]);
        assert_eq!(stopped.drawn(), 3);
        assert_eq!(stopped.into_state().1, Some(ids[2]));
    }

    #[test]
    fn text_is_made_of_the_tokenizers_ids_only() {
        let model = model();
        let mut generator = greedy(&model).with_max_tokens(40);
        let pieces = generator.text(&ByteTokenizer, "abc").unwrap();
        assert_eq!(pieces.prompt_tokens(), 4);
        let pieces: Vec<String> = pieces.collect::<Result<_, _>>().unwrap();
        assert!(!pieces.is_empty());
        assert!(generator.drawn() <= 40);
    }

    #[test]
    fn tokens_that_cannot_be_read_are_named() {
        let model = model();
        let mut generator = greedy(&model);
        let error = generator.next().unwrap().unwrap_err();
        assert!(error.to_string().contains("give a prompt"), "{error}");
        let error = generator.read(&[1, 300]).unwrap_err().to_string();
        assert!(error.contains("token id 300 at position 1"), "{error}");
    }
}
