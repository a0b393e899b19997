// SPDX-License-Identifier: Apache-2.0
// The engine's descriptor log, end to end: what was served in any view proves to be sound, and the
// same requests leave the same digests, wherever their blocks lay.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "device/host_device.h"
#include "engine/engine.h"
#include "engine/parts.h"
#include "step/step_log.h"
#include "step/step_replay.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

const SystemClock kClock;

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

using Tokens = std::map<RequestId, std::vector<std::int32_t>>;

// Six requests over four rows: prompts in chunks, some of them sharing a prefix, one with a salt,
// one with two samples.
Tokens Serve(std::unique_ptr<Engine> owned) {
  Engine& engine = *owned;
  const std::vector<std::int32_t> text =
      Demo().tokenizer().Encode("Once upon a time there was a little dog who", {});
  for (std::uint32_t i = 0; i < 6; ++i) {
    Request request = {.prompt = text, .max_tokens = 20 + 7 * i, .sampling = {.seed = i}};
    while (request.prompt.size() < 40 + i)
      request.prompt.push_back(text[request.prompt.size() % text.size()]);
    if (i == 3) request.cache_salt = "tenant";
    if (i == 4) request.num_samples = 2;
    OrThrow(engine.Submit(std::move(request)));
  }
  Tokens tokens;
  do {
    engine.Step();
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      if (event.token >= 0) tokens[event.request].push_back(event.token);
    }
  } while (engine.stats().num_running + engine.stats().num_waiting > 0);
  return tokens;
}

struct Proof {
  StepTotals totals;
  std::map<std::uint64_t, SequenceDigest> digests;
};

Proof Prove(const std::string& path) {
  const std::string content = OrThrow(ReadFile(path, std::uint64_t{1} << 30));
  StepLogReader reader = OrThrow(StepLogReader::Open(std::as_bytes(std::span(content))));
  StepVerifier verifier(reader.header());
  StepReplay replay(reader.header());
  while (!reader.done()) {
    const Result<StepLogRecord> record = reader.Next();
    if (!record) {
      ADD_FAILURE() << record.error().message;
      break;
    }
    if (!verifier.Consume(*record)) {
      ADD_FAILURE() << verifier.violation()->Text();
      break;
    }
    EXPECT_TRUE(replay.Consume(*record));
  }
  return {verifier.totals(), replay.digests()};
}

TEST(DescriptorLog, EveryViewIsSoundAndLeavesTheSameDigests) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("kvrm_engine_log." + std::to_string(::getpid())))
          .string();
  Tokens tokens;
  std::map<std::uint64_t, SequenceDigest> digests;
  std::uint64_t num_copies = 0;
  std::uint64_t num_maps = 0;
  for (int v = 0; v < kNumKvViews; ++v) {
    for (const std::uint64_t placement_seed : {0u, 7u}) {
      const EngineOptions options = {.max_rows = 4,
                                     .max_context = 128,
                                     .max_step_tokens = 32 + static_cast<std::uint32_t>(v),
                                     // Tight: rows are preempted and computed once more.
                                     .kv_tokens = v < 2 ? 320u : 0u,
                                     .max_runs = 4,
                                     .view = static_cast<KvView>(v),
                                     .max_queued = 8,
                                     .max_wait_ms = 0,  // a busy machine may take minutes
                                     .num_threads = 1,
                                     .placement_seed = placement_seed,
                                     .descriptor_log = path};
      SCOPED_TRACE(KvViewName(options.view));
      const Tokens served = Serve(std::make_unique<Engine>(Demo(), options, kClock));
      const Proof proof = Prove(path);
      EXPECT_EQ(proof.totals.num_lost, 0u);
      EXPECT_EQ(proof.totals.num_unknown_reads, 0u);
      EXPECT_EQ(proof.digests.size(), 7u);
      num_copies += proof.totals.num_copies;
      num_maps += proof.totals.num_maps;
      if (tokens.empty()) {
        tokens = served;
        digests = proof.digests;
      }
      EXPECT_EQ(served, tokens);
      EXPECT_EQ(proof.digests, digests);
    }
  }
  std::remove(path.c_str());
  EXPECT_EQ(tokens.size(), 7u);
  EXPECT_GT(num_copies, 0u);
  EXPECT_GT(num_maps, 0u);
}

// Every move is cut by layers and lands while its step runs.
TEST(DescriptorLog, CopiesThatLandByLayersAreSoundAndChangeNothing) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("kvrm_layered_log." + std::to_string(::getpid())))
          .string();
  for (const KvView view : {KvView::kExtents, KvView::kStagedLayers, KvView::kStagedWindows}) {
    SCOPED_TRACE(KvViewName(view));
    EngineOptions options = {.max_rows = 4,
                             .max_context = 128,
                             .max_step_tokens = 32,
                             .kv_tokens = 320,
                             .max_runs = 4,
                             .view = view,
                             .max_queued = 8,
                             .max_wait_ms = 0,
                             .pace = {.itl_factor = 0},  // the same steps whatever they take
                             .placement_seed = 7};
    options.descriptor_log = path;
    std::map<bool, Tokens> tokens;
    std::map<bool, Proof> proofs;
    for (const bool layered : {false, true}) {
      options.layered_move_bytes = layered ? 0 : ~std::uint64_t{0};
      HostDevice device({.copy_thread = layered});
      const EngineParts parts = HostParts(Demo(), device, {.num_threads = 2});
      tokens[layered] = Serve(std::make_unique<Engine>(parts, options, kClock));
      proofs[layered] = Prove(path);
    }
    EXPECT_EQ(tokens[true], tokens[false]);
    EXPECT_EQ(proofs[true].digests, proofs[false].digests);
    EXPECT_EQ(proofs[true].totals.num_copied_blocks, proofs[false].totals.num_copied_blocks);
    EXPECT_GT(proofs[true].totals.num_copies, proofs[false].totals.num_copies);
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace kvrm
