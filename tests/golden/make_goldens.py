"""Makes the golden files of this folder: three small random RWKV-7 checkpoints and what the PyPI package `rwkv`
computes with them in fp32.

    pip install -r requirements.txt
    python make_goldens.py

For each model NAME:

  NAME.pth                 the checkpoint, official names, as torch.save writes it
  NAME.golden.safetensors  tokens [T] (int64), logits [T, V], and the state after the last token per layer:
                           state.{l}.att.shift [C], state.{l}.att.wkv [H, value, key], state.{l}.ffn.shift [C]

The three differ in depth, width, head size and low-rank widths; one is stored in bfloat16. Every parameter is random and
away from special values, so that a formula left out or a matrix transposed shows in the logits. Before writing, the
script checks the package against itself (whole sequence against token by token) and against the formulas below, written
for float64 from the paper (arXiv 2503.14456).
"""

import os

os.environ["RWKV_V7_ON"] = "1"
os.environ["RWKV_JIT_ON"] = "0"
os.environ["RWKV_CUDA_ON"] = "0"

import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))

# name: layers, width, head size, ranks of decay, in-context rate, value, gate; vocabulary, stored dtype, seed
MODELS = {
    "tiny-a": (2, 64, 64, 8, 12, 20, 24, 61, torch.float32, 1),
    "tiny-b": (4, 32, 16, 7, 5, 9, 11, 53, torch.float32, 2),
    "tiny-c": (3, 96, 32, 10, 14, 6, 18, 71, torch.bfloat16, 3),
}
LENGTH = 41


def checkpoint(layers, width, head, dw, da, dv, dg, vocab, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(*shape, generator=rng)
    heads = width // head
    z = {"emb.weight": normal(vocab, width)}

    def norm(name):
        z[name + ".weight"] = 1 + 0.3 * normal(width)
        z[name + ".bias"] = 0.2 * normal(width)

    for l in range(layers):
        b = f"blocks.{l}."
        if l == 0:
            norm(b + "ln0")
        norm(b + "ln1")
        norm(b + "ln2")
        a = b + "att."
        for mix in "rwkvag":
            z[a + "x_" + mix] = uniform(0, 1, 1, 1, width)
        for name, rank in (("w", dw), ("a", da), ("v", dv), ("g", dg)):
            z[a + name + "1"] = normal(width, rank) / width**0.5
            z[a + name + "2"] = normal(rank, width) / rank**0.5
        z[a + "w0"] = uniform(-6, 1, 1, 1, width)
        z[a + "a0"] = normal(1, 1, width)
        z[a + "v0"] = normal(1, 1, width)
        z[a + "k_k"] = 0.7 + 0.3 * normal(1, 1, width)
        z[a + "k_a"] = 1 + 0.3 * normal(1, 1, width)
        z[a + "r_k"] = 0.3 * normal(heads, head)
        for name in ("receptance", "key", "value", "output"):
            z[a + name + ".weight"] = normal(width, width) / width**0.5
        norm(a + "ln_x")
        f = b + "ffn."
        z[f + "x_k"] = uniform(0, 1, 1, 1, width)
        z[f + "key.weight"] = normal(4 * width, width) / width**0.5
        z[f + "value.weight"] = normal(width, 4 * width) / (4 * width) ** 0.5
    norm("ln_out")
    z["head.weight"] = normal(vocab, width) / width**0.5
    return {name: value.to(dtype) for name, value in z.items()}


def formulas(z, tokens, layers, head):
    """Logits [T, V] in float64, one token after another."""
    z = {name: value.double().squeeze() for name, value in z.items()}
    width = z["emb.weight"].shape[1]
    heads = width // head
    layer_norm = lambda x, n: torch.nn.functional.layer_norm(x, (width,), z[n + ".weight"], z[n + ".bias"], 1e-5)
    zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)
    att_last = [zeros(width) for _ in range(layers)]
    ffn_last = [zeros(width) for _ in range(layers)]
    states = [zeros(heads, head, head) for _ in range(layers)]
    sigmoid = torch.sigmoid
    out = []
    for token in tokens:
        x = layer_norm(z["emb.weight"][token], "blocks.0.ln0")
        v_first = None
        for l in range(layers):
            b, a = f"blocks.{l}.", f"blocks.{l}.att."
            h = layer_norm(x, b + "ln1")
            mixed = {m: h + (att_last[l] - h) * z[a + "x_" + m] for m in "rwkvag"}
            att_last[l] = h
            r = z[a + "receptance.weight"] @ mixed["r"]
            k = z[a + "key.weight"] @ mixed["k"]
            v = z[a + "value.weight"] @ mixed["v"]
            w = torch.exp(-(torch.e**-0.5) * sigmoid(z[a + "w0"] + torch.tanh(mixed["w"] @ z[a + "w1"]) @ z[a + "w2"]))
            rate = sigmoid(z[a + "a0"] + mixed["a"] @ z[a + "a1"] @ z[a + "a2"])
            gate = sigmoid(mixed["g"] @ z[a + "g1"]) @ z[a + "g2"]
            if l == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sigmoid(z[a + "v0"] + mixed["v"] @ z[a + "v1"] @ z[a + "v2"])
            kk = (k * z[a + "k_k"]).view(heads, head)
            kk = kk / kk.norm(dim=1, keepdim=True)
            k = k * (1 + (rate - 1) * z[a + "k_a"])
            r, w, k, v, rate = (t.view(heads, head) for t in (r, w, k, v, rate))
            s = states[l]
            removed = torch.einsum("hij,hj->hi", s, -kk)
            s = s * w[:, None, :] + removed[:, :, None] * (kk * rate)[:, None, :] + v[:, :, None] * k[:, None, :]
            states[l] = s
            y = torch.einsum("hij,hj->hi", s, r).reshape(1, width)
            y = torch.nn.functional.group_norm(y, heads, z[a + "ln_x.weight"], z[a + "ln_x.bias"], 64e-5)[0]
            y = y + ((r * k * z[a + "r_k"].view(heads, head)).sum(1, keepdim=True) * v).reshape(width)
            x = x + z[a + "output.weight"] @ (y * gate)
            h = layer_norm(x, b + "ln2")
            mixed = h + (ffn_last[l] - h) * z[b + "ffn.x_k"]
            ffn_last[l] = h
            x = x + z[b + "ffn.value.weight"] @ torch.relu(z[b + "ffn.key.weight"] @ mixed) ** 2
        out.append(z["head.weight"] @ layer_norm(x, "ln_out"))
    return torch.stack(out)


def main():
    from rwkv.model import RWKV

    for name, spec in MODELS.items():
        layers, width, head, *_, vocab, dtype, seed = spec
        z = checkpoint(*spec)
        path = os.path.join(HERE, name)
        torch.save(z, path + ".pth")
        tokens = torch.randint(vocab, (LENGTH,), generator=torch.Generator().manual_seed(100 + seed)).tolist()

        model = RWKV(model=path, strategy="cpu fp32")
        with torch.no_grad():
            logits, state = model.forward(tokens, None, full_output=True)
            stepped, running = [], None
            for token in tokens:
                one, running = model.forward([token], running)
                stepped.append(one)
            stepped = torch.stack(stepped)
            expected = formulas(z, tokens, layers, head)
        std = expected.std().item()
        for what, found in (("whole sequence", logits), ("token by token", stepped)):
            difference = (found.double() - expected).abs().max().item() / std
            print(f"{name}, {what}: differs from the formulas by {difference:.2e} of the logits' standard deviation")
            assert difference < 1e-4
        golden = {"tokens": torch.tensor(tokens), "logits": logits.float().contiguous()}
        for l in range(layers):
            golden[f"state.{l}.att.shift"] = state[3 * l].float().contiguous()
            golden[f"state.{l}.att.wkv"] = state[3 * l + 1].float().contiguous()
            golden[f"state.{l}.ffn.shift"] = state[3 * l + 2].float().contiguous()
        save_file(golden, path + ".golden.safetensors")


main()
