#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo model's tokenizer: pieces merged by score, with byte fallback (the GGUF model "llama").

Ids: 0 <unk>, 1 <s>, 2 </s>, 3..6 the control tokens of a chat, 7..262 the bytes, then pieces in the
order in which training merged them; the score of a piece is minus its rank.

Encoding of one fragment of text (what stands between control tokens): put a space in front, turn
every space into U+2581, split into characters, then merge the neighbours whose union has the best
score (the leftmost of equals) until nothing merges. A character that is no piece becomes its bytes.

    python3 tokenizer.py --out vocab.json       # train on generated text, about a minute
"""
import argparse
import collections
import heapq
import json
import random
import re

SPACE = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
BOS, EOS, END = 1, 2, 6
FIRST_BYTE = len(SPECIAL)
FIRST_PIECE = FIRST_BYTE + 256
ASCII = "".join(chr(c) for c in range(33, 127))
CHUNK = re.compile(f"{SPACE}[^{SPACE}\n]*|\n|[^{SPACE}\n]+")
# Merges never cross these borders, so that "end." and "end" share their pieces.
PART = re.compile(f"{SPACE}?(?:[A-Za-z]+|'s(?![a-z])|[^A-Za-z{SPACE}]+)|{SPACE}")


class Tokenizer:
    def __init__(self, pieces):
        self.pieces = pieces
        self.id = {p: FIRST_PIECE + i for i, p in enumerate(pieces)}
        self.names = SPECIAL + [f"<0x{b:02X}>" for b in range(256)] + pieces
        self.cache = {}

    @classmethod
    def load(cls, path):
        with open(path, encoding="utf-8") as f:
            return cls(json.load(f)["pieces"])

    def __len__(self):
        return len(self.names)

    def merge(self, text):
        """The pieces of `text`; a character that is no piece stays a character."""
        part = list(text)
        nxt = list(range(1, len(part))) + [-1]
        prv = list(range(-1, len(part) - 1))
        heap = []

        def offer(i):
            j = nxt[i] if i >= 0 else -1
            if j >= 0:
                rank = self.id.get(part[i] + part[j])
                if rank is not None:
                    heapq.heappush(heap, (rank, i, part[i], part[j]))

        for i in range(len(part)):
            offer(i)
        while heap:
            _, i, a, b = heapq.heappop(heap)
            j = nxt[i]
            if part[i] != a or j < 0 or part[j] != b:
                continue
            part[i], part[j] = a + b, ""
            nxt[i] = nxt[j]
            if nxt[j] >= 0:
                prv[nxt[j]] = i
            nxt[j] = -1
            offer(i)
            offer(prv[i])
        return [p for p in part if p]

    def ids_of(self, pieces):
        out = []
        for p in pieces:
            if p in self.id:
                out.append(self.id[p])
            else:
                out.extend(FIRST_BYTE + b for b in p.encode("utf-8"))
        return out

    def encode(self, text):
        """The ids of one fragment of text, no special tokens."""
        if not text:
            return []
        return self.ids_of(self.merge(SPACE + text.replace(" ", SPACE)))

    def encode_marked(self, text):
        """As encode(), for text with recall marks. Returns (ids, marks): (index of the first token
        that ends after the mark, mark) in order. Fast: no piece has a space mark inside, so chunks
        that start with one are encoded alone and remembered."""
        out, marks = [], []
        for chunk in CHUNK.findall(SPACE + text.replace(" ", SPACE)):
            ids = self.cache.get(chunk)
            if ids is not None:
                out.extend(ids)
                continue
            plain, at = "", []
            for c in chunk:
                if 0xE000 <= ord(c) <= 0xE200:
                    at.append((len(plain), c))
                else:
                    plain += c
            pieces = self.merge(plain)
            if not at:
                ids = self.ids_of(pieces)
                self.cache[chunk] = ids
                out.extend(ids)
                continue
            end = 0
            for p in pieces:
                start, end = end, end + len(p)
                while at and at[0][0] < end:
                    marks.append((len(out), at.pop(0)[1]))
                out.extend(self.ids_of([p]))
            marks.extend((len(out), c) for _, c in at)
        return out, marks

    def encode_document(self, segments):
        """The ids of a document (see generate.py), with <s> in front, and its recall marks."""
        ids, marks = [BOS], []
        for s in segments:
            if s in SPECIAL:
                ids.append(SPECIAL.index(s))
            else:
                more, at = self.encode_marked(s)
                marks.extend((len(ids) + i, c) for i, c in at)
                ids.extend(more)
        return ids, marks

    def decode(self, ids):
        out = b""
        for i in ids:
            if i < FIRST_BYTE:
                out += self.names[i].encode()
            elif i < FIRST_PIECE:
                out += bytes([i - FIRST_BYTE])
            else:
                out += self.names[i].encode("utf-8")
        return out.decode("utf-8", "replace").replace(SPACE, " ")


def train(counts, size):
    """Byte-pair merges over counted words until there are `size` pieces."""
    pieces = [SPACE] + list(ASCII)
    parts = [(list(w), n) for w, n in counts.items()]
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for k, (w, n) in enumerate(parts):
        for a, b in zip(w, w[1:]):
            pairs[a, b] += n
            where[a, b].add(k)
    while len(pieces) < size:
        best, n = max(pairs.items(), key=lambda kv: (kv[1], kv[0]))
        if n < 2:
            break
        a, b = best
        if a + b not in pieces:
            pieces.append(a + b)
        for k in sorted(where.pop(best)):
            w, n = parts[k]
            for pair in zip(w, w[1:]):
                pairs[pair] -= n
            i, new = 0, []
            while i < len(w):
                if i + 1 < len(w) and w[i] == a and w[i + 1] == b:
                    new.append(a + b)
                    i += 2
                else:
                    new.append(w[i])
                    i += 1
            parts[k] = (new, n)
            for pair in zip(new, new[1:]):
                pairs[pair] += n
                where[pair].add(k)
        pairs.pop(best, None)
    return pieces


def main():
    import generate
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", default="vocab.json")
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--documents", type=int, default=3000)
    ap.add_argument("--vocab", type=int, default=1536)
    args = ap.parse_args()
    rng = random.Random(args.seed)
    counts = collections.Counter()
    for _ in range(args.documents):
        for s in generate.document(rng, 600):
            if s not in SPECIAL:
                text = SPACE + generate.clean(s).replace(" ", SPACE)
                for chunk in CHUNK.findall(text):
                    if chunk.isascii() or SPACE in chunk:
                        counts.update(PART.findall(chunk))
    # Frequent words count by their root, so that rarer words of the small world become pieces too.
    damped = {w: max(1, int(n ** 0.7)) for w, n in counts.items() if n >= 4}
    pieces = train(damped, args.vocab - FIRST_PIECE)
    with open(args.out, "w", encoding="utf-8") as f:
        json.dump({"pieces": pieces}, f, ensure_ascii=False, indent=0)
        f.write("\n")
    tok = Tokenizer(pieces)
    total = single = 0
    for w, n in counts.items():
        total += n
        single += n * (len(tok.merge(w)) == 1)
    print(f"{len(tok)} tokens; {len(counts)} different words, {single / total:.4f} of all are one token")
    print("several tokens:", [(" ".join(tok.merge(w)), n) for w, n in counts.most_common() if len(tok.merge(w)) > 1][:60])


if __name__ == "__main__":
    main()
