//! The operator, the read of its states and all gradients as loops over scalars in f64: reference `rwkv7.md` 4.1 and 4.2
//! and `growth-and-evaluation.md` D, one head at a time.

use super::{Case, NAMES, Results, Side};

/// y, S, z, and the gradients by all eight inputs, for the gradients `[dy, ds, dz]` of the outputs.
pub fn run(case: &Case, [dy, ds, dz]: &[Vec<f64>; 3]) -> Results {
    let [batch, time, heads, n] = case.dims;
    let [r, log_w, k, v, a, b, s0, x] = &case.values;
    let (mut y, mut z) = (vec![0.0; v.len()], vec![0.0; k.len()]);
    let mut state = s0.clone();
    let mut gradients: [Vec<f64>; 8] = std::array::from_fn(|i| vec![0.0; case.values[i].len()]);

    for head in 0..batch * heads {
        let at = |t: usize| ((head / heads * time + t) * heads + head % heads) * n;
        let mut s = s0[head * n * n..][..n * n].to_vec();
        let mut before = Vec::with_capacity(time);
        let mut removed = Vec::with_capacity(time);
        for t in 0..time {
            let t = at(t);
            before.push(s.clone());
            let sa: Vec<f64> = (0..n)
                .map(|i| (0..n).map(|j| s[i * n + j] * a[t + j]).sum())
                .collect();
            for i in 0..n {
                for j in 0..n {
                    let kept = s[i * n + j] * log_w[t + j].exp();
                    s[i * n + j] = kept + sa[i] * b[t + j] + v[t + i] * k[t + j];
                    y[t + i] += s[i * n + j] * r[t + j];
                    let (from, to) = read(case.side, i, j);
                    z[t + to] += x[t + from] * s[i * n + j];
                }
            }
            removed.push(sa);
        }
        state[head * n * n..][..n * n].copy_from_slice(&s);

        let [dr, dlog_w, dk, dv, da, db, ds0, dx] = &mut gradients;
        let mut g = ds[head * n * n..][..n * n].to_vec();
        for index in (0..time).rev() {
            let t = at(index);
            let (old, sa) = (&before[index], &removed[index]);
            let w: Vec<f64> = (0..n).map(|j| log_w[t + j].exp()).collect();
            let mut dsa = vec![0.0; n];
            for i in 0..n {
                for j in 0..n {
                    let new = old[i * n + j] * w[j] + sa[i] * b[t + j] + v[t + i] * k[t + j];
                    let gij = &mut g[i * n + j];
                    let (from, to) = read(case.side, i, j);
                    *gij += dy[t + i] * r[t + j] + x[t + from] * dz[t + to];
                    dr[t + j] += new * dy[t + i];
                    dx[t + from] += new * dz[t + to];
                    dlog_w[t + j] += *gij * old[i * n + j] * w[j];
                    dk[t + j] += *gij * v[t + i];
                    dv[t + i] += *gij * k[t + j];
                    db[t + j] += *gij * sa[i];
                    dsa[i] += *gij * b[t + j];
                }
            }
            for i in 0..n {
                for j in 0..n {
                    da[t + j] += old[i * n + j] * dsa[i];
                    g[i * n + j] = g[i * n + j] * w[j] + dsa[i] * a[t + j];
                }
            }
        }
        ds0[head * n * n..][..n * n].copy_from_slice(&g);
    }
    let outputs = [("y".into(), y), ("state".into(), state), ("z".into(), z)];
    let gradients = NAMES.iter().map(|name| format!("d{name}")).zip(gradients);
    outputs.into_iter().chain(gradients).collect()
}

/// Where the entry at row `i` and column `j` of the state leads a query from and to.
fn read(side: Side, i: usize, j: usize) -> (usize, usize) {
    match side {
        Side::Value => (i, j),
        Side::Key => (j, i),
    }
}
