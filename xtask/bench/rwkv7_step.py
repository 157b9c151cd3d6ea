#!/usr/bin/env python3
"""RWKV-7 in PyTorch: what one whole training step costs, or one decoded token.

What is measured
    Training (the default): one step is zero_grad, forward, mean cross entropy, backward, clipping of
    the global gradient norm to 1 and a fused AdamW step (betas 0.9/0.99, eps 1e-18, the three parameter
    groups of RWKV-7), on batches of --batch x --time tokens made beforehand.  Steps are timed one by
    one after --warmup untimed ones (which include compilation); "tokens_per_second" has the best and
    the median of the --steps timed ones.
    Decoding (--generate [TOKENS]): greedy token-by-token decoding at batch 1 with the recurrent form,
    under no_grad; --steps timed repetitions of TOKENS tokens each.
    --check: in float64, compares the chunked WKV with a loop over the tokens (outputs, final state, all
    gradients) and the training forward with the decoder, each to 1e-9; exits 1 if any fails.

The model is the plain RWKV-7 (x070): head size 64, feed-forward width 4C, low-rank sizes and initial
values by the usual formulas.  The recurrence is in chunked matrix form with plain torch operations: all
of a chunk's work is batched over batch, heads and chunks, and only the carry of the state, one matrix
product a chunk, is a loop.  With --dtype bf16 the rest of the model runs under torch.autocast with f32
weights; the recurrence, the decays and the key normalisation stay f32.

The last line of standard output is one JSON object; everything else goes to standard error.

Install:  python3 -m venv venv && venv/bin/pip install torch      (or: pip install -r requirements.txt)
          --compile needs a C++ compiler (g++ or clang++) on CPU, and Triton (it comes with torch) on CUDA.
Examples: python rwkv7_step.py --check
          python rwkv7_step.py --layers 6 --width 512 --vocab 256 --batch 8 --time 512 --compile
          python rwkv7_step.py --layers 6 --width 512 --dtype bf16 --compile
          python rwkv7_step.py --layers 6 --width 512 --compile --generate 256
"""

import argparse
import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

HEAD = 64
DECAY_SCALE = math.exp(-0.5)  # ln w = -DECAY_SCALE * sigmoid(z)
LN_EPS = 1e-5
GN_EPS = 64e-5


def log(*what):
    print(*what, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------- the recurrence, chunked


def unit_lower_inverse(a):
    """(I - a)^-1 for strictly lower triangular a [Z, n, n], n a power of two.

    Blocked forward substitution: two inverted diagonal blocks P, Q of size s and the block X below P
    make one of size 2s, [[P, 0], [Q X P, Q]].  Unlike a power series this stays accurate when a is large.
    """
    z, n, _ = a.shape
    s = 2
    pairs = a.view(z, n // 2, 2, n // 2, 2)[:, :, 1, :, 0].diagonal(dim1=1, dim2=2)  # [Z, n/2]
    one = torch.ones_like(pairs)
    m = torch.stack([one, torch.zeros_like(pairs), pairs, one], -1).view(z, n // 2, 2, 2)
    while s < n:
        c = n // (2 * s)
        low = a.view(z, c, 2, s, c, 2, s)[:, :, 1, :, :, 0, :].diagonal(dim1=1, dim2=3)  # [Z, s, s, c]
        low = low.permute(0, 3, 1, 2).reshape(z * c, s, s)
        m = m.reshape(z * c, 2, s, s)
        p, q = m[:, 0], m[:, 1]
        x = torch.bmm(torch.bmm(q, low), p)
        m = torch.cat([torch.cat([p, torch.zeros_like(p)], 2), torch.cat([x, q], 2)], 1)
        m = m.view(z, c, 2 * s, 2 * s)
        s *= 2
    return m.view(z, n, n)


INVERSE = "trsm"


class UnitLowerSolve(torch.autograd.Function):
    """(I - a)^-1 x, a strictly lower triangular."""

    @staticmethod
    def forward(ctx, a, x):
        if INVERSE == "trsm":
            eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
            m = torch.linalg.solve_triangular(
                eye - a, eye.expand_as(a), upper=False, unitriangular=True
            )
        else:
            m = unit_lower_inverse(a)
        y = torch.bmm(m, x)
        ctx.save_for_backward(m, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        m, y = ctx.saved_tensors
        dx = torch.bmm(m.mT, dy)
        return torch.bmm(dx, y.mT).tril(-1), dx


class Carry(torch.autograd.Function):
    """x[0] given; x[c+1] = f[c] + p[c] x[c]; returns the stacked x[0..chunks].  All [chunks, Z, N, N]."""

    @staticmethod
    def forward(ctx, p, f, x0):
        xs = [x0]
        for pc, fc in zip(p.unbind(0), f.unbind(0)):
            xs.append(torch.baddbmm(fc, pc, xs[-1]))
        xs = torch.stack(xs)
        ctx.save_for_backward(p, xs)
        return xs

    @staticmethod
    def backward(ctx, dxs):
        p, xs = ctx.saved_tensors
        chunks, z, n, _ = p.shape
        d = dxs[chunks]
        df = [d]
        for c in range(chunks - 1, -1, -1):
            d = torch.baddbmm(dxs[c], p[c].mT, d)
            df.append(d)
        dx0 = df.pop()
        df = torch.stack(df[::-1])
        dp = torch.bmm(df.view(-1, n, n), xs[:chunks].reshape(-1, n, n).mT).view_as(p)
        return dp, df, dx0


def wkv_chunked(r, g, k, v, a, b, chunk, s0=None, final=False):
    """y [B,T,H,N] (and the last state [B,H,N,N], value x key) of
        S_t = S_{t-1} diag(e^{g_t}) + (S_{t-1} a_t) b_t' + v_t k_t',   y_t = S_t r_t.

    With G the running sum of g inside a chunk and m a row in its middle, every product of an e^G and an
    e^-G is formed as e^(G-m) times e^(m-G); the state is carried as X = e^m S' (key x value), where m
    belongs to the chunk that X enters, so the rows never need their uncentred forms.
    """
    bs, t, h, n = r.shape
    q = chunk
    if t % q:
        pad = (0, 0, 0, 0, 0, q - t % q)
        r, g, k, v, a, b = (F.pad(x, pad) for x in (r, g, k, v, a, b))
    c = r.shape[1] // q
    z = c * bs * h

    def rows(x):  # chunk-major, so that a chunk's slice is contiguous
        return x.view(bs, c, q, h, n).permute(1, 0, 3, 2, 4)

    r, g, k, v, a, b = map(rows, (r, g, k, v, a, b))
    tri = torch.ones(q, q, dtype=r.dtype, device=r.device).tril()
    cum = torch.matmul(tri, g)  # inclusive sums
    mid = cum[..., q // 2 : q // 2 + 1, :]
    up = torch.exp(cum - mid)
    down = torch.exp(mid - cum)
    before = torch.exp(cum - g - mid)
    ra = torch.cat([r * up, a * before], -2).view(z, 2 * q, n)
    kb = torch.cat([k * down, b * down], -2).view(z, 2 * q, n)
    v = v.reshape(z, q, n)

    keep = torch.cat([tri, tri.tril(-1)], 0).repeat(1, 2).bool()
    att = torch.where(keep, torch.bmm(ra, kb.mT), 0.0)
    rav = torch.cat([ra, torch.bmm(att[:, :, :q], v)], 2)  # [2q, 2N]
    wu = UnitLowerSolve.apply(att[:, q:, q:], rav[:, q:])
    qy = torch.baddbmm(rav[:, :q], att[:, :q, q:], wu)  # y = qy[N:] + qy[:N] X

    # X_next = e^(G_last - m + m_next) * ((I + B' W) X + (K' V + B' U)), rows of X being key channels.
    mid = mid[..., 0, :]
    nxt = torch.cat([mid[1:], torch.zeros_like(mid[:1])], 0)
    d = torch.exp(cum[..., -1, :] - mid + nxt).reshape(z, n, 1)
    bw = torch.bmm(kb[:, q:].mT, wu)
    p = (bw[:, :, :n] + torch.eye(n, dtype=r.dtype, device=r.device)) * d
    f = (bw[:, :, n:] + torch.bmm(kb[:, :q].mT, v)) * d
    if s0 is None:
        x0 = r.new_zeros(bs * h, n, n)
    else:
        x0 = (s0.mT * torch.exp(mid[0]).unsqueeze(-1)).reshape(bs * h, n, n)
    p, f = p.view(c, bs * h, n, n), f.view(c, bs * h, n, n)
    if final:
        xs = Carry.apply(p, f, x0)
        xs, last = xs[:c], xs[c].view(bs, h, n, n).mT
    else:
        xs = Carry.apply(p[:-1], f[:-1], x0) if c > 1 else x0
    y = torch.baddbmm(qy[:, :, n:], qy[:, :, :n], xs.reshape(z, n, n))
    y = y.view(c, bs, h, q, n).permute(1, 0, 3, 2, 4).reshape(bs, c * q, h, n)[:, :t]
    return (y, last) if final else y


def wkv_loop(r, g, k, v, a, b, s):
    """The same, token by token; only for --check."""
    ys = []
    for t in range(r.shape[1]):
        sa = torch.einsum("bhij,bhj->bhi", s, a[:, t])
        s = (
            s * torch.exp(g[:, t]).unsqueeze(-2)
            + sa.unsqueeze(-1) * b[:, t].unsqueeze(-2)
            + v[:, t].unsqueeze(-1) * k[:, t].unsqueeze(-2)
        )
        ys.append(torch.einsum("bhij,bhj->bhi", s, r[:, t]))
    return torch.stack(ys, 1), s


# ----------------------------------------------------------------------------- the model


def rank(c, factor):
    return max(32, round(factor * math.sqrt(c) / 32) * 32)


def orthogonal(rows, cols, gain):
    q = torch.empty(rows, cols)
    nn.init.orthogonal_(q, gain)
    return nn.Parameter(q)


def shift_delta(h):
    """The previous token's row minus this one's (a row of zeros before the first)."""
    return F.pad(h[:, :-1], (0, 0, 1, 0)) - h


class TimeMix(nn.Module):
    def __init__(self, layer, layers, c, chunk):
        super().__init__()
        self.layer, self.chunk, self.heads = layer, chunk, c // HEAD
        i = torch.arange(c, dtype=torch.float64)
        ratio = layer / (layers - 1) if layers > 1 else 0.0
        left = 1.0 - layer / layers
        lin = i / max(c - 1, 1)
        half = (HEAD - 1) / 2
        zig = (i % HEAD - half) / half
        zz = zig * zig.abs()

        def vec(x):
            return nn.Parameter(x.float())

        def mix(p):
            return vec(1.0 - (i / c) ** (p * left))

        self.x_r, self.x_w, self.x_k = mix(0.2), mix(0.9), mix(0.7)
        self.x_v, self.x_a, self.x_g = mix(0.7), mix(0.9), mix(0.2)
        self.w0 = vec(-5.5 + 6.0 * lin ** (1.0 + ratio**0.3) + 2.5 * zz)
        self.a0 = vec(-0.19 + 0.3 * zz + 0.4 * (lin - 0.5))
        self.k_k = vec(0.71 - 0.1 * (lin - 0.5))
        self.k_a = vec(torch.full_like(i, 1.02))
        self.r_k = nn.Parameter(torch.full((self.heads, HEAD), -0.04))

        def pair(d):
            return nn.Parameter(torch.zeros(c, d)), orthogonal(d, c, 0.1)

        self.w1, self.w2 = pair(rank(c, 2.5))
        self.a1, self.a2 = pair(rank(c, 2.5))
        self.g1, self.g2 = pair(rank(c, 5.0))
        if layer:  # layer 0 has no value residual
            self.v0 = vec(0.73 - 0.4 * (lin - 0.5))
            self.v1, self.v2 = pair(rank(c, 1.7))
        self.receptance = nn.Linear(c, c, bias=False)
        self.key = nn.Linear(c, c, bias=False)
        self.value = nn.Linear(c, c, bias=False)
        self.output = nn.Linear(c, c, bias=False)
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight, 0.1)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.output.weight)
        self.ln_x = nn.Module()
        self.ln_x.weight = nn.Parameter(torch.full((c,), ((1 + layer) / layers) ** 0.7))
        self.ln_x.bias = nn.Parameter(torch.zeros(c))

    def project(self, h, dx, v_first):
        """Everything before the recurrence; its six inputs, the gate, and v_first."""
        wide = torch.promote_types(torch.float32, h.dtype)
        r = self.receptance(torch.addcmul(h, dx, self.x_r))
        k = self.key(torch.addcmul(h, dx, self.x_k))
        xv = torch.addcmul(h, dx, self.x_v)
        v = self.value(xv)
        if self.layer:
            v = torch.lerp(v.to(wide), v_first.to(wide), torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2))
        else:
            v_first = v
        z = self.w0 + torch.tanh(torch.addcmul(h, dx, self.x_w) @ self.w1) @ self.w2
        g = -DECAY_SCALE * torch.sigmoid(z)
        a = torch.sigmoid(self.a0 + (torch.addcmul(h, dx, self.x_a) @ self.a1) @ self.a2)
        gate = torch.sigmoid(torch.addcmul(h, dx, self.x_g) @ self.g1) @ self.g2
        shape = (*h.shape[:-1], self.heads, HEAD)
        k = k.to(wide)
        kk = (k * self.k_k).view(shape)
        kk = kk * kk.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()
        k = k * torch.addcmul(1.0 - self.k_a, a, self.k_a)
        return r.to(wide).view(shape), g.view(shape), k.view(shape), v.to(wide).view(shape), kk, a.view(shape), gate, v_first

    def finish(self, y, r, k, v, gate):
        """Group norm, bonus, gate and output projection."""
        shape = gate.shape
        y = F.layer_norm(y, (HEAD,), eps=GN_EPS).view(shape)
        y = torch.addcmul(self.ln_x.bias, y, self.ln_x.weight)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output((y + bonus.view(shape)) * gate)

    def forward(self, h, v_first):
        r, g, k, v, kk, a, gate, v_first = self.project(h, shift_delta(h), v_first)
        with torch.autocast(h.device.type, enabled=False):
            y = wkv_chunked(r, g, k, v, -kk, kk * a, self.chunk)
        return self.finish(y, r, k, v, gate), v_first

    def step(self, h, shift, s, v_first):
        """One token: h [1, C], s [H, N, N] (value x key)."""
        r, g, k, v, kk, a, gate, v_first = self.project(h, shift - h, v_first)
        r, g, k, v, kk, a = (x[0] for x in (r, g, k, v, kk, a))
        sa = -(s * kk.unsqueeze(1)).sum(-1, keepdim=True)
        s = s * torch.exp(g).unsqueeze(1) + sa * (kk * a).unsqueeze(1) + v.unsqueeze(-1) * k.unsqueeze(1)
        y = (s * r.unsqueeze(1)).sum(-1)
        return self.finish(y, r, k, v, gate), s, v_first


class ChannelMix(nn.Module):
    def __init__(self, layer, layers, c):
        super().__init__()
        i = torch.arange(c, dtype=torch.float64)
        self.x_k = nn.Parameter((1.0 - (i / c) ** ((1.0 - layer / layers) ** 4)).float())
        self.key = nn.Linear(c, 4 * c, bias=False)
        self.value = nn.Linear(4 * c, c, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, h, dx):
        return self.value(torch.relu(self.key(torch.addcmul(h, dx, self.x_k))).square())


class Block(nn.Module):
    def __init__(self, layer, layers, c, chunk):
        super().__init__()
        self.ln1 = nn.LayerNorm(c, LN_EPS)
        self.ln2 = nn.LayerNorm(c, LN_EPS)
        self.att = TimeMix(layer, layers, c, chunk)
        self.ffn = ChannelMix(layer, layers, c)

    def forward(self, x, v_first):
        y, v_first = self.att(self.ln1(x), v_first)
        x = x + y
        h = self.ln2(x)
        return x + self.ffn(h, shift_delta(h)), v_first

    def step(self, x, v_first, shift1, s, shift2):
        h1 = self.ln1(x)
        y, s, v_first = self.att.step(h1, shift1, s, v_first)
        x = x + y
        h2 = self.ln2(x)
        return x + self.ffn(h2, shift2 - h2), v_first, h1, s, h2


class Rwkv7(nn.Module):
    def __init__(self, layers, c, vocab, chunk):
        super().__init__()
        self.emb = nn.Embedding(vocab, c)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        self.ln0 = nn.LayerNorm(c, LN_EPS)
        self.blocks = nn.ModuleList(Block(i, layers, c, chunk) for i in range(layers))
        self.ln_out = nn.LayerNorm(c, LN_EPS)
        self.head = nn.Linear(c, vocab, bias=False)
        nn.init.orthogonal_(self.head.weight, 0.5 * math.sqrt(max(1.0, vocab / c)))

    def logits(self, tokens):
        x, v_first = self.ln0(self.emb(tokens)), None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        return self.head(self.ln_out(x))

    def forward(self, tokens, targets):
        logits = self.logits(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def new_state(self):
        w = self.head.weight
        c = w.shape[1]
        wide = torch.promote_types(torch.float32, self.ln0.weight.dtype)

        def zeros(*shape):
            return torch.zeros(shape, dtype=wide, device=w.device)

        return [(zeros(1, c), zeros(c // HEAD, HEAD, HEAD), zeros(1, c)) for _ in self.blocks]

    def step(self, token, state):
        """token [1] -> logits [1, V] and the new state."""
        x, v_first, new = self.ln0(self.emb(token)), None, []
        for block, s in zip(self.blocks, state):
            x, v_first, *s = block.step(x, v_first, *s)
            new.append(tuple(s))
        return self.head(self.ln_out(x)), new

    def decode(self, token, state):
        logits, state = self.step(token, state)
        return logits.argmax(-1), state


def make_optimizer(model, lr, decay):
    """w0 at twice the rate; decay only on the matrices called .weight; neither on anything else."""
    double, decayed, rest = [], [], []
    for name, p in model.named_parameters():
        if name.endswith("att.w0"):
            double.append(p)
        elif name.endswith(".weight") and p.dim() >= 2:
            decayed.append(p)
        else:
            rest.append(p)
    groups = [
        {"params": double, "lr": 2 * lr, "weight_decay": 0.0},
        {"params": decayed, "lr": lr, "weight_decay": decay},
        {"params": rest, "lr": lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99), eps=1e-18, fused=True)


# ----------------------------------------------------------------------------- checks


def check(chunk):
    """The chunked form against the loop, and the training forward against the decoder, in float64."""
    worst = 0.0

    def compare(what, x, y):
        nonlocal worst
        err = ((x - y).abs().max() / y.abs().max().clamp_min(1.0)).item()
        if not err < 1e-9:
            log(f"check: {what}: relative error {err:.3e}")
        worst = max(worst, err if math.isfinite(err) else math.inf)

    torch.manual_seed(1)
    bs, h = 2, 3
    for q in sorted({16, 32, 64, chunk}):
        for t in (1, q - 1, 2 * q, 3 * q + 5):
            for case in ("mixed", "slow", "fast"):
                shape = (bs, t, h, HEAD)
                r, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
                kk = torch.randn(shape, dtype=torch.float64)
                centre, spread = {"mixed": (0.0, 3.0), "slow": (-8.0, 1.0), "fast": (8.0, 1.0)}[case]
                if case == "slow":  # keys that repeat, rates near 1: the inverse at its largest
                    kk = kk[:, :1] + 0.05 * kk
                g = -DECAY_SCALE * torch.sigmoid(centre + spread * torch.randn(shape, dtype=torch.float64))
                kk = F.normalize(kk, dim=-1)
                gate = torch.sigmoid(2.0 * torch.randn(shape, dtype=torch.float64) + (case == "slow") * 4.0)
                s0 = torch.randn(bs, h, HEAD, HEAD, dtype=torch.float64)
                inputs = [x.detach().requires_grad_() for x in (r, g, k, v, -kk, kk * gate, s0)]
                dy, ds = torch.randn(shape, dtype=torch.float64), torch.randn_like(s0)
                y1, s1 = wkv_loop(*inputs)
                y2, s2 = wkv_chunked(*inputs[:6], q, inputs[6], True)
                tag = f"chunk {q}, {t} tokens, {case} decays"
                compare(f"{tag}, outputs", y2, y1)
                compare(f"{tag}, final state", s2, s1)
                d1 = torch.autograd.grad((y1 * dy).sum() + (s1 * ds).sum(), inputs)
                d2 = torch.autograd.grad((y2 * dy).sum() + (s2 * ds).sum(), inputs)
                for name, x, y in zip(("r", "ln w", "k", "v", "a", "b", "state"), d2, d1):
                    compare(f"{tag}, gradient of {name}", x, y)
                # Without a state in or out, as training calls it.
                zero = torch.zeros_like(s0)
                y1, _ = wkv_loop(*inputs[:6], zero)
                y2 = wkv_chunked(*inputs[:6], q)
                compare(f"{tag}, outputs from zero", y2, y1)
                d1 = torch.autograd.grad((y1 * dy).sum(), inputs[:6])
                d2 = torch.autograd.grad((y2 * dy).sum(), inputs[:6])
                for name, x, y in zip(("r", "ln w", "k", "v", "a", "b"), d2, d1):
                    compare(f"{tag}, gradient of {name} from zero", x, y)
    layers, c, vocab, t = 3, 2 * HEAD, 50, 2 * chunk + 7
    model = Rwkv7(layers, c, vocab, chunk).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        tokens = torch.randint(vocab, (1, t))
        want, state = [], model.new_state()
        for i in range(t):
            logits, state = model.step(tokens[:, i], state)
            want.append(logits)
        compare("training forward and decoder", model.logits(tokens)[0], torch.cat(want))
    ok = worst < 1e-9
    log(f"check: {'passed' if ok else 'FAILED'}, largest relative error {worst:.3e}")
    return ok, worst


# ----------------------------------------------------------------------------- measurements


def keep_heap():
    """Let glibc keep large blocks rather than return them to the kernel and fault them in again."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        return True
    except (OSError, AttributeError):
        return False


def peak_memory(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_batches(count, vocab, batch, time_, device):
    """Tokens with something to learn: each follows from the one before, except one in eight."""
    gen = torch.Generator().manual_seed(7)
    seq = torch.randint(vocab, (count, batch, time_ + 1), generator=gen)
    jump = torch.rand(count, batch, time_ + 1, generator=gen) < 0.125
    for t in range(1, time_ + 1):
        seq[:, :, t] = torch.where(jump[:, :, t], seq[:, :, t], (seq[:, :, t - 1] * 5 + 3) % vocab)
    seq = seq.to(device)
    return [(s[:, :-1].contiguous(), s[:, 1:].contiguous()) for s in seq]


def train(args, sync, autocast):
    model = Rwkv7(args.layers, args.width, args.vocab, args.attn).to(args.device)
    params = sum(p.numel() for p in model.parameters())
    opt = make_optimizer(model, args.lr, args.weight_decay)
    if args.compile and args.compile_scope == "model":
        model.compile(dynamic=False, mode=args.compile_mode)
    elif args.compile:
        for block in model.blocks:
            block.compile(dynamic=False, mode=args.compile_mode)
    batches = make_batches(args.warmup + args.steps, args.vocab, args.batch, args.time, args.device)
    losses, seconds = [], []
    for i, (tokens, targets) in enumerate(batches):
        sync()
        start = time.perf_counter()
        opt.zero_grad(set_to_none=True)
        with autocast():
            loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sync()
        took = time.perf_counter() - start
        losses.append(loss.item())
        if i >= args.warmup:
            seconds.append(took)
        log(f"{'step' if i >= args.warmup else 'warm'} {i}: {took:.3f} s, loss {losses[-1]:.4f}")
        if not math.isfinite(losses[-1]):
            raise SystemExit("the loss is not finite")
    if args.profile:
        profile(args, model, opt, batches[-1], autocast)
    return params, args.batch * args.time, seconds, {"first": losses[0], "last": losses[-1]}


def profile(args, model, opt, batch, autocast):
    from torch.profiler import profile as run

    with run() as prof:
        with autocast():
            loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    log(prof.key_averages().table(sort_by=f"self_{args.device}_time_total", row_limit=40, max_name_column_width=60))


def generate(args, sync, autocast):
    model = Rwkv7(args.layers, args.width, args.vocab, args.attn)
    with torch.no_grad():  # the initial model outputs nothing from its blocks; give it ordinary numbers
        for p in model.parameters():
            if p.dim() >= 2 and not p.any():
                p.normal_(0.0, 0.02)
        if args.dtype == "bf16":  # the matrices once, so that no token has to round them again
            for name, p in model.named_parameters():
                if p.dim() == 2 and not name.endswith(("r_k", "emb.weight")):
                    p.data = p.data.bfloat16()
    model.to(args.device).requires_grad_(False).eval()
    params = sum(p.numel() for p in model.parameters())
    step = torch.compile(model.decode, dynamic=False, mode=args.compile_mode) if args.compile else model.decode
    seconds, count = [], args.generate
    with torch.no_grad(), autocast():
        for i in range(args.warmup + args.steps):
            token, state, out = torch.zeros(1, dtype=torch.long, device=args.device), model.new_state(), []
            sync()
            start = time.perf_counter()
            for _ in range(count):
                if args.compile and args.device == "cuda":
                    torch.compiler.cudagraph_mark_step_begin()
                token, state = step(token, state)
                if args.compile_mode == "reduce-overhead":  # its outputs live in memory that it will reuse
                    token, state = token.clone(), [tuple(x.clone() for x in s) for s in state]
                out.append(token)
            out = torch.cat(out).tolist()
            sync()
            took = time.perf_counter() - start
            if i >= args.warmup:
                seconds.append(took)
            log(f"{'run' if i >= args.warmup else 'warm'} {i}: {took:.3f} s, {count / took:.1f} tokens/s")
    return params, count, seconds, None


def main():
    p = argparse.ArgumentParser(description="RWKV-7 training step or decoding in PyTorch, timed")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--vocab", type=int, default=256)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--time", type=int, default=512, help="tokens a sequence")
    p.add_argument("--steps", type=int, default=5, help="timed steps (or runs of --generate)")
    p.add_argument("--warmup", type=int, default=3, help="untimed ones before them")
    p.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    p.add_argument("--compile-mode", default="default", help="torch.compile's mode")
    p.add_argument("--compile-scope", choices=["block", "model"], default="block")
    p.add_argument("--attn", type=int, default=32, metavar="CHUNK", help="chunk length of the recurrence")
    p.add_argument("--inverse", choices=["trsm", "block"], default="trsm")
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--tf32", action="store_true", help="let CUDA's f32 products use TF32")
    p.add_argument("--heap", action=argparse.BooleanOptionalAction, default=True, help="keep freed memory (glibc)")
    p.add_argument("--generate", type=int, nargs="?", const=256, metavar="TOKENS", help="time decoding instead")
    p.add_argument("--profile", action="store_true", help="profile one more step, on standard error")
    p.add_argument("--check", action="store_true", help="compare with a token-by-token loop, time nothing")
    p.add_argument("--json", action="store_true", help="one line of JSON and nothing else, on either stream")
    args = p.parse_args()
    if args.width % HEAD or args.attn < 2 or args.attn & (args.attn - 1):
        p.error("the width must be a multiple of 64, the chunk length a power of two of at least 2")
    if args.json:
        globals()["log"] = lambda *_: None
    globals()["INVERSE"] = args.inverse
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    info = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    if args.check:
        ok, worst = check(args.attn)
        print(json.dumps({"check": ok, "largest_relative_error": worst, **info}))
        sys.exit(0 if ok else 1)

    info["heap_kept"] = args.heap and args.device == "cpu" and keep_heap()
    sync = lambda: None
    if args.device == "cuda":
        info["device_name"] = torch.cuda.get_device_name()
        torch.backends.cuda.matmul.allow_tf32 = args.tf32
        sync = torch.cuda.synchronize
    autocast = contextlib.nullcontext
    if args.dtype == "bf16":
        autocast = lambda: torch.autocast(args.device, torch.bfloat16)
    params, tokens, seconds, loss = (generate if args.generate else train)(args, sync, autocast)
    best, median = min(seconds), statistics.median(seconds)
    settings = {k: v for k, v in vars(args).items() if k not in ("threads", "json", "check", "profile")}
    result = {
        "what": "generate" if args.generate else "train",
        "tokens_per_second": {"best": tokens / best, "median": tokens / median},
        "step_seconds": {"best": best, "median": median, "all": seconds},
        "tokens_per_step": tokens,
        "loss": loss,
        "peak_memory_bytes": peak_memory(args.device),
        "parameters": params,
        **info,
        "settings": settings,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
