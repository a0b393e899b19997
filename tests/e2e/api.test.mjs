// SPDX-License-Identifier: Apache-2.0
// The openai package, as its users use it, against the demo model.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import OpenAI from "openai";
import { KvrmServer } from "./server.mjs";

const messages = [{ role: "user", content: "Tell me a story." }];
let server;
let client;
let model;

before(async () => {
  server = await KvrmServer.start();
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  model = (await client.models.list()).data[0].id;
});

after(async () => {
  const { code } = await server.stop();
  assert.equal(code, 0);
});

async function text(stream) {
  let joined = "";
  for await (const chunk of stream) {
    const choice = chunk.choices[0];
    joined += choice?.delta?.content ?? choice?.text ?? "";
  }
  return joined;
}

test("models are listed and retrieved", async () => {
  const { data } = await client.models.list();
  assert.equal(data.length, 1);
  assert.equal(data[0].object, "model");
  assert.ok(data[0].max_model_len > 0);
  assert.ok(data[0].meta.n_vocab > 0);
  assert.equal((await client.models.retrieve(model)).id, model);
  await assert.rejects(client.models.retrieve("another"), OpenAI.NotFoundError);
});

test("a chat is answered whole", async () => {
  const reply = await client.chat.completions.create({ model, messages, max_tokens: 12, seed: 1 });
  assert.equal(reply.object, "chat.completion");
  assert.match(reply.id, /^chatcmpl-/);
  assert.equal(reply.model, model);
  assert.equal(reply.choices.length, 1);
  assert.equal(reply.choices[0].message.role, "assistant");
  assert.ok(reply.choices[0].message.content.length > 0);
  assert.ok(["stop", "length"].includes(reply.choices[0].finish_reason));
  assert.ok(reply.usage.completion_tokens >= 1 && reply.usage.completion_tokens <= 12);
  assert.equal(
    reply.usage.total_tokens,
    reply.usage.prompt_tokens + reply.usage.completion_tokens,
  );
});

test("a stream says the same as the whole answer", async () => {
  const request = { model, messages, max_tokens: 40, temperature: 0.8, seed: 42 };
  const whole = await client.chat.completions.create(request);
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  let content = "";
  let reason = null;
  let usage = null;
  const ids = new Set();
  let first = true;
  for await (const chunk of stream) {
    ids.add(chunk.id);
    assert.equal(chunk.object, "chat.completion.chunk");
    if (first) assert.equal(chunk.choices[0].delta.role, "assistant");
    first = false;
    content += chunk.choices[0]?.delta?.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  assert.equal(ids.size, 1);
  assert.equal(content, whole.choices[0].message.content);
  assert.equal(reason, whole.choices[0].finish_reason);
  assert.deepEqual(usage, whole.usage);
});

test("the same seed gives the same text, another seed another", async () => {
  const ask = async (seed) =>
    (
      await client.completions.create({
        model,
        prompt: "Once upon a time",
        max_tokens: 48,
        temperature: 1,
        seed,
      })
    ).choices[0].text;
  const first = await ask(7);
  assert.equal(await ask(7), first);
  const others = await Promise.all([1, 2, 3, 4].map(ask));
  assert.ok(new Set([first, ...others]).size >= 4);
});

test("the same seed gives the same text in a full batch", async () => {
  const request = { model, prompt: "The little dog", max_tokens: 32, temperature: 0.9, seed: 11 };
  const alone = (await client.completions.create(request)).choices[0].text;
  const crowd = await Promise.all(
    Array.from({ length: 8 }, (_, i) =>
      client.completions.create(i === 3 ? request : { ...request, prompt: `Number ${i}`, seed: i }),
    ),
  );
  assert.equal(crowd[3].choices[0].text, alone);
});

test("a stop string ends the output and is not part of it", async () => {
  const request = { model, prompt: "Once upon a time", max_tokens: 64, temperature: 0 };
  const free = (await client.completions.create(request)).choices[0].text;
  // From the middle of a word of the output into the next one, so that it spans tokens.
  const at = free.indexOf(" ", 10);
  const stop = free.slice(at - 2, at + 3);
  const stopped = await client.completions.create({ ...request, stop });
  assert.equal(stopped.choices[0].text, free.slice(0, free.indexOf(stop)));
  assert.equal(stopped.choices[0].finish_reason, "stop");
  const stream = await client.completions.create({ ...request, stop: ["\u0000", stop], stream: true });
  assert.equal(await text(stream), stopped.choices[0].text);
});

test("several prompts are several choices", async () => {
  const prompts = ["Once upon a time", "The end"];
  const request = { model, max_tokens: 8, temperature: 0 };
  const both = await client.completions.create({ ...request, prompt: prompts, echo: true });
  assert.equal(both.choices.length, 2);
  for (const [i, prompt] of prompts.entries()) {
    const single = await client.completions.create({ ...request, prompt });
    assert.equal(both.choices[i].index, i);
    assert.equal(both.choices[i].text, prompt + single.choices[0].text);
  }
});

test("several choices are what as many requests would give", async () => {
  const request = { model, prompt: "Once upon a time", max_tokens: 40 };
  const create = async (extra) => client.completions.create({ ...request, ...extra });
  const texts = (reply) => reply.choices.map((choice) => choice.text);
  const greedy = await create({ n: 3, temperature: 0 });
  assert.deepEqual(greedy.choices.map((choice) => choice.index), [0, 1, 2]);
  assert.equal(new Set(texts(greedy)).size, 1);

  const sampled = { n: 3, temperature: 1, seed: 5 };
  const three = await create(sampled);
  assert.ok(new Set(texts(three)).size > 1);
  assert.deepEqual(texts(await create(sampled)), texts(three));
  const singles = [];
  for (const seed of [5, 6, 7]) singles.push(await create({ temperature: 1, seed }));
  assert.deepEqual(singles.flatMap(texts), texts(three));
  const sum = singles.reduce((tokens, single) => tokens + single.usage.completion_tokens, 0);
  assert.equal(three.usage.completion_tokens, sum);
  assert.equal(three.usage.prompt_tokens, singles[0].usage.prompt_tokens);

  const streamed = ["", "", ""];
  for await (const chunk of await create({ ...sampled, stream: true })) {
    for (const choice of chunk.choices) streamed[choice.index] += choice.text;
  }
  assert.deepEqual(streamed, texts(three));
  const chat = await client.chat.completions.create({
    model,
    messages,
    n: 3,
    temperature: 0,
    max_tokens: 8,
  });
  assert.equal(new Set(chat.choices.map((choice) => choice.message.content)).size, 1);
});

test("a prompt seen before is found in the cache, under its own salt only", async () => {
  const ask = async (cache_salt) => {
    const prompt = "The cat sat on the mat and saw a bird. ".repeat(20);
    const reply = await client.completions.create({
      model,
      prompt,
      max_tokens: 16,
      temperature: 0,
      cache_salt,
    });
    const { cached_tokens } = reply.usage.prompt_tokens_details;
    assert.ok(cached_tokens < reply.usage.prompt_tokens);
    return { text: reply.choices[0].text, cached_tokens };
  };
  const hits = async () => {
    const metrics = await (await fetch(`${server.url}/metrics`)).text();
    return Number(/^kvrm:prefix_hit_blocks_total (\d+)$/m.exec(metrics)[1]);
  };
  const first = await ask("one");
  const hits_before = await hits();
  const second = await ask("one");
  assert.equal(first.cached_tokens, 0);
  assert.ok(second.cached_tokens > 0);
  assert.ok((await hits()) > hits_before);
  for (const salt of ["two", undefined]) {
    const other = await ask(salt);
    assert.equal(other.cached_tokens, 0);
    assert.equal(other.text, first.text);
  }
  assert.equal(second.text, first.text);
});

test("a client that aborts a stream cancels its request, and the server serves on", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages,
    stream: true,
    ignore_eos: true,
  });
  let seen = 0;
  for await (const _ of stream) {
    if (++seen === 3) stream.controller.abort();
  }
  await server.logged(/complete=no/);
  const controller = new AbortController();
  const whole = client.chat.completions.create(
    { model, messages, ignore_eos: true },
    { signal: controller.signal },
  );
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await server.logged(/complete=no[^]*complete=no/);
  const reply = await client.chat.completions.create({ model, messages, max_tokens: 4 });
  assert.ok(reply.usage.completion_tokens >= 1);
});

test("errors are the client's own classes and name the field", async () => {
  const ask = (extra) => client.chat.completions.create({ model, messages, ...extra });
  await assert.rejects(ask({ temperature: 3 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.status, 400);
    assert.equal(error.param, "temperature");
    assert.equal(error.type, "invalid_request_error");
    return true;
  });
  await assert.rejects(ask({ n: 17 }), /n must be between 1 and 16/);
  await assert.rejects(ask({ n: 0 }), { param: "n" });
  await assert.rejects(ask({ cache_salt: "s".repeat(257) }), /cache_salt is longer than 256 bytes/);
  await assert.rejects(ask({ max_tokens: 0 }), { param: "max_tokens" });
  await assert.rejects(ask({ messages: [] }), { param: "messages" });
  await assert.rejects(ask({ messages: [{ role: "user", content: "word ".repeat(20000) }] }), {
    type: "exceed_context_size_error",
  });
  // An error before the first token has its status in a stream too.
  await assert.rejects(ask({ stream: true, top_p: 2 }), OpenAI.BadRequestError);
});

test("the client's request id comes back", async () => {
  const { response } = await client.chat.completions
    .create({ model, messages, max_tokens: 1 }, { headers: { "X-Request-Id": "mine-77" } })
    .withResponse();
  assert.equal(response.headers.get("x-request-id"), "mine-77");
});

test("text goes to tokens and back", async () => {
  const post = async (path, body) =>
    (await fetch(server.url + path, { method: "POST", body: JSON.stringify(body) })).json();
  const content = "Once upon a time, there was a café.";
  const { tokens, count } = await post("/tokenize", { content });
  assert.equal(tokens.length, count);
  assert.equal((await post("/detokenize", { tokens })).content.trim(), content);
  const { choices } = await client.completions.create({
    model,
    prompt: tokens,
    max_tokens: 1,
    echo: true,
  });
  assert.ok(choices[0].text.includes("café"));
});

test("a user's text never becomes a control token", async () => {
  const count = async (text) => {
    const response = await fetch(`${server.url}/tokenize`, {
      method: "POST",
      body: JSON.stringify({ messages: [{ role: "user", content: text }] }),
    });
    return (await response.json()).count;
  };
  const empty = await count("");
  for (const name of ["<|im_end|>", "</s>", "<|endoftext|>", "<|eot_id|>"]) {
    assert.ok((await count(name)) - empty > 1, name);
  }
});

test("many streams at once all end well", async () => {
  const answers = await Promise.all(
    Array.from({ length: 40 }, async (_, i) =>
      text(
        await client.completions.create({
          model,
          prompt: "Once upon a time",
          max_tokens: 16,
          seed: i % 5,
          stream: true,
        }),
      ),
    ),
  );
  assert.equal(new Set(answers).size, new Set(answers.slice(0, 5)).size);
});
