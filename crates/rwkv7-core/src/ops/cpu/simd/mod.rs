//! Vectors of the processor's width, and functions of them.

pub(crate) mod math;
pub(crate) mod sum4;
pub(crate) mod vector;
