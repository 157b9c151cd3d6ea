"""Makes the golden values of RWKV-7 with the Meta-State layer (arXiv 2504.08247) in place of channel mixing.

Beside itself, or into the folder given as its argument, this script writes

    metastate.weights.safetensors           random weights, those of the Meta-State layers once per variant
    metastate-VARIANT.golden.safetensors    logits, final state, loss and the loss's gradients

All is float64. The model below is written from the equations, one token and one head at a time, and differentiated by
autograd; no code of this project takes part. Before writing, the script checks for each variant that
  * finite differences agree with the gradients,
  * every tensor and every option shows in the logits, and every tensor has a gradient,
  * no logit depends on a later token,
  * the values lie where they say something: z has zeros and others, none of them near the kink,
and for `per-head` that the layer is two stock WKV-7 recurrences, which is how a fast implementation computes it.

Needs torch, numpy and safetensors in the versions of requirements.txt; a run takes two minutes and is deterministic:

    python make_metastate_goldens.py

README.md describes the files.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

SEED = 7
LENGTH = 37
# Two layers: the first has no value residual and the second has one. Ranks differ from each other and from the widths.
MODEL = dict(vocab_size=13, n_layer=2, n_embd=16, head_size=8,
             decay_rank=5, in_context_rank=3, value_rank=6, gate_rank=7,
             layer_norm_eps=1e-5, group_norm_eps=64e-5, embedding_norm=True)
V, L, C, N = (MODEL[name] for name in ("vocab_size", "n_layer", "n_embd", "head_size"))
H = C // N

PER_HEAD = {"oms": "per-head", "sse": "state", "side": "value", "removal": "time-mix", "center": False,
            "scale": "none", "token_shift": False, "norm_affine": False, "detach_decay": False, "norm_eps": 1e-5}
VARIANTS = {
    "paper": {"oms": "shared"},
    "per-head": {},
    "key-side": {"side": "key"},
    "top-left": {"sse": {"top-left": 5}},
    "low-rank": {"sse": {"low-rank": 3}},
    "head-mixed": {"sse": "head-mixed"},
    "learned": {"sse": "learned"},
    "self-key": {"removal": "self"},
    "centered": {"center": True},
    "constant": {"scale": {"constant": 0.125}},
    "l2": {"scale": "l2"},
    "shift": {"token_shift": True},
    "affine": {"norm_affine": True},
    "detached": {"detach_decay": True},
    "combined": {"oms": "shared", "sse": {"low-rank": 3}, "removal": "self", "center": True, "scale": "l2",
                 "token_shift": True, "norm_affine": True},
    "combined2": {"sse": {"top-left": 5}, "side": "key", "norm_affine": True, "token_shift": True, "removal": "self"},
    "projected": {"sse": "projected"},
    "soft": {"side": "key", "removal": "self", "scale": {"constant": 0.5}, "norm_eps": 1.0},
}

# Stored as [1, 1, C].
VECTORS = {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a"}


def of(option):
    """The name and the number of an option: "none" or {"constant": 0.125}."""
    return next(iter(option.items())) if isinstance(option, dict) else (option, None)


def inner_size(c):
    """The size n of ms."""
    kind, size = of(c["sse"])
    return size if kind == "top-left" else N


def common_weights(rng):
    """All but the Meta-State layers, in file order. Nothing is zero, and every tensor is large enough to matter."""
    normal = lambda shape, std, mean=0.0: mean + std * rng.standard_normal(shape)
    linear = lambda out, inp, gain: normal((out, inp), gain / np.sqrt(inp))
    z = {}

    def norm(name):
        z[name + ".weight"] = normal(C, 0.2, 1.0)
        z[name + ".bias"] = normal(C, 0.2)

    # Small enough for the epsilon of ln0 to show.
    z["emb.weight"] = normal((V, C), 0.02)
    for l in range(L):
        block, att = f"blocks.{l}.", f"blocks.{l}.att."
        if l == 0:
            norm(block + "ln0")
        norm(block + "ln1")
        norm(block + "ln2")
        for mix in "rwkvag":
            z[att + "x_" + mix] = rng.uniform(0.05, 0.95, (1, 1, C))
        z[att + "w0"] = rng.uniform(-6, 3, (1, 1, C))
        z[att + "a0"] = normal((1, 1, C), 0.5, -0.2)
        if l > 0:
            z[att + "v0"] = normal((1, 1, C), 0.5, 0.3)
        for lora, rank, gain in (("w", "decay_rank", 1.5), ("a", "in_context_rank", 1.0),
                                 ("v", "value_rank", 1.0), ("g", "gate_rank", 2.0)):
            if lora != "v" or l > 0:
                z[att + lora + "1"] = normal((C, MODEL[rank]), 1 / np.sqrt(C))
                z[att + lora + "2"] = normal((MODEL[rank], C), gain / np.sqrt(MODEL[rank]))
        z[att + "k_k"] = normal((1, 1, C), 0.2, 0.7)
        z[att + "k_a"] = normal((1, 1, C), 0.2, 1.0)
        z[att + "r_k"] = normal((H, N), 1 / np.sqrt(N))
        z[att + "receptance.weight"] = linear(C, C, 1.0)
        z[att + "key.weight"] = linear(C, C, 1.0)
        # Small values keep the variances inside a head near the epsilons of the group norm and of the Meta-State layer.
        z[att + "value.weight"] = linear(C, C, 0.4)
        z[att + "output.weight"] = linear(C, C, 0.5)
        norm(att + "ln_x")
    norm("ln_out")
    z["head.weight"] = linear(V, C, 1.0)
    return {name: torch.from_numpy(value) for name, value in z.items()}


def meta_state_weights(c, rng):
    """The tensors of a variant's Meta-State layers."""
    normal = lambda shape, std, mean=0.0: mean + std * rng.standard_normal(shape)
    n, (kind, rank) = inner_size(c), of(c["sse"])
    z = {}
    for l in range(L):
        ms = f"blocks.{l}.ms."
        if c["token_shift"]:
            z[ms + "x_k"] = rng.uniform(0.05, 0.95, (1, 1, C))
        if kind == "low-rank":
            z[ms + "sse1"] = normal((H, N, rank), 1 / np.sqrt(N))
            z[ms + "sse2"] = normal((H, rank, N), 1 / np.sqrt(rank))
        elif kind == "projected":
            z[ms + "W_in"] = normal((N, N), 1 / np.sqrt(N))
        elif kind == "head-mixed":
            z[ms + "mix"] = normal((H, H), 0.7)
        elif kind == "learned":
            z[ms + "W_sse"] = normal((H, N, N), 0.5 / np.sqrt(N))
        if c["norm_affine"]:
            z[ms + "ln.weight"] = normal(H * n, 0.2, 1.0)
            z[ms + "ln.bias"] = normal(H * n, 0.2)
        z[ms + "W_oms"] = normal((H if c["oms"] == "per-head" else 1, n, C), 0.5 / np.sqrt(n))
    return {name: torch.from_numpy(value) for name, value in z.items()}


def standardise(x, eps):
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + eps)


def unit(x):
    return x / torch.sqrt(torch.clamp((x * x).sum(), min=1e-24))


def self_state(p, c, x, S):
    """What each head reads from its wkv state, before the ReLU."""
    kind, size = of(c["sse"])
    z = []
    for h in range(H):
        q = x[h * N:(h + 1) * N]
        if kind == "learned":
            z.append(q @ p["ms.W_sse"][h])
            continue
        if kind == "low-rank":
            q = q @ p["ms.sse1"][h] @ p["ms.sse2"][h]
        elif kind == "projected":
            q = q @ p["ms.W_in"]
        elif kind == "top-left":
            q = torch.where(torch.arange(N) < size, q, 0.0)
        z.append(q @ S[h] if c["side"] == "value" else S[h] @ q)
    if kind == "head-mixed":
        z = [sum(p["ms.mix"][h, g] * z[g] for g in range(H)) for h in range(H)]
    return [z_h[:inner_size(c)] for z_h in z]


def rectify(c, read):
    """z from what was read."""
    z = torch.relu(read)
    if c["center"]:
        z = z - z.mean()
    kind, factor = of(c["scale"])
    return unit(z) if kind == "l2" else z * factor if kind == "constant" else z


def forward(weights, c, tokens, transitions=None):
    """Logits [T, V], the final state by name, and a record of what happened per layer, token and head.

    `transitions`, a record's, replaces w, κ and a inside the recurrence of ms.
    """
    z = {name: value.squeeze() if name.split(".")[-1] in VECTORS else value for name, value in weights.items()}
    layers = [{name.split(".", 2)[2]: value for name, value in z.items() if name.startswith(f"blocks.{l}.")}
              for l in range(L)]
    norm = lambda x, p, name: standardise(x, MODEL["layer_norm_eps"]) * p[name + ".weight"] + p[name + ".bias"]
    heads = [slice(h, h + N) for h in range(0, C, N)]
    n = inner_size(c)
    zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64)
    att_shift, ms_shift = [zeros(C) for _ in range(L)], [zeros(C) for _ in range(L)]
    wkv, ms = [[zeros(N, N)] * H for _ in range(L)], [[zeros(n, n)] * H for _ in range(L)]
    record = {}
    note = lambda what, l, t, h, value: record.setdefault(what, {}).__setitem__((l, t, h), value)
    logits = []
    for t, token in enumerate(tokens):
        x = norm(z["emb.weight"][token], layers[0], "ln0")
        for l, p in enumerate(layers):
            # Time mixing.
            s = norm(x, p, "ln1")
            mixed = {i: s + (att_shift[l] - s) * p["att.x_" + i] for i in "rwkvag"}
            att_shift[l] = s
            r = p["att.receptance.weight"] @ mixed["r"]
            k = p["att.key.weight"] @ mixed["k"]
            v = p["att.value.weight"] @ mixed["v"]
            w = p["att.w0"] + torch.tanh(mixed["w"] @ p["att.w1"]) @ p["att.w2"]
            w = torch.exp(-np.exp(-0.5) * torch.sigmoid(w))
            a = torch.sigmoid(p["att.a0"] + mixed["a"] @ p["att.a1"] @ p["att.a2"])
            g = torch.sigmoid(mixed["g"] @ p["att.g1"]) @ p["att.g2"]
            if l == 0:
                v_first = v
            else:
                v = v + (v_first - v) * torch.sigmoid(p["att.v0"] + mixed["v"] @ p["att.v1"] @ p["att.v2"])
            removal = k * p["att.k_k"]
            k = k * (1 + (a - 1) * p["att.k_a"])
            y, S, kappa = [], [], []
            for h, i in enumerate(heads):
                kappa.append(removal[i] / torch.clamp(torch.sqrt((removal[i] ** 2).sum()), min=1e-12))
                S.append(wkv[l][h] * w[i] - torch.outer(wkv[l][h] @ kappa[h], a[i] * kappa[h])
                         + torch.outer(v[i], k[i]))
                out = standardise(S[h] @ r[i], MODEL["group_norm_eps"])
                out = out * p["att.ln_x.weight"][i] + p["att.ln_x.bias"][i]
                y.append(out + (r[i] * k[i] * p["att.r_k"][h]).sum() * v[i])
                for what, value in (("r", r[i]), ("k", k[i]), ("v", v[i])):
                    note(what, l, t, h, value)
            wkv[l] = S
            x = x + p["att.output.weight"] @ (torch.cat(y) * g)

            # Meta-State.
            s = norm(x, p, "ln2")
            query = s + (ms_shift[l] - s) * p["ms.x_k"] if c["token_shift"] else s
            ms_shift[l] = s
            M = []
            for h, (i, read) in enumerate(zip(heads, self_state(p, c, query, S))):
                z_h = rectify(c, read)
                w_h, kappa_h, a_h = w[i][:n], kappa[h][:n], a[i][:n]
                if c["detach_decay"]:
                    w_h, kappa_h, a_h = w_h.detach(), kappa_h.detach(), a_h.detach()
                if transitions:
                    w_h, kappa_h, a_h = transitions[l, t, h]
                note("transition", l, t, h, (w_h, kappa_h, a_h))
                key = kappa_h if c["removal"] == "time-mix" else unit(z_h)
                M.append(ms[l][h] * w_h - torch.outer(ms[l][h] @ key, a_h * key) + torch.outer(z_h, z_h))
                u = M[h] @ z_h
                out = standardise(u, c["norm_eps"])
                if c["norm_affine"]:
                    out = out * p["ms.ln.weight"][h * n:(h + 1) * n] + p["ms.ln.bias"][h * n:(h + 1) * n]
                x = x + out @ p["ms.W_oms"][h if c["oms"] == "per-head" else 0]
                for what, value in (("query", query[i]), ("read", read), ("z", z_h), ("u", u)):
                    note(what, l, t, h, value)
            ms[l] = M
        logits.append(z["head.weight"] @ norm(x, z, "ln_out"))
    state = {}
    for l in range(L):
        state[f"state.{l}.att.shift"] = att_shift[l]
        state[f"state.{l}.att.wkv"] = torch.stack(wkv[l])
        state[f"state.{l}.ms.ms"] = torch.stack(ms[l])
        if c["token_shift"]:
            state[f"state.{l}.ms.shift"] = ms_shift[l]
    return torch.stack(logits), state, record


def mean_loss(logits, tokens):
    """Mean cross-entropy, in nats, of each token after the first."""
    return -torch.log_softmax(logits[:-1], dim=1)[range(len(tokens) - 1), tokens[1:]].mean()


def largest(difference, logits):
    """The largest difference in standard deviations of the logits."""
    return (difference.abs().max() / logits.std()).item()


def gradients(weights, c, tokens):
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    logits, state, record = forward(leaves, c, tokens)
    loss = mean_loss(logits, tokens)
    return logits, state, record, loss, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))


def check_finite_differences(weights, c, tokens, grads, transitions, rng):
    """Ten entries of ten tensors. What is detached stays at its recorded value here."""
    transitions = transitions if c["detach_decay"] else None

    def at(name, entry, step):
        """The loss with one entry moved, and which reads are positive."""
        moved = weights[name].clone()
        moved.view(-1)[entry] += step
        with torch.no_grad():
            logits, _, record = forward({**weights, name: moved}, c, tokens, transitions)
        return mean_loss(logits, tokens).item(), torch.cat(list(record["read"].values())) > 0

    worst = 0.0
    for name in rng.choice(list(weights), 10, replace=False):
        # Of a large tensor's entries, some hardly matter; rounding would drown them.
        grad = grads[name].flatten()
        entry = rng.choice((grad.abs() > 0.1 * grad.abs().max()).nonzero().flatten().numpy())
        for step in (2e-5, 4e-6, 1e-6):
            (far_left, signs), (left, _), (right, _), (far_right, others) = (
                at(name, entry, steps * step) for steps in (-2, -1, 1, 2))
            # Across a kink of the ReLU, differences say nothing about the gradient.
            if torch.equal(signs, others):
                break
        else:
            raise AssertionError(f"{name}[{entry}] lies at a kink")
        estimate = (8 * (right - left) - (far_right - far_left)) / (12 * step)
        worst = max(worst, abs(estimate / grad[entry].item() - 1))
    print(f"finite differences: within {worst:.1e}")
    assert worst < 1e-6


def check_every_tensor_matters(weights, c, tokens, logits, grads):
    """Shifts the entries of one tensor after the other by one place: the logits must move each time."""
    moves = {}
    for name, value in weights.items():
        if value.numel() > 1:
            moved = forward({**weights, name: value.flatten().roll(1).view(value.shape)}, c, tokens)[0]
            moves[name] = largest(moved - logits, logits)
    name = min(moves, key=moves.get)
    print(f"least visible tensor: {name}, {moves[name]:.1e} of the standard deviation of the logits")
    assert moves[name] > 1e-3
    flattest = min(grads, key=lambda name: grads[name].abs().max())
    print(f"smallest gradient: {flattest}, {grads[flattest].abs().max():.1e}")
    assert grads[flattest].abs().max() > 1e-5


def check_every_option_matters(weights, c, tokens, logits, grads):
    """Puts one option after the other back to that of `per-head`, where the tensors allow it."""
    moves = {}
    for field, value in PER_HEAD.items():
        if field == "norm_eps":
            value = 2 * c[field]
        if value != c[field] and field not in ("oms", "sse"):
            other = {**c, field: value}
            if field == "detach_decay":
                moves[field] = max(((grad - grads[name]).abs().max() / grads[name].abs().max()).item()
                                   for name, grad in gradients(weights, other, tokens)[4].items())
            else:
                moves[field] = largest(forward(weights, other, tokens)[0] - logits, logits)
    print("options move the logits by", ", ".join(f"{field} {move:.1e}" for field, move in moves.items()))
    assert min(moves.values()) > 1e-4


def check_causality(weights, c, tokens, logits):
    for t in (1, LENGTH // 2, LENGTH - 1):
        moved = forward(weights, c, tokens[:t] + [(tokens[t] + 1) % V] + tokens[t + 1:])[0]
        assert torch.equal(moved[:t], logits[:t])
        assert (moved[t:] != logits[t:]).any(dim=1).all()


def check_values(c, record):
    read, z, u = (torch.cat(list(record[what].values())) for what in ("read", "z", "u"))
    on = (read > 0).double().mean().item()
    margin = read.abs().min().item()
    silent = sum(bool((value <= 0).all()) for value in record["read"].values())
    variance = torch.stack([value.var(unbiased=False) for value in record["u"].values()])
    tenths = lambda x: " ".join(f"{q:.1e}" for q in x.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)))
    print(f"z: {on:.2f} positive, {silent} of {len(record['read'])} all zero, nearest to the kink {margin:.1e}; "
          f"tenths 1, 5 and 9 of the positive {tenths(read[read > 0])}, of the variances of u {tenths(variance)}")
    assert 0.3 < on < 0.7 and margin > 1e-7
    assert 1e-7 < variance.median() < 10


def stock_wkv7(r, w, k, v, kappa, a):
    """WKV-7 from [time, head, channel], all heads at once. Returns y and the last state [head, value, key]."""
    state = torch.zeros(r.shape[1], v.shape[2], k.shape[2], dtype=torch.float64)
    y = []
    for t in range(len(r)):
        removed = torch.einsum("hvk,hk->hv", state, -kappa[t])
        state = (torch.einsum("hvk,hk->hvk", state, w[t]) + torch.einsum("hv,hk->hvk", removed, kappa[t] * a[t])
                 + torch.einsum("hv,hk->hvk", v[t], k[t]))
        y.append(torch.einsum("hvk,hk->hv", state, r[t]))
    return torch.stack(y), state


def check_stock_equivalence(state, record):
    """z is the receptance's gradient of a WKV-7 whose output's gradient is x', and ms a WKV-7 with r = k = v = z."""
    worst = 0.0
    for l in range(L):
        stack = lambda values: torch.stack([torch.stack([values[l, t, h].detach() for h in range(H)])
                                            for t in range(LENGTH)])
        r, k, v, query, read, z, u = (stack(record[name]) for name in ("r", "k", "v", "query", "read", "z", "u"))
        w, kappa, a = (stack({at: value[i] for at, value in record["transition"].items()}) for i in range(3))
        r.requires_grad_()
        y, wkv = stock_wkv7(r, w, k, v, kappa, a)
        y_z, ms = stock_wkv7(z, w, z, z, kappa, a)
        for value, expected in ((torch.autograd.grad(y, r, query)[0], read), (wkv, state[f"state.{l}.att.wkv"]),
                                (torch.relu(read), z), (y_z, u), (ms, state[f"state.{l}.ms.ms"])):
            worst = max(worst, ((value - expected).abs().max() / expected.std()).item())
    print(f"two stock recurrences: within {worst:.1e}")
    assert worst < 1e-12


def make(variant, c, weights, tokens, rng, folder):
    logits, state, record, loss, grads = gradients(weights, c, tokens)
    print(f"loss {loss.item():.4f}, standard deviation of the logits {logits.std():.3f}")
    with torch.no_grad():
        check_values(c, record)
        check_causality(weights, c, tokens, logits)
        check_every_tensor_matters(weights, c, tokens, logits, grads)
    check_every_option_matters(weights, c, tokens, logits, grads)
    check_finite_differences(weights, c, tokens, grads, record["transition"], rng)
    if variant == "per-head":
        check_stock_equivalence(state, record)
    golden = {"logits": logits, "loss": loss, **state, **{"grad." + name: grad for name, grad in grads.items()}}
    golden = {name: value.detach().contiguous() for name, value in golden.items()}
    assert all(value.dtype == torch.float64 and value.isfinite().all() for value in golden.values())
    save_file({"tokens": torch.tensor(tokens), **golden}, folder / f"metastate-{variant}.golden.safetensors",
              metadata={"config": json.dumps({**MODEL, "ffn": c})})


def main(folder):
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    tokens = [0, V - 1] + rng.integers(V, size=LENGTH - 2).tolist()
    common = common_weights(rng)
    variants = {name: {**PER_HEAD, **changes} for name, changes in VARIANTS.items()}
    own = {name: meta_state_weights(c, rng) for name, c in variants.items()}
    for name, c in variants.items():
        print(f"--- {name}")
        make(name, c, {**common, **own[name]}, tokens, rng, folder)
    stored = {f"{variant}/{name}": value for variant, z in own.items() for name, value in z.items()}
    save_file({**common, **stored}, folder / "metastate.weights.safetensors")
    size = sum(path.stat().st_size for path in folder.glob("metastate*.safetensors"))
    print(f"--- {size} bytes in all")
    assert size < 1_100_000


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
