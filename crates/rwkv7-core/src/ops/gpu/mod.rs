//! The kernels for every CubeCL run time, in CubeCL 0.11: a folder or file for each operation.

pub mod wkv7;
