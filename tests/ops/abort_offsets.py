#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients that leave at every byte of a request and of its answer: by FIN, by RST, by half-closing.

The real server with the demo model. After each round nothing may be left of them: no request runs
or waits, no connection and no descriptor is kept, no KV block is held; and a neighbour's answer is,
to the byte, what it was before.

    abort_offsets.py BINARY [--step N]     every Nth offset (1: all, some 15,000 connections)
"""

import argparse
import json
import re
import socket
import sys

from server_process import ServerProcess, post, read_all, reset, split

BODY = json.dumps({"prompt": "Once upon a time there was a", "max_tokens": 24, "temperature": 0,
                   "stream": True, "stream_options": {"include_usage": True},
                   "stop": ["~~~"], "user": "u" * 300})
REQUEST = post("/v1/completions", BODY, "X-Request-Id: abort-offsets\r\n")
NEIGHBOUR = post("/v1/completions", json.dumps({"prompt": "The little dog", "max_tokens": 12,
                                                "temperature": 0}), "Connection: close\r\n")


def leave(connection, how):
    if how == "fin":
        connection.close()
    elif how == "rst":
        reset(connection)
    else:
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
        connection.close()


def neighbour(server):
    with server.connect() as connection:
        connection.sendall(NEIGHBOUR)
        status, body = split(read_all(connection))
    assert status == 200, status
    return json.loads(body)["choices"][0]["text"]


def held_blocks(server):
    _, body = server.get("/metrics")
    return int(re.search(r'^kvrm:kv_blocks\{tier="ram",state="held"\} (\d+)$', body, re.M).group(1))


def in_request(server, offset, how):
    connection = server.connect()
    connection.sendall(REQUEST[:offset])
    leave(connection, how)


def in_answer(server, offset, how):
    """Reads that many bytes of the answer first."""
    connection = server.connect(receive_bytes=2048)
    connection.sendall(REQUEST)
    left = offset
    while left > 0:
        data = connection.recv(left)
        if not data:
            break
        left -= len(data)
    leave(connection, how)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--step", type=int, default=1)
    arguments = parser.parse_args()
    with ServerProcess(arguments.binary, ["--no-access-log"]).wait_listening() as server:
        want = neighbour(server)
        with server.connect() as connection:
            connection.sendall(REQUEST.replace(b"X-Request-Id", b"Connection: close\r\nX-Request-Id"))
            answer = read_all(connection)
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), answer[-80:]
        num_answer = min(len(answer), 4096)
        left = server.settle()
        assert left is None, left
        fds, rss = server.settled_fds(seconds=3), server.rss_kib()
        count = 0
        for name, action, last in (("request", in_request, len(REQUEST)),
                                   ("answer", in_answer, num_answer)):
            for how in ("fin", "rst", "half"):
                for offset in range(0, last + 1, arguments.step):
                    action(server, offset, how)
                    count += 1
                left = server.settle()
                assert left is None, (name, how, left)
                assert held_blocks(server) == 0, (name, how)
                assert server.settled_fds(fds) <= fds, (name, how, server.num_fds(), fds)
                assert neighbour(server) == want, (name, how)
        grown = server.rss_kib() - rss
        assert server.metric("kvrm:http_exceptions_total") == 0
        assert server.terminate() == 0
    print(f"{count} connections left at {len(REQUEST)} bytes of the request and {num_answer} of the "
          f"answer; nothing is left of them, {grown} KiB more resident")


if __name__ == "__main__":
    sys.exit(main())
