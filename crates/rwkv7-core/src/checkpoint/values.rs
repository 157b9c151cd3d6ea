//! Values that are not finite numbers, or become so in another type.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, TensorData};
use burn_store::{bridge, burn_pack::Tensor as PackTensor};

use super::CheckpointError;

/// The values of a tensor that are not finite: the first of them, its place, and how many there are.
pub struct NotFinite {
    first: f64,
    at: usize,
    count: usize,
}

impl NotFinite {
    /// Looks for such values.
    pub fn find(data: &TensorData) -> Option<Self> {
        let bytes = data.as_bytes();
        // Exponents of NaN and infinities have all bits set, and no others have.
        let half = |mask: u16| {
            let (values, _) = bytes.as_chunks::<2>();
            look(values, |b| u16::from_le_bytes(b) & mask != mask)
        };
        let (at, count) = match data.dtype() {
            DType::F64 => look(bytes.as_chunks::<8>().0, |b| {
                f64::from_le_bytes(b).is_finite()
            }),
            DType::F32 => look(bytes.as_chunks::<4>().0, |b| {
                f32::from_le_bytes(b).is_finite()
            }),
            DType::BF16 => half(0x7f80),
            DType::F16 => half(0x7c00),
            _ => None,
        }?;
        Some(Self {
            first: value(data, at),
            at,
            count,
        })
    }

    /// A line about the tensor `name` of `all` values.
    pub fn line(&self, name: &str, all: usize) -> String {
        let Self { first, at, count } = self;
        format!("{name}: {count} of {all} values, the first is {first} at {at}")
    }
}

/// The place of the first value that is not finite, and the number of such values.
fn look<const N: usize>(
    values: &[[u8; N]],
    is_finite: impl Fn([u8; N]) -> bool,
) -> Option<(usize, usize)> {
    let at = values.iter().position(|&value| !is_finite(value))?;
    let more = values[at..].iter().filter(|&&value| !is_finite(value));
    Some((at, more.count()))
}

/// One value of a tensor.
fn value(data: &TensorData, at: usize) -> f64 {
    let size = data.dtype().size();
    let bytes = data.as_bytes()[at * size..(at + 1) * size].to_vec();
    let one = TensorData::from_bytes_vec(bytes, [1], data.dtype());
    let one = one.iter::<f64>().next();
    one.unwrap_or(f64::NAN)
}

/// Reads all tensors and checks that they are whole, finite, and finite in `dtype`. `source` is the file that the tensors come from,
/// if they come from one, and `output` the one to write. Returns the checksum of each tensor in `dtype`.
///
/// # Errors
///
/// [`CheckpointError::Damaged`], [`CheckpointError::NotFinite`] or [`CheckpointError::Overflow`]; without a source
/// [`CheckpointError::Write`] for tensors that cannot be read.
pub fn check(
    source: Option<&Path>,
    output: &Path,
    tensors: &[PackTensor],
    dtype: Option<DType>,
) -> Result<BTreeMap<String, u32>, CheckpointError> {
    let mut checksums = BTreeMap::new();
    let mut not_finite = Vec::new();
    let mut too_large = Vec::new();
    for tensor in tensors {
        let data = bridge::to_data(tensor).map_err(|error| match source {
            Some(path) => CheckpointError::Damaged {
                path: path.to_path_buf(),
                format: "checkpoint",
                reason: error.to_string(),
            },
            None => CheckpointError::Write {
                path: output.to_path_buf(),
                source: std::io::Error::other(error.to_string()),
            },
        })?;
        if let Some(found) = NotFinite::find(&data) {
            not_finite.push(found.line(&tensor.name, data.num_elements()));
            continue;
        }
        let cast = dtype
            .filter(|&dtype| dtype != data.dtype())
            .map(|dtype| data.clone().convert_dtype(dtype));
        let written = cast.as_ref().unwrap_or(&data);
        if let Some(mut found) = NotFinite::find(written) {
            found.first = value(&data, found.at);
            too_large.push(found.line(&tensor.name, data.num_elements()));
        }
        checksums.insert(tensor.name.clone(), crc32fast::hash(written.as_bytes()));
    }
    if !not_finite.is_empty() {
        return Err(CheckpointError::NotFinite {
            path: source.unwrap_or("a model in memory".as_ref()).to_path_buf(),
            problems: not_finite,
        });
    }
    match dtype {
        Some(dtype) if !too_large.is_empty() => Err(CheckpointError::Overflow {
            path: output.to_path_buf(),
            dtype: dtype.name(),
            problems: too_large,
        }),
        _ => Ok(checksums),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_and_their_number_are_named() {
        let data = TensorData::new(
            vec![1.0_f32, f32::MAX, f32::NEG_INFINITY, 0.0, f32::NAN],
            [5],
        );
        let found = NotFinite::find(&data).unwrap().line("x", 5);
        assert_eq!(found, "x: 2 of 5 values, the first is -inf at 2");
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let data = data.clone().convert_dtype(dtype);
            assert!(NotFinite::find(&data).is_some(), "{dtype:?}");
            let finite = TensorData::new(vec![1.0_f32, -65504.0, 0.0], [3]);
            let finite = finite.convert_dtype(dtype);
            assert!(NotFinite::find(&finite).is_none(), "{dtype:?}");
        }
    }

    #[test]
    fn values_above_the_largest_of_a_type_are_refused() {
        let tensor = |values: Vec<f64>| {
            let shape = [values.len()];
            bridge::from_data(TensorData::new(values, shape), "w".into(), None)
        };
        let ask = |values: Vec<f64>, dtype| check(None, "out".as_ref(), &[tensor(values)], dtype);
        assert!(ask(vec![1e300], None).is_ok());
        assert!(ask(vec![65504.0], Some(DType::F16)).is_ok());
        assert!(ask(vec![1e-300], Some(DType::F16)).is_ok());
        for (value, dtype) in [
            (70000.0, DType::F16),
            (1e300, DType::F32),
            (-3.4e38, DType::F16),
            (3.4e38, DType::BF16),
        ] {
            let error = ask(vec![1.0, value], Some(dtype)).unwrap_err().to_string();
            for part in ["out", dtype.name(), "w: 1 of 2", &format!("{value} at 1")] {
                assert!(error.contains(part), "{part} is not in {error}");
            }
        }
    }
}
