// SPDX-License-Identifier: Apache-2.0
// StepVerifier against the real cache: whatever KvCache does, in every view, placement and way of
// sharing, with up to three steps in flight, its descriptors prove to be sound.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kv/kv_model.h"
#include "step/step_log.h"
#include "step/step_replay.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

struct Sum {
  std::uint64_t num_steps = 0;
  std::uint64_t num_reads = 0;
  std::uint64_t num_copies = 0;
  std::uint64_t num_slices = 0;
  std::uint64_t num_maps = 0;
  std::uint32_t most_in_flight = 0;
};

TEST(KvLog, EveryRandomProgramVerifies) {
  Sum sum;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    Choices choices(seed);
    KvModelOptions options = RandomKvModelOptions(choices);
    std::unique_ptr<StepVerifier> verifier;
    std::optional<StepReplay> replay;
    options.on_record = [&](const StepLogRecord& record) {
      if (verifier->Consume(record)) replay->Consume(record);
    };
    KvModel model(options, choices);
    verifier = std::make_unique<StepVerifier>(model.log_header());
    replay.emplace(model.log_header());
    for (std::uint32_t i = 0; i < 1000 && !verifier->violation(); ++i)
      model.RandomOp();
    ASSERT_FALSE(verifier->violation().has_value())
        << "seed " << seed << ", " << KvViewName(options.view) << ": "
        << verifier->violation()->Text();
    model.Drain();
    const StepTotals& totals = verifier->totals();
    sum.num_steps += totals.num_steps;
    sum.num_reads += totals.num_reads;
    sum.num_copies += totals.num_copies;
    sum.num_slices += totals.num_slices;
    sum.num_maps += totals.num_maps;
    sum.most_in_flight = std::max(sum.most_in_flight, totals.most_in_flight);
    EXPECT_EQ(totals.num_unknown_reads, 0u);
  }
  EXPECT_GT(sum.num_steps, 10000u);
  EXPECT_GT(sum.num_reads, 1000000u);
  EXPECT_GT(sum.num_copies, 1000u);
  EXPECT_GT(sum.num_slices, 1000u);
  EXPECT_GT(sum.num_maps, 300u);
  EXPECT_EQ(sum.most_in_flight, 3u);
}

}  // namespace
}  // namespace kvrm
