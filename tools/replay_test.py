#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kvrm replay in virtual time, on a small trace of each format and on the victims' scenario.

    replay_test.py KVRM

Every record is made twice, in two folders, and must be the same byte for byte; every metric of it
must be what tools/metrics_check.py computes.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

import metrics_check


def azure(rng):
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for i in range(80):
        lines.append(f"2023-11-16 18:{i // 40:02}:{i % 40 + rng.random():010.7f},"
                     f"{rng.randint(1, 1500)},{rng.randint(1, 300)}")
    return "\n".join(lines) + "\n"


def burstgpt(rng):
    lines = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"]
    time = 0
    for _ in range(80):
        time += rng.choice([0, 0, 0, 9])
        prompt, output = rng.randint(1, 900), rng.choice([0, 5, 200])
        lines.append(f"{time},ChatGPT,{prompt},{output},{prompt + output},Conversation log")
    return "\n".join(lines) + "\n"


def mooncake(rng):
    lines = []
    for i in range(60):
        blocks = [0, 1][:rng.randint(0, 2)]
        blocks += [100 * i + b for b in range(rng.randint(1, 2))]
        length = 512 * (len(blocks) - 1) + rng.randint(1, 512)
        lines.append(f'{{"timestamp": {300 * i}, "input_length": {length}, '
                     f'"output_length": {rng.randint(1, 200)}, "hash_ids": {blocks}}}')
    return "\n".join(lines) + "\n"


TRACES = {"azure.csv": azure, "burstgpt.csv": burstgpt, "mooncake.jsonl": mooncake}
ENGINE = ["--profile", "example", "-p", "16", "-c", "2560", "-b", "128", "--kv-tokens", "16384"]
VICTIMS = ["--victims", "--phase", "0.5", "--long-prompt", "2000"]


def replay(kvrm, folder, name, what):
    record = name + ".record.jsonl"
    subprocess.run([kvrm, "replay", *what, *ENGINE, "--warmup", "5", "--record", record],
                   cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return os.path.join(folder, record)


def recorded_differs(kvrm, folder):
    """Whether `kvrm record` changes anything of a trace but the names of its hashes."""
    subprocess.run([kvrm, "record", "mooncake.jsonl", "-o", "shared.jsonl"], cwd=folder, check=True)
    lines, names = [], {}
    for name in ("mooncake.jsonl", "shared.jsonl"):
        with open(os.path.join(folder, name), encoding="utf-8") as stream:
            lines.append([json.loads(line) for line in stream])
    for before, after in zip(*lines, strict=True):
        ids = [names.setdefault(each, len(names)) for each in before["hash_ids"]]
        if before | {"hash_ids": ids} != after:
            print(f"kvrm record made {after} of {before}")
            return True
    return False


def route_is_taken_alone(kvrm):
    """Whether `--route` without `--replicas` runs, or is refused without naming both."""
    run = subprocess.run([kvrm, "replay", *ENGINE, "--requests", "1", "--route", "prefix"],
                         capture_output=True, text=True, check=False)
    refused = run.returncode != 0 and "--route requires --replicas" in run.stderr
    if not refused:
        print(f"--route alone: {run.returncode}, {run.stderr}")
    return not refused


def main(kvrm):
    failures = route_is_taken_alone(kvrm)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        runs = {"victims": VICTIMS}
        for name, make in TRACES.items():
            runs[name] = ["--trace", name]
            text = make(random.Random(name))
            for folder in (first, second):
                with open(os.path.join(folder, name), "w", encoding="utf-8") as stream:
                    stream.write(text)
        fleet = ["--trace", "mooncake.jsonl", "--copies", "4", "--time-scale", "0.1"]
        runs["one summarised"] = fleet + ["--summary"]
        for route in ("least-outstanding", "round-robin", "prefix"):
            runs[route] = fleet + ["--replicas", "5", "--route", route]
        for name, what in runs.items():
            paths = [replay(kvrm, folder, name, what) for folder in (first, second)]
            with open(paths[0], "rb") as a, open(paths[1], "rb") as b:
                if a.read() != b.read():
                    print(f"{name}: two runs of one seed differ")
                    failures += 1
            if not metrics_check.check(kvrm, paths[0]):
                failures += 1
        failures += recorded_differs(kvrm, first)
    print(f"{2 * len(runs) + 2 - failures} passed, {failures} failed")
    return failures


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(1 if main(os.path.abspath(sys.argv[1])) else 0)
