// SPDX-License-Identifier: Apache-2.0
// Every measurement runs on something tiny and gives finite numbers; what the numbers are is not
// asked, for the machine may be busy.
#include "bench/bench.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/attention.h"
#include "bench/matmul.h"
#include "bench/peak.h"
#include "bench/pinned_threads.h"
#include "bench/sample.h"
#include "bench/steps.h"
#include "exec/worker_team.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kWorkers = 2;
const BenchOptions kOptions = {.num_workers = kWorkers, .repetitions = 1};

// Numbers of a machine on which everything takes a second a GB or GMAC.
Peaks UnitPeaks() {
  return {.kernels = "test",
          .num_workers = kWorkers,
          .buffer_bytes = 0,
          .read_bytes = {1e9, 1e9},
          .arithmetic = {{"mac", PeakKind::kF32, {1e9, 1e9}}}};
}

// The lines that `run` gives, through their JSON text.
std::vector<json::object> Lines(const std::function<void(const BenchSink&)>& run) {
  std::vector<json::object> lines;
  run(JsonLines([&](const std::string& text) {
    EXPECT_EQ(text.find('\n'), text.size() - 1);
    const json::value value = OrThrow(ParseJson(text));
    lines.push_back(value.as_object());
  }));
  return lines;
}

void ExpectPositive(const json::object& line, const std::set<std::string>& names) {
  for (const std::string& name : names) {
    ASSERT_TRUE(line.contains(name)) << name;
    const auto number = line.at(name).to_number<double>();
    EXPECT_TRUE(std::isfinite(number) && number > 0) << name << " is " << number;
  }
}

std::string RefusalOf(const std::function<void()>& run) {
  try {
    run();
  } catch (const StartError& error) {
    return error.what();
  }
  return "not refused";
}

TEST(Bench, PeaksOfEveryTableAreFinite) {
  WorkerTeam team(kWorkers);
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16"}) {
    const CpuKernels* kernels = FindCpuKernels(name);
    if (kernels == nullptr) continue;
    SCOPED_TRACE(name);
    const Peaks peaks =
        MeasurePeaks({.repetitions = 1, .buffer_bytes = 1}, *kernels, team, SystemClock());
    const std::vector<json::object> lines =
        Lines([&](const BenchSink& sink) { ReportPeaks(peaks, sink); });
    ASSERT_GE(lines.size(), 3u);
    for (const json::object& line : lines) {
      ExpectPositive(line, {"one_worker", "all_workers", "workers"});
      EXPECT_EQ(line.at("kernels").as_string(), name);
    }
    EXPECT_GT(peaks.Macs(PeakKind::kInt8), 0);
    EXPECT_GT(peaks.Macs(PeakKind::kBf16), 0);
  }
}

TEST(Bench, TheRoofIsTheLongerOfTheTwo) {
  const Peaks peaks = UnitPeaks();
  EXPECT_DOUBLE_EQ(peaks.RoofSeconds(2e9, 1e9, PeakKind::kF32), 2.0);
  EXPECT_DOUBLE_EQ(peaks.RoofSeconds(2e9, 3e9, PeakKind::kF32), 3.0);
  // A kind without an instruction is done by that for floats.
  EXPECT_DOUBLE_EQ(peaks.RoofSeconds(0, 5e9, PeakKind::kInt8), 5.0);
}

TEST(Bench, MatMulGivesALineForEachTypeShapeAndRows) {
  WorkerTeam team(kWorkers);
  // 40 outputs are no whole share of 16 for two workers.
  const MatMulBench bench = {.types = {DType::kQ8_0, DType::kQ4_K, DType::kBf16},
                             .shapes = {{40, 256}, {16, 512}},
                             .rows = {1, 3},
                             .weight_bytes = 100000};
  const std::vector<json::object> lines = Lines(
      [&](const BenchSink& sink) { RunMatMulBench(bench, kOptions, UnitPeaks(), team, sink); });
  ASSERT_EQ(lines.size(), 12u);
  for (const json::object& line : lines) {
    ExpectPositive(line, {"rows", "bytes", "microseconds", "gb_per_s", "gmac_per_s", "roof_share"});
  }
  EXPECT_EQ(lines[0].at("shape").as_string(), "40x256");
  EXPECT_EQ(lines[4].at("type").as_string(), "Q4_K");
}

TEST(Bench, MatMulOfTheReferenceReadsTheFileLayout) {
  WorkerTeam team(kWorkers);
  BenchOptions options = kOptions;
  options.kernels = "reference";
  const MatMulBench bench = {
      .types = {DType::kQ4_0}, .shapes = {{16, 64}}, .rows = {1}, .weight_bytes = 1000};
  const std::vector<json::object> lines = Lines(
      [&](const BenchSink& sink) { RunMatMulBench(bench, options, UnitPeaks(), team, sink); });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].at("kernels").as_string(), "reference");
}

TEST(Bench, AttentionCountsWhatItReads) {
  WorkerTeam team(kWorkers);
  const AttentionBench bench = {.types = {DType::kF16, DType::kF32},
                                .heads = {{4, 2, 16}, {3, 3, 8}},
                                .rows = {1, 3},
                                .contexts = {1, 70},
                                .kv_bytes = 50000};
  const std::vector<json::object> lines = Lines(
      [&](const BenchSink& sink) { RunAttentionBench(bench, kOptions, UnitPeaks(), team, sink); });
  ASSERT_EQ(lines.size(), 16u);
  for (const json::object& line : lines)
    ExpectPositive(line, {"bytes", "microseconds", "gb_per_s", "gmac_per_s", "roof_share"});
  // 70 positions of K and V, two kv heads of 16 dimensions, two bytes each.
  EXPECT_EQ(lines[1].at("bytes").to_number<int>(), 70 * 2 * 2 * 16 * 2);
}

TEST(Bench, StepsOfTheDemoModel) {
  const Model model = OrThrow(Model::LoadDemo());
  const StepsBench bench = {
      .decode = DecodeCases({1, 2}, {20}, {1, 17, 40}), .prompts = {30}, .chunk = 12};
  const std::vector<json::object> lines = Lines(
      [&](const BenchSink& sink) { RunStepsBench(bench, kOptions, model, UnitPeaks(), sink); });
  ASSERT_EQ(lines.size(), 4u);
  for (const json::object& line : lines) {
    ExpectPositive(line, {"milliseconds", "quiet_milliseconds", "tokens_per_s", "weight_bytes",
                          "kv_bytes", "gb_per_s", "gmac_per_s", "roof_share", "quiet_roof_share",
                          "matmul_share", "attention_share", "other_share", "workers"});
    const double shares = line.at("matmul_share").to_number<double>() +
                          line.at("attention_share").to_number<double>() +
                          line.at("other_share").to_number<double>();
    EXPECT_NEAR(shares, 1.0, 0.01);
  }
  EXPECT_EQ(lines[2].at("context").as_string(), "mixed");
  EXPECT_EQ(lines[2].at("rows").to_number<int>(), 3);
  // Two rows of one context read twice the cache of one, and the weights once.
  EXPECT_EQ(lines[1].at("kv_bytes").to_number<double>(),
            2 * lines[0].at("kv_bytes").to_number<double>());
  EXPECT_EQ(lines[1].at("weight_bytes").to_number<double>(),
            lines[0].at("weight_bytes").to_number<double>());
  // Three chunks read the weights three times.
  EXPECT_EQ(lines[3].at("weight_bytes").to_number<double>(),
            3 * lines[0].at("weight_bytes").to_number<double>());
}

TEST(Bench, SamplingGivesALineForEachWayAndKindOfLogits) {
  const std::vector<json::object> lines = Lines([](const BenchSink& sink) {
    RunSampleBench({.vocabs = {1, 300}, .rows = {1, 2}}, kOptions, sink);
  });
  std::set<std::string> ways;
  for (const json::object& line : lines) {
    ways.emplace(line.at("way").as_string());
    ExpectPositive(line, {"vocab", "rows", "sample_microseconds", "stats_microseconds"});
  }
  EXPECT_GE(ways.size(), 5u);
  EXPECT_EQ(lines.size(), 2 * 2 * 2 * ways.size());
}

TEST(Bench, TheTableNamesItsColumnsWhereTheyChange) {
  std::string text;
  const BenchSink sink = TextTable([&](const std::string& line) { text += line; });
  sink({{"bench", "a"}, {"x", 1.5}});
  sink({{"bench", "a"}, {"x", 20}});
  sink({{"bench", "b"}});
  EXPECT_EQ(text, "\nbench  x\na      1.5\na      20\n\nbench\nb\n");
}

TEST(Bench, JsonNumbersAreWrittenPlainly) {
  std::string text;
  JsonLines([&](const std::string& line) { text += line; })(
      {{"a", 17.04}, {"b", "c\"d"}, {"e", 3}});
  EXPECT_EQ(text, "{\"a\":17.04,\"b\":\"c\\\"d\",\"e\":3}\n");
}

TEST(Bench, RefusalsNameTheFlagAndTheLimit) {
  EXPECT_EQ(RefusalOf([] { CheckBenchOptions({.num_workers = 1025}); }),
            "--workers must be at most 1024, not 1025");
  EXPECT_EQ(RefusalOf([] { CheckBenchOptions({.repetitions = 0}); }),
            "--repetitions must be between 1 and 10000, not 0");
  EXPECT_EQ(RefusalOf([] { ParseCounts("--rows", "1,,2", 8); }),
            "--rows must be numbers from 1 to 8 with commas between them, not '1,,2'");
  EXPECT_EQ(RefusalOf([] { ParseCounts("--rows", "9", 8); }),
            "--rows must be numbers from 1 to 8 with commas between them, not '9'");
  EXPECT_EQ(RefusalOf([] { ParseDType("--type", "q3_k"); }),
            "--type 'q3_k' is none of f32, f16, bf16, q8_0, q4_0, q5_0, q4_k, q5_k, q6_k");
  EXPECT_EQ(RefusalOf([] { ParseKvType("--kv-type", "q4_0"); }),
            "--kv-type 'q4_0' is none of f32, f16, bf16, q8_0");
  EXPECT_EQ(RefusalOf([] { CheckKvHeadDim(DType::kQ8_0, 80); }),
            "a q8_0 cache has blocks of 32 dimensions, and the head dimension is 80");
  for (const char* shape : {"", "8", "8x", "8x0", "8x8x8", "8x8,", "8x2000000"}) {
    EXPECT_EQ(RefusalOf([&] { ParseShapes("--shape", shape); }),
              "--shape must be OUTPUTSxINPUTS, each from 1 to 1048576, with commas between them, "
              "not '" +
                  std::string(shape) + "'");
  }
  for (const char* heads : {"", "4", "4/2", "4/3x8", "4/2x7", "4/2x514", "4/2x8,"}) {
    EXPECT_EQ(RefusalOf([&] { ParseHeads("--heads", heads); }).find("--heads must be HEADS/KV"), 0u)
        << heads;
  }
  EXPECT_EQ(RefusalOf([] { BenchKernels({.kernels = "neon"}); }),
            "--kernels 'neon' are unknown or not supported by this processor");
}

TEST(Bench, RefusalsOfWhatDoesNotFit) {
  WorkerTeam team(1);
  const MatMulBench matmul = {.types = {DType::kQ4_K}, .shapes = {{16, 128}}, .rows = {1}};
  EXPECT_EQ(RefusalOf([&] {
              RunMatMulBench(matmul, kOptions, UnitPeaks(), team, [](const json::object&) {});
            }),
            "--shape 16x128: Q4_K needs inputs that are a multiple of 256");
  const Model model = OrThrow(Model::LoadDemo());
  const std::uint32_t beyond = model.config().max_context + 1;
  const StepsBench steps = {.decode = DecodeCases({1}, {beyond}, {})};
  EXPECT_EQ(RefusalOf([&] {
              RunStepsBench(steps, kOptions, model, UnitPeaks(), [](const json::object&) {});
            }),
            "--context is " + std::to_string(beyond) + "; the model has " +
                std::to_string(model.config().max_context) + " tokens of context");
}

TEST(Bench, RefusalsNameTheBytesThatLack) {
  WorkerTeam team(1);
  const auto nothing = [](const json::object&) {};
  const AttentionBench attention = {.types = {DType::kF32},
                                    .heads = {{64, 64, 512}},
                                    .rows = {4096},
                                    .contexts = {kMaxBenchContext}};
  // K and V of four bytes each.
  const std::uint64_t bytes = std::uint64_t{4096} * kMaxBenchContext * 64 * 512 * 8;
  EXPECT_EQ(RefusalOf([&] {
              RunAttentionBench(attention, kOptions, UnitPeaks(), team, nothing);
            }).find("attention: the KV pool needs " + std::to_string(bytes) + " bytes, and "),
            0u);
  const MatMulBench matmul = {
      .types = {DType::kF32}, .shapes = {{kMaxBenchDim, kMaxBenchDim}}, .rows = {1}};
  EXPECT_EQ(RefusalOf([&] {
              RunMatMulBench(matmul, kOptions, UnitPeaks(), team, nothing);
            }).find("matmul: a set of weights needs "),
            0u);
  const std::string refusal = RefusalOf([&] { CheckMemory("a pool", ~std::uint64_t{0} - 1); });
  EXPECT_EQ(refusal.find("a pool needs 18446744073709551614 bytes, and "), 0u);
}

TEST(Bench, ListsAreParsed) {
  EXPECT_EQ(ParseCounts("--rows", "1,8", 8), (std::vector<std::uint32_t>{1, 8}));
  EXPECT_EQ(ParseDType("--type", "Q4_k"), DType::kQ4_K);
  const std::vector<MatShape> shapes = ParseShapes("--shape", "3x4,5x6");
  ASSERT_EQ(shapes.size(), 2u);
  EXPECT_EQ(shapes[1].outputs, 5u);
  EXPECT_EQ(shapes[1].inputs, 6u);
  const std::vector<HeadShape> heads = ParseHeads("--heads", "9/3x64,4/2x8");
  ASSERT_EQ(heads.size(), 2u);
  EXPECT_EQ(heads[0].kv_heads, 3u);
  EXPECT_EQ(heads[1].head_dim, 8u);
}

TEST(Bench, PinnedThreadsAreFreeAgain) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  {
    const PinnedThreads pinned;
    if (pinned.num_pinned() > 0) {
      cpu_set_t now;
      ASSERT_EQ(sched_getaffinity(0, sizeof(now), &now), 0);
      EXPECT_EQ(CPU_COUNT(&now), 1);
    }
  }
  cpu_set_t after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST(Bench, RoundingKeepsTheLeadingDigits) {
  EXPECT_EQ(Rounded(123456.0), 123500.0);
  EXPECT_EQ(Rounded(0.00123456, 3), 0.00123);
  EXPECT_EQ(Rounded(0.0), 0.0);
  EXPECT_TRUE(std::isinf(Rounded(std::numeric_limits<double>::infinity())));
}

}  // namespace
}  // namespace kvrm
