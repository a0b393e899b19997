// SPDX-License-Identifier: Apache-2.0
// Start, keys, drain and end of the process.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { KvrmServer } from "./server.mjs";

const endless = {
  model: "any",
  prompt: "Once upon a time",
  stream: true,
  ignore_eos: true,
  max_tokens: 1500,
};

test("beyond loopback a key is required", async (t) => {
  await assert.rejects(KvrmServer.start(["--host", "0.0.0.0"], t), /--api-key/);
});

test("with a key, nothing but /health answers without it", async (t) => {
  const server = await KvrmServer.start(["--api-key", "secret"], t);
  const client = (apiKey) => new OpenAI({ baseURL: `${server.url}/v1`, apiKey, maxRetries: 0 });
  await assert.rejects(client("wrong").models.list(), OpenAI.AuthenticationError);
  assert.equal((await client("secret").models.list()).data.length, 1);
  assert.equal((await fetch(`${server.url}/health`)).status, 200);
  assert.equal((await server.stop()).code, 0);
  assert.ok(!server.stderr.includes("secret"));
});

test("the first signal lets a running stream finish", async (t) => {
  const server = await KvrmServer.start([], t);
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  const stream = await client.completions.create({ ...endless, max_tokens: 200 });
  let chunks = 0;
  let reason = null;
  for await (const chunk of stream) {
    if (++chunks === 1) server.process.kill("SIGTERM");
    reason = chunk.choices[0].finish_reason ?? reason;
  }
  assert.equal(reason, "length");
  assert.equal((await server.exited).code, 0);
  await assert.rejects(fetch(`${server.url}/health`));
});

test("when the drain limit is reached the stream ends with an error", async (t) => {
  const server = await KvrmServer.start(["--shutdown-timeout", "0"], t);
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  const stream = await client.completions.create(endless);
  let signalled = false;
  await assert.rejects(async () => {
    for await (const _ of stream) {
      // Once: a second signal would end the server before it can say so.
      if (!signalled) server.process.kill("SIGTERM");
      signalled = true;
    }
  }, /shutting down/);
  assert.equal((await server.exited).code, 0);
});

test("a port in use is said in one line", async (t) => {
  const server = await KvrmServer.start([], t);
  const port = new URL(server.url).port;
  await assert.rejects(KvrmServer.start(["--port", port], t), /cannot listen on 127.0.0.1/);
  assert.equal((await server.stop("SIGINT")).code, 0);
});
