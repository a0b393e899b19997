#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mixed load on the real server with the demo model, for as long as one likes: whole answers and streams,
several samples, schemas, regexes and grammars, tools, log-probabilities, embeddings, malformed bodies and
heads, more work than the pool holds; clients of which one in twenty leaves at a random byte, some by RST.
With a binary built to fail (kvrm_faulty), allocations of the server fail as well while it is under load.

No client waits for ever, and no stream ends without its [DONE] unless its connection was cut. At the end
nothing may be left: no request, no held block, no descriptor; and the memory has been flat since a third of the time had passed.

    soak.py BINARY [--seconds S] [--clients N] [--seed N] [--aborts SHARE] [--patience S] [--fail-one-in N]
"""

import argparse
import collections
import json
import os
import random
import re
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "ops"))
from server_process import ServerProcess, post, reset, split  # noqa: E402

WORDS = "once upon a time there was a little dog who liked to run in the park with a red ball".split()
SCHEMA = {"type": "object", "required": ["name", "age"], "additionalProperties": False,
          "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"enum": [1, 2, 3]}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
GROWTH_KIB = 4096  # of resident memory, over what a third of the run had; a leak of 1 KiB a request is more


def text(rng, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def completion(rng):
    return {"prompt": text(rng, 200), "max_tokens": rng.randint(1, 120), "stream": rng.random() < 0.6,
            "n": rng.choice([1, 1, 1, 2, 4]), "temperature": rng.choice([0, 0.8, 1.5]),
            "logprobs": rng.choice([None, None, 3]), "stop": rng.choice([None, "dog", [".", "!"]])}


def chat(rng):
    body = {"messages": [{"role": "user", "content": text(rng, 60)}], "max_tokens": rng.randint(1, 80),
            "stream": rng.random() < 0.6}
    return body | rng.choice([{}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "required"},
                              {"logprobs": True, "top_logprobs": 2}])


def structured(rng):
    rules = rng.choice([
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        {"guided_regex": f"[a-f]{{{rng.randint(1, 30)}}}"}, {"grammar": 'root ::= "a" | "b" root'}])
    return {"prompt": text(rng, 30), "max_tokens": 40, "stream": rng.random() < 0.5} | rules


def any_request(rng):
    """(bytes, what it is)."""
    kind = rng.choices(["completion", "chat", "structured", "embeddings", "tokenize", "get", "wrong",
                        "malformed"], [30, 15, 15, 5, 8, 7, 10, 10])[0]
    if kind == "completion":
        data = post("/v1/completions", json.dumps(completion(rng)))
    elif kind == "chat":
        data = post("/v1/chat/completions", json.dumps(chat(rng)))
    elif kind == "structured":
        data = post("/v1/completions", json.dumps(structured(rng)))
    elif kind == "embeddings":
        data = post("/v1/embeddings", json.dumps({"input": [text(rng, 30), text(rng, 30)]}))
    elif kind == "tokenize":
        data = post("/tokenize", json.dumps({"content": text(rng, 400)}))
    elif kind == "get":
        path = rng.choice(["/health", "/metrics", "/v1/models", "/props", "/nothing"])
        data = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    elif kind == "wrong":
        data = post("/v1/completions", json.dumps(rng.choice([
            {"prompt": 5}, {"prompt": "a", "n": 100}, {"prompt": "a", "grammar": "root ::="},
            {"prompt": "a", "guided_regex": "(" * 200}, {"prompt": text(rng, 20) * 3000}, []])))
    else:
        data = rng.randbytes(rng.randint(1, 200)) + b"\r\n\r\n"
    return data, kind


class Client(threading.Thread):
    """One request after the other; some on one connection."""

    def __init__(self, server, seed, until, arguments):
        super().__init__(daemon=True)
        self.server, self.rng, self.until = server, random.Random(seed), until
        self.aborts, self.patience = arguments.aborts, arguments.patience
        self.seen = collections.Counter()

    def run(self):
        connection = None
        while time.monotonic() < self.until:
            try:
                if connection is None:
                    connection = self.server.connect()
                    connection.settimeout(self.patience)
                if not self.ask(connection):
                    connection.close()
                    connection = None
            except TimeoutError:
                self.seen["SILENCE"] += 1
                connection = None
            except OSError:
                self.seen["cut"] += 1
                connection = None
        if connection:
            connection.close()

    def ask(self, connection):
        """Whether the connection can go on."""
        data, kind = any_request(self.rng)
        self.seen["requests"] += 1
        leave = self.rng.random() < self.aborts
        if leave and self.rng.random() < 0.3:
            connection.sendall(data[:self.rng.randrange(1, len(data))])
            return self.leave(connection)
        connection.sendall(data)
        # A byte at least: asking for none would look like an end that the server made.
        left = self.rng.randint(1, 3000) if leave else 1 << 30
        answer = b""
        while not ended(answer):
            piece = connection.recv(min(left, 65536))
            if not piece:
                self.seen["cut"] += bool(kind != "malformed" or answer == b"")
                return False
            answer += piece
            left -= len(piece)
            if left <= 0:
                return self.leave(connection)
        status, body = split(answer)
        self.seen[f"{kind} {status}"] += 1
        if status == 200 and b"text/event-stream" in answer and "[DONE]" not in body:
            self.seen["HALF"] += 1
        return b"Connection: close" not in answer

    def leave(self, connection):
        self.seen["left"] += 1
        if self.rng.random() < 0.5:
            reset(connection)
        return False


def ended(answer):
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"Content-Length: (\d+)", head)
    return len(body) >= int(length.group(1)) if length else body.endswith(b"\r\n0\r\n\r\n")


def blocks(server, state):
    _, body = server.get("/metrics")
    return int(re.search(rf'^kvrm:kv_blocks{{tier="ram",state="{state}"}} (\d+)$', body, re.M).group(1))


def watch(server, seconds, toggles):
    """Resident memory over the run: one figure a second."""
    rss, begin, failing = [], time.monotonic(), False
    while time.monotonic() - begin < seconds:
        time.sleep(1)
        assert server.process.poll() is None, "the server ended: " + server.log()[-2000:]
        rss.append(server.rss_kib())
        # Ten seconds with failures, ten without, so that the accounts are seen to recover.
        if toggles and len(rss) % 10 == 0:
            server.process.send_signal(signal.SIGUSR2)
            failing = not failing
    if failing:
        server.process.send_signal(signal.SIGUSR2)
    return rss


def check_nothing_left(server, fds):
    left = server.settle(30)
    assert left is None, left
    assert blocks(server, "held") == 0 and blocks(server, "limbo") == 0
    num_blocks = blocks(server, "free") + blocks(server, "cached")
    assert server.metric("kvrm:parked_requests") == 0
    assert server.settled_fds(fds) <= fds, (server.num_fds(), fds)
    return num_blocks


def soak(arguments):
    faults = arguments.fail_one_in
    with ServerProcess(arguments.binary, ["--no-access-log", "--log-level", "error", "--parallel", "8",
                                          "--kv-tokens", "2048"],
                       environment={"KVRM_FAIL_ONE_IN": str(faults)} if faults else None) as server:
        server.wait_listening()
        server.get("/health")
        num_blocks = check_nothing_left(server, 1 << 20)
        fds = server.settled_fds(seconds=3)
        until = time.monotonic() + arguments.seconds
        clients = [Client(server, (arguments.seed << 16) + i, until, arguments)
                   for i in range(arguments.clients)]
        for client in clients:
            client.start()
        rss = watch(server, arguments.seconds, faults)
        for client in clients:
            client.join(arguments.patience + 60)
            assert not client.is_alive(), "a client waits for ever"
        seen = sum((client.seen for client in clients), collections.Counter())
        assert check_nothing_left(server, fds) == num_blocks
        names = ("kvrm:requests_total", "kvrm:num_preemptions_total", "kvrm:recomputed_tokens_total",
                 "kvrm:parks_total", "kvrm:park_refusals_total",
                 "kvrm:generation_tokens_total", "kvrm:http_exceptions_total")
        totals = {name.split(":")[1]: int(server.metric(name)) for name in names}
        assert server.terminate() == 0
    assert seen["SILENCE"] == 0 and seen["HALF"] == 0, seen
    # The tier has room for all that may be parked.
    assert totals["park_refusals_total"] == 0 and totals["recomputed_tokens_total"] == 0, totals
    if not faults:
        assert totals["http_exceptions_total"] == 0 and seen["cut"] == 0, (totals, seen)
        assert not [name for name in seen if name.endswith((" 500", " 503"))], seen
    third = rss[len(rss) // 3:]
    grown = max(third[-max(1, len(third) // 10):]) - max(third[:max(1, len(third) // 10)])
    assert grown <= GROWTH_KIB, f"{grown} KiB more resident: {rss[::max(1, len(rss) // 30)]}"
    print(f"{arguments.seconds} s, {dict(sorted(seen.items()))}\n{totals}\n"
          f"resident {rss[0]} KiB first, {rss[len(rss) // 3]} after a third, {rss[-1]} last; "
          f"{num_blocks} blocks and {fds} descriptors as before")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--aborts", type=float, default=0.05)
    parser.add_argument("--patience", type=float, default=120,
                        help="seconds without a byte after which a client calls it silence; more than the "
                             "default only where the machine may stop the server")
    parser.add_argument("--fail-one-in", type=int, default=0, help="allocations; needs kvrm_faulty")
    return soak(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
