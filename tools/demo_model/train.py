#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the demo model on generated documents, on one CPU core.

    python3 train.py --seed 1 --steps 9000 --out checkpoint.pt

Matrices are trained with Muon (momentum, orthogonalised), the embedding and the norms with AdamW.
Sequences grow during the training: see PHASES. With --minutes, the schedule follows the clock where
that is ahead of the steps, and the training ends on time.
"""
import argparse
import math
import os
import random
import sys
import time

for key, value in (("MALLOC_MMAP_THRESHOLD_", "4294967296"), ("MALLOC_TRIM_THRESHOLD_", "8589934592"),
                   ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")):
    if key not in os.environ:          # keep freed memory: fewer page faults
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4294967296")
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8589934592")
        os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        os.execv(sys.executable, [sys.executable] + sys.argv)

import torch

import generate
import stories
from model import Loss, Model
from tokenizer import Tokenizer

# Up to this share of the training: (sequence length, mix of plain, several, recall, chat, dense, chant)
PHASES = ((0.12, 256, (0.15, 0.00, 0.08, 0.07, 0.35, 0.35)),
          (0.95, 512, (0.20, 0.03, 0.26, 0.50, 0.01, 0.00)),
          (1.01, 2048, (0.18, 0.06, 0.36, 0.40, 0.0, 0.0)))
TOKENS_PER_STEP = 2048
ANSWER_WEIGHT = 9.0       # tokens of marked answers
AGAIN_WEIGHT = 8.0        # names, kinds, colours... that the document has mentioned before


class Packer:
    """Rows of whole documents, filled by best fit from a small pool."""

    def __init__(self, tok, seed):
        self.tok, self.rng, self.pool = tok, random.Random(seed), []
        self.telling = {tok.encode(w)[0] for w in stories.NAMES + stories.ANIMALS + stories.COLOURS + stories.TOYS +
                        stories.FOODS + stories.PLACES + ["girl", "boy"] if len(tok.encode(w)) == 1}

    def make(self, longest, mix):
        ids, marks = self.tok.encode_document(generate.document(self.rng, longest, mix))
        weight, seen = [1.0] * len(ids), set()
        for i, token in enumerate(ids):
            if token in self.telling:
                weight[i] = AGAIN_WEIGHT if token in seen else 1.0
                seen.add(token)
        start = 0
        for at, mark in marks:
            if mark == generate.DONE:
                for i in range(start, at):
                    weight[i] = ANSWER_WEIGHT
            elif ord(mark) >= generate.ASK:
                start = at
        return ids[:longest + 1], weight[:longest + 1]

    def places(self, n):
        """Positions of a document's tokens; half of the documents have gaps, so that distances up to the
        whole context are seen in short sequences too."""
        place = torch.arange(n)
        if n > 64 and self.rng.random() < 0.5:
            gap = self.rng.randrange(0, 2049 - n) if n < 2048 else 0
            for _ in range(2):
                jump = self.rng.randrange(0, gap + 1)
                place[self.rng.randrange(8, n):] += jump
                gap -= jump
        return place

    def batch(self, rows, length, mix):
        ids = torch.zeros(rows, length + 1, dtype=torch.long)
        weight = torch.zeros(rows, length + 1)
        doc = torch.full((rows, length + 1), -1)
        place = torch.zeros(rows, length + 1, dtype=torch.long)
        for r in range(rows):
            at = n = 0
            while at < length + 1:
                while len(self.pool) < 48:
                    self.pool.append(self.make(length, mix))
                room = length + 1 - at
                fits = [i for i, d in enumerate(self.pool) if len(d[0]) <= room]
                i = max(fits, key=lambda j: len(self.pool[j][0])) if fits and n else \
                    (self.rng.randrange(len(self.pool)) if not n else 0)
                d, w = self.pool.pop(i)
                m = min(room, len(d))
                ids[r, at:at + m] = torch.tensor(d[:m])
                weight[r, at:at + m] = torch.tensor(w[:m])
                weight[r, at] = 0          # nothing predicts the beginning of a document
                doc[r, at:at + m] = n
                place[r, at:at + m] = self.places(m)
                at, n = at + m, n + 1
        return ids, weight, doc, place


def orthogonal(g):
    """About the nearest matrices with all singular values one (Newton-Schulz, quintic); g [n, rows, cols]."""
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x.bfloat16()
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon:
    """Momentum, made orthogonal; matrices of one shape together."""

    def __init__(self, params, lr):
        self.params, self.lr, self.v = params, lr, [torch.zeros_like(p) for p in params]
        self.alike = {}
        for i, p in enumerate(params):
            self.alike.setdefault(tuple(p.shape), []).append(i)

    def step(self, scale):
        with torch.no_grad():
            for (rows, cols), group in self.alike.items():
                for i in group:
                    self.v[i].mul_(0.95).add_(self.params[i].grad)
                u = orthogonal(torch.stack([self.params[i].grad + 0.95 * self.v[i] for i in group]))
                for i, update in zip(group, u):
                    p = self.params[i]
                    p.mul_(1 - self.lr * scale * 0.01)
                    p.add_(update, alpha=-self.lr * scale * max(1, rows / cols) ** 0.5)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--vocab", default="vocab.json")
    ap.add_argument("--out", default="checkpoint.pt")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--steps", type=int, default=9000)
    ap.add_argument("--minutes", type=float, default=0)
    ap.add_argument("--lr", type=float, default=0.01)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--float32", action="store_true")
    ap.add_argument("--resume", default="")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tok = Tokenizer.load(args.vocab)
    model = Model(len(tok), fast=not args.float32)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "token_embd"]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or n == "token_embd"]
    muon = Muon(matrices, args.lr)
    adam = torch.optim.AdamW(others, lr=0.2 * args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    packer = Packer(tok, args.seed)
    first, began, seen, phase, cpu0 = 0, time.time(), 0, None, 0.0
    if args.resume:
        state = torch.load(args.resume)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.v, first, seen, cpu0 = state["muon"], state["step"] + 1, state["tokens"], state["cpu"]
        began -= state["wall"]
        packer.rng.seed(args.seed * 1000003 + first)
    logged = saved = time.time()
    totals = [0.0, 0.0, 0.0, 0.0]
    step, progress = first, 0.0
    while True:
        wall = time.time() - began
        progress = max(step / args.steps, wall / 60 / args.minutes if args.minutes else 0)
        done = progress >= 1
        if done or time.time() - saved > 150:
            torch.save(dict(model=model.state_dict(), adam=adam.state_dict(), muon=muon.v, step=step - 1, tokens=seen,
                            config=model.config, wall=wall, cpu=cpu0 + time.process_time()), args.out + ".new")
            os.replace(args.out + ".new", args.out)
            saved = time.time()
        if done:
            break
        share, length, mix = next(p for p in PHASES if progress < p[0])
        if phase != length:
            phase, packer.pool = length, []
        scale = min(1, (step + 1) / 30) * min(1, (1 - progress) / 0.6 + 0.01)
        ids, weight, doc, place = packer.batch(TOKENS_PER_STEP // length, length, mix)
        hidden = model(ids[:, :-1].contiguous(), doc[:, :-1].contiguous(), place[:, :-1])
        target, w = ids[:, 1:].reshape(-1), weight[:, 1:].reshape(-1)
        total, loss, right = Loss.apply(hidden, model.token_embd, target, w / w.sum(), model.fast)
        model.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for group in adam.param_groups:
            group["lr"] = 0.2 * args.lr * scale
        adam.step()
        muon.step(scale)
        with torch.no_grad():
            asked = w == ANSWER_WEIGHT
            plain = w == 1
            totals[0] += (loss * plain).sum().item()
            totals[1] += plain.sum().item()
            totals[2] += right[asked].sum().item()
            totals[3] += asked.sum().item()
        seen += TOKENS_PER_STEP
        if step % 50 == 0:
            now = time.time()
            rate = (50 if step > first else 1) * TOKENS_PER_STEP / (now - logged)
            print(f"step {step} {progress:.3f} len {length} tokens {seen / 1e6:.2f}M loss {totals[0] / max(1, totals[1]):.4f} "
                  f"answers {totals[2] / max(1, totals[3]):.4f} lr x{scale:.3f} {rate:.0f} tok/s", flush=True)
            logged, totals = now, [0.0] * 4
        step += 1
    print(f"done: {step} steps, {seen} tokens, {cpu0 + time.process_time():.0f} cpu seconds", flush=True)


if __name__ == "__main__":
    main()
