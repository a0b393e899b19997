#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM at random times under load, a second SIGTERM, kill -9 and restart.

Each run starts the server, sends streams and queued requests, and a SIGTERM at a random moment,
from before the model is loaded on. Then: the process ends with 0 within its limit; nobody can
connect any more at once; every client that had an answer got all of it, or an error and [DONE],
or 503; nobody gets half an answer. What was accepted before the signal is answered, also while it
waits or its prompt is computed.

    signals.py BINARY [--runs N] [--kills N] [--seed N]
"""

import argparse
import json
import random
import signal
import sys
import threading
import time

from server_process import ServerProcess, post, read_all, split

DRAIN_SECONDS = 5
SLACK_SECONDS = 8  # of a busy machine, over the drain limit and what its abort takes


def ask(server, body, results):
    """Sends a completion and judges how its answer ends."""
    try:
        connection = server.connect()
    except OSError:
        results.append("refused")
        return
    with connection:
        try:
            connection.sendall(post("/v1/completions", json.dumps(body), "Connection: close\r\n"))
        except OSError:
            results.append("refused")
            return
        answer = read_all(connection)
    status, text = split(answer)
    if status == 0:
        # The request had not been read when the connection ended; a proxy may send it elsewhere.
        results.append("refused" if answer == b"" else "half")
    elif status == 503:
        results.append("503")
    elif status != 200:
        results.append(f"status {status}")
    elif body.get("stream"):
        ended = text.endswith("data: [DONE]\n\n\r\n0\r\n\r\n")
        results.append("half" if not ended else "error" if '"error"' in text else "whole")
    else:
        try:
            results.append("whole" if json.loads(text)["choices"] else "half")
        except ValueError:
            results.append("half")


def one_run(binary, rng, totals):
    # With little or no time to finish, some get an error.
    limit = rng.choice([0, 1, DRAIN_SECONDS])
    arguments = ["--no-access-log", "--shutdown-timeout", str(limit), "--parallel", "4"]
    with ServerProcess(binary, arguments) as server:
        if rng.random() < 0.1:  # while it starts
            time.sleep(rng.random() * 0.3)
            # Before main has begun, the signal's own default ends the process.
            assert server.terminate(DRAIN_SECONDS + SLACK_SECONDS) in (0, -signal.SIGTERM)
            totals["at start"] = totals.get("at start", 0) + 1
            return
        server.wait_listening()
        results = []
        threads = [threading.Thread(target=ask, args=(server, {
            "prompt": f"Once upon a time {i}", "max_tokens": rng.choice([5, 200, 800, 1500]),
            "ignore_eos": True, "stream": i % 3 != 0}, results)) for i in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(rng.random() * 0.8)
        begin = time.monotonic()
        status = server.terminate(DRAIN_SECONDS + SLACK_SECONDS)
        taken = time.monotonic() - begin
        for thread in threads:
            thread.join(30)
        assert status == 0, (status, results)
        assert len(results) == len(threads)
        wrong = [result for result in results
                 if result not in ("whole", "error", "503", "refused")]
        assert not wrong, wrong
        for result in results:
            totals[result] = totals.get(result, 0) + 1
        totals["slowest"] = max(totals.get("slowest", 0), taken)


def closed_at_once(binary, totals):
    """The listener is gone while a stream still runs."""
    with ServerProcess(binary, ["--no-access-log"]).wait_listening() as server:
        stream = server.connect()
        stream.sendall(post("/v1/completions", json.dumps(
            {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True})))
        assert stream.recv(1024).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        while True:
            try:
                server.connect().close()
            except OSError:
                break
            assert time.monotonic() - begin < 5
        totals["listener closed ms"] = round((time.monotonic() - begin) * 1000, 1)
        # A second signal does not wait for the stream.
        server.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert server.process.wait(30) == 0
        totals["second signal ms"] = round((time.monotonic() - begin) * 1000, 1)
        stream.close()


def accepted_are_answered(binary):
    """One that runs and two that wait for its row, one with a long prompt, when the signal comes."""
    with ServerProcess(binary, ["--no-access-log", "--parallel", "1"]).wait_listening() as server:
        results = []
        bodies = [{"prompt": "Once upon a time", "max_tokens": 1000, "stream": True},
                  {"prompt": "Once upon a time " * 200, "max_tokens": 4},
                  {"prompt": "Once", "max_tokens": 4, "stream": True}]
        threads = []
        for i, body in enumerate(bodies):
            threads.append(threading.Thread(
                target=ask, args=(server, {**body, "ignore_eos": True}, results)))
            threads[-1].start()
            while sum(server.metric(f"kvrm:num_requests_{state}")
                      for state in ("running", "waiting")) <= i:
                assert threads[0].is_alive(), "the first ended before the others waited"
        assert server.metric("kvrm:num_requests_waiting") == 2
        assert server.terminate(60) == 0
        for thread in threads:
            thread.join(30)
        assert results == ["whole"] * len(bodies), results


def killed(binary, rng, want):
    """kill -9 under load; the next server answers as the one before."""
    with ServerProcess(binary, ["--no-access-log"]).wait_listening() as server:
        with server.connect() as connection:
            connection.sendall(post("/v1/completions", json.dumps(
                {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}),
                "Connection: close\r\n"))
            status, text = split(read_all(connection))
        assert status == 200, status
        text = json.loads(text)["choices"][0]["text"]
        assert want in (None, text), (want, text)
        stream = server.connect()
        stream.sendall(post("/v1/completions", json.dumps(
            {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True})))
        stream.recv(1 + int(rng.random() * 4096))
        server.process.kill()
        assert server.process.wait(30) == -signal.SIGKILL
        stream.close()
        return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    totals = {}
    closed_at_once(arguments.binary, totals)
    accepted_are_answered(arguments.binary)
    for _ in range(arguments.runs):
        one_run(arguments.binary, rng, totals)
    want = None
    for _ in range(arguments.kills):
        want = killed(arguments.binary, rng, want)
    totals["slowest"] = round(totals.get("slowest", 0), 2)
    print(f"{arguments.runs} SIGTERMs, {arguments.kills} kills: {totals}")


if __name__ == "__main__":
    sys.exit(main())
