//! Token shift with mixes: `out_m = h + (prev - h) mu_m`, where `prev` is `h` one token earlier.

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::simd::vector::for_lanes;

/// `out_m = h + (prev - h) mu_m`, each `[batch, time, C]`, of `h [batch, time, C]`, the token before the first one,
/// `last [batch, C]`, and every `mu_m [C]`.
pub fn forward<const M: usize>(
    h: &[f32],
    last: &[f32],
    mus: [&[f32]; M],
    time: usize,
) -> [Vec<f32>; M] {
    let inputs = Inputs::new(h, last, mus, time);
    run(&Forward(inputs), inputs.rows(), inputs.channels)
}

/// The gradients of h, last and every mu.
///
/// ```text
/// dh_t  = sum_m dout_{m,t} (1 - mu_m) + dout_{m,t+1} mu_m
/// dlast = sum_m dout_{m,0} mu_m
/// dmu_m = sum_{b,t} dout_{m,t} (prev_t - h_t)
/// ```
pub fn backward<const M: usize>(
    h: &[f32],
    last: &[f32],
    mus: [&[f32]; M],
    output_grads: [&[f32]; M],
    time: usize,
) -> (Vec<f32>, Vec<f32>, [Vec<f32>; M]) {
    let inputs = Inputs::new(h, last, mus, time);
    let lens = output_grads.map(|grad| ("gradient of an output", grad.len()));
    assert_len(h.len(), &lens);
    let kernel = Backward {
        inputs,
        output_grads,
    };
    let ([h], mus) = run_with_sums(&kernel, inputs.rows(), inputs.channels);
    let [last] = run(
        &BackwardLast(kernel),
        inputs.rows() / time.max(1),
        inputs.channels,
    );
    (h, last, mus)
}

#[derive(Clone, Copy)]
struct Inputs<'a, const M: usize> {
    h: &'a [f32],
    last: &'a [f32],
    mus: [&'a [f32]; M],
    /// Number of tokens of a sequence.
    time: usize,
    channels: usize,
}

impl<'a, const M: usize> Inputs<'a, M> {
    fn new(h: &'a [f32], last: &'a [f32], mus: [&'a [f32]; M], time: usize) -> Self {
        let channels = mus.first().map_or(0, |mu| mu.len());
        assert_len(channels, &mus.map(|mu| ("mu", mu.len())));
        let batch = h.len() / (time * channels).max(1);
        assert_len(batch * time * channels, &[("h", h.len())]);
        assert_len(batch * channels, &[("last", last.len())]);
        Self {
            h,
            last,
            mus,
            time,
            channels,
        }
    }

    fn rows(&self) -> usize {
        self.h.len() / self.channels.max(1)
    }

    #[inline(always)]
    fn previous(&self, at: usize) -> &'a [f32] {
        if at.is_multiple_of(self.time) {
            row(self.last, at / self.time, self.channels)
        } else {
            row(self.h, at - 1, self.channels)
        }
    }
}

struct Forward<'a, const M: usize>(Inputs<'a, M>);

impl<const M: usize> Kernel<M> for Forward<'_, M> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        mut outputs: [&mut [f32]; M],
        _sums: &mut [f32],
    ) {
        let channels = self.0.channels;
        for at in rows.clone() {
            let h = row(self.0.h, at, channels);
            let previous = self.0.previous(at);
            for (mu, output) in self.0.mus.iter().zip(&mut outputs) {
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
struct Backward<'a, const M: usize> {
    inputs: Inputs<'a, M>,
    output_grads: [&'a [f32]; M],
}

impl<const M: usize> Kernel<1> for Backward<'_, M> {
    /// All outputs side by side, which the memory likes.
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [gradient]: [&mut [f32]; 1],
        sums: &mut [f32],
    ) {
        let channels = self.inputs.channels;
        for at in rows.clone() {
            let h = row(self.inputs.h, at, channels);
            let previous = self.inputs.previous(at);
            let gradient = row_mut(gradient, at - rows.start, channels);
            let has_next = !(at + 1).is_multiple_of(self.inputs.time);
            let mut mus: [&[f32]; M] = [&[]; M];
            let mut now: [&[f32]; M] = [&[]; M];
            let mut next: [&[f32]; M] = [&[]; M];
            for m in 0..M {
                mus[m] = &self.inputs.mus[m][..channels];
                now[m] = row(self.output_grads[m], at, channels);
                next[m] = row(self.output_grads[m], at + usize::from(has_next), channels);
            }
            for_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let step = lane.load(previous) - lane.load(h);
                    let mut sum = lane.splat(0.0);
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
}

/// The gradient of `last`, from the first token of every sequence.
struct BackwardLast<'a, const M: usize>(Backward<'a, M>);

impl<const M: usize> Kernel<1> for BackwardLast<'_, M> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        sequences: Range<usize>,
        [gradient]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let Inputs {
            mus,
            time,
            channels,
            ..
        } = self.0.inputs;
        for sequence in sequences.clone() {
            let gradient = row_mut(gradient, sequence - sequences.start, channels);
            for (mu, grad) in mus.iter().zip(self.0.output_grads) {
                let first = row(grad, sequence * time, channels);
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

    fn compute<const M: usize>(
        [h, last]: &[Vec<f32>; 2],
        mus: &[Vec<f32>; M],
        grads: &[Vec<f32>; M],
        time: usize,
    ) -> ([Vec<f32>; M], Vec<Vec<f32>>) {
        let outputs = forward(h, last, slices(mus), time);
        let (h, last, mus) = backward(h, last, slices(mus), slices(grads), time);
        let gradients = [h, last].into_iter().chain(mus);
        (outputs, gradients.collect())
    }

    fn check<const M: usize>(batch: usize, time: usize, channels: usize) {
        let rows = batch * time;
        let x = [data(rows * channels, 1), data(batch * channels, 2)];
        let mus = core::array::from_fn::<_, M, _>(|m| data(channels, 3 + m as u32));
        let grads = core::array::from_fn(|m| data(rows * channels, 20 + m as u32));
        let (outputs, gradients) = compute(&x, &mus, &grads, time);
        assert_case(Case {
            name: &format!("token shift {batch} {time} {channels} {M}"),
            naive: &|x| naive(x, time, channels),
            inputs: &[&x[..], &mus].concat(),
            outputs: &outputs,
            output_grads: &grads,
            gradients: &gradients,
            step: 1e-5,
        });
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        let shapes = [(1, 1), (2, 1), (1, 2), (3, 11), (1, 33), (4, 125)];
        for (batch, time) in shapes {
            for channels in [7, 48, 512] {
                check::<1>(batch, time, channels);
                check::<6>(batch, time, channels);
            }
        }
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let (batch, time, channels) = (4, 125, 512);
        let x = [data(batch * time * channels, 0), data(batch * channels, 1)];
        let mus = [data(channels, 2), data(channels, 3)];
        let grads = [data(x[0].len(), 7), data(x[0].len(), 8)];
        let one = with_threads(1, || compute(&x, &mus, &grads, time));
        assert!(one == with_threads(3, || compute(&x, &mus, &grads, time)));
    }
}
