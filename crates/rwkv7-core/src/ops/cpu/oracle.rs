//! The operator in f64, token by token, straight from its equations.

use super::Dims;

#[derive(Clone)]
pub struct Case {
    pub dims: Dims,
    pub r: Vec<f64>,
    pub log_w: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub x: Vec<f64>,
    pub s0: Option<Vec<f64>>,
    pub dy: Vec<f64>,
    pub dz: Vec<f64>,
    pub d_state: Vec<f64>,
}

#[derive(Clone)]
pub struct Outputs {
    pub y: Vec<f64>,
    pub z: Vec<f64>,
    pub state: Vec<f64>,
    /// `S_0 … S_T` of every row and head: `[batch, heads, time + 1, value, key]`.
    pub states: Vec<f64>,
}

pub struct Gradients {
    pub r: Vec<f64>,
    pub log_w: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub x: Vec<f64>,
    pub s0: Vec<f64>,
}

impl Case {
    fn key(&self, bi: usize, t: usize, h: usize) -> usize {
        ((bi * self.dims.time + t) * self.dims.heads + h) * self.dims.key
    }

    fn value(&self, bi: usize, t: usize, h: usize) -> usize {
        ((bi * self.dims.time + t) * self.dims.heads + h) * self.dims.value
    }

    pub fn forward(&self) -> Outputs {
        let Dims {
            batch,
            time,
            heads,
            value,
            key,
        } = self.dims;
        let mut out = Outputs {
            y: vec![0.0; self.v.len()],
            z: vec![0.0; self.r.len()],
            state: vec![],
            states: vec![],
        };
        for bi in 0..batch {
            for h in 0..heads {
                let n = (bi * heads + h) * value * key;
                let mut s = match &self.s0 {
                    Some(s0) => s0[n..n + value * key].to_vec(),
                    None => vec![0.0; value * key],
                };
                out.states.extend(&s);
                for t in 0..time {
                    let (kt, vt) = (self.key(bi, t, h), self.value(bi, t, h));
                    for i in 0..value {
                        let row = &mut s[i * key..(i + 1) * key];
                        let sa: f64 = (0..key).map(|j| row[j] * self.a[kt + j]).sum();
                        for j in 0..key {
                            row[j] = row[j] * self.log_w[kt + j].exp()
                                + sa * self.b[kt + j]
                                + self.v[vt + i] * self.k[kt + j];
                            out.y[vt + i] += row[j] * self.r[kt + j];
                            out.z[kt + j] += self.x[vt + i] * row[j];
                        }
                    }
                    out.states.extend(&s);
                }
                out.state.extend(&s);
            }
        }
        out
    }

    /// Reference section 4.2, with or without the terms of `dy`, of the read and of the state.
    pub fn backward(&self, with_y: bool, with_read: bool, with_state: bool) -> Gradients {
        let Dims {
            batch,
            time,
            heads,
            value,
            key,
        } = self.dims;
        let size = value * key;
        let states = self.forward().states;
        let keys = || vec![0.0; self.r.len()];
        let mut g = Gradients {
            r: keys(),
            log_w: keys(),
            k: keys(),
            v: vec![0.0; self.v.len()],
            a: keys(),
            b: keys(),
            x: vec![0.0; self.v.len()],
            s0: vec![],
        };
        for bi in 0..batch {
            for h in 0..heads {
                let n = bi * heads + h;
                let mut gn = vec![0.0; size];
                if with_state {
                    gn.copy_from_slice(&self.d_state[n * size..(n + 1) * size]);
                }
                for t in (0..time).rev() {
                    let (kt, vt) = (self.key(bi, t, h), self.value(bi, t, h));
                    let before = &states[(n * (time + 1) + t) * size..][..size];
                    let after = &states[(n * (time + 1) + t + 1) * size..][..size];
                    for i in 0..value {
                        let gi = &mut gn[i * key..(i + 1) * key];
                        let (s, s1) = (&before[i * key..][..key], &after[i * key..][..key]);
                        for j in 0..key {
                            if with_y {
                                gi[j] += self.dy[vt + i] * self.r[kt + j];
                                g.r[kt + j] += s1[j] * self.dy[vt + i];
                            }
                            if with_read {
                                gi[j] += self.x[vt + i] * self.dz[kt + j];
                                g.x[vt + i] += s1[j] * self.dz[kt + j];
                            }
                        }
                        let sa: f64 = (0..key).map(|j| s[j] * self.a[kt + j]).sum();
                        let dsa: f64 = (0..key).map(|j| gi[j] * self.b[kt + j]).sum();
                        for j in 0..key {
                            let w = self.log_w[kt + j].exp();
                            g.log_w[kt + j] += gi[j] * s[j] * w;
                            g.k[kt + j] += gi[j] * self.v[vt + i];
                            g.v[vt + i] += gi[j] * self.k[kt + j];
                            g.b[kt + j] += gi[j] * sa;
                            g.a[kt + j] += s[j] * dsa;
                            gi[j] = gi[j] * w + dsa * self.a[kt + j];
                        }
                    }
                }
                g.s0.extend(&gn);
            }
        }
        g
    }
}
