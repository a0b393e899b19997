#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load on the real server over a mock engine with a fixed step: the scenarios L1 to L5, L8 and L9 of
docs/load.md, as one table with what was asked for and what was reached. L6 and L7 (overload.py) are about
the scheduler and take the demo model.

    run.py BUILD_FOLDER [--seconds S] [--only L1,L3] [--short]

`--short` takes a twentieth of the clients for a second each and asserts only what does not depend on
the machine: no errors, nobody refused, nothing left over.
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "ops"))
from overload import l6, l7  # noqa: E402
from server_process import ServerProcess  # noqa: E402
import subprocess  # noqa: E402


class Bench:
    def __init__(self, folder, seconds, scale):
        self.folder, self.seconds, self.scale = folder, seconds, scale
        self.rows, self.failures = [], []
        self.num_loads, self.long_handlers = 0, {}  # of the scenario that runs

    def server(self):
        # A token every 20 steps of 5 ms: 10 a second.
        return ServerProcess(None, command=[os.path.join(self.folder, "kvrm_mock_server"),
                                            "0", "5", "20"]).wait_listening()

    def count(self, number):
        return max(1, number // self.scale)

    def load(self, server, watch=None, **kinds):
        """Runs the client; its figures, with the server's CPU and memory over that time."""
        command = [os.path.join(self.folder, "kvrm_load"), str(server.port), str(self.seconds),
                   *(f"{kind}={count}" for kind, count in kinds.items())]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        most, cpu, begin = 0, None, time.monotonic()
        while client.poll() is None:
            time.sleep(0.2)
            most = max(most, server.rss_kib())
            # The client takes a second or more to connect everybody.
            if cpu is None and time.monotonic() - begin > 2:
                cpu, begin_cpu = server.cpu_seconds(), time.monotonic()
            if watch:
                watch(server)
        figures = {}
        for line in client.stdout.read().splitlines():
            name, value = line.split()
            figures[name] = float(value)
        figures["rss_kib"] = most
        if cpu is not None:
            figures["cpu"] = (server.cpu_seconds() - cpu) / (time.monotonic() - begin_cpu)
        figures["stall_ms"] = server.metric("kvrm:io_longest_stall_seconds") * 1000
        figures["cpu_stall_ms"] = server.metric("kvrm:io_longest_stall_cpu_seconds") * 1000
        # The stall watchdog as an oracle.
        if figures["cpu_stall_ms"] > 10:
            self.long_handlers[self.num_loads] = f"the I/O thread was at work for long: {figures}"
        self.num_loads += 1
        self.check(figures.get("errors", 0) == 0, f"errors: {figures}")
        self.check(figures.get("refused", 0) == 0, f"refused: {figures}")
        return figures

    def check(self, held, what):
        if not held:
            self.failures.append(what)

    def run(self, scenario):
        """Up to three times, until each of its loads had no handler at work for long. Processor time is
        charged for what a host takes of a processor as well, 10 ms and more at once to a loop that takes
        50 ns (docs/load.md), and that meets anybody; a handler that works for long does so each time."""
        always = None
        for _ in range(3):
            self.num_loads, self.long_handlers = 0, {}
            scenario(self)
            always = {load: what for load, what in self.long_handlers.items()
                      if always is None or load in always}
            if not always:
                return
        self.failures += always.values()

    def row(self, name, what, goal, reached):
        self.rows.append((name, what, goal, reached))
        print(f"| {name} | {what} | {goal} | {reached} |", flush=True)


def delivery(figures):
    return (f"p50 {figures['delivery_p50_ms']:.1f}, p99 {figures['delivery_p99_ms']:.1f}, "
            f"p99.9 {figures['delivery_p999_ms']:.1f}, max {figures['delivery_max_ms']:.1f} ms")


def probes(figures):
    return f"p99 {figures['probe_p99_ms']:.1f}, max {figures['probe_max_ms']:.1f} ms"


def l1(bench):
    with bench.server() as server:
        before = server.rss_kib()
        idle = bench.count(9990)
        figures = bench.load(server, idle=idle)
        each = (figures["rss_kib"] - before) / idle
        bench.check(figures["idle_closed"] == 0, f"idle connections closed: {figures}")
        bench.row("L1", f"{idle} idle connections", "8 KiB each, CPU < 1 %",
                  f"{each:.1f} KiB each, CPU {figures.get('cpu', 0):.1%}")


def l2(bench):
    with bench.server() as server:
        figures = bench.load(server, idle=bench.count(9900), active=64, probe=1)
        bench.row("L2", "L1 and 64 active, one token each", "10,000 requests/s, p99 20 ms",
                  f"{figures['answers_per_s']:,.0f} requests/s, p50 {figures['answer_p50_ms']:.1f}, "
                  f"p99 {figures['answer_p99_ms']:.1f} ms")
        bench.row("L5", "/health and /metrics under L2", "p99 50 ms", probes(figures))


def streams(bench):
    """L3, and beside it L4 and L8: each against its own clean run on a fresh server."""
    base = {"streams": bench.count(1000), "probe": 1}
    with bench.server() as server:
        before = server.rss_kib()
        clean = bench.load(server, **base)
        each = (clean["rss_kib"] - before) / base["streams"]
        bench.row("L3", f"{base['streams']} streams of 10 tokens/s", "p99 20, p99.9 50 ms; 32 KiB each",
                  f"{delivery(clean)}; {each:.1f} KiB each, CPU {clean.get('cpu', 0):.0%}, "
                  f"longest stall {clean['stall_ms']:.1f} ms, {clean['cpu_stall_ms']:.1f} at work")
        bench.row("L5", "… under L3", "p99 50 ms", probes(clean))
    with bench.server() as server:
        twice = bench.load(server, streams=bench.count(2000))
        bench.row("L3", f"{bench.count(2000)} streams", "no error", delivery(twice))
    with bench.server() as server:
        attacked = bench.load(server, slow_heads=bench.count(2000), zero_window=bench.count(500),
                              churn=bench.count(200), **base)
        ratio = attacked["delivery_p99_ms"] / clean["delivery_p99_ms"]
        more = (attacked["rss_kib"] - clean["rss_kib"]) / 1024
        bench.row("L4", f"L3 and {bench.count(2000)} slow heads, {bench.count(500)} readers that do not "
                  f"read, {bench.count(200)} connections/s", "p99 × 1.5, 128 MiB more",
                  f"p99 × {ratio:.2f}, {more:.0f} MiB more; {delivery(attacked)}; "
                  f"longest stall {attacked['stall_ms']:.1f} ms, {attacked['cpu_stall_ms']:.1f} at work")
        bench.row("L5", "… under L4", "p99 50 ms", probes(attacked))
    with bench.server() as server:
        big = bench.load(server, big=1, **base)
        ratio = big["delivery_p99_ms"] / clean["delivery_p99_ms"]
        bench.row("L8", "L3 and a prompt of 1 MiB a second", "p99 × 1.3",
                  f"p99 × {ratio:.2f}; {delivery(big)}; those answers p50 "
                  f"{big.get('big_p50_ms', 0):.0f} ms, longest stall {big['stall_ms']:.1f} ms, "
                  f"{big['cpu_stall_ms']:.1f} at work")


def l9(bench):
    half = bench.count(500)
    with bench.server() as server:
        alone = bench.load(server, streams=half)
    with bench.server() as server:
        figures = bench.load(server, streams=half, leavers=half)
        begin = time.monotonic()
        left = server.settle(5)
        taken = time.monotonic() - begin
        bench.check(left is None, f"left over: {left}")
        share = (figures["delivery_count"] / figures["seconds"]) / (
            alone["delivery_count"] / alone["seconds"])
        bench.row("L9", f"{half} streams, and {half} that leave at random", "rest × 0.9; all gone in 1 s",
                  f"{figures['left']:.0f} left, all gone in {taken:.2f} s, tokens to both × {share:.2f}; "
                  f"{delivery(figures)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--only", default="l1,l2,streams,l6,l7,l9")
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments.folder, 1 if arguments.short else arguments.seconds,
                  20 if arguments.short else 1)
    print("| | load | goal | reached |\n| --- | --- | --- | --- |")
    for name in arguments.only.split(","):
        bench.run({"l1": l1, "l2": l2, "streams": streams, "l6": l6, "l7": l7, "l9": l9}[name])
    for failure in bench.failures:
        print("FAILED:", failure)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
