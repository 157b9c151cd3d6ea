//! The WKV-7 operation on the CPU.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor, tensor::FloatTensor};
use pulp::Arch;

use super::{floats, shaped, tensor};
use crate::ops::{
    Side,
    backends::wkv7::{Wkv7Ops, Wkv7Tensors},
    cpu::wkv7::{self, DEFAULT_CHUNK, Dims, Gradients, Inputs, Query},
    multi_output::PendingGradients,
};

impl Wkv7Ops for Flex {
    fn wkv7_forward(
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (y, state, _) = forward(input, s0, false);
        (y, state)
    }

    fn wkv7_traced(
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        _: PendingGradients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        forward(input, s0, true)
    }

    fn wkv7_read(
        x: FloatTensor<Self>,
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        _: PendingGradients,
    ) -> FloatTensor<Self> {
        if side == Side::Key {
            return Self::wkv7_forward(Wkv7Tensors { r: x, ..input }, s0).0;
        }
        let (dims, input) = prepare(input);
        let x = x.to_contiguous();
        let mut z = vec![0.0; dims.keys()];
        let inputs = inputs(&input);
        wkv7::read(
            Arch::new(),
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
        input: Wkv7Tensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>) {
        backward(input, starts, dy, d_state, None)
    }

    fn wkv7_read_backward(
        input: Wkv7Tensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
        of_value: FloatTensor<Self>,
        of_key: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>) {
        backward(input, starts, dy, d_state, Some((of_value, of_key)))
    }
}

fn forward(
    input: Wkv7Tensors<Flex>,
    s0: FlexTensor,
    keep: bool,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (dims, input) = prepare(input);
    let s0 = s0.to_contiguous();
    let mut y = vec![0.0; dims.values()];
    let mut state = vec![0.0; dims.states()];
    let mut starts = vec![0.0; if keep { dims.starts(DEFAULT_CHUNK) } else { 0 }];
    wkv7::forward(
        Arch::new(),
        dims,
        inputs(&input),
        floats(&input.r),
        floats(&s0),
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
    input: Wkv7Tensors<Flex>,
    starts: FlexTensor,
    dy: FlexTensor,
    d_state: FlexTensor,
    read: Option<(FlexTensor, FlexTensor)>,
) -> (Wkv7Tensors<Flex>, FlexTensor) {
    let (dims, input) = prepare(input);
    let [dy, d_state] = [dy, d_state].map(|x| x.to_contiguous());
    let read = read.map(|(value, key)| (value.to_contiguous(), key.to_contiguous()));
    let keys = || vec![0.0; dims.keys()];
    let [mut r, mut log_w, mut k, mut a, mut b] = [keys(), keys(), keys(), keys(), keys()];
    let mut v = vec![0.0; dims.values()];
    let mut s0 = vec![0.0; dims.states()];
    wkv7::backward(
        Arch::new(),
        dims,
        inputs(&input),
        floats(&starts),
        DEFAULT_CHUNK,
        Query {
            key: floats(&input.r),
            value: floats(&dy),
        },
        read.as_ref().map(|(value, key)| Query {
            key: floats(key),
            value: floats(value),
        }),
        floats(&d_state),
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
    let gradients = shaped([r, log_w, k, v, a, b], &input.into_array());
    (
        Wkv7Tensors::from_array(gradients),
        tensor(s0, d_state.shape()),
    )
}

/// Sizes, and the inputs laid out as their shapes say.
fn prepare(input: Wkv7Tensors<Flex>) -> (Dims, Wkv7Tensors<Flex>) {
    let [batch, time, heads, key] = input.r.shape().dims();
    let dims = Dims {
        batch,
        time,
        heads,
        value: input.v.shape()[3],
        key,
    };
    let input = input.into_array().map(|x| x.to_contiguous());
    (dims, Wkv7Tensors::from_array(input))
}

fn inputs(input: &Wkv7Tensors<Flex>) -> Inputs<'_> {
    Inputs {
        log_w: floats(&input.log_w),
        k: floats(&input.k),
        v: floats(&input.v),
        a: floats(&input.a),
        b: floats(&input.b),
    }
}
