// SPDX-License-Identifier: Apache-2.0
// Where the memory is, what may be reserved, and the log of what was done with it.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { KvrmServer, binary } from "./server.mjs";

const run = promisify(execFile);
const small = ["--parallel", "4", "--ctx-size", "256"];

async function complete(server, prompt) {
  const answer = await fetch(`${server.url}/v1/completions`, {
    method: "POST",
    body: JSON.stringify({ prompt, max_tokens: 40, seed: 7, ignore_eos: true }),
  });
  assert.equal(answer.status, 200);
  return (await answer.json()).choices[0].text;
}

test("logs of different views verify and have the same digests", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "kvrm-e2e-"));
  t.after(() => rm(folder, { recursive: true }));
  const seen = [];
  for (const view of ["extents", "staged", "static-padded"]) {
    const log = join(folder, view);
    const flags = [...small, "--kv-view", view, "--prefix-cache", "off", "--descriptor-log", log];
    const server = await KvrmServer.start(flags, t);
    const texts = [await complete(server, "Once upon a time"), await complete(server, "The dog")];
    assert.equal((await server.stop()).code, 0);
    const report = JSON.parse((await run(binary, ["verify", "--replay", "--json", log])).stdout);
    assert.equal(report.ok, true);
    assert.equal(report.view, view);
    assert.equal(report.lost_records, 0);
    assert.equal(report.sequences, 2);
    seen.push(JSON.stringify([texts, report.requests]));
  }
  assert.equal(seen[1], seen[0]);
  assert.equal(seen[2], seen[0]);
});

test("the ledger adds up, and a budget is kept to the byte", async (t) => {
  const server = await KvrmServer.start(small, t);
  await complete(server, "Once upon a time");
  const ledger = await (await fetch(`${server.url}/v1/kv/ledger`)).json();
  const sum = ledger.reserved.reduce((bytes, part) => bytes + part.bytes, 0);
  assert.equal(ledger.reserved_bytes, sum);
  const [tier] = ledger.tiers;
  assert.ok(tier.live_bytes <= tier.mapped_bytes && tier.mapped_bytes <= tier.reserved_bytes);
  const { total, free, held, cached, limbo } = tier.blocks;
  assert.equal(free + held + cached + limbo, total);
  const metrics = await (await fetch(`${server.url}/metrics`)).text();
  assert.match(metrics, new RegExp(`^kvrm:kv_blocks\\{tier="ram",state="cached"\\} ${cached}$`, "m"));
  assert.equal((await server.stop()).code, 0);

  const fits = await KvrmServer.start([...small, "--memory-budget", `${sum}`], t);
  assert.equal((await fits.stop()).code, 0);
  await assert.rejects(
    KvrmServer.start([...small, "--memory-budget", `${sum - 1}`], t),
    new RegExp(`budget is ${sum - 1} bytes and ${sum} are needed`),
  );
  for (const size of ["-5", "18446744073709551616", "x"]) {
    await assert.rejects(KvrmServer.start(["--memory-budget", size], t), /not a number of bytes/);
  }
});
