// SPDX-License-Identifier: Apache-2.0
#include "replay/compare.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "replay/estimate.h"

namespace kvrm {
namespace {

// A context of 1,024 tokens, 16 rows at most, blocks of 16; one block of the memory is the
// sentinel.
EngineOptions Sized(KvView view, std::uint64_t memory_tokens, std::uint32_t num_layers = 32) {
  EngineOptions options;
  options.max_rows = 16;
  options.max_context = 1024;
  options.block_tokens = 16;
  SizeForMemory({.view = view, .memory_tokens = memory_tokens}, num_layers, &options);
  return options;
}

TEST(Estimate, QuantilesAreThoseOfTables) {
  EXPECT_NEAR(StudentT975(1), 12.7062, 1e-4);
  EXPECT_NEAR(StudentT975(9), 2.2622, 1e-4);
  EXPECT_NEAR(StudentT975(31), 2.0395, 1e-4);  // the first of the expansion
  EXPECT_NEAR(StudentT975(60), 2.0003, 1e-4);
  EXPECT_NEAR(StudentT975(1'000'000), 1.95996, 1e-4);
  for (std::uint64_t degrees = 1; degrees < 100; ++degrees)
    EXPECT_GT(StudentT975(degrees), StudentT975(degrees + 1)) << degrees;
}

TEST(Estimate, IntervalsOfAMeanComputedByHand) {
  const std::vector<double> values = {1.0, 2.0, 3.0};
  const Estimate estimate = EstimateMean(values);
  EXPECT_EQ(estimate.count, 3u);
  EXPECT_DOUBLE_EQ(estimate.mean, 2.0);
  EXPECT_NEAR(estimate.high - 2.0, 4.3027 / std::sqrt(3.0), 1e-12);  // a deviation of 1
  EXPECT_NEAR(2.0 - estimate.low, 4.3027 / std::sqrt(3.0), 1e-12);
  const Estimate one = EstimateMean(std::vector<double>{5.0});
  EXPECT_EQ(one.low, 5.0);
  EXPECT_EQ(one.high, 5.0);
  EXPECT_EQ(EstimateMean({}).count, 0u);
}

TEST(Estimate, RatiosArePairedAndGeometric) {
  const std::vector<double> baseline = {1.0, 10.0, 100.0};
  // Twice the baseline in every pair: its spread is not in the interval.
  const Estimate twice = EstimateRatio(std::vector<double>{2.0, 20.0, 200.0}, baseline);
  EXPECT_NEAR(twice.mean, 2.0, 1e-12);
  EXPECT_NEAR(twice.low, 2.0, 1e-9);
  EXPECT_NEAR(twice.high, 2.0, 1e-9);
  const Estimate mixed = EstimateRatio(std::vector<double>{2.0, 5.0, 100.0}, baseline);
  EXPECT_NEAR(mixed.mean, 1.0, 1e-12);
  EXPECT_NEAR(mixed.low * mixed.high, 1.0, 1e-9);
  EXPECT_LT(mixed.low, 0.5);
  EXPECT_EQ(EstimateRatio(std::vector<double>{0.0, 1.0, 1.0}, baseline).count, 0u);
}

TEST(Compare, EveryViewGetsTheSameMemory) {
  const std::uint64_t memory = 8 * 1024 + 16;
  for (const KvView view : {KvView::kExtents, KvView::kPaged, KvView::kMapped}) {
    EXPECT_EQ(Sized(view, memory).max_rows, 16u);
    EXPECT_EQ(Sized(view, memory).kv_tokens, 8 * 1024u);
  }
  // As many rows as whole contexts fit.
  EXPECT_EQ(Sized(KvView::kStatic, memory).max_rows, 8u);
  EXPECT_EQ(Sized(KvView::kStaticBucketed, memory - 1).max_rows, 7u);
  // Windows take at most three quarters; what they leave is the pool.
  EXPECT_EQ(Sized(KvView::kStagedWindows, memory).max_rows, 6u);
  EXPECT_EQ(Sized(KvView::kStagedWindows, memory).kv_tokens, 2 * 1024u);
  // Two layers of 32: 64 tokens a row.
  EXPECT_EQ(Sized(KvView::kStagedLayers, memory).max_rows, 16u);
  EXPECT_EQ(Sized(KvView::kStagedLayers, memory).kv_tokens, 7 * 1024u);
  EXPECT_EQ(Sized(KvView::kExtents, memory).host_kv_bytes, 0u);
}

TEST(Compare, MemoryWithoutRoomForOneContextIsRefusedWithNumbers) {
  for (const KvView view : {KvView::kExtents, KvView::kStatic, KvView::kStagedWindows}) {
    try {
      Sized(view, 1024);  // the sentinel's block is lacking
      ADD_FAILURE() << KvViewName(view);
    } catch (const StartError& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(KvViewName(view)), std::string::npos) << what;
      EXPECT_NE(what.find("1024 tokens of memory"), std::string::npos) << what;
    }
  }
}

TEST(Compare, NamesSayWhatDiffers) {
  const ComparedChoice soft = {.memory_tokens = 4096};
  ComparedChoice buddy = soft;
  buddy.placement = PlacementPolicy::kBuddy;
  ComparedChoice larger = buddy;
  larger.memory_tokens = 8192;
  EXPECT_EQ(ChoiceName(soft, std::vector{soft, soft}), "extents");
  EXPECT_EQ(ChoiceName(buddy, std::vector{soft, buddy}), "extents buddy");
  EXPECT_EQ(ChoiceName(larger, std::vector{buddy, larger}), "extents 8192");
  EXPECT_EQ(ChoiceName(larger, std::vector{soft, buddy, larger}), "extents buddy 8192");
}

TEST(Compare, TheBaselineIsTheFirstThatRan) {
  const auto runs = [](double first, double second) {
    std::vector<std::vector<double>> both;
    for (const double throughput : {first, second}) {
      both.emplace_back(ComparedMeasures().size(), 1.0);
      both.back()[0] = throughput;
    }
    return both;
  };
  const Comparison comparison = {.workload = "a<b",
                                 .target = "sim",
                                 .command = "kvrm compare",
                                 .configs = {{.name = "static", .refused = "no room"},
                                             {.name = "paged", .runs = runs(100.0, 200.0)},
                                             {.name = "extents", .runs = runs(150.0, 300.0)}}};
  const json::value value = boost::json::parse(CompareJson(comparison));
  const json::array& configs = value.at("configs").as_array();
  EXPECT_EQ(configs[0].at("refused").as_string(), "no room");
  EXPECT_TRUE(configs[0].at("ratios").as_object().empty());
  const json::value& over_paged = configs[2].at("ratios").at("paged").at("output_throughput");
  EXPECT_NEAR(over_paged.at("mean").as_double(), 1.5, 1e-9);
  const json::value& over_extents = configs[1].at("ratios").at("extents").at("output_throughput");
  EXPECT_NEAR(over_extents.at("mean").as_double(), 1 / 1.5, 1e-9);
  EXPECT_EQ(configs[2].at("ratios").as_object().size(), 1u);
  EXPECT_NEAR(configs[2].at("measures").at("output_throughput").at("mean").as_double(), 225, 1e-9);
  EXPECT_NE(CompareText(comparison).find("1.500 [1.500, 1.500]"), std::string::npos);
  EXPECT_NE(CompareText(comparison).find("not run: no room"), std::string::npos);
  EXPECT_NE(CompareHtml(comparison).find("a&lt;b"), std::string::npos);
}

}  // namespace
}  // namespace kvrm
