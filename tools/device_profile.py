#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A device profile for `kvrm replay --profile`, fitted to what `kvrm bench` has measured.

    kvrm bench decode --json --rows 1,2,4,8 --context 128,512,2048 > bench.jsonl
    kvrm bench prefill --json --tokens 256,1024 >> bench.jsonl
    device_profile.py bench.jsonl > profile.json

Least squares over relative errors, costs kept from going below zero; the residuals go to stderr.
"""

import json
import sys


def solve(rows, columns):
    """Least squares of rows (features.., 1) by normal equations; the target is 1."""
    n = len(columns)
    a = [[sum(r[i] * r[j] for r in rows) for j in columns] for i in columns]
    b = [sum(r[i] for r in rows) for i in columns]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(a[k][i]))
        a[i], a[pivot], b[i], b[pivot] = a[pivot], a[i], b[pivot], b[i]
        if abs(a[i][i]) < 1e-30:
            return None
        for k in range(n):
            if k != i:
                factor = a[k][i] / a[i][i]
                a[k] = [x - factor * y for x, y in zip(a[k], a[i])]
                b[k] -= factor * b[i]
    return [b[i] / a[i][i] for i in range(n)]


def fit(samples):
    """samples: (features, ns). The cost that is most below zero is left out until none is."""
    rows = [[feature / ns for feature in features] for features, ns in samples]
    columns = list(range(len(rows[0])))
    while columns:
        costs = solve(rows, columns)
        if costs is not None and min(costs) >= 0:
            full = [0.0] * len(rows[0])
            for column, cost in zip(columns, costs):
                full[column] = cost
            return full
        worst = columns[-1] if costs is None else columns[costs.index(min(costs))]
        columns.remove(worst)
    sys.exit("nothing can be fitted")


def features(line):
    """Of one measurement: steps, rows, tokens, attended bytes, prompt pairs."""
    if line["bench"] == "decode":
        return [1, line["rows"], line["rows"], line["kv_bytes"], 0]
    tokens, chunk = line["tokens"], line["chunk"]
    ends = [min(end, tokens) for end in range(chunk, tokens + chunk, chunk)]
    return [len(ends), len(ends), tokens, sum(ends) * line["token_bytes"],
            tokens * (tokens + 1) // 2]


def main(path):
    with open(path, encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    lines = [line for line in lines if line["bench"] in ("decode", "prefill")]
    decode = [line for line in lines if line["bench"] == "decode" and line["context"].isdigit()]
    if not decode or len(decode) == len(lines):
        sys.exit("lines of both kvrm bench decode and kvrm bench prefill are needed")
    used = decode + [line for line in lines if line["bench"] == "prefill"]
    kv_token_bytes = decode[0]["kv_bytes"] // (decode[0]["rows"] * int(decode[0]["context"]))
    for line in used:
        line["token_bytes"] = kv_token_bytes
    samples = [(features(line), line["quiet_milliseconds"] * 1e6) for line in used]
    costs = fit(samples)
    step, row, token, byte, pair = costs
    for (each, ns), line in zip(samples, used):
        predicted = sum(x * y for x, y in zip(each, costs))
        what = f"{line['rows']} rows of {line['context']}" if line in decode else \
            f"prompt of {line['tokens']}"
        print(f"{what}: {ns / 1e6:.3f} ms measured, {100 * (predicted / ns - 1):+.1f} % fitted",
              file=sys.stderr)
    print(json.dumps({"name": f"{used[0]['model']}, {used[0]['workers']} workers",
                      "step_us": step / 1e3, "row_us": row / 1e3, "token_us": token / 1e3,
                      "kv_byte_ns": byte, "pair_ns": pair, "move_byte_ns": 0.06,
                      "kv_token_bytes": kv_token_bytes, "max_context": 32768}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
