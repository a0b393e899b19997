#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients that read or write too slowly, and a server without descriptors.

Slow heads and bodies get 408 at their limits; a client that does not read is cut; meanwhile others
are served. With few descriptors the server turns away whom it cannot serve, without burning its
core, and serves again when there are some.

    slow_clients.py BINARY [--clients N]
"""

import argparse
import json
import resource
import sys
import time

from server_process import ServerProcess, post, read_all, split

FLAGS = ["--no-access-log", "--timeout-head", "1", "--timeout-body", "3", "--timeout-send", "1",
         "--timeout-keep-alive", "1"]


def slow(binary, count):
    with ServerProcess(binary, FLAGS).wait_listening() as server:
        fds = server.settled_fds(seconds=0)
        heads, bodies, readers = [], [], []
        for _ in range(count):
            connection = server.connect()
            connection.sendall(b"GET /health HTT")
            heads.append(connection)
            connection = server.connect()
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{")
            bodies.append(connection)
        for _ in range(8):
            connection = server.connect(receive_bytes=1024)
            connection.sendall(post("/v1/completions", json.dumps(
                {"prompt": ["Once"] * 8, "max_tokens": 1500, "ignore_eos": True, "stream": True})))
            readers.append(connection)
        assert server.get("/health")[0] == 200
        for kind, connections in (("head", heads), ("body", bodies)):
            for connection in connections:
                status, _ = split(read_all(connection))
                assert status == 408, (kind, status)
                connection.close()
        # The streams are far longer than what socket buffers and the server's own hold: they are
        # cut, and their requests end.
        left = None
        deadline = time.monotonic() + 120
        while server.metric("kvrm:num_requests_running") > 0:
            assert time.monotonic() < deadline
            assert server.get("/health")[0] == 200
            time.sleep(0.1)
        for connection in readers:
            connection.close()
        left = server.settle()
        assert left is None, left
        assert server.settled_fds(fds) <= fds, (server.num_fds(), fds)
        assert server.terminate() == 0
    return f"{2 * count} slow writers, {len(readers)} readers that do not read"


def without_descriptors(binary):
    limit = 200

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with ServerProcess(binary, ["--no-access-log", "--timeout-keep-alive", "60", "--timeout-head",
                                "60"], preexec=few).wait_listening() as server:
        # More than it may have; the rest waits in the backlog.
        idle = [server.connect() for _ in range(limit + 50)]
        begin, cpu = time.monotonic(), server.cpu_seconds()
        time.sleep(1)
        share = (server.cpu_seconds() - cpu) / (time.monotonic() - begin)
        num_fds = server.num_fds()
        for connection in idle:
            connection.close()
        left = server.settle()
        assert left is None, left
        assert server.get("/health")[0] == 200
        assert num_fds < limit
        assert server.terminate() == 0
    return f"{len(idle)} connections with {limit} descriptors: {num_fds} used, {share:.1%} of a core"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--clients", type=int, default=200)
    arguments = parser.parse_args()
    print(slow(arguments.binary, arguments.clients))
    print(without_descriptors(arguments.binary))


if __name__ == "__main__":
    sys.exit(main())
