//! State files: the running state of a model, and the token that the model reads next.

use std::path::Path;

use burn_store::{bridge, burn_pack::Tensor as PackTensor};

use crate::{
    Rwkv7Config, State,
    config::ChannelMixerConfig,
    layers::ChannelMixer,
    state::{StateError, StateTensors},
};

use super::{
    Checkpoint, CheckpointError, ModelMetadata, config_json,
    read::{self, CONFIG, UNREAD},
    write,
};

impl<S: StateTensors> State<S> {
    /// Writes the state to a safetensors file, which names the model's configuration. The file is complete or not there.
    ///
    /// The last token of a text is known before the model reads it, and only reading it gives the logits of the next one: a
    /// text that goes on needs this `unread` token, which a [`Generator`](crate::Generator) gives back with its state.
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use rwkv7_core::Rwkv7Config;
    ///
    /// let config = Rwkv7Config::new(256, 2, 64);
    /// let model = config.init(&Device::default());
    /// let tokens = Tensor::<2, Int>::from_data([[72, 105]], &Device::default());
    /// let (_logits, state) = model.forward(tokens, None);
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("state.safetensors");
    /// state.save(&path, &config, Some(33))?;
    /// let (state, unread) = model.zero_state(1, &Device::default()).load(&path, &config)?;
    /// assert_eq!(state.num_values(), config.num_state_values());
    /// assert_eq!(unread, Some(33));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] names the file and the cause.
    pub fn save<C: ChannelMixerConfig>(
        &self,
        path: &Path,
        config: &Rwkv7Config<C>,
        unread: Option<u32>,
    ) -> Result<(), CheckpointError>
    where
        C::Layer: ChannelMixer<State = S>,
    {
        let tensors: Vec<PackTensor> = self
            .named()
            .into_iter()
            .map(|(name, data)| bridge::from_data(data, name, None))
            .collect();
        let config = (CONFIG, config_json(config).to_string());
        let unread = unread.map(|token| (UNREAD, token.to_string()));
        let metadata = [config].into_iter().chain(unread);
        write::safetensors(path, &tensors, write::checksums(path, &tensors)?, metadata)?.commit()
    }

    /// The state in a file, of the shapes and on the devices of `self` (see [`Rwkv7::zero_state`](crate::Rwkv7::zero_state)), and
    /// the token that the model reads next, if [`save`](Self::save) was given one.
    ///
    /// A state belongs to the size and the channel mixer of the model that it was saved with. A file that does not name them has
    /// to fit by its shapes.
    ///
    /// # Errors
    ///
    /// [`StateError`] if the file cannot be read or holds the state of another model.
    pub fn load<C: ChannelMixerConfig>(
        &self,
        path: &Path,
        config: &Rwkv7Config<C>,
    ) -> Result<(Self, Option<u32>), StateError>
    where
        C::Layer: ChannelMixer<State = S>,
    {
        let file = path.display().to_string();
        let raw = read::open(path)?;
        let unread = raw.unread;
        if let Some(metadata) = &raw.metadata {
            let differences = metadata.differences(&ModelMetadata::new(config));
            if !differences.is_empty() {
                return Err(StateError::OtherModel { file, differences });
            }
        }
        let checkpoint = Checkpoint::new(path, raw, Some(path))?;
        checkpoint.check_types()?;
        let tensors = checkpoint.read_all()?;
        Ok((self.with_values(&file, tensors)?, unread))
    }
}
