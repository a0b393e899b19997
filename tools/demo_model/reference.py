#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo model in numpy, float32, read back from its GGUF file: the reference for other engines.

    python3 reference.py --model ../../models/kvrm-demo.gguf --prompt "Once upon a time"
    python3 reference.py --check checkpoint.pt       # compares logits with torch's
"""
import argparse
import struct

import numpy as np

from tokenizer import BOS, END, EOS, FIRST_PIECE, SPECIAL, Tokenizer


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, fmt):
        v = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize("<" + fmt)
        return v[0]

    def string(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode("utf-8")

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, n = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(n)]
        return self.take({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind])


def read(path):
    """(metadata, tensors as float32) of a GGUF file with F32 and F16 tensors."""
    with open(path, "rb") as f:
        r = Reader(f.read())
    assert r.data[:4] == b"GGUF"
    r.at = 4
    assert r.take("I") == 3
    n_tensors, n_meta = r.take("Q"), r.take("Q")
    meta = {}
    for _ in range(n_meta):
        key = r.string()
        meta[key] = r.value(r.take("I"))
    infos = []
    for _ in range(n_tensors):
        name = r.string()
        dims = [r.take("Q") for _ in range(r.take("I"))]
        infos.append((name, dims[::-1], r.take("I"), r.take("Q")))
    align = meta.get("general.alignment", 32)
    base = -(-r.at // align) * align
    tensors = {}
    for name, shape, kind, offset in infos:
        a = np.frombuffer(r.data, {0: "<f4", 1: "<f2"}[kind], int(np.prod(shape)), base + offset)
        tensors[name] = a.reshape(shape).astype(np.float32)
    return meta, tensors


class Reference:
    """Feed tokens with step(); keeps a float32 KV cache."""

    def __init__(self, path):
        m, self.t = read(path)
        self.meta = m
        self.layers = m["llama.block_count"]
        self.heads, self.kv = m["llama.attention.head_count"], m["llama.attention.head_count_kv"]
        self.dim, self.eps = m["llama.embedding_length"], np.float32(m["llama.attention.layer_norm_rms_epsilon"])
        self.hd = m["llama.rope.dimension_count"]
        self.freq = m["llama.rope.freq_base"] ** (-np.arange(self.hd // 2) * 2.0 / self.hd)
        self.tok = Tokenizer(m["tokenizer.ggml.tokens"][FIRST_PIECE:])
        self.reset()

    def reset(self):
        self.k = [np.zeros((self.kv, 0, self.hd), np.float32) for _ in range(self.layers)]
        self.v = [np.zeros((self.kv, 0, self.hd), np.float32) for _ in range(self.layers)]

    def norm(self, x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.t[w]

    def rope(self, x, pos):
        a = pos[:, None] * self.freq
        c, s = np.cos(a).astype(np.float32)[:, None], np.sin(a).astype(np.float32)[:, None]
        out = np.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * c - x[..., 1::2] * s
        out[..., 1::2] = x[..., 0::2] * s + x[..., 1::2] * c
        return out

    def step(self, ids):
        """Appends `ids` to the history; returns their logits [len(ids), vocab]."""
        n, past = len(ids), self.k[0].shape[1]
        pos = np.arange(past, past + n)
        x = self.t["token_embd.weight"][ids]
        hide = np.arange(past + n)[None, :] > pos[:, None]
        for i in range(self.layers):
            b = f"blk.{i}."
            h = self.norm(x, b + "attn_norm.weight")
            q = self.rope((h @ self.t[b + "attn_q.weight"].T).reshape(n, self.heads, self.hd), pos)
            k = self.rope((h @ self.t[b + "attn_k.weight"].T).reshape(n, self.kv, self.hd), pos)
            v = (h @ self.t[b + "attn_v.weight"].T).reshape(n, self.kv, self.hd)
            self.k[i] = np.concatenate((self.k[i], k.transpose(1, 0, 2)), 1)
            self.v[i] = np.concatenate((self.v[i], v.transpose(1, 0, 2)), 1)
            o = np.empty((n, self.heads, self.hd), np.float32)
            for j in range(self.heads):
                g = j // (self.heads // self.kv)
                s = q[:, j] @ self.k[i][g].T / np.float32(np.sqrt(self.hd))
                s[hide] = -np.inf
                p = np.exp(s - s.max(-1, keepdims=True))
                o[:, j] = p / p.sum(-1, keepdims=True) @ self.v[i][g]
            x = x + o.reshape(n, -1) @ self.t[b + "attn_output.weight"].T
            h = self.norm(x, b + "ffn_norm.weight")
            a, u = h @ self.t[b + "ffn_gate.weight"].T, h @ self.t[b + "ffn_up.weight"].T
            x = x + (a / (1 + np.exp(-a)) * u) @ self.t[b + "ffn_down.weight"].T
        return self.norm(x, "output_norm.weight") @ self.t["token_embd.weight"].T

    def encode(self, text, bos=True):
        """Ids of text in which control tokens are written by name."""
        ids, rest = [BOS] if bos else [], text
        while rest:
            hits = [(rest.find(s), s) for s in SPECIAL if s in rest]
            at, s = min(hits) if hits else (len(rest), "")
            ids += self.tok.encode(rest[:at])
            if s:
                ids.append(SPECIAL.index(s))
            rest = rest[at + len(s):]
        return ids

    def greedy(self, ids, count, stop=(EOS, END)):
        """(new ids, margin between the best two logits at each)."""
        self.reset()
        logits, out, margins = self.step(list(ids))[-1], [], []
        while len(out) < count:
            best = int(logits.argmax())
            top = np.partition(logits, -2)[-2:]
            out.append(best)
            margins.append(float(top[1] - top[0]))
            if best in stop:
                break
            logits = self.step([best])[0]
        return out, margins


def check(path, checkpoint):
    """Largest difference of the logits from torch's with the same (rounded) weights."""
    import torch
    from model import Model
    ref = Reference(path)
    state = torch.load(checkpoint)
    model = Model(len(ref.tok), state["config"])
    model.load_state_dict({k: (v.half().float() if v.ndim == 2 else v) for k, v in state["model"].items()})
    ids = np.random.default_rng(1).integers(0, len(ref.tok), 300).tolist()
    with torch.no_grad():
        t = model.logits(model(torch.tensor([ids]), torch.zeros(1, len(ids), dtype=torch.long))).numpy()
    n = np.concatenate((ref.step(ids[:200]), ref.step(ids[200:])))
    print(f"largest logit {np.abs(t).max():.3f}, largest difference {np.abs(t - n).max():.2e}")
    assert np.abs(t - n).max() < 1e-3 * np.abs(t).max()


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default="../../models/kvrm-demo.gguf")
    ap.add_argument("--prompt", default="Once upon a time")
    ap.add_argument("--count", type=int, default=200)
    ap.add_argument("--check", metavar="CHECKPOINT")
    args = ap.parse_args()
    if args.check:
        check(args.model, args.check)
    else:
        r = Reference(args.model)
        start = r.encode(args.prompt)
        print(r.tok.decode(start[1:] + r.greedy(start, args.count)[0]))
