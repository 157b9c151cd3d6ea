//! Token shift with mixes: `out_m = h + (prev - h) mu_m`, where `prev` is `h` one token earlier.

use core::ops::Range;

use pulp::Simd;

use super::blocks::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use crate::simd::lanes::for_lanes;

/// Inputs of the token shift.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[batch, time, C]`.
    pub h: &'a [f32],
    /// The token before the first one, `[batch, C]`.
    pub last: &'a [f32],
    /// Mixing factors, one `[C]` for each output.
    pub mus: &'a [&'a [f32]],
    /// Number of tokens of a sequence.
    pub time: usize,
}

/// Gradients that the backward pass writes.
pub struct Gradients<'a> {
    /// `[batch, time, C]`.
    pub h: &'a mut [f32],
    /// `[batch, C]`.
    pub last: &'a mut [f32],
    /// One `[C]` for each output.
    pub mus: &'a mut [&'a mut [f32]],
}

impl<'a> Inputs<'a> {
    fn channels(&self) -> usize {
        self.mus.first().map_or(0, |mu| mu.len())
    }

    /// Checks the lengths; returns the number of sequences and of channels.
    fn shape(&self) -> (usize, usize) {
        let channels = self.channels();
        for mu in self.mus {
            assert_len(channels, &[("mu", mu.len())]);
        }
        let sequence = (self.time * channels).max(1);
        let batch = self.h.len() / sequence;
        assert_len(batch * self.time * channels, &[("h", self.h.len())]);
        assert_len(batch * channels, &[("last", self.last.len())]);
        (batch, channels)
    }

    #[inline(always)]
    fn previous(&self, at: usize, channels: usize) -> &'a [f32] {
        if at.is_multiple_of(self.time) {
            row(self.last, at / self.time, channels)
        } else {
            row(self.h, at - 1, channels)
        }
    }
}

/// Writes `out_m = h + (prev - h) mu_m`, each `[batch, time, C]`.
pub fn forward(inputs: Inputs<'_>, outputs: &mut [&mut [f32]]) {
    let (batch, channels) = inputs.shape();
    assert_len(inputs.mus.len(), &[("outputs", outputs.len())]);
    for output in &*outputs {
        assert_len(inputs.h.len(), &[("output", output.len())]);
    }
    let outputs: Vec<&mut [f32]> = outputs.iter_mut().map(|output| &mut **output).collect();
    run(
        &Forward { inputs, channels },
        batch * inputs.time,
        channels,
        outputs,
    );
}

/// Writes the gradients, from those of the outputs (`None`: the output was not used).
///
/// ```text
/// dh_t  = sum_m dout_{m,t} (1 - mu_m) + dout_{m,t+1} mu_m
/// dlast = sum_m dout_{m,0} mu_m
/// dmu_m = sum_{b,t} dout_{m,t} (prev_t - h_t)
/// ```
pub fn backward(inputs: Inputs<'_>, output_grads: &[Option<&[f32]>], gradients: Gradients<'_>) {
    let (batch, channels) = inputs.shape();
    assert_len(inputs.h.len(), &[("gradient of h", gradients.h.len())]);
    assert_len(
        inputs.last.len(),
        &[("gradient of last", gradients.last.len())],
    );
    assert_len(
        inputs.mus.len(),
        &[
            ("output gradients", output_grads.len()),
            ("gradients of mu", gradients.mus.len()),
        ],
    );
    for gradient in &*gradients.mus {
        assert_len(channels, &[("gradient of mu", gradient.len())]);
    }
    let mut used = Vec::with_capacity(inputs.mus.len());
    let mut totals = Vec::with_capacity(inputs.mus.len());
    for ((mu, grad), total) in inputs.mus.iter().zip(output_grads).zip(gradients.mus) {
        match grad {
            Some(grad) => {
                assert_len(inputs.h.len(), &[("output gradient", grad.len())]);
                used.push((*mu, *grad));
                totals.push(&mut **total);
            }
            None => total.fill(0.0),
        }
    }
    let rows = batch * inputs.time;
    let kernel = Backward {
        inputs,
        channels,
        used: &used,
    };
    run_with_sums(&kernel, rows, channels, [gradients.h], &mut totals);
    run(&BackwardLast(kernel), batch, channels, [gradients.last]);
}

struct Forward<'a> {
    inputs: Inputs<'a>,
    channels: usize,
}

impl Kernel<Vec<&mut [f32]>> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        mut outputs: Vec<&mut [f32]>,
        _sums: &mut [f32],
    ) {
        let channels = self.channels;
        for at in rows.clone() {
            let h = row(self.inputs.h, at, channels);
            let previous = self.inputs.previous(at, channels);
            for (mu, output) in self.inputs.mus.iter().zip(&mut outputs) {
                let mu = &mu[..channels];
                let output = row_mut(output, at - rows.start, channels);
                for_lanes(
                    simd,
                    channels,
                    #[inline(always)]
                    |lane| {
                        let h = lane.load(h);
                        let step = lane.load(previous) - h;
                        lane.store(output, step.mul_add(lane.load(mu), h));
                    },
                );
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Backward<'a> {
    inputs: Inputs<'a>,
    channels: usize,
    /// The mixing factors and the gradient of every output that was used.
    used: &'a [(&'a [f32], &'a [f32])],
}

impl Kernel<[&mut [f32]; 1]> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [gradient]: [&mut [f32]; 1],
        sums: &mut [f32],
    ) {
        let channels = self.channels;
        for at in rows.clone() {
            let h = row(self.inputs.h, at, channels);
            let previous = self.inputs.previous(at, channels);
            let gradient = row_mut(gradient, at - rows.start, channels);
            let place = Place { at, h, previous };
            gradient.fill(0.0);
            // The six of time mixing side by side, which the memory likes; any other number one by one.
            if let [a, b, c, d, e, f] = *self.used {
                self.add_row(simd, place, [a, b, c, d, e, f], gradient, sums);
                continue;
            }
            for (used, sum) in self.used.iter().zip(sums.chunks_exact_mut(channels)) {
                self.add_row(simd, place, [*used], gradient, sum);
            }
        }
    }
}

/// A row, `h` of it and of the token before.
#[derive(Clone, Copy)]
struct Place<'a> {
    at: usize,
    h: &'a [f32],
    previous: &'a [f32],
}

impl Backward<'_> {
    /// Adds what `M` outputs give to one row of `dh`, and to `dmu` of these outputs, `[M, C]`.
    #[inline(always)]
    fn add_row<S: Simd, const M: usize>(
        &self,
        simd: S,
        place: Place<'_>,
        used: [(&[f32], &[f32]); M],
        gradient: &mut [f32],
        sums: &mut [f32],
    ) {
        let channels = self.channels;
        let Place { at, h, previous } = place;
        let mut mus: [&[f32]; M] = [&[]; M];
        let mut now: [&[f32]; M] = [&[]; M];
        let mut next: [&[f32]; M] = [&[]; M];
        let has_next = !(at + 1).is_multiple_of(self.inputs.time);
        for (m, (mu, grad)) in used.iter().enumerate() {
            mus[m] = &mu[..channels];
            now[m] = row(grad, at, channels);
            next[m] = row(grad, at + usize::from(has_next), channels);
        }
        for_lanes(
            simd,
            channels,
            #[inline(always)]
            |lane| {
                let step = lane.load(previous) - lane.load(h);
                let mut sum = lane.load(gradient);
                for m in 0..M {
                    let (mu, now) = (lane.load(mus[m]), lane.load(now[m]));
                    let part = row_mut(sums, m, channels);
                    lane.store(part, now.mul_add(step, lane.load(part)));
                    sum += if has_next {
                        (lane.load(next[m]) - now).mul_add(mu, now)
                    } else {
                        now - now * mu
                    };
                }
                lane.store(gradient, sum);
            },
        );
    }
}

/// The gradient of `last`, from the first token of every sequence.
struct BackwardLast<'a>(Backward<'a>);

impl Kernel<[&mut [f32]; 1]> for BackwardLast<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        sequences: Range<usize>,
        [gradient]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let channels = self.0.channels;
        for sequence in sequences.clone() {
            let gradient = row_mut(gradient, sequence - sequences.start, channels);
            gradient.fill(0.0);
            for (mu, grad) in self.0.used {
                let first = row(grad, sequence * self.0.inputs.time, channels);
                for_lanes(
                    simd,
                    channels,
                    #[inline(always)]
                    |lane| lane.add(gradient, lane.load(first) * lane.load(mu)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data, slices, with_threads};
    use super::*;

    /// `h`, `last`, the mixes -> the outputs one after another.
    fn naive(x: &[Vec<f64>], time: usize, channels: usize) -> Vec<f64> {
        let mut outputs = Vec::new();
        for mu in &x[2..] {
            for (at, h) in x[0].iter().enumerate() {
                let (token, channel) = (at / channels, at % channels);
                let previous = if token % time == 0 {
                    x[1][token / time * channels + channel]
                } else {
                    x[0][at - channels]
                };
                outputs.push(h + (previous - h) * mu[channel]);
            }
        }
        outputs
    }

    fn compute(
        x: &[Vec<f32>],
        grads: &[Vec<f32>],
        unused: usize,
        time: usize,
    ) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mus = slices(&x[2..]);
        let inputs = Inputs {
            h: &x[0],
            last: &x[1],
            mus: &mus,
            time,
        };
        let mut outputs = vec![vec![f32::NAN; x[0].len()]; mus.len()];
        let mut targets: Vec<&mut [f32]> = outputs.iter_mut().map(|o| &mut o[..]).collect();
        forward(inputs, &mut targets);

        let mut gradients: Vec<Vec<f32>> = x.iter().map(|x| vec![f32::NAN; x.len()]).collect();
        let (h, rest) = gradients.split_at_mut(1);
        let (last, rest) = rest.split_at_mut(1);
        let mut rest: Vec<&mut [f32]> = rest.iter_mut().map(|g| &mut g[..]).collect();
        let grads: Vec<Option<&[f32]>> = grads
            .iter()
            .enumerate()
            .map(|(m, grad)| (m != unused).then_some(&grad[..]))
            .collect();
        let targets = Gradients {
            h: &mut h[0],
            last: &mut last[0],
            mus: &mut rest,
        };
        backward(inputs, &grads, targets);
        (outputs, gradients)
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        let shapes = [(1, 1), (2, 1), (1, 2), (3, 11), (1, 33), (4, 125)];
        for (batch, time) in shapes {
            for channels in [7, 48, 512] {
                for (mixes, unused) in [(1, 9), (6, 2), (6, 9)] {
                    let rows = batch * time;
                    let mut x = vec![data(rows * channels, 1), data(batch * channels, 2)];
                    x.extend((0..mixes).map(|m| data(channels, 3 + m)));
                    let mut grads: Vec<_> =
                        (0..mixes).map(|m| data(rows * channels, 20 + m)).collect();
                    let (outputs, gradients) = compute(&x, &grads, unused as usize, time);
                    if let Some(grad) = grads.get_mut(unused as usize) {
                        grad.fill(0.0);
                    }
                    assert_case(Case {
                        name: &format!("token shift {batch} {time} {channels} {mixes}"),
                        naive: &|x| naive(x, time, channels),
                        inputs: &x,
                        outputs: &outputs,
                        output_grads: &grads,
                        gradients: &gradients,
                        step: 1e-5,
                    });
                }
            }
        }
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let (batch, time, channels) = (4, 125, 512);
        let x: Vec<_> = [batch * time, batch, 1, 1]
            .iter()
            .enumerate()
            .map(|(i, rows)| data(rows * channels, i as u32))
            .collect();
        let grads = [data(x[0].len(), 7), data(x[0].len(), 8)];
        let one = with_threads(1, || compute(&x, &grads, 9, time));
        assert!(one == with_threads(3, || compute(&x, &grads, 9, time)));
    }
}
