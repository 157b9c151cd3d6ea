//! Vectors of `f32` with operators, and the loop that walks a row with them.

use core::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use pulp::Simd;

/// One vector register of `f32`.
#[derive(Clone, Copy)]
pub(crate) struct Vector<S: Simd> {
    pub(crate) simd: S,
    pub(crate) value: S::f32s,
}

impl<S: Simd> Vector<S> {
    #[inline(always)]
    pub(crate) fn splat(simd: S, value: f32) -> Self {
        Self {
            simd,
            value: simd.splat_f32s(value),
        }
    }

    /// A constant of the same kind.
    #[inline(always)]
    pub(crate) fn like(self, value: f32) -> Self {
        Self::splat(self.simd, value)
    }

    /// `self * factor + term`, with one rounding where the machine has it.
    #[inline(always)]
    pub(crate) fn mul_add(self, factor: Self, term: Self) -> Self {
        self.with(
            self.simd
                .mul_add_e_f32s(self.value, factor.value, term.value),
        )
    }

    /// The larger lane; which operand wins over a NaN depends on the machine.
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        self.with(self.simd.max_f32s(self.value, other.value))
    }

    #[inline(always)]
    pub(crate) fn sqrt(self) -> Self {
        self.with(self.simd.sqrt_f32s(self.value))
    }

    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        self.with(self.simd.abs_f32s(self.value))
    }

    /// Lane by lane: `yes` where `self < bound`, else `no` (also where `self` is NaN).
    #[inline(always)]
    pub(crate) fn if_less(self, bound: Self, yes: Self, no: Self) -> Self {
        let mask = self.simd.less_than_f32s(self.value, bound.value);
        self.with(self.simd.select_f32s(mask, yes.value, no.value))
    }

    /// `self`, or the lane of `source` where that is NaN.
    #[inline(always)]
    pub(crate) fn or_nan_of(self, source: Self) -> Self {
        let number = self.simd.equal_f32s(source.value, source.value);
        self.with(self.simd.select_f32s(number, self.value, source.value))
    }

    /// Sum of the lanes.
    #[inline(always)]
    pub(crate) fn sum(self) -> f32 {
        self.simd.reduce_sum_f32s(self.value)
    }

    #[inline(always)]
    pub(crate) fn with(self, value: S::f32s) -> Self {
        Self {
            simd: self.simd,
            value,
        }
    }
}

impl<S: Simd> Add for Vector<S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(self.simd.add_f32s(self.value, other.value))
    }
}

impl<S: Simd> AddAssign for Vector<S> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl<S: Simd> Sub for Vector<S> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(self.simd.sub_f32s(self.value, other.value))
    }
}

impl<S: Simd> Mul for Vector<S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(self.simd.mul_f32s(self.value, other.value))
    }
}

impl<S: Simd> Div for Vector<S> {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.with(self.simd.div_f32s(self.value, other.value))
    }
}

impl<S: Simd> Neg for Vector<S> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.with(self.simd.neg_f32s(self.value))
    }
}

/// The place of one vector in a row: a whole vector, or the shorter rest at its end.
#[derive(Clone, Copy)]
pub(crate) struct Lane<S> {
    pub(crate) simd: S,
    at: usize,
    len: usize,
}

impl<S: Simd> Lane<S> {
    /// The elements of `row` at this place; lanes past its end are 0.
    #[inline(always)]
    pub(crate) fn load(self, row: &[f32]) -> Vector<S> {
        let part = &row[self.at..self.at + self.len];
        let value = match S::as_simd_f32s(part).0.first() {
            Some(whole) => *whole,
            None => self.simd.partial_load_f32s(part),
        };
        Vector {
            simd: self.simd,
            value,
        }
    }

    #[inline(always)]
    pub(crate) fn store(self, row: &mut [f32], vector: Vector<S>) {
        let part = &mut row[self.at..self.at + self.len];
        match S::as_mut_simd_f32s(part).0.first_mut() {
            Some(whole) => *whole = vector.value,
            None => self.simd.partial_store_f32s(part, vector.value),
        }
    }

    /// `row += vector`.
    #[inline(always)]
    pub(crate) fn add(self, row: &mut [f32], vector: Vector<S>) {
        self.store(row, self.load(row) + vector);
    }

    #[inline(always)]
    pub(crate) fn splat(self, value: f32) -> Vector<S> {
        Vector::splat(self.simd, value)
    }

    /// `vector`, with `other` in the lanes past the end of the row (needed before a sum or a maximum).
    #[inline(always)]
    pub(crate) fn or_past_end(self, vector: Vector<S>, other: f32) -> Vector<S> {
        if self.len == S::F32_LANES {
            return vector;
        }
        let inside = self.simd.mask_between_m32s(0, self.len as u32).mask();
        let other = self.simd.splat_f32s(other);
        vector.with(self.simd.select_f32s(inside, vector.value, other))
    }
}

/// Calls `body` for every vector of a row of `width` elements.
#[inline(always)]
pub(crate) fn for_lanes<S: Simd>(simd: S, width: usize, mut body: impl FnMut(Lane<S>)) {
    let mut at = 0;
    while at + S::F32_LANES <= width {
        body(Lane {
            simd,
            at,
            len: S::F32_LANES,
        });
        at += S::F32_LANES;
    }
    if at < width {
        let len = width - at;
        body(Lane { simd, at, len });
    }
}

/// Sums over a row of `width` elements of the vectors that `body` makes; it must make 0 past the end.
#[inline(always)]
pub(crate) fn sum_lanes<S: Simd, const K: usize>(
    simd: S,
    width: usize,
    mut body: impl FnMut(Lane<S>) -> [Vector<S>; K],
) -> [f32; K] {
    let mut sums = [Vector::splat(simd, 0.0); K];
    for_lanes(
        simd,
        width,
        #[inline(always)]
        |lane| {
            let terms = body(lane);
            for (sum, term) in sums.iter_mut().zip(&terms) {
                *sum += *term;
            }
        },
    );
    // Not `sums.map(..)`: the compiler keeps that out of line, without the vector instructions.
    let mut totals = [0.0; K];
    for (total, sum) in totals.iter_mut().zip(&sums) {
        *total = sum.sum();
    }
    totals
}
