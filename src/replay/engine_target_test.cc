// SPDX-License-Identifier: Apache-2.0
#include "replay/engine_target.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "device/host_device.h"
#include "replay/device_profile.h"
#include "replay/metrics.h"
#include "replay/record.h"
#include "replay/small_engine_for_test.h"
#include "trace/generate.h"

namespace kvrm {
namespace {

std::string TempPath(const std::string& name) {
  return ::testing::TempDir() + "kvrm_" + name + std::to_string(::getpid()) + ".jsonl";
}

struct VirtualReplay {
  DeviceProfile profile = {};
  EngineOptions engine = SmallEngine();
  Workload workload;
  ReplayOptions options = {};

  // The record's text.
  std::string Run(const std::string& name) const {
    SimClock clock;
    HostDevice device;
    StepProbe probe;
    Engine simulated(ProfileParts(profile, device, &probe, &clock), engine, clock);
    const std::string path = TempPath(name);
    {
      RecordWriter writer(path, {.target = "sim", .clock = "virtual", .workload = workload.name});
      ReplayRun run(workload, options, writer);
      EngineTarget target(simulated, probe, clock,
                          {.vocab = {0, kProfileVocab},
                           .bytes_scale = ProfileBytesScale(profile),
                           .wait = [&clock](std::int64_t now_ns, std::int64_t until_ns) {
                             ASSERT_NE(until_ns, kNever);
                             clock.Advance(until_ns - now_ns);
                           }});
      target.Run(run);
      writer.End(clock.NowNs());
    }
    std::FILE* const file = std::fopen(path.c_str(), "rb");
    EXPECT_NE(file, nullptr);
    std::string text(64u << 20, '\0');
    text.resize(std::fread(text.data(), 1, text.size(), file));
    std::fclose(file);
    std::remove(path.c_str());
    return text;
  }
};

TEST(EngineTarget, EqualSeedsGiveEqualRecordsInVirtualTime) {
  for (const WorkloadFamily family :
       {WorkloadFamily::kMixed, WorkloadFamily::kMultiTurn, WorkloadFamily::kSharedPrefix}) {
    VirtualReplay replay;
    replay.workload = Generate(
        {.family = family, .seed = 9, .num_requests = 60, .rate_rps = 20.0, .length_scale = 0.2});
    const std::string first = replay.Run("first");
    EXPECT_EQ(first, replay.Run("second")) << WorkloadFamilyName(family);
    const Result<Record> record = ParseRecord(first);
    ASSERT_TRUE(record) << record.error().message;
    EXPECT_TRUE(record->complete);
    EXPECT_EQ(record->requests.size(), 60u);
    for (const RequestRecord& request : record->requests) {
      EXPECT_EQ(request.finish, "length") << request.error;
      EXPECT_EQ(request.output_tokens, request.asked_tokens);
      EXPECT_EQ(request.gaps_ns.size(), request.output_tokens);
    }
  }
}

TEST(EngineTarget, ALoneRequestTakesWhatTheProfileSays) {
  VirtualReplay replay;
  replay.profile = {
      .step_us = 100.0, .row_us = 10.0, .token_us = 1.0, .kv_byte_ns = 0.0, .move_byte_ns = 0.0};
  replay.workload.requests = {{.arrival_ns = 5000, .prompt_tokens = 130, .output_tokens = 3}};
  const Result<Record> record = ParseRecord(replay.Run("alone"));
  ASSERT_TRUE(record) << record.error().message;
  // 130 tokens are steps of 64, 64 and 2; then one token a step.
  ASSERT_EQ(record->steps.size(), 5u);
  EXPECT_EQ(record->steps[0].at_ns, 5000);
  EXPECT_EQ(record->steps[0].ns, 174'000);
  EXPECT_EQ(record->steps[2].num_tokens, 2u);
  EXPECT_EQ(record->requests[0].gaps_ns,
            (std::vector<std::int64_t>{174'000 * 2 + 112'000, 111'000, 111'000}));
}

TEST(EngineTarget, PromptsCostTheirPairs) {
  VirtualReplay replay;
  replay.profile = {.step_us = 0.0,
                    .row_us = 0.0,
                    .token_us = 0.0,
                    .kv_byte_ns = 0.0,
                    .pair_ns = 1.0,
                    .move_byte_ns = 0.0};
  replay.workload.requests = {{.prompt_tokens = 66, .output_tokens = 2}};
  const Result<Record> record = ParseRecord(replay.Run("pairs"));
  ASSERT_TRUE(record) << record.error().message;
  ASSERT_EQ(record->steps.size(), 3u);
  EXPECT_EQ(record->steps[0].ns, 64 * 65 / 2);
  EXPECT_EQ(record->steps[1].ns, 65 + 66);
  EXPECT_EQ(record->steps[2].ns, 1);  // One token has no pairs of a prompt; no step takes less.
}

TEST(EngineTarget, ConversationsFindTheirHistoryInTheCache) {
  VirtualReplay replay;
  replay.workload = Generate({.family = WorkloadFamily::kMultiTurn,
                              .seed = 3,
                              .num_requests = 20,
                              .rate_rps = 1.0,
                              .length_scale = 0.2});
  const Result<Record> record = ParseRecord(replay.Run("turns"));
  ASSERT_TRUE(record);
  EXPECT_GT(Measure(*record, {}).cached_tokens, 0u);
}

TEST(EngineTarget, WhatTheEngineRefusesIsAFailureOfThatRequestAlone) {
  VirtualReplay replay;
  replay.workload.requests = {{.prompt_tokens = 4000, .output_tokens = 3},
                              {.prompt_tokens = 40, .output_tokens = 3}};
  const Result<Record> record = ParseRecord(replay.Run("refused"));
  ASSERT_TRUE(record);
  const Metrics metrics = Measure(*record, {});
  EXPECT_EQ(metrics.failed, 1u);
  EXPECT_EQ(metrics.completed, 1u);
  EXPECT_NE(record->requests[0].error.find("2048"), std::string::npos);
}

TEST(EngineTarget, VictimsAreCancelledWhenTheirPhasesAreOver) {
  VirtualReplay replay;
  replay.workload = GenerateVictim({.num_victims = 3,
                                    .victim_output = 200,
                                    .phase_s = 0.5,
                                    .long_prompt = 1500,
                                    .num_burst = 10,
                                    .pool_tokens = 4096,
                                    .max_context = 2048});
  const Result<Record> record = ParseRecord(replay.Run("victims"));
  ASSERT_TRUE(record) << record.error().message;
  Record with_phases = *record;
  for (const Phase& phase : replay.workload.phases)
    with_phases.header.phases.push_back({phase.name, phase.begin_ns});
  const Metrics metrics = Measure(with_phases, {});
  EXPECT_EQ(metrics.failed, 0u);
  EXPECT_GT(metrics.completed, 20u);
  ASSERT_EQ(metrics.phases.size(), 5u);
  EXPECT_GT(metrics.phases[1].itl.count, 100u);
  // A step takes at most 64 tokens of the long prompt, and so many the victims wait for.
  EXPECT_GT(metrics.phases[2].itl.max, metrics.phases[1].itl.max);
}

// What the descriptors say has moved is what the cache says it has.
TEST(EngineTarget, MovedBytesAreThoseOfTheCache) {
  const DeviceProfile profile;
  SimClock clock;
  HostDevice device;
  StepProbe probe;
  Engine engine(ProfileParts(profile, device, &probe, &clock),
                {.max_rows = 8,
                 .max_context = 2048,
                 .max_step_tokens = 64,
                 .kv_tokens = 4096,
                 .max_runs = 2,
                 .placement = PlacementPolicy::kLifo,
                 .prefix_cache = false,
                 .max_queued = 4096,
                 .kernels = "scalar"},
                clock);
  const Workload workload = Generate({.family = WorkloadFamily::kFragmentation,
                                      .seed = 5,
                                      .num_requests = 40,
                                      .rate_rps = 50.0,
                                      .length_scale = 0.5});
  const std::string path = TempPath("moved");
  {
    RecordWriter writer(path, {.target = "sim", .clock = "virtual"});
    const ReplayOptions options;
    ReplayRun run(workload, options, writer);
    EngineTarget(engine, probe, clock,
                 {.vocab = {0, kProfileVocab},
                  .wait = [&clock](std::int64_t now_ns,
                                   std::int64_t until_ns) { clock.Advance(until_ns - now_ns); }})
        .Run(run);
    writer.End(clock.NowNs());
  }
  const Result<Record> record = ReadRecord(path);
  std::remove(path.c_str());
  ASSERT_TRUE(record) << record.error().message;
  const KvStats kv = engine.kv_stats();
  const std::uint64_t block_bytes = kv.pool_bytes / (std::uint64_t{kv.num_blocks} + 1);
  EXPECT_GT(kv.num_moved_blocks, 0u);
  EXPECT_EQ(Measure(*record, {}).steps.moved_bytes, kv.num_moved_blocks * block_bytes);
}

TEST(DeviceProfile, NamesTheFieldThatIsWrong) {
  const auto error = [](const char* text) {
    const Result<DeviceProfile> profile = ParseDeviceProfile(text);
    return profile ? "none" : profile.error().message;
  };
  EXPECT_EQ(error(R"({"name":"a","step_us":1.5,"kv_token_bytes":4096})"), "none");
  EXPECT_EQ(error(R"({"step_us":1})"), "device profile: name is missing");
  EXPECT_EQ(error(R"({"name":"a","row_us":-1})"),
            "device profile: row_us is no number from 0 to 1e9");
  EXPECT_NE(error(R"({"name":"a","other":1})").find("other is unknown"), std::string::npos);
  EXPECT_NE(error(R"({"name":"a","max_context":1})").find("max_context"), std::string::npos);
}

}  // namespace
}  // namespace kvrm
