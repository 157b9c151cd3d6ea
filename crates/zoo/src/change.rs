//! A configuration with some of its fields changed, as a growth asks for it.

use rwkv7_core::{Rwkv7Config, config::ChannelMixerConfig};
use serde_json::{Value, json};

use crate::entries;

/// The key of a configuration's architecture in JSON.
const ARCHITECTURE: &str = "architecture";

/// The target of a growth is no model of the same architecture.
#[derive(Debug, thiserror::Error)]
#[error("growth to {given}: {reason}")]
pub struct TargetError {
    /// The value of the growth's target.
    pub given: String,
    /// The problem and the remedy.
    pub reason: String,
}

/// The configuration that a model of configuration `from` grows to. `to` is the name of a model or a JSON object of the fields
/// that change. `ffn_size` means the width of channel mixing, and changes nothing in a model without one.
///
/// # Errors
///
/// [`TargetError`] if `to` is a model of another architecture, no configuration at all or one that no model can have.
///
/// ```
/// use metastate_zoo::changed;
/// use rwkv7_core::Rwkv7Config;
/// use serde_json::json;
///
/// # fn main() -> Result<(), metastate_zoo::TargetError> {
/// let from = Rwkv7Config::new(256, 2, 64);
/// let to = changed(&from, &json!({ "n_layer": 3, "ffn_size": 300 }))?;
/// assert_eq!((to.n_layer, to.n_embd, to.ffn.ffn_size), (3, 64, 300));
/// # Ok(()) }
/// ```
pub fn changed<S: ChannelMixerConfig>(
    from: &Rwkv7Config<S>,
    to: &Value,
) -> Result<Rwkv7Config<S>, TargetError> {
    let wrong = |reason: String| TargetError {
        given: to.to_string(),
        reason,
    };
    let other = |architecture: &str| {
        wrong(format!(
            "a model of architecture {architecture}, and this one is of architecture {}; `convert --arch` changes it",
            S::ARCHITECTURE
        ))
    };
    let mut config = match to {
        Value::String(name) => {
            let named = entries::config(name).map_err(|error| wrong(error.to_string()))?;
            if named.architecture() != S::ARCHITECTURE {
                return Err(other(named.architecture()));
            }
            json!(named)
        }
        Value::Object(changes) => {
            let mut config = json!(from);
            for (key, value) in changes {
                let key = match key.as_str() {
                    "second_half" => "ffn",
                    key => key,
                };
                match (&mut config[key], value) {
                    (_, value) if key == ARCHITECTURE => {
                        if value != S::ARCHITECTURE {
                            return Err(other(&value.to_string()));
                        }
                    }
                    (Value::Object(part), Value::Object(changes)) => part.extend(changes.clone()),
                    (Value::Null, size) if key == "ffn_size" => {
                        remove(&mut config, key);
                        if let Some(field) = config["ffn"].get_mut(key) {
                            *field = size.clone();
                        }
                    }
                    (field, value) => *field = value.clone(),
                }
            }
            config
        }
        _ => return Err(wrong("expected a name or a JSON object".into())),
    };
    remove(&mut config, ARCHITECTURE);
    let config: Rwkv7Config<S> =
        serde_json::from_value(config).map_err(|error| wrong(error.to_string()))?;
    match config.validate() {
        Ok(()) => Ok(config),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn remove(config: &mut Value, key: &str) {
    if let Value::Object(fields) = config {
        fields.remove(key);
    }
}
