//! The custom operation on the CPU; the arithmetic is in [`cpu`].

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor, tensor::FloatTensor};

use super::{TokenTensors, Wkv7Ops};
use crate::{
    flex::{floats, tensor},
    ops::{
        Side,
        cpu::{self, DEFAULT_CHUNK, Dims, Gradients, Inputs, Query},
    },
    taps::Taps,
};

pub use cpu::MAX_SIZE;

impl Wkv7Ops for Flex {
    fn wkv7_forward(
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (y, state, _) = forward(input, s0, false);
        (y, state)
    }

    fn wkv7_traced(
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        _taps: Taps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        forward(input, s0, true)
    }

    fn wkv7_read(
        x: FloatTensor<Self>,
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        _taps: Taps,
    ) -> FloatTensor<Self> {
        if side == Side::Key {
            return Self::wkv7_forward(TokenTensors { r: x, ..input }, s0).0;
        }
        let (dims, input) = prepare(input);
        let x = x.to_contiguous();
        let mut z = vec![0.0; dims.keys()];
        let inputs = inputs(&input);
        cpu::read(
            dims,
            inputs,
            floats(&x),
            floats(&starts),
            DEFAULT_CHUNK,
            &mut z,
        );
        tensor(z, input.k.shape())
    }

    fn wkv7_backward(
        input: TokenTensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>) {
        backward(input, starts, dy, d_state, None)
    }

    fn wkv7_read_backward(
        input: TokenTensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
        of_value: FloatTensor<Self>,
        of_key: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>) {
        backward(input, starts, dy, d_state, Some((of_value, of_key)))
    }
}

fn forward(
    input: TokenTensors<Flex>,
    s0: FlexTensor,
    keep: bool,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (dims, input) = prepare(input);
    let s0 = s0.to_contiguous();
    let mut y = vec![0.0; dims.values()];
    let mut state = vec![0.0; dims.states()];
    let mut starts = vec![0.0; if keep { dims.starts(DEFAULT_CHUNK) } else { 0 }];
    cpu::forward(
        dims,
        inputs(&input),
        floats(&input.r),
        Some(floats(&s0)),
        DEFAULT_CHUNK,
        &mut y,
        &mut state,
        keep.then_some(&mut starts),
    );
    let chunks = if keep {
        dims.time.div_ceil(DEFAULT_CHUNK)
    } else {
        0
    };
    let starts_shape = [dims.batch, dims.heads, chunks, dims.key, dims.value];
    (
        tensor(y, input.v.shape()),
        tensor(state, s0.shape()),
        tensor(starts, starts_shape.into()),
    )
}

fn backward(
    input: TokenTensors<Flex>,
    starts: FlexTensor,
    dy: FlexTensor,
    d_state: FlexTensor,
    read: Option<(FlexTensor, FlexTensor)>,
) -> (TokenTensors<Flex>, FlexTensor) {
    let (dims, input) = prepare(input);
    let [dy, d_state] = [dy, d_state].map(|x| x.to_contiguous());
    let read = read.map(|(value, key)| (value.to_contiguous(), key.to_contiguous()));
    let keys = || vec![0.0; dims.keys()];
    let [mut r, mut log_w, mut k, mut a, mut b] = [keys(), keys(), keys(), keys(), keys()];
    let mut v = vec![0.0; dims.values()];
    let mut s0 = vec![0.0; dims.states()];
    cpu::backward(
        dims,
        inputs(&input),
        floats(&starts),
        DEFAULT_CHUNK,
        Some(Query {
            key: floats(&input.r),
            value: floats(&dy),
        }),
        read.as_ref().map(|(value, key)| Query {
            key: floats(key),
            value: floats(value),
        }),
        Some(floats(&d_state)),
        Gradients {
            r: &mut r,
            log_w: &mut log_w,
            k: &mut k,
            v: &mut v,
            a: &mut a,
            b: &mut b,
            s0: &mut s0,
        },
    );
    let keys = |x| tensor(x, input.k.shape());
    let gradients = TokenTensors {
        r: keys(r),
        log_w: keys(log_w),
        k: keys(k),
        v: tensor(v, input.v.shape()),
        a: keys(a),
        b: keys(b),
    };
    (gradients, tensor(s0, d_state.shape()))
}

/// Sizes, and the inputs laid out as their shapes say.
fn prepare(input: TokenTensors<Flex>) -> (Dims, TokenTensors<Flex>) {
    let [batch, time, heads, key] = input.r.shape().dims();
    let dims = Dims {
        batch,
        time,
        heads,
        value: input.v.shape()[3],
        key,
    };
    let input = TokenTensors {
        r: input.r.to_contiguous(),
        log_w: input.log_w.to_contiguous(),
        k: input.k.to_contiguous(),
        v: input.v.to_contiguous(),
        a: input.a.to_contiguous(),
        b: input.b.to_contiguous(),
    };
    (dims, input)
}

fn inputs(input: &TokenTensors<Flex>) -> Inputs<'_> {
    Inputs {
        log_w: floats(&input.log_w),
        k: floats(&input.k),
        v: floats(&input.v),
        a: floats(&input.a),
        b: floats(&input.b),
    }
}
