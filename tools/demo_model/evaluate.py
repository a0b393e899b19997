#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the demo model from its GGUF file, and writes the test data that goes with it.

    python3 evaluate.py --model ../../models/kvrm-demo.gguf --testdata ../../testdata/demo

Perplexity: the text is one stream, <s> first; consecutive windows of 512 tokens, each predicted from
an empty history; the first token of a window is not scored; the last window may be shorter.

Recall: documents of held-out seeds; at each place where only an early fact determines what follows,
the greedy continuation must be the answer. The distance is the number of tokens from the end of the
latest mention of the fact's value to the answer.
"""
import argparse
import json
import os
import random

import numpy as np

import generate
import stories
from reference import Reference
from tokenizer import BOS

HELDOUT_SEED, RECALL_SEED, CHAT_SEED = 900001, 900002, 900003
BUCKETS = ((0, 128), (128, 256), (256, 512), (512, 1024), (1024, 1900))
WINDOW = 512


def heldout(seed, size):
    rng = random.Random(seed)
    text = ""
    while len(text) < size:
        text += generate.plain(rng)[0] + "\n"
    return text


def perplexity(ref, text):
    ids = [BOS] + ref.tok.encode(text)
    total, scored = 0.0, 0
    for lo in range(0, len(ids), WINDOW):
        part = ids[lo:lo + WINDOW]
        if len(part) < 2:
            break
        ref.reset()
        x = ref.step(part)[:-1].astype(np.float64)
        x -= x.max(-1, keepdims=True)
        logp = x - np.log(np.exp(x).sum(-1, keepdims=True))
        total -= logp[np.arange(len(part) - 1), part[1:]].sum()
        scored += len(part) - 1
    return float(np.exp(total / scored)), len(ids), scored


def questions(tok, segments):
    """(ids, [(first, last + 1, distance)]) of a document's answers."""
    ids, marks = tok.encode_document(segments)
    seen, out, fact, first = {}, [], None, None
    for at, mark in marks:
        if mark == generate.DONE:
            out.append((first, at, first - seen[fact]))
            seen[fact] = at
        elif ord(mark) >= generate.ASK:
            fact, first = ord(mark) - generate.ASK, at
        else:
            seen[ord(mark) - generate.FACT] = at
    return ids, out


def recall(ref, seed, wanted, keep):
    """Counts right answers by distance over at least `wanted` cases a bucket; keeps some cases."""
    rng = random.Random(seed)
    right, count = [0] * len(BUCKETS), [0] * len(BUCKETS)
    kept = [[] for _ in BUCKETS]
    while min(count) < wanted:
        short = min(range(len(BUCKETS)), key=lambda b: count[b])
        longest = (256, 400, 700, 1200, 2040)[short]
        segments = generate.recall(rng, longest * rng.uniform(0.8, 1.0))
        ids, asked = questions(ref.tok, segments)
        ids = ids[:2048]
        asked = [a for a in asked if a[1] <= len(ids) and a[1] - a[0] <= 3]
        wants = [a for a in asked if any(lo <= a[2] < hi and count[b] < wanted for b, (lo, hi) in enumerate(BUCKETS))]
        if not wants:
            continue
        ref.reset()
        best = ref.step(ids).argmax(-1)
        rng.shuffle(wants)
        taken = set()
        for first, end, distance in wants:
            b = next(b for b, (lo, hi) in enumerate(BUCKETS) if lo <= distance < hi)
            ok = bool((best[first - 1:end - 1] == ids[first:end]).all())
            count[b] += 1
            right[b] += ok
            if b not in taken and len(kept[b]) < keep:       # one case of a document, not all
                taken.add(b)
                assert ref.encode(ref.tok.decode(ids[1:first])[1:]) == ids[:first]
                kept[b].append(dict(prompt=ref.tok.decode(ids[1:first])[1:], answer=ref.tok.decode(ids[first:end]),
                                    answer_ids=ids[first:end], prompt_tokens=first, distance=distance, right=ok))
    return right, count, kept


def chats(ref, seed):
    """How often it answers a question about a story as the generator does (at least the same last
    word), and how often its story is about the kind of hero, or has the name, that was asked for."""
    rng = random.Random(seed)

    def say(prompt, count):
        return ref.tok.decode(ref.greedy(ref.encode(prompt), count)[0]).replace("<|end|>", "").strip()

    right = kind_right = name_right = 0
    for _ in range(60):
        story = stories.tell(rng)
        questions, answer = rng.choice(story.asks)
        said = say(f"<|user|>Tell me a story.<|end|><|assistant|>{story.text}<|end|><|user|>{rng.choice(questions)}"
                   "<|end|><|assistant|>", 40)
        right += said.split()[-1:] == answer.split()[-1:]
    for _ in range(40):
        kind, name = stories.an(rng.choice(stories.ANIMALS)), rng.choice(stories.NAMES)
        kind_right += kind.split()[1] in say(f"<|user|>Tell me a story about {kind}.<|end|><|assistant|>", 25)
        name_right += name in say(f"<|user|>Tell me a story about {kind} called {name}.<|end|><|assistant|>", 25)
    return dict(questions=round(right / 60, 4), kind=kind_right / 40, name=name_right / 40)


VECTORS = ("Once upon a time", "Hello", "hello world", "", " ", "  two  spaces", "Mia's hat was red.", "\"Oh no!\" cried Tom.",
           "line one\nline two", "\n", "tab\there", "Question: Where did Mia live?\nAnswer: near the lake.", "1234 + 5678 = ?",
           "four seven two", "ALL CAPS", "unhappily", "naïve café", "Straße", "日本語", "Привет, мир", "🦊 fox", "a🙂b", "e\u0301",
           "x\u2581y", "{\"key\": [1, 2.5]}", "<s>", "<|user|>", "Once upon a time, there was a little fox called Ruby.",
           "The quick brown fox jumps over the lazy dog.", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "...!!!???", "don't can't won't",
           "https://example.org/a?b=c&d=e", "trailing space ", "\u00a0nbsp", "\r\n")
PROMPTS = ("Once upon a time",
           "<|user|>Tell me a story about a fox.<|end|><|assistant|>",
           "Mia kept a key in the blue box. Tom wore a red hat. Once upon a time, a little owl named Hugo lived near the lake. "
           "He looked at the stars every evening.\nQuestion: Where did Mia keep the key?\nAnswer:",
           "One sunny day, Lily went to the forest.",
           "<|system|>You are a storyteller.<|end|><|user|>My name is Ben. I have a dog called Pepper.<|end|><|assistant|>"
           "Nice to meet you. I will remember that.<|end|><|user|>Tell me a story about being brave.<|end|><|assistant|>")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default="../../models/kvrm-demo.gguf")
    ap.add_argument("--testdata", default="../../testdata/demo")
    ap.add_argument("--cases", type=int, default=110)
    ap.add_argument("--keep", type=int, default=12)
    ap.add_argument("--dry-run", action="store_true", help="print the figures, write nothing")
    args = ap.parse_args()
    ref = Reference(args.model)

    text = heldout(HELDOUT_SEED, 38000)
    ppl, tokens, scored = perplexity(ref, text)
    print(f"held-out perplexity {ppl:.4f} over {scored} of {tokens} tokens")

    right, count, kept = recall(ref, RECALL_SEED, args.cases, args.keep)
    names = [f"{lo}-{hi}" for lo, hi in BUCKETS]
    for n, r, c, k in zip(names, right, count, kept):
        print(f"recall {n}: {r}/{c} = {r / c:.4f}; committed {sum(x['right'] for x in k)}/{len(k)}")
    talk = chats(ref, CHAT_SEED)
    print("chats:", talk)
    if args.dry_run:
        return

    def path(name):
        return os.path.join(args.testdata, name)

    def dump(name, value):
        with open(path(name), "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, indent=1)
            f.write("\n")

    with open(path("heldout.txt"), "w", encoding="utf-8") as f:
        f.write(text)
    with open(path("recall.jsonl"), "w", encoding="utf-8") as f:
        for k in kept:
            for case in k:
                f.write(json.dumps(case, ensure_ascii=False) + "\n")
    dump("figures.json", dict(
        heldout_perplexity=round(ppl, 5), heldout_tokens=tokens, heldout_scored=scored, window=WINDOW,
        recall={n: round(sum(x["right"] for x in k) / len(k), 4) for n, k in zip(names, kept)},
        recall_cases={n: len(k) for n, k in zip(names, kept)},
        recall_large={n: round(r / c, 4) for n, r, c in zip(names, right, count)},
        recall_large_cases=dict(zip(names, count)), chats=talk))
    vectors = [dict(text=t, ids=ref.tok.encode(t)) for t in VECTORS]
    vectors += [dict(text=p, ids=ref.encode(p), special=True) for p in PROMPTS]
    dump("tokenizer.json", vectors)
    golden = []
    for p in PROMPTS:
        ids = ref.encode(p)
        new, margins = ref.greedy(ids, 40, stop=())
        golden.append(dict(prompt=p, prompt_ids=ids, ids=new, margins=[round(m, 4) for m in margins],
                           text=ref.tok.decode(new)))
    dump("golden.json", golden)


if __name__ == "__main__":
    main()
