"""Makes the golden RWKV-7 checkpoints and their expected outputs.

For each model in MODELS this script writes, beside itself or into the folder given as its argument,

    NAME.pth                   random weights under the official names, as torch.save writes them
    NAME.golden.safetensors    what the PyPI package `rwkv` computes from them on the CPU in float32

and before writing checks that
  * the package gives the same logits and state for the whole sequence and token by token,
  * the float64 oracle below, written from the formulas and not from the package, agrees with it,
  * every stored tensor shows in the logits, so that a loader that misplaces one cannot pass.

Run with Python 3.11 and the versions of requirements.txt; a run takes seconds and is deterministic:

    pip install -r requirements.txt
    python make_goldens.py

README.md describes the files.
"""

import json
import os
import sys
from collections import OrderedDict
from pathlib import Path

os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")

import numpy as np
import torch
from rwkv.model import RWKV
from safetensors.torch import save_file

# Ranks differ from each other and from the width, so that no mix-up of axes keeps a shape legal.
MODELS = {
    "tiny-a": dict(seed=1, vocab_size=53, n_layer=2, n_embd=64, head_size=64, ffn_size=80,
                   decay_rank=9, in_context_rank=5, value_rank=7, gate_rank=11),
    "tiny-b": dict(seed=2, vocab_size=61, n_layer=4, n_embd=32, head_size=16, ffn_size=128,
                   decay_rank=6, in_context_rank=10, value_rank=4, gate_rank=14),
    "tiny-c": dict(seed=3, vocab_size=97, n_layer=2, n_embd=64, head_size=32, ffn_size=256,
                   decay_rank=12, in_context_rank=8, value_rank=20, gate_rank=24),
}
LENGTH = 41
LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5


def random_weights(m, rng):
    """Draws a state dict in file order. Nothing is zero, and every tensor is large enough to matter."""
    C, N, F = m["n_embd"], m["head_size"], m["ffn_size"]
    normal = lambda shape, std, mean=0.0: mean + std * rng.standard_normal(shape)
    vector = lambda std, mean: normal((1, 1, C), std, mean)
    linear = lambda out, inp, gain: normal((out, inp), gain / np.sqrt(inp))
    z = OrderedDict()

    def norm(name):
        z[name + ".weight"] = normal(C, 0.2, 1.0)
        z[name + ".bias"] = normal(C, 0.2)

    # Small enough for the epsilon of ln0 to show.
    z["emb.weight"] = normal((m["vocab_size"], C), 0.02)
    for l in range(m["n_layer"]):
        block, att, ffn = f"blocks.{l}.", f"blocks.{l}.att.", f"blocks.{l}.ffn."
        if l == 0:
            norm(block + "ln0")
        norm(block + "ln1")
        norm(block + "ln2")
        for mix in "rwkvag":
            z[att + "x_" + mix] = rng.uniform(0.05, 0.95, (1, 1, C))
        z[att + "w0"] = rng.uniform(-8, 3, (1, 1, C))
        z[att + "a0"] = vector(0.5, -0.2)
        z[att + "v0"] = vector(0.5, 0.3)
        for lora, rank, gain in (("w", "decay_rank", 1.5), ("a", "in_context_rank", 1.0),
                                 ("v", "value_rank", 1.0), ("g", "gate_rank", 2.0)):
            z[att + lora + "1"] = normal((C, m[rank]), 1 / np.sqrt(C))
            z[att + lora + "2"] = normal((m[rank], C), gain / np.sqrt(m[rank]))
        z[att + "k_k"] = vector(0.2, 0.7)
        z[att + "k_a"] = vector(0.2, 1.0)
        z[att + "r_k"] = normal((C // N, N), 1 / np.sqrt(N))
        z[att + "receptance.weight"] = linear(C, C, 1.0)
        z[att + "key.weight"] = linear(C, C, 1.0)
        # Small values keep the variance inside a head near the epsilon of the group norm.
        z[att + "value.weight"] = linear(C, C, 0.1)
        z[att + "output.weight"] = linear(C, C, 0.5)
        norm(att + "ln_x")
        z[ffn + "x_k"] = rng.uniform(0.05, 0.95, (1, 1, C))
        z[ffn + "key.weight"] = linear(F, C, 1.0)
        z[ffn + "value.weight"] = linear(C, F, 0.5)
    norm("ln_out")
    z["head.weight"] = linear(m["vocab_size"], C, 1.0)
    return OrderedDict((name, torch.from_numpy(value).float()) for name, value in z.items())


def container(name, z):
    """Gives each model one of the forms in which state dicts are found in files."""
    if name == "tiny-a":
        # Views: vectors at an offset into a common storage, a matrix with swapped strides.
        for l in range(MODELS[name]["n_layer"]):
            names = [f"blocks.{l}.att.x_{mix}" for mix in "rwkvag"]
            z.update(zip(names, torch.stack([z[k] for k in names])))
            key = f"blocks.{l}.att.key.weight"
            z[key] = z[key].t().contiguous().t()
    elif name == "tiny-b":
        # As `Module.state_dict` returns it, without the value residual that layer 0 never uses.
        z = OrderedDict((k, v) for k, v in z.items() if k[:-1] != "blocks.0.att.v")
        z._metadata = OrderedDict({"": {"version": 1}})
    else:
        # A plain dict in bfloat16, as released models are.
        z = {k: v.bfloat16() for k, v in z.items()}
    return z


def run_package(path, tokens):
    """Logits [T, V] and the state of the package, for the sequence at once; checks steps against it."""
    model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    logits, state = model.forward(tokens, None, full_output=True)
    logits, state = logits.clone(), [s.clone() for s in state]
    step_logits, step_state = [], None
    for token in tokens:
        out, step_state = model.forward(token, step_state)
        step_logits.append(out.clone())
    step_logits = torch.stack(step_logits)
    gap = ((step_logits - logits).abs().max() / logits.std()).item()
    state_gap = max(((a - b).abs().max() / b.std()).item() for a, b in zip(step_state, state))
    print(f"steps against sequence: logits {gap:.1e}, state {state_gap:.1e} of their standard deviation")
    assert gap < 1e-5 and state_gap < 1e-5
    return logits, state


def oracle(z, m, tokens):
    """The model in float64, one token and one head at a time. Returns logits and [shift, wkv, shift] per layer."""
    z = {k: v.double().numpy().squeeze() for k, v in z.items()}
    C, N, L = m["n_embd"], m["head_size"], m["n_layer"]
    heads = [slice(h, h + N) for h in range(0, C, N)]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    standardise = lambda x, eps: (x - x.mean()) / np.sqrt(x.var() + eps)
    norm = lambda x, name: standardise(x, LAYER_NORM_EPS) * z[name + ".weight"] + z[name + ".bias"]
    state = [np.zeros(shape) for _ in range(L) for shape in (C, (len(heads), N, N), C)]
    logits = []
    for token in tokens:
        x = norm(z["emb.weight"][token], "blocks.0.ln0")
        for l in range(L):
            p = {k.split(".", 3)[3]: v for k, v in z.items() if k.startswith(f"blocks.{l}.att.")}
            h = norm(x, f"blocks.{l}.ln1")
            mixed = {c: h + (state[3 * l] - h) * p["x_" + c] for c in "rwkvag"}
            state[3 * l] = h
            r = p["receptance.weight"] @ mixed["r"]
            k = p["key.weight"] @ mixed["k"]
            v = p["value.weight"] @ mixed["v"]
            w = np.exp(-np.exp(-0.5) * sigmoid(p["w0"] + np.tanh(mixed["w"] @ p["w1"]) @ p["w2"]))
            a = sigmoid(p["a0"] + mixed["a"] @ p["a1"] @ p["a2"])
            g = sigmoid(mixed["g"] @ p["g1"]) @ p["g2"]
            if l == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sigmoid(p["v0"] + mixed["v"] @ p["v1"] @ p["v2"])
            removal = k * p["k_k"]
            k = k * (1 + (a - 1) * p["k_a"])
            y = np.zeros(C)
            for i, s in enumerate(heads):
                kappa = removal[s] / max(np.linalg.norm(removal[s]), 1e-12)
                S = state[3 * l + 1][i]  # [value, key]
                S = S * w[s] - np.outer(S @ kappa, kappa * a[s]) + np.outer(v[s], k[s])
                state[3 * l + 1][i] = S
                y[s] = standardise(S @ r[s], GROUP_NORM_EPS) * p["ln_x.weight"][s] + p["ln_x.bias"][s]
                y[s] += (r[s] * k[s] * p["r_k"].reshape(-1)[s]).sum() * v[s]
            x = x + p["output.weight"] @ (y * g)
            h = norm(x, f"blocks.{l}.ln2")
            mixed_k = h + (state[3 * l + 2] - h) * z[f"blocks.{l}.ffn.x_k"]
            state[3 * l + 2] = h
            hidden = np.maximum(z[f"blocks.{l}.ffn.key.weight"] @ mixed_k, 0) ** 2
            x = x + z[f"blocks.{l}.ffn.value.weight"] @ hidden
        logits.append(z["head.weight"] @ norm(x, "ln_out"))
    return np.array(logits), state


def check_against_oracle(z, m, tokens, logits, state):
    expected, expected_state = oracle(z, m, tokens)
    gap = np.abs(logits.numpy() - expected).max() / expected.std()
    state_gap = max(np.abs(a.numpy() - b).max() / b.std() for a, b in zip(state, expected_state))
    print(f"package against float64: logits {gap:.1e}, state {state_gap:.1e} of their standard deviation")
    assert gap < 1e-4 and state_gap < 1e-4
    return expected


def check_every_tensor_matters(z, m, tokens, expected):
    """Shifts the entries of one tensor after the other by one place: the logits must move each time."""
    moves = {}
    for name, value in z.items():
        if name[:-1] != "blocks.0.att.v":
            moved, _ = oracle({**z, name: value.flatten().roll(1).view(value.shape)}, m, tokens)
            moves[name] = np.abs(moved - expected).max() / expected.std()
    name = min(moves, key=moves.get)
    print(f"least visible tensor: {name}, {moves[name]:.1e} of the standard deviation of the logits")
    assert moves[name] > 1e-2


def make(name, m, folder):
    m = dict(m)
    rng = np.random.default_rng(m.pop("seed"))
    z = container(name, random_weights(m, rng))
    tokens = [0, m["vocab_size"] - 1] + rng.integers(m["vocab_size"], size=LENGTH - 2).tolist()
    path = folder / f"{name}.pth"
    torch.save(z, path)
    logits, state = run_package(path, tokens)
    print(f"standard deviation of the logits {logits.std():.3f}, of the wkv states",
          " ".join(f"{s.std():.3f}" for s in state[1::3]))
    expected = check_against_oracle(z, m, tokens, logits, state)
    check_every_tensor_matters(z, m, tokens, expected)

    golden = {"tokens": torch.tensor(tokens), "logits": logits}
    for l in range(m["n_layer"]):
        for part, value in zip(("att.shift", "att.wkv", "ffn.shift"), state[3 * l:]):
            golden[f"state.{l}.{part}"] = value
    config = {k: v for k, v in m.items() if k != "ffn_size"}
    config.update(layer_norm_eps=LAYER_NORM_EPS, group_norm_eps=GROUP_NORM_EPS, embedding_norm=True,
                  ffn={"ffn_size": m["ffn_size"]})
    golden = {k: v.float().contiguous() if v.is_floating_point() else v for k, v in golden.items()}
    save_file(golden, folder / f"{name}.golden.safetensors", metadata={"config": json.dumps(config)})


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for model_name, model in MODELS.items():
        print(f"--- {model_name}")
        make(model_name, model, target)
