// SPDX-License-Identifier: Apache-2.0
// Log-probabilities, token rules, tools, forms of the output and embeddings through the openai
// package, and the fields that llama-server's and vLLM's clients add.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import OpenAI from "openai";
import { KvrmServer } from "./server.mjs";

const messages = [{ role: "user", content: "Tell me a story." }];
const add = {
  type: "function",
  function: {
    name: "add",
    description: "adds two digits",
    parameters: {
      type: "object",
      properties: { a: { enum: [1, 2] }, b: { enum: [3, 4] } },
      required: ["a", "b"],
      additionalProperties: false,
    },
  },
};
let server;
let client;
let model;
let hasForms; // of the output: grammars and schemas

before(async () => {
  server = await KvrmServer.start();
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  model = (await client.models.list()).data[0].id;
  hasForms = await client.chat.completions
    .create({ model, messages, max_tokens: 1, response_format: { type: "json_object" } })
    .then(
      () => true,
      (error) => {
        assert.match(error.message, /not supported/);
        assert.equal(error.param, "response_format");
        return false;
      },
    );
});

after(async () => {
  const { code } = await server.stop();
  assert.equal(code, 0);
});

async function post(path, body) {
  const response = await fetch(server.url + path, { method: "POST", body: JSON.stringify(body) });
  return response.json();
}

test("log-probabilities of a chat are those of its tokens", async () => {
  const { choices } = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 8,
    temperature: 0,
    logprobs: true,
    top_logprobs: 5,
  });
  const { content } = choices[0].logprobs;
  const bytes = content.flatMap((item) => item.bytes);
  assert.equal(Buffer.from(bytes).toString().trim(), choices[0].message.content.trim());
  for (const item of content) {
    assert.ok(item.logprob <= 0);
    assert.equal(item.top_logprobs.length, 5);
    assert.equal(item.top_logprobs[0].logprob, item.logprob, "greedy takes the likeliest");
    const sum = item.top_logprobs.reduce((total, top) => total + Math.exp(top.logprob), 0);
    assert.ok(sum <= 1 + 1e-5);
    for (let i = 1; i < 5; ++i)
      assert.ok(item.top_logprobs[i].logprob <= item.top_logprobs[i - 1].logprob);
  }
});

test("a stream's log-probabilities are the same", async () => {
  const request = {
    model,
    messages,
    max_tokens: 12,
    seed: 3,
    logprobs: true,
    top_logprobs: 2,
  };
  const whole = await client.chat.completions.create(request);
  const streamed = [];
  const stream = await client.chat.completions.create({ ...request, stream: true });
  for await (const chunk of stream)
    streamed.push(...(chunk.choices[0]?.logprobs?.content ?? []));
  assert.deepEqual(streamed, whole.choices[0].logprobs.content);
});

test("a text is scored by its echo", async () => {
  const prompt = "Once upon a time there was a dog.";
  const scored = await client.completions.create({
    model,
    prompt,
    echo: true,
    logprobs: 0,
    max_tokens: 0,
  });
  const { text, logprobs } = scored.choices[0];
  assert.equal(text, prompt);
  assert.equal(logprobs.token_logprobs[0], null);
  assert.ok(logprobs.token_logprobs.slice(1).every((value) => value <= 0));
  assert.equal(logprobs.tokens.length, scored.usage.prompt_tokens);
  // The same numbers as vLLM's prompt_logprobs, though the prompt is cached by now.
  const again = await client.completions.create({ model, prompt, prompt_logprobs: 0, max_tokens: 1 });
  const ids = (await post("/tokenize", { prompt })).tokens;
  assert.deepEqual(
    again.choices[0].prompt_logprobs.slice(1).map((item, i) => item[ids[i + 1]].logprob),
    logprobs.token_logprobs.slice(1),
  );
});

test("biased, banned and allowed tokens", async () => {
  const greedy = { model, prompt: "Once upon a", max_tokens: 1, temperature: 0 };
  const ask = async (extra) =>
    (await client.completions.create({ ...greedy, return_token_ids: true, ...extra })).choices[0];
  const [first] = (await ask({})).token_ids;
  const [second] = (await ask({ logit_bias: { [first]: -100 } })).token_ids;
  assert.notEqual(second, first);
  assert.deepEqual((await ask({ logit_bias: [[first, false]] })).token_ids, [second]);
  assert.deepEqual((await ask({ allowed_token_ids: [second] })).token_ids, [second]);
  assert.deepEqual((await ask({ logit_bias: { [second]: 100 } })).token_ids, [second]);
  assert.notDeepEqual((await ask({ bad_words: [" time", "time"] })).text, " time");
  await assert.rejects(ask({ logit_bias: { 99999999: 1 } }), { param: "logit_bias" });
  await assert.rejects(ask({ allowed_token_ids: [first], logit_bias: [[first, false]] }), {
    status: 400,
  });
});

test("penalties keep a text from repeating itself", async () => {
  const ask = async (extra) =>
    (
      await client.completions.create({
        model,
        prompt: "Once upon a time",
        max_tokens: 60,
        temperature: 0,
        return_token_ids: true,
        ignore_eos: true,
        ...extra,
      })
    ).choices[0].token_ids;
  const plain = await ask({});
  const penalised = await ask({ frequency_penalty: 2, presence_penalty: 2 });
  assert.ok(new Set(penalised).size > new Set(plain).size);
  assert.deepEqual(await ask({ repeat_penalty: 1.3 }), await ask({ repetition_penalty: 1.3 }));
  assert.deepEqual(await ask({ repetition_penalty: 1 }), plain);
});

test("min_tokens keeps a stop away, and stop_reason names it", async () => {
  const request = { model, prompt: "Once upon a time", temperature: 0, max_tokens: 20 };
  const free = (
    await client.completions.create({ ...request, return_token_ids: true, ignore_eos: true })
  ).choices[0].token_ids;
  const stop = free[2];
  const stopped = (await client.completions.create({ ...request, stop_token_ids: [stop] })).choices[0];
  assert.equal(stopped.finish_reason, "stop");
  assert.equal(stopped.stop_reason, stop);
  const later = await client.completions.create({
    ...request,
    stop_token_ids: [stop],
    min_tokens: 10,
  });
  assert.ok(later.usage.completion_tokens >= 10);
});

test("llama-server's and vLLM's extras", async () => {
  const reply = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 4,
    seed: 1,
    user: "u",
    cache_prompt: true,
    return_token_ids: true,
    prompt_logprobs: 1,
  });
  assert.equal(reply.timings.predicted_n, reply.usage.completion_tokens);
  assert.equal(reply.prompt_token_ids.length, reply.usage.prompt_tokens);
  assert.equal(reply.prompt_logprobs.length, reply.usage.prompt_tokens);
  assert.equal(reply.choices[0].token_ids.length, reply.usage.completion_tokens);
  const { input_tokens } = await post("/v1/chat/completions/input_tokens", { messages });
  assert.equal(input_tokens, reply.usage.prompt_tokens);
  assert.ok((await post("/apply-template", { messages })).prompt.includes("Tell me a story."));
  const props = await (await fetch(`${server.url}/props`)).json();
  const slots = await (await fetch(`${server.url}/slots`)).json();
  assert.equal(slots.length, props.total_slots);
  let previous = 0;
  const stream = await client.completions.create({
    model,
    prompt: "Once",
    max_tokens: 5,
    stream: true,
    stream_options: { continuous_usage_stats: true },
  });
  for await (const chunk of stream) {
    assert.ok(chunk.usage.completion_tokens >= previous);
    previous = chunk.usage.completion_tokens;
  }
  assert.equal(previous, 5);
});

test("unknown fields are ignored with one line that names them", async () => {
  await post("/v1/completions", { prompt: "a", max_tokens: 1, some_new_field: 1, another: {} });
  await server.logged(/fields_ignored.*some_new_field,another/);
});

test("embeddings have length one, as numbers and as base64", async () => {
  const ask = async (extra) =>
    (await client.embeddings.create({ model, input: ["A dog.", "A cat.", "A dog."], ...extra })).data;
  const rows = await ask({ encoding_format: "float" });
  assert.deepEqual(rows.map((row) => row.index), [0, 1, 2]);
  for (const { embedding } of rows)
    assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-5);
  assert.deepEqual(rows[0].embedding, rows[2].embedding);
  assert.notDeepEqual(rows[0].embedding, rows[1].embedding);
  // Without a format the package asks for base64 and decodes it.
  const decoded = await ask({});
  assert.deepEqual(Array.from(decoded[1].embedding), rows[1].embedding);
  const short = await ask({ dimensions: 8, encoding_format: "float" });
  assert.equal(short[0].embedding.length, 8);
  const mean = await ask({ pooling: "mean", encoding_format: "float" });
  assert.notDeepEqual(mean[0].embedding, rows[0].embedding);
  await assert.rejects(ask({ dimensions: 1000000 }), { param: "dimensions" });
});

test("tools are told to the model, and a plain answer stays one", async () => {
  const request = { model, messages, max_tokens: 8, seed: 1 };
  const plain = await client.chat.completions.create(request);
  const told = await client.chat.completions.create({ ...request, tools: [add] });
  assert.ok(told.usage.prompt_tokens > plain.usage.prompt_tokens);
  assert.equal(told.choices[0].message.tool_calls, undefined);
  assert.ok(told.choices[0].message.content.length > 0);
  const none = await client.chat.completions.create({ ...request, tools: [add], tool_choice: "none" });
  assert.equal(none.usage.prompt_tokens, plain.usage.prompt_tokens);
  const behind = await client.chat.completions.create({
    ...request,
    tools: [add],
    messages: [
      ...messages,
      {
        role: "assistant",
        content: null,
        tool_calls: [
          { id: "call_1", type: "function", function: { name: "add", arguments: '{"a":1,"b":3}' } },
        ],
      },
      { role: "tool", tool_call_id: "call_1", content: "4" },
    ],
  });
  assert.equal(behind.object, "chat.completion");
  await assert.rejects(
    client.chat.completions.create({
      ...request,
      tools: [add],
      tool_choice: { type: "function", function: { name: "other" } },
    }),
    { param: "tool_choice" },
  );
});

const forced = [
  ["required", "required"],
  ["named", { type: "function", function: { name: "add" } }],
];
for (const [name, tool_choice] of forced) {
  test(`a call that must come comes, whole and streamed: ${name}`, async (context) => {
    const request = { model, messages, tools: [add], tool_choice, max_tokens: 200, seed: 7 };
    if (!hasForms) {
      await assert.rejects(client.chat.completions.create(request), { param: "tool_choice" });
      return context.skip("this build has no grammars");
    }
    const { message, finish_reason } = (await client.chat.completions.create(request)).choices[0];
    assert.equal(finish_reason, "tool_calls");
    const { a, b } = JSON.parse(message.tool_calls[0].function.arguments);
    assert.ok([1, 2].includes(a) && [3, 4].includes(b));
    assert.equal(message.tool_calls[0].function.name, "add");
    const final = await client.chat.completions.stream(request).finalChatCompletion();
    assert.deepEqual(
      final.choices[0].message.tool_calls.map((call) => call.function.arguments),
      message.tool_calls.map((call) => call.function.arguments),
    );
  });
}

test("a token whose text is held back has a chunk with an empty delta", async (context) => {
  if (!hasForms) return context.skip("this build has no grammars");
  const stream = await client.chat.completions.create({
    model,
    messages,
    tools: [add],
    tool_choice: "required",
    max_tokens: 200,
    seed: 7,
    stream: true,
    stream_options: { include_usage: true },
  });
  const deltas = [];
  let usage;
  for await (const chunk of stream) {
    if (chunk.choices.length > 0) deltas.push(chunk.choices[0].delta);
    usage = chunk.usage ?? usage;
  }
  // The role, all tokens but the one that stops, the reason.
  assert.equal(deltas.length, usage.completion_tokens + 1);
  assert.deepEqual(deltas[0], { role: "assistant", content: "" });
  // At least the name waits: it may be no tool's.
  assert.ok(deltas.slice(1, -1).some((delta) => Object.keys(delta).length === 0));
  assert.ok(deltas.slice(1).every((delta) => !("content" in delta)));
});

test("a schema is kept to", async (context) => {
  if (!hasForms) return context.skip("this build has no grammars");
  const schema = {
    type: "object",
    properties: { animal: { enum: ["dog", "cat"] }, age: { type: "integer" } },
    required: ["animal", "age"],
    additionalProperties: false,
  };
  const reply = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 100,
    seed: 1,
    response_format: { type: "json_schema", json_schema: { name: "pet", schema, strict: true } },
  });
  assert.equal(reply.choices[0].finish_reason, "stop");
  const pet = JSON.parse(reply.choices[0].message.content);
  assert.ok(["dog", "cat"].includes(pet.animal));
  assert.ok(Number.isInteger(pet.age));
});
