// SPDX-License-Identifier: Apache-2.0
// Movement is invisible, second part: every view, placement policy and block size, with prefix hits
// from sequence to sequence, prompts shared by several samples, preemption and compaction, gives
// the bits of a dense run: one sequence at a time, its history in one contiguous place, nothing
// shared.
//
// On the demo model and on a small one of random weights, through the same kernels. What is run
// covers every pair of values of every two axes. KVRM_INVARIANCE in the environment asks for more:
//   full   the whole product
//   I/N    part I of N of it, from 1
//   N      a random N of it
// The product is meant for the small model (--gtest_filter='Views.*RandomWeights'), where a setting
// takes a seventh of the time.
#include <gtest/gtest.h>

#include <bit>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/result.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/outputs_for_test.h"
#include "engine/scorer.h"
#include "engine/view_settings_for_test.h"
#include "model/random_model_for_test.h"
#include "model/weights.h"

namespace kvrm {
namespace {

struct Totals {
  std::uint64_t num_preemptions = 0;
  std::uint64_t num_prefix_hits = 0;
  std::uint64_t num_cow_blocks = 0;
  std::uint64_t num_moved_blocks = 0;
  std::uint64_t num_staged_bytes = 0;
  std::uint64_t num_maps = 0;
  std::uint64_t num_resumes = 0;
  std::uint64_t num_resumed_blocks = 0;
  std::uint64_t num_recomputed_tokens = 0;
};

std::vector<Output> Serve(const Model& model, const std::vector<Request>& requests,
                          const EngineOptions& options, bool forks, Totals* totals) {
  const SystemClock clock;
  Engine engine(model, options, clock);
  std::vector<Output> outputs = ServeRequests(engine, requests, forks);
  engine.CheckInvariants();
  const KvStats kv = engine.kv_stats();
  EXPECT_EQ(kv.num_free + kv.num_cached, kv.num_blocks) << "blocks leaked";
  totals->num_preemptions += engine.stats().num_preemptions;
  totals->num_prefix_hits += kv.num_prefix_hits;
  totals->num_cow_blocks += kv.num_cow_blocks;
  totals->num_moved_blocks += kv.num_moved_blocks;
  totals->num_staged_bytes += kv.num_staged_bytes;
  totals->num_maps += kv.num_maps;
  totals->num_resumes += kv.num_resumes;
  totals->num_resumed_blocks += kv.num_resumed_blocks;
  totals->num_recomputed_tokens += engine.stats().num_recomputed_tokens;
  EXPECT_EQ(kv.num_host_free, kv.num_host_blocks) << "host blocks leaked";
  return outputs;
}

// "N" or "I/N"; anything else aborts, for a whole that was misspelt must not pass as done.
std::vector<Cell> CellsAskedFor(std::string_view asked) {
  if (asked == "full") return WholeProduct();
  std::size_t numbers[2] = {};
  std::size_t count = 0;
  const char* at = asked.data();
  const char* const end = at + asked.size();
  for (; count < 2; ++count, ++at) {
    const auto [behind, error] = std::from_chars(at, end, numbers[count]);
    CHECK(error == std::errc() && (behind == end || (*behind == '/' && count == 0)));
    at = behind;
    if (at == end) break;
  }
  if (count == 1) return PartOfProduct(numbers[0], numbers[1]);
  CHECK(numbers[0] > 0);
  Rng rng(20261125, asked);
  std::vector<Cell> cells(numbers[0]);
  for (Cell& cell : cells)
    cell = RandomCell(rng);
  return cells;
}

std::vector<Cell> WantedCells() {
  const char* const asked = std::getenv("KVRM_INVARIANCE");
  if (asked != nullptr) return CellsAskedFor(asked);
  std::vector<Cell> cells = PairwiseCover();
#if defined(KVRM_DEBUG_CHECKS) || defined(__SANITIZE_THREAD__)
  // Sanitizers take ten times as long: a part of the cover that still holds every view and policy.
  std::vector<Cell> part(cells.begin(), cells.begin() + 16);
  return part;
#else
  return cells;
#endif
}

void Report(std::size_t num_cells, std::size_t num_rows, const Totals& totals) {
  std::printf(
      "%zu settings, %zu logit rows; %llu preemptions, %llu prefix hits, %llu blocks copied on "
      "write, %llu moved, %llu bytes staged, %llu mappings; %llu resumed, %llu blocks, "
      "%llu tokens recomputed\n",
      num_cells, num_rows, static_cast<unsigned long long>(totals.num_preemptions),
      static_cast<unsigned long long>(totals.num_prefix_hits),
      static_cast<unsigned long long>(totals.num_cow_blocks),
      static_cast<unsigned long long>(totals.num_moved_blocks),
      static_cast<unsigned long long>(totals.num_staged_bytes),
      static_cast<unsigned long long>(totals.num_maps),
      static_cast<unsigned long long>(totals.num_resumes),
      static_cast<unsigned long long>(totals.num_resumed_blocks),
      static_cast<unsigned long long>(totals.num_recomputed_tokens));
  if (num_cells < 60) return;  // What sanitizers run, or was asked for, reaches less.
  EXPECT_GT(totals.num_preemptions, 10u);
  EXPECT_GT(totals.num_prefix_hits, 100u);
  EXPECT_GT(totals.num_cow_blocks, 50u);
  EXPECT_GT(totals.num_moved_blocks, 20u);
  EXPECT_GT(totals.num_staged_bytes, 0u);
  EXPECT_GT(totals.num_maps, 0u);
  EXPECT_GT(totals.num_resumes, 200u);
  EXPECT_GT(totals.num_resumed_blocks, 100u);
  EXPECT_GT(totals.num_recomputed_tokens, 100u);
}

void CompareWithDense(const Model& model) {
  const std::vector<Request> requests = MakeRequests(model);
  Totals unused;
  const std::vector<Output> dense = Serve(model, requests, DenseOptions(), false, &unused);
  const std::vector<Cell> cells = WantedCells();
  Totals totals;
  std::size_t num_rows = 0;
  for (const Cell& cell : cells) {
    const std::vector<Output> outputs =
        Serve(model, requests, OptionsOf(cell, model.config()), (cell[6] & 2) != 0, &totals);
    std::size_t num_different = 0;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      num_different += outputs[i] != dense[i];
      num_rows += outputs[i].tokens.size();
    }
    EXPECT_EQ(num_different, 0u) << NameOf(cell);
  }
  Report(cells.size(), num_rows, totals);
}

TEST(Views, EveryViewPlacementAndWayOfSharingGivesTheBitsOfADenseRun) {
  const Result<Model> model = Model::LoadDemo();
  ASSERT_TRUE(model.has_value()) << model.error().message;
  CompareWithDense(*model);
}

TEST(Views, EverySettingGivesTheBitsOfADenseRunOnRandomWeights) {
  const RandomModelImage image;
  CompareWithDense(OrThrow(Model::FromGgufBytes(image.bytes(), "random")));
}

std::vector<std::uint32_t> LastLogits(Scorer& scorer, const std::vector<std::int32_t>& tokens) {
  std::vector<std::uint32_t> bits;
  scorer.Score(tokens, [&](std::uint32_t position, std::span<const float> logits) {
    if (position + 1 < tokens.size()) return;
    for (const float logit : logits)
      bits.push_back(std::bit_cast<std::uint32_t>(logit));
  });
  return bits;
}

// Or a wrong block could be read and nobody would know.
TEST(Views, EveryPositionOfAHistoryShowsInTheLogitsOfRandomWeights) {
  const RandomModelImage image;
  const Model model = OrThrow(Model::FromGgufBytes(image.bytes(), "random"));
  Scorer scorer(model, {.max_context = kMaxContext, .num_threads = 1});
  Rng rng(1, "history");
  std::vector<std::int32_t> tokens(kMaxContext);
  for (std::int32_t& token : tokens)
    token = static_cast<std::int32_t>(rng.Below(model.config().vocab_size));
  const std::vector<std::uint32_t> logits = LastLogits(scorer, tokens);
  ASSERT_EQ(LastLogits(scorer, tokens), logits);
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    std::vector<std::int32_t> other = tokens;
    other[i] = (other[i] + 1) % static_cast<std::int32_t>(model.config().vocab_size);
    EXPECT_NE(LastLogits(scorer, other), logits) << "another token at " << i;
    other = tokens;
    std::swap(other[i], other[i + 1]);
    if (other != tokens && i + 2 < tokens.size()) {
      EXPECT_NE(LastLogits(scorer, other), logits) << "two in the wrong order at " << i;
    }
  }
}

TEST(Views, ThePartsOfTheProductAreTheWhole) {
  const std::vector<Cell> whole = WholeProduct();
  EXPECT_EQ(whole.size(), 55'296u);
  std::set<Cell> seen;
  for (std::size_t part = 1; part <= 7; ++part) {
    for (const Cell& cell : PartOfProduct(part, 7))
      EXPECT_TRUE(seen.insert(cell).second) << NameOf(cell);
  }
  EXPECT_EQ(seen, std::set<Cell>(whole.begin(), whole.end()));
}

}  // namespace
}  // namespace kvrm
