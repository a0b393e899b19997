// SPDX-License-Identifier: Apache-2.0
// Starts `kvrm serve` on a free port and stops it; the tests' only way to a server.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

export const binary =
  process.env.KVRM_BIN ?? fileURLToPath(new URL("../../build/release/kvrm", import.meta.url));

export class KvrmServer {
  // Resolves when the server has printed its address. Given the test's context, the process ends
  // with the test, whatever becomes of it.
  static async start(args = [], context = null) {
    const server = new KvrmServer();
    server.stdout = "";
    server.stderr = "";
    // One worker: beside other work on a small machine, two would wait for each other.
    const port = args.includes("--port") ? [] : ["--port", "0"];
    server.process = spawn(binary, ["serve", "--threads", "1", ...port, ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    server.exited = new Promise((resolve) => {
      server.process.on("error", (error) => resolve({ error }));
      server.process.on("exit", (code, signal) => resolve({ code, signal }));
    });
    server.process.stderr.on("data", (data) => (server.stderr += data));
    context?.after(() => server.process.kill("SIGKILL"));
    const listening = new Promise((resolve) => {
      server.process.stdout.on("data", (data) => {
        server.stdout += data;
        const match = /listening on (http:\/\/\S+)/.exec(server.stdout);
        if (match) resolve(match[1]);
      });
    });
    const ended = server.exited.then((how) => {
      throw new Error(`the server ended: ${JSON.stringify(how)}\n${server.stderr}`);
    });
    ended.catch(() => {});
    server.url = await Promise.race([listening, ended]);
    return server;
  }

  // Sends the signal and resolves to {code, signal} once the process has ended.
  async stop(signal = "SIGTERM") {
    this.process.kill(signal);
    return this.exited;
  }

  // Resolves once stderr holds a line that matches.
  async logged(pattern) {
    for (let i = 0; i < 1000; ++i) {
      if (pattern.test(this.stderr)) return;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error(`no line like ${pattern} in:\n${this.stderr}`);
  }
}
