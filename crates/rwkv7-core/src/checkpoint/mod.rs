//! stub until merged
use burn::tensor::TensorData;
use std::{collections::BTreeMap, path::Path};
/// e
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct CheckpointError;
/// c
pub struct Checkpoint;
impl Checkpoint {
    /// o
    pub fn open(_p: &Path) -> Result<Self, CheckpointError> {
        Err(CheckpointError)
    }
    /// r
    pub fn read_all(&self) -> Result<BTreeMap<String, TensorData>, CheckpointError> {
        Err(CheckpointError)
    }
}
/// s
pub fn save_named(_p: &Path, _t: Vec<(String, TensorData)>) -> Result<(), CheckpointError> {
    Err(CheckpointError)
}
