# SPDX-License-Identifier: Apache-2.0
"""Starts a server for the tests of this folder, and speaks to it in raw sockets."""

import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time


class ServerProcess:
    """`kvrm serve` on a free port; killed at the end of a `with`, whatever became of it."""

    def __init__(self, binary, arguments=(), command=None, preexec=None, environment=None):
        # A file, not a pipe: nobody reads it while a test runs.
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command or [binary, "serve", "--port", "0", "--threads", "1", *arguments],
            stdout=subprocess.PIPE, stderr=self.stderr, preexec_fn=preexec,
            env={**os.environ, **(environment or {})})
        self.port = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.stderr.close()

    def wait_listening(self):
        text = b""
        while True:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise AssertionError("the server ended at start: " + self.log())
            text += data
            match = re.search(rb"listening on http://127\.0\.0\.1:(\d+)", text)
            if match:
                self.port = int(match.group(1))
                return self

    def log(self):
        """What it has written to stderr so far."""
        self.stderr.seek(0)
        return self.stderr.read().decode("ascii")

    def connect(self, receive_bytes=0):
        connection = socket.socket()
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def get(self, path):
        """(status, body) of a GET on a connection of its own."""
        with self.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                               .encode())
            return split(read_all(connection))

    def metric(self, name):
        """The sum of a metric's series."""
        _, body = self.get("/metrics")
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", body, re.M)
        return sum(float(value) for value in values)

    def settle(self, seconds=20):
        """Waits until nothing runs and this is the only connection; what is left over otherwise."""
        deadline = time.monotonic() + seconds
        while True:
            left = {name: self.metric(name) for name in
                    ("kvrm:num_requests_running", "kvrm:num_requests_waiting",
                     "kvrm:http_connections")}
            if left["kvrm:http_connections"] <= 1 and sum(left.values()) <= 1:
                return None
            if time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    def num_fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def settled_fds(self, most=0, seconds=10):
        """The number of open descriptors once connections that linger are gone: at most `most`, or
        the last one seen."""
        deadline = time.monotonic() + seconds
        while self.num_fds() > most and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.num_fds()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as stream:
            return int(re.search(r"VmRSS:\s+(\d+)", stream.read()).group(1))

    def terminate(self, seconds=60):
        """SIGTERM, then the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def read_all(connection):
    """Everything until the peer ends, or resets."""
    data = b""
    try:
        while True:
            piece = connection.recv(65536)
            if not piece:
                return data
            data += piece
    except ConnectionError:
        return data


def split(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 else 0), body.decode(errors="replace")


def reset(connection):
    """Closes with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def post(path, body, extra=""):
    data = body.encode()
    return (f"POST {path} HTTP/1.1\r\nHost: a\r\n{extra}Content-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data
