#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The metrics of `kvrm report --json`, computed a second time from the record alone.

    metrics_check.py KVRM RECORD...

Reads each record, computes every figure by its definition (docs/replay.md), runs `KVRM report
--json RECORD` and compares. Standard library only; nothing is shared with the C++ code.
"""

import json
import math
import subprocess
import sys
from bisect import bisect_right

TOLERANCE = 1e-9
BUCKET_BITS = 8  # of a summarised record's histograms (docs/formats.md)


def percentile(values, share):
    """numpy.percentile's default, on sorted values."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def distribution(values):
    if not values:
        return dict.fromkeys(["count", "mean", "p50", "p90", "p99", "p99.9", "max"], 0)
    ordered = sorted(values)
    return {"count": len(values), "mean": math.fsum(values) / len(values),
            "p50": percentile(ordered, 0.5), "p90": percentile(ordered, 0.9),
            "p99": percentile(ordered, 0.99), "p99.9": percentile(ordered, 0.999),
            "max": ordered[-1]}


def bucket_middle(bucket):
    if bucket < 1 << BUCKET_BITS:
        return bucket
    shift = (bucket >> BUCKET_BITS) - 1
    first = ((1 << BUCKET_BITS) + bucket % (1 << BUCKET_BITS)) << shift
    return first + ((1 << shift) - 1) / 2


class Histogram:
    """Of ns; what is said of it is in ms."""

    def __init__(self, line):
        pairs = list(zip(line["counts"][::2], line["counts"][1::2]))
        self.values = [(min(bucket_middle(b), line["max"]) / 1e6, n) for b, n in pairs]
        self.count = sum(n for _, n in pairs)
        self.sum, self.squares, self.max = line["sum"], line["squares"], line["max"]

    def at(self, rank):
        for value, count in self.values:
            if rank < count:
                return value
            rank -= count
        raise IndexError(rank)

    def percentile(self, share):
        place = share * (self.count - 1)
        low = self.at(math.floor(place))
        return low + (self.at(min(math.floor(place) + 1, self.count - 1)) - low) * (place % 1)

    def distribution(self):
        if not self.count:
            return distribution([])
        return {"count": self.count, "mean": self.sum / self.count / 1e6, "max": self.max / 1e6,
                "p50": self.percentile(0.5), "p90": self.percentile(0.9),
                "p99": self.percentile(0.99), "p99.9": self.percentile(0.999)}


def read(path):
    """Header, requests, steps, memory; of a summarised record what is summed, by its key, as well."""
    with open(path, encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    header = lines[0]
    requests = [line for line in lines if "request" in line]
    steps = [line["step"] for line in lines if "step" in line]
    memory = [line["memory"] for line in lines if "memory" in line]
    summary = {line["histogram"]: Histogram(line) for line in lines if "histogram" in line}
    summary["replicas"] = [line for line in lines if "replica" in line and "request" not in line]
    if header["kvrm_record"] == 2:
        for request in requests:
            count, first, last = request["outputs"]
            # The first output and what is left: sums and ends are those of all gaps.
            request["gaps"] = [first, last - first][:count]
    return header, requests, steps, memory, summary


def summed_steps(histogram, replicas):
    if not histogram.count:
        return {"count": 0}
    columns = list(zip(*(replica["replica"] for replica in replicas)))
    mean, ms = histogram.sum / histogram.count, histogram.distribution()
    spikes = [(value, count) for value, count in histogram.values if value > 3 * ms["p50"]]
    return {"count": sum(columns[1]), "ms": ms, "mean_rows": sum(columns[2]) / histogram.count,
            "moved_bytes": sum(columns[4]), "groups": sum(columns[5]),
            "cv": math.sqrt(max(histogram.squares / histogram.count - mean ** 2, 0)) / mean,
            "spikes": sum(count for _, count in spikes),
            "spike_area": sum((value - ms["p50"]) * count for value, count in spikes)
            / (histogram.sum / 1e6)}


def summed_memory(replicas):
    found = {"samples": sum(replica["replica"][1] for replica in replicas), "resident_max": 0}
    for column, name in enumerate(["reserved", "mapped", "live"], start=9):
        found[name + "_max"] = sum(replica["replica"][column] for replica in replicas)
        found[name + "_mean"] = sum(
            replica[name] / (replica["replica"][8] - replica["replica"][7])
            for replica in replicas if replica["replica"][8] > replica["replica"][7])
    return found


def shares(header, requests):
    replicas = range(header["replicas"])
    each = [[r["output"] for r in requests if r["replica"] == i] for i in replicas]
    return {"count": len(each), "min_requests": min(map(len, each)),
            "max_requests": max(map(len, each)), "min_output_tokens": min(map(sum, each)),
            "max_output_tokens": max(map(sum, each))}


def request_metrics(requests):
    counted = [r for r in requests if not r["warmup"]]
    failed = [r for r in counted if r["finish"] == "error"
              or (not r["gaps"] and r["finish"] != "cancelled")]
    rest = [r for r in counted if r not in failed] if failed else counted
    cancelled = [r for r in rest if r["finish"] == "cancelled"]
    good = [r for r in rest if r["finish"] != "cancelled"]
    ttft = [r["gaps"][0] / 1e6 for r in good]
    e2el = [sum(r["gaps"]) / 1e6 for r in good]
    tpot = [sum(r["gaps"][1:]) / 1e6 / (r["output"] - 1) for r in good if r["output"] > 1]
    itl = [gap / 1e6 for r in rest for gap in r["gaps"][1:]]
    found = {"completed": len(good), "failed": len(failed), "cancelled": len(cancelled),
             "warmup": len(requests) - len(counted),
             "total_input_tokens": sum(r["prompt"] for r in good),
             "total_output_tokens": sum(r["output"] for r in rest),
             "cached_tokens": sum(r["cached"] for r in good),
             "ttft_ms": distribution(ttft), "tpot_ms": distribution(tpot),
             "itl_ms": distribution(itl), "e2el_ms": distribution(e2el),
             "send_lag_ms": distribution([(r["sent"] - r["arrival"]) / 1e6 for r in counted])}
    seconds = 0.0
    if counted:
        seconds = (max(r["end"] for r in counted) - min(r["sent"] for r in counted)) / 1e9
    if seconds > 0:
        tokens_in, tokens_out = found["total_input_tokens"], found["total_output_tokens"]
        found |= {"duration_s": seconds, "request_throughput": len(good) / seconds,
                  "output_throughput": tokens_out / seconds,
                  "total_token_throughput": (tokens_in + tokens_out) / seconds}
    return found


def step_metrics(steps):
    if not steps:
        return {"count": 0}
    ms = [step[1] / 1e6 for step in steps]
    found = {"count": len(ms), "ms": distribution(ms), "mean_rows": sum(s[2] for s in steps) / len(ms),
             "moved_bytes": sum(s[4] for s in steps), "groups": sum(s[5] for s in steps)}
    mean, median, total = found["ms"]["mean"], found["ms"]["p50"], math.fsum(ms)
    spikes = [each for each in ms if each > 3 * median]
    if total > 0:
        variance = math.fsum((each - mean) ** 2 for each in ms) / len(ms)
        found |= {"cv": math.sqrt(variance) / mean, "spikes": len(spikes),
                  "spike_area": math.fsum(each - median for each in spikes) / total}
    return found


def memory_metrics(steps, memory):
    samples = [(s[0] + s[1], s[6], s[7], s[8]) for s in steps] or [tuple(m[:4]) for m in memory]
    found = {"samples": len(samples), "resident_max": max((m[4] for m in memory), default=0)}
    weights = [b[0] - a[0] for a, b in zip(samples, samples[1:])]
    for column, name in enumerate(["reserved", "mapped", "live"], start=1):
        found[name + "_max"] = max((s[column] for s in samples), default=0)
        if sum(weights) > 0:
            found[name + "_mean"] = sum(w * s[column] for w, s in zip(weights, samples)) / sum(weights)
    if found.get("live_mean", 0) > 0:
        for name in ["reserved", "mapped"]:
            found[name + "_over_live"] = found[name + "_mean"] / found["live_mean"]
    return found


def phase_metrics(header, requests):
    begins = [phase["begin"] for phase in header["phases"]]
    gaps = [[] for _ in begins]
    for request in requests:
        if request["group"] != "victim" or request["finish"] == "error":
            continue
        at = request["sent"]
        for i, gap in enumerate(request["gaps"]):
            at += gap
            which = bisect_right(begins, at) - 1
            if i > 0 and which >= 0:
                gaps[which].append(gap / 1e6)
    found = [{"name": phase["name"], "itl_ms": distribution(each)}
             for phase, each in zip(header["phases"], gaps)]
    quiet = [each["itl_ms"]["p50"] for each in found if each["name"] == "quiet"]
    for each in found:
        if quiet and quiet[0] > 0:
            for name in ["p50", "p99", "p99.9", "max"]:
                each[name + "_ratio"] = each["itl_ms"][name] / quiet[0]
    return found


def differences(mine, theirs, path=""):
    """Paths at which what is here differs from what is there."""
    if isinstance(mine, dict):
        for name, value in mine.items():
            yield from differences(value, theirs.get(name), f"{path}/{name}")
    elif isinstance(mine, list):
        if len(mine) != len(theirs):
            yield f"{path}: {len(mine)} entries here, {len(theirs)} there"
        for i, (a, b) in enumerate(zip(mine, theirs)):
            yield from differences(a, b, f"{path}/{i}")
    elif isinstance(mine, str):
        if mine != theirs:
            yield f"{path}: {mine!r} here, {theirs!r} there"
    elif not math.isclose(mine, theirs, rel_tol=TOLERANCE, abs_tol=1e-12):
        yield f"{path}: {mine} here, {theirs} there"


def check(kvrm, path):
    header, requests, steps, memory, summary = read(path)
    mine = request_metrics(requests) | {"steps": step_metrics(steps),
                                        "memory": memory_metrics(steps, memory),
                                        "phases": phase_metrics(header, requests)}
    if header["kvrm_record"] == 2:
        mine |= {"steps": summed_steps(summary["step"], summary["replicas"]),
                 "memory": summed_memory(summary["replicas"]),
                 "itl_ms": summary["itl"].distribution(), "replicas": shares(header, requests)}
    answer = subprocess.run([kvrm, "report", "--json", path], capture_output=True, check=True)
    found = list(differences(mine, json.loads(answer.stdout)[0]))
    for each in found:
        print(f"{path}: {each}")
    print(f"{path}: {len(requests)} requests, {len(steps)} steps, {len(found)} differences")
    return not found and bool(requests)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    results = [check(sys.argv[1], path) for path in sys.argv[2:]]
    sys.exit(0 if all(results) else 1)
