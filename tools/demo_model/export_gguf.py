#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint as a GGUF file (version 3): matrices as F16, norms as F32.

    python3 export_gguf.py --checkpoint checkpoint.pt --out ../../models/kvrm-demo.gguf
"""
import argparse
import struct

import numpy as np

from tokenizer import BOS, END, EOS, FIRST_BYTE, FIRST_PIECE, Tokenizer

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TYPE_F32, TYPE_F16 = 0, 1
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
ALIGNMENT = 32

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")


def string(s):
    b = s.encode("utf-8")
    return struct.pack("<Q", len(b)) + b


def scalar(kind, v):
    if kind == STRING:
        return string(v)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], v)


def metadata(config, tok):
    types = [UNKNOWN] + [CONTROL] * (FIRST_BYTE - 1) + [BYTE] * 256 + [NORMAL] * (len(tok) - FIRST_PIECE)
    scores = [0.0] * FIRST_PIECE + [-float(i) for i in range(len(tok) - FIRST_PIECE)]
    return [
        ("general.architecture", STRING, "llama"),
        ("general.type", STRING, "model"),
        ("general.name", STRING, "KVRM demo"),
        ("general.description", STRING, "Short stories and long-range recall; made for tests and demonstrations."),
        ("general.author", STRING, "The KVRM authors"),
        ("general.license", STRING, "apache-2.0"),
        ("general.file_type", U32, 1),
        ("general.quantization_version", U32, 2),
        ("general.alignment", U32, ALIGNMENT),
        ("llama.vocab_size", U32, len(tok)),
        ("llama.context_length", U32, config["context"]),
        ("llama.embedding_length", U32, config["dim"]),
        ("llama.block_count", U32, config["layers"]),
        ("llama.feed_forward_length", U32, config["ffn"]),
        ("llama.attention.head_count", U32, config["heads"]),
        ("llama.attention.head_count_kv", U32, config["kv_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", F32, config["eps"]),
        ("llama.rope.dimension_count", U32, config["dim"] // config["heads"]),
        ("llama.rope.freq_base", F32, config["rope_base"]),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), tok.names),
        ("tokenizer.ggml.scores", (ARRAY, F32), scores),
        ("tokenizer.ggml.token_type", (ARRAY, I32), types),
        ("tokenizer.ggml.bos_token_id", U32, BOS),
        ("tokenizer.ggml.eos_token_id", U32, EOS),
        ("tokenizer.ggml.eot_token_id", U32, END),
        ("tokenizer.ggml.unknown_token_id", U32, 0),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
        ("tokenizer.ggml.add_space_prefix", BOOL, True),
        ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


def write(path, meta, tensors):
    """`tensors`: (name, numpy array), C order, float16 or float32."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)))
    for key, kind, value in meta:
        out += string(key)
        if isinstance(kind, tuple):
            out += struct.pack("<IIQ", ARRAY, kind[1], len(value)) + b"".join(scalar(kind[1], v) for v in value)
        else:
            out += struct.pack("<I", kind) + scalar(kind, value)
    offset = 0
    for name, a in tensors:
        out += string(name) + struct.pack("<I", a.ndim)
        out += b"".join(struct.pack("<Q", n) for n in reversed(a.shape))      # innermost first
        out += struct.pack("<IQ", TYPE_F16 if a.dtype == np.float16 else TYPE_F32, offset)
        offset += -(-a.nbytes // ALIGNMENT) * ALIGNMENT
    out += b"\0" * (-len(out) % ALIGNMENT)
    for _, a in tensors:
        out += a.tobytes() + b"\0" * (-a.nbytes % ALIGNMENT)
    with open(path, "wb") as f:
        f.write(out)
    return len(out)


def main():
    import torch
    ap = argparse.ArgumentParser()
    ap.add_argument("--checkpoint", default="checkpoint.pt")
    ap.add_argument("--vocab", default="vocab.json")
    ap.add_argument("--out", default="../../models/kvrm-demo.gguf")
    args = ap.parse_args()
    state = torch.load(args.checkpoint)
    tensors = []
    for name, p in state["model"].items():
        a = p.detach().numpy()
        tensors.append((name + ".weight", np.ascontiguousarray(a.astype(np.float16 if a.ndim == 2 else np.float32))))
    size = write(args.out, metadata(state["config"], Tokenizer.load(args.vocab)), tensors)
    print(f"{args.out}: {size} bytes, {len(tensors)} tensors, {state['tokens']} tokens seen")


if __name__ == "__main__":
    main()
