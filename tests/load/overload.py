# SPDX-License-Identifier: Apache-2.0
"""L6 and L7 of docs/load.md: more requests than the server can take, on the real server with the demo
model. What it can take is measured first, by a closed loop; then `kvrm replay` sends requests at multiples
of that rate, each on a connection of its own, whether or not earlier ones are answered.
"""

import datetime
import json
import os
import random
import resource
import subprocess
import tempfile
import time

from server_process import ServerProcess

ROWS = 8
QUEUE = 8
PROMPT, OUTPUT = 64, 32
LEAST_SECONDS = 3  # in which a build with sanitizers answers somebody
LEAST_FLOOD = 4 * (ROWS + QUEUE)  # requests at once of which some must be refused, however slow the machine
CALM = 0.7  # of what the server can take: the steady state that bursts are compared with
EPOCH = datetime.datetime(2026, 1, 1)


def quantile(values, q):
    values = sorted(values)
    return values[min(int(q * len(values)), len(values) - 1)] if values else float("nan")


def ms(values, q=0.99):
    return quantile(values, q) * 1e-6


class Answers:
    """What became of the requests of one replay, times in ns."""

    def __init__(self, path, seconds):
        with open(path, encoding="utf-8") as stream:
            requests = [line for line in map(json.loads, stream) if "request" in line]
        sent = [r for r in requests if r["sent"] >= 0 and r["finish"] != "cancelled"]
        self.done = [r for r in sent if not r["error"]]
        self.refused = [r for r in sent if r["error"].startswith("status 429")]
        self.wrong = [r["error"] for r in sent if r["error"] and not r["error"].startswith("status 429")]
        self.rate = sum(r["end"] <= seconds * 1e9 for r in self.done) / seconds
        self.ttft = [r["gaps"][0] for r in self.done]
        self.itl = [gap for r in self.done for gap in r["gaps"][1:]]
        self.refusal = [r["end"] - r["sent"] for r in self.refused]


class Overload:
    def __init__(self, bench):
        self.bench, self.rng = bench, random.Random(6)
        self.kvrm = os.path.join(bench.folder, "kvrm")
        # The client's connections are one each request.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def server(self):
        return ServerProcess(self.kvrm, [
            "--no-access-log", "--log-level", "error", "--parallel", str(ROWS),
            "--max-num-queued-reqs", str(QUEUE)]).wait_listening()

    def replay(self, server, seconds, arguments):
        """Sends what the arguments say for so long. Returns the answers and the server's resident KiB,
        one figure about every tenth of a second."""
        rss = []
        with tempfile.TemporaryDirectory() as folder:
            record = os.path.join(folder, "record.jsonl")
            client = subprocess.Popen(
                [self.kvrm, "replay", "--url", f"http://127.0.0.1:{server.port}", "--json",
                 "--stop-after", str(seconds), "-o", record, *arguments], stdout=subprocess.DEVNULL)
            while client.poll() is None:
                rss.append(server.rss_kib())
                waiting = server.metric("kvrm:num_requests_waiting")
                self.bench.check(waiting <= QUEUE + ROWS, f"{waiting} wait; {QUEUE} may")
                time.sleep(0.1)
            answers = Answers(record, seconds)
        self.bench.check(client.returncode == 0, f"the client ended with {client.returncode}")
        self.bench.check(not answers.wrong, f"neither answered nor refused: {answers.wrong[:3]}")
        self.bench.check(len(answers.done) > 0, "nobody was answered")
        left = server.settle(30)
        self.bench.check(left is None, f"left over: {left}")
        return answers, rss

    def generated(self, server, seconds, most, *arrivals):
        """At most so many requests of equal size."""
        return self.replay(server, seconds, ["--workload", "uniform", "--length-scale", str(PROMPT / 512),
                                             "--requests", str(int(most)), *arrivals])

    def traced(self, server, rates):
        """The same at Poisson times of [(seconds, requests a second)], one after the other."""
        begin, lines = 0.0, ["TIMESTAMP,ContextTokens,GeneratedTokens"]
        for seconds, rate in rates:
            at = begin + self.rng.expovariate(rate)
            while at < begin + seconds:
                when = EPOCH + datetime.timedelta(seconds=at)
                lines.append(f"{when:%Y-%m-%d %H:%M:%S.%f},{PROMPT},{OUTPUT}")
                at += self.rng.expovariate(rate)
            begin += seconds
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as trace:
            trace.write("\n".join(lines) + "\n")
            trace.flush()
            return self.replay(server, begin + 5, ["--trace", trace.name, "--format", "azure"])

    def capacity(self, seconds):
        """Answers a second of a closed loop that keeps every row busy."""
        with self.server() as server:
            return self.generated(server, seconds, 1000 * seconds, "--clients", str(ROWS))[0].rate


def l6(bench):
    """Bursts of a sixth of the time."""
    overload = Overload(bench)
    seconds = max(LEAST_SECONDS, bench.seconds)
    period = min(60, seconds)
    capacity = overload.capacity(max(LEAST_SECONDS, period / 6))
    calm = (period * 5 / 6, CALM * capacity)
    flood = (period / 6, max(10 * capacity, LEAST_FLOOD / (period / 6)))
    with overload.server() as server:
        steady, _ = overload.traced(server, [(max(LEAST_SECONDS, period / 2), CALM * capacity)])
    with overload.server() as server:
        cycles = max(1, seconds // 60)
        burst, rss = overload.traced(server, [flood, calm] * cycles)
    bench.check(len(burst.refused) > 0, "ten times what it can take, and nobody was refused")
    bench.row("L6", f"{cycles} × {period / 6:.1f} s at 10 × {capacity:.0f} requests/s, then {CALM} of that",
              "TTFT p99 × 1.2, ITL p99 × 1.1; refused within 10 ms p99",
              f"TTFT p99 {ms(steady.ttft):.0f} -> {ms(burst.ttft):.0f} ms "
              f"(× {ms(burst.ttft) / ms(steady.ttft):.2f}), ITL p99 {ms(steady.itl):.1f} -> "
              f"{ms(burst.itl):.1f} ms (× {ms(burst.itl) / ms(steady.itl):.2f}), {len(burst.refused)} "
              f"refused in p50 {ms(burst.refusal, 0.5):.1f}, p99 {ms(burst.refusal):.1f} ms, "
              f"{len(burst.done)} answered, {max(rss) / 1024:.1f} MiB resident at most")


def l7(bench):
    overload = Overload(bench)
    seconds = max(LEAST_SECONDS, bench.seconds)
    times = 20 if bench.scale == 1 else 4  # so that the client does not starve the server on any machine
    capacity = overload.capacity(max(LEAST_SECONDS, seconds / 6))
    with overload.server() as server:
        rate = max(times * capacity, LEAST_FLOOD / seconds)
        answers, rss = overload.generated(server, seconds, 2 * rate * seconds, "--rate", str(rate))
    bench.check(len(answers.refused) > 0, f"{times} times what it can take, and nobody was refused")
    fifth = rss[len(rss) // 5]
    bench.row("L7", f"{times} × {capacity:.0f} requests/s for {seconds} s",
              "goodput 0.95 of the peak; resident memory ± 2 %",
              f"{answers.rate:.0f} answered a second (× {answers.rate / capacity:.2f}), "
              f"{len(answers.refused) / seconds:.0f} refused a second in p50 "
              f"{ms(answers.refusal, 0.5):.1f}, p99 {ms(answers.refusal):.1f} ms; resident {fifth / 1024:.1f} "
              f"MiB after a fifth, {rss[-1] / 1024:.1f} at the end ({rss[-1] / fifth - 1:+.1%})")
