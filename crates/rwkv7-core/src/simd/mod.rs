//! Vectors of the processor's width, and functions of them; AVX-512, AVX2, NEON or scalar code is chosen at run time.

pub(crate) mod lanes;
pub(crate) mod math;
