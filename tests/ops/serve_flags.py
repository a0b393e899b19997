#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kvrm serve from outside: where flags come from, what a service manager hears, logs, TLS.

    serve_flags.py BINARY
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time

from server_process import ServerProcess, post, read_all, split


def refused(binary, arguments, words, environment=None):
    """The command ends with status 2 and one line that has all the words."""
    result = subprocess.run([binary, "serve", *arguments], capture_output=True, text=True, timeout=60,
                            env={**os.environ, **(environment or {})}, check=False)
    assert result.returncode == 2, (arguments, result)
    for word in words:
        assert word in result.stderr, (word, result.stderr)


def write(folder, name, text, mode=0o600):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(path, mode)
    return path


def check_sources(binary, folder):
    """The command line wins over the environment, which wins over the file."""
    path = write(folder, "all.toml", "# comment\n[serve]\nport = 0  # any\nthreads = 1\n"
                 "served-model-name = 'of file'\nroot-path = \"/file\"\n"
                 "api-key = ['one', \"two\"]\nlog-format = json\nverbose = true\n")
    with ServerProcess(None, command=[binary, "serve", "--config", path, "--alias", "of line"],
                       environment={"KVRM_ARG_API_PREFIX": "/env",
                                    "KVRM_ARG_ALIAS": "of env"}).wait_listening() as server:
        def models(prefix, key):
            with server.connect() as connection:
                connection.sendall(f"GET {prefix}/v1/models HTTP/1.1\r\nHost: a\r\nX-Api-Key: {key}\r\n"
                                   "Connection: close\r\n\r\n".encode())
                return split(read_all(connection))
        assert models("", "three")[0] == 401
        assert models("/file", "one")[0] == 404
        status, body = models("/env", "two")
        assert status == 200 and json.loads(body)["data"][0]["id"] == "of line", body
        assert server.terminate() == 0
        lines = [json.loads(line) for line in server.log().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [401, 404, 200], requests
    assert all(line["id"].startswith("req-") and line["ms"] >= 0 for line in requests)
    assert lines[-1]["event"] == "stopped" and lines[-1]["level"] == "info"


def check_errors(binary, folder):
    for text, words in (("port = 0\nprot = 1\n", [":2:", "--prot"]),
                        ("port = x\n", [":1:", "--port"]),
                        ("max-num-seqs = 0\n", [":1:", "--max-num-seqs"]),
                        ("port = 1\nport = 2\n", [":2:", "twice"]),
                        ("port 1\n", [":1:", "flag = value"]),
                        ("port = 1 2\n", [":1:", "port"]),
                        ("alias = \"open\n", [":1:", "alias"]),
                        ("[other]\n", [":1:", "[serve]"]),
                        ("config = \"x\"\n", [":1:", "no other file"]),
                        ("model = \"a\"\ndummy = \"1.2B\"\n", [":2:", "--dummy"])):
        refused(binary, ["--config", write(folder, "bad.toml", text)], words)
    refused(binary, ["--config", os.path.join(folder, "absent")], ["absent"])
    refused(binary, [], ["KVRM_ARG_PROT"], {"KVRM_ARG_PROT": "1"})
    refused(binary, [], ["KVRM_ARG_PORT"], {"KVRM_ARG_PORT": "x"})
    refused(binary, ["--host", "0.0.0.0"], ["--api-key"])
    refused(binary, ["--api-key", "two words"], ["blank"])
    refused(binary, ["--api-key-file", write(folder, "open", "k\n", 0o644)], ["chmod"])
    refused(binary, ["--ssl-key-file", "x"], ["certificate"])
    refused(binary, ["--root-path", "x"], ["slash"])
    refused(binary, ["--log-format", "xml"], ["text, json"])
    for flag in ("--cache-ram", "--kv-offloading-size", "--queue-timeout", "--max-step-ms"):
        refused(binary, [flag, "nan"], [flag, "nan"])
    refused(binary, [], ["KVRM_ARG_CACHE_RAM", "nan"], {"KVRM_ARG_CACHE_RAM": "nan"})


def check_public_without_key(binary):
    command = [binary, "serve", "--threads", "1", "--port", "0", "--host", "0.0.0.0",
               "--insecure-public-without-key"]
    with ServerProcess(None, command=command) as server:
        while "\n" not in server.log():
            time.sleep(0.01)
        assert "warning public_without_key" in server.log(), server.log()
        assert server.terminate() == 0


def check_service_manager(binary, folder):
    """READY once it listens, life while it idles, and STOPPING; all without a library."""
    name = os.path.join(folder, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(30)
        with ServerProcess(binary, environment={"NOTIFY_SOCKET": name,
                                                "WATCHDOG_USEC": "400000"}) as server:
            server.wait_listening()
            heard = [manager.recv(256) for _ in range(5)]
            assert heard == [b"READY=1"] + [b"WATCHDOG=1"] * 4, heard
            assert server.terminate() == 0
            while (last := manager.recv(256)) == b"WATCHDOG=1":
                pass
            assert last == b"STOPPING=1", last


def check_tls(binary, folder):
    certificate, key = os.path.join(folder, "tls.crt"), os.path.join(folder, "tls.key")
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                           "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-addext",
                           "subjectAltName=IP:127.0.0.1", "-days", "1", "-keyout", key, "-out",
                           certificate], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    command = [binary, "serve", "--threads", "1", "--port", "0", "--ssl-certfile", certificate,
               "--ssl-keyfile", key]
    with ServerProcess(None, command=command) as server:
        text = b""
        while b"listening on https://127.0.0.1:" not in text or b"Ctrl-C" not in text:
            text += os.read(server.process.stdout.fileno(), 65536)
        server.port = int(text.split(b"https://127.0.0.1:")[1].split(b"\n")[0])
        context = ssl.create_default_context(cafile=certificate)
        with context.wrap_socket(server.connect(), server_hostname="127.0.0.1") as connection:
            assert connection.version() == "TLSv1.3"
            connection.sendall(post("/v1/completions", json.dumps(
                {"prompt": "Once", "max_tokens": 64, "stream": True}), "Connection: close\r\n"))
            status, body = split(read_all(connection))
        assert status == 200 and body.endswith("data: [DONE]\n\n\r\n0\r\n\r\n"), body[-80:]
        assert server.terminate() == 0


def check_logs_hide_what_they_must(binary):
    """Prompts, answers and keys are in no line, and what a client sends makes no second line."""
    with ServerProcess(binary, ["--api-key", "hush-key", "-v"]).wait_listening() as server:
        for extra in ("X-Api-Key: hush-key\r\n", "X-Api-Key: hush-wrong\r\n"):
            with server.connect() as connection:
                connection.sendall(post("/v1/completions?hush-query", json.dumps(
                    {"prompt": "hush-prompt", "max_tokens": 3, "unknown\nfield": "hush-value"}),
                    extra + "Connection: close\r\n"))
                read_all(connection)
        with server.connect() as connection:
            connection.sendall(b"GET /a%0ab\x1b HTTP/1.1\r\n\r\n")
            read_all(connection)
        assert server.terminate() == 0
        text = server.log()
    assert "hush" not in text, text
    for line in text.splitlines():
        assert line[:4].isdigit() and all(" " <= c < "\x7f" for c in line), line


def check_log_reader_that_stops(binary):
    """Nobody reads the pipe that is stderr: requests are answered all the same."""
    process = subprocess.Popen([binary, "serve", "--threads", "1", "--port", "0", "-v"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        text = b""
        while b"Ctrl-C" not in text:
            text += os.read(process.stdout.fileno(), 65536)
        port = int(text.split(b"http://127.0.0.1:")[1].split(b"\n")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            for _ in range(900):  # lines of 130 bytes: nearly twice what a pipe holds
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                while not connection.recv(4096).endswith(b'{"status":"ok"}'):
                    pass
    finally:
        process.kill()
        _, log = process.communicate()
    assert 60000 < len(log) <= 65536, len(log)


def main():
    binary = sys.argv[1]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        check_sources(binary, folder)
        check_errors(binary, folder)
        check_public_without_key(binary)
        check_service_manager(binary, folder)
        check_tls(binary, folder)
        check_logs_hide_what_they_must(binary)
        check_log_reader_that_stops(binary)
    print(f"all in {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
