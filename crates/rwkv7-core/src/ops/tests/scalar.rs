//! The recurrence, the read of its states and all gradients as loops over scalars in f64: what every path is compared with.

use super::case::{Case, Decay, Keys, NAMES, Rate, Results, SIDES, named, relative_error};
use crate::ops::Side;

/// y, S, z, and the gradients by all eight inputs, for the gradients `[dy, ds, dz]` of the outputs; one head at a time.
pub fn run(case: &Case, [dy, ds, dz]: &[Vec<f64>; 3]) -> Results {
    let [batch, time, heads, value, key] = case.dims;
    let size = value * key;
    let [r, log_w, k, v, a, b, s0, x] = &case.values;
    let (mut y, mut z) = (vec![0.0; v.len()], vec![0.0; dz.len()]);
    let mut state = s0.clone();
    let mut gradients: [Vec<f64>; 8] = std::array::from_fn(|i| vec![0.0; case.values[i].len()]);
    // Where the entry at row i and column j of the state leads a query from and to.
    let read = |t: usize, i: usize, j: usize| match case.side {
        Side::Value => (t * value + i, t * key + j),
        Side::Key => (t * key + j, t * value + i),
    };

    for head in 0..batch * heads {
        let at = |t: usize| (head / heads * time + t) * heads + head % heads;
        let mut s = s0[head * size..][..size].to_vec();
        let mut before = Vec::with_capacity(time);
        let mut removed = Vec::with_capacity(time);
        for t in 0..time {
            let t = at(t);
            before.push(s.clone());
            let sa: Vec<f64> = (0..value)
                .map(|i| (0..key).map(|j| s[i * key + j] * a[t * key + j]).sum())
                .collect();
            for i in 0..value {
                for j in 0..key {
                    let (tj, ti) = (t * key + j, t * value + i);
                    let entry = &mut s[i * key + j];
                    *entry = *entry * log_w[tj].exp() + sa[i] * b[tj] + v[ti] * k[tj];
                    y[ti] += *entry * r[tj];
                    let (from, to) = read(t, i, j);
                    z[to] += x[from] * *entry;
                }
            }
            removed.push(sa);
        }
        state[head * size..][..size].copy_from_slice(&s);

        let [dr, dlog_w, dk, dv, da, db, ds0, dx] = &mut gradients;
        let mut g = ds[head * size..][..size].to_vec();
        for index in (0..time).rev() {
            let t = at(index);
            let (old, sa) = (&before[index], &removed[index]);
            let w: Vec<f64> = (0..key).map(|j| log_w[t * key + j].exp()).collect();
            let mut dsa = vec![0.0; value];
            for i in 0..value {
                for j in 0..key {
                    let (tj, ti) = (t * key + j, t * value + i);
                    let new = old[i * key + j] * w[j] + sa[i] * b[tj] + v[ti] * k[tj];
                    let gij = &mut g[i * key + j];
                    let (from, to) = read(t, i, j);
                    *gij += dy[ti] * r[tj] + x[from] * dz[to];
                    dr[tj] += new * dy[ti];
                    dx[from] += new * dz[to];
                    dlog_w[tj] += *gij * old[i * key + j] * w[j];
                    dk[tj] += *gij * v[ti];
                    dv[ti] += *gij * k[tj];
                    db[tj] += *gij * sa[i];
                    dsa[i] += *gij * b[tj];
                }
            }
            for i in 0..value {
                for j in 0..key {
                    da[t * key + j] += old[i * key + j] * dsa[i];
                    g[i * key + j] = g[i * key + j] * w[j] + dsa[i] * a[t * key + j];
                }
            }
        }
        ds0[head * size..][..size].copy_from_slice(&g);
    }
    named([y, state, z], gradients)
}

/// In f64, the gradients against central differences of the outputs.
#[test]
fn the_scalar_loop_agrees_with_finite_differences() {
    for side in SIDES {
        let case = Case::random([1, 9, 2, 4], 11, Decay::Mixed, Rate::Random, Keys::Random);
        gradients_are_slopes(&case.on(side));
    }
    let dims = [1, 7, 2, 3, 4];
    let case = Case::rectangular(dims, 6, Decay::Mixed, Rate::Random, Keys::Random);
    gradients_are_slopes(&case);
}

fn gradients_are_slopes(case: &Case) {
    let weights = case.output_gradients();
    let loss = |case: &Case| -> f64 {
        let results = run(case, &weights);
        let sums = results.iter().zip(&weights).map(|((_, x), d)| {
            let products = x.iter().zip(d).map(|(x, d)| x * d);
            products.sum::<f64>()
        });
        sums.sum()
    };
    let found = run(case, &weights);
    for (i, name) in NAMES.iter().enumerate() {
        let gradient = &found[3 + i].1;
        for (j, &found) in gradient.iter().enumerate() {
            let step = 1e-5;
            let shifted = |by: f64| {
                let mut case = case.clone();
                case.values[i][j] += by;
                loss(&case)
            };
            let expected = (shifted(step) - shifted(-step)) / (2.0 * step);
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error < 1e-7, "d{name}[{j}]: {found} and {expected}");
        }
    }
}

/// Against values computed in numpy: three tokens, one head of size 2.
#[test]
fn golden_values() {
    let numbers = |text: &str| -> Vec<f64> {
        let words = text.split_whitespace();
        words.map(|word| word.parse().unwrap()).collect()
    };
    let w = numbers(
        "0.738403149974731 0.930251567306666 0.641844355253279 0.849488209142927 0.561150906792801 0.685545320713089",
    );
    let k_hat = [0.6, 0.8, 1.0, 0.0, -0.8, 0.6];
    let rate = [0.5, 0.25, 0.75, 1.0, 0.125, 0.5];
    let case = Case {
        dims: [1, 3, 1, 2, 2],
        values: [
            vec![1.0, -0.5, 0.25, 2.0, -1.0, 0.5],
            w.iter().map(|w| w.ln()).collect(),
            vec![0.5, 1.0, -1.0, 0.25, 0.75, -0.5],
            vec![1.0, 2.0, -1.0, 0.5, 0.25, -2.0],
            k_hat.iter().map(|k| -k).collect(),
            k_hat.iter().zip(rate).map(|(k, a)| k * a).collect(),
            vec![0.1, -0.2, 0.3, 0.4],
            vec![0.0; 6],
        ],
        side: Side::Value,
    };
    let dw = numbers("-0.207179903 1.364623054 0.408897599 9.112047822 1.630282356 -1.341755486");
    let expected = [
        (
            "y",
            "0.186865471728 -0.064529368469 1.150533666818 3.956272625448 -0.499191743872 2.618601075903",
        ),
        (
            "state",
            "0.664733373541 0.331083259340 -1.673029170186 1.891143811434",
        ),
        (
            "dr",
            "-0.46768063 -1.43815094 -0.764436447 4.339460598 -1.420955221 1.335587044",
        ),
        (
            "dk",
            "-1.072973941 7.542151224 -0.701870224 0.807710252 1.8125 1.21875",
        ),
        (
            "dv",
            "0.821856091 3.091904081 -0.443486925 0.920621724 1.0 -0.25",
        ),
        (
            "da",
            "0.160515386 0.097585027 0.306673199 0.417084406 -0.082599588 -0.305696247",
        ),
        (
            "db",
            "0.591880166 -1.759706514 -0.408897599 -4.510271095 1.885208277 1.019529685",
        ),
        ("ds0", "0.473199963 0.054996989 -0.988705069 3.005935279"),
    ];
    let mut expected = expected.map(|(name, text)| (name, numbers(text))).to_vec();
    // The derivative by ln w is that by w times w.
    expected.push(("dlog_w", dw.iter().zip(w).map(|(d, w)| d * w).collect()));

    let dy = vec![1.0, -1.0, 0.5, 2.0, -0.25, 0.75];
    let ds = vec![1.0, 0.0, 0.0, -1.0];
    let found = run(&case, &[dy, ds, vec![0.0; 6]]);
    for (name, expected) in &expected {
        let (_, found) = found.iter().find(|(n, _)| n == name).unwrap();
        let error = relative_error(found, expected);
        assert!(error < 1e-8, "{name}: relative error {error:e}");
    }
}
