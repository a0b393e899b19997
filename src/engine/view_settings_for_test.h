// SPDX-License-Identifier: Apache-2.0
// Settings of an engine under which outputs must be those of a dense run: axes, their product, and
// what is served in each. Tests only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/outputs_for_test.h"
#include "model/weights.h"

namespace kvrm {

inline constexpr std::uint32_t kMaxContext = 128;
inline constexpr std::uint32_t kNumSamples = 3;
inline constexpr std::size_t kNumPrompts = 14;

// The axes, in this order: view, placement, block tokens, rows, prompt chunk, pool, sharing, and
// what becomes of those who are preempted, now and then, at random points.
inline constexpr std::size_t kNumAxes = 8;
inline constexpr std::array<std::uint32_t, kNumAxes> kAxisSizes = {kNumKvViews, 8, 2, 3,
                                                                   3,           3, 4, 4};
using Cell = std::array<std::uint32_t, kNumAxes>;

inline constexpr std::array<std::uint32_t, 2> kBlockTokens = {16, 32};
inline constexpr std::array<std::uint32_t, 3> kRows = {2, 7, 32};
inline constexpr std::array<std::uint32_t, 3> kChunks = {0, 7, 64};
enum Pool : std::uint32_t { kAmple, kTight, kFewRuns };
// Sharing: bit 0 the prefix cache, bit 1 forks.
enum Preempted : std::uint32_t { kForWantOfBlocks, kRecomputed, kParked, kParkedWhereThereIsRoom };

inline bool IsStatic(const Cell& cell) {
  return cell[0] >= static_cast<std::uint32_t>(KvView::kStatic) &&
         cell[0] <= static_cast<std::uint32_t>(KvView::kStaticBucketed);
}

// Of the host tier.
inline std::uint64_t HostBytes(const Cell& cell, const ModelConfig& config) {
  const std::uint64_t token_bytes =
      std::uint64_t{4} * config.num_layers * config.num_kv_heads * config.head_dim;
  switch (cell[7]) {
    case kForWantOfBlocks:
      return kHostKvAuto;
    case kRecomputed:
      return 0;
    case kParked:
      return token_bytes * kRows[cell[3]] * kMaxContext;
    default:
      return token_bytes * 96;
  }
}

inline EngineOptions OptionsOf(const Cell& cell, const ModelConfig& config) {
  EngineOptions options = {.max_rows = kRows[cell[3]],
                           .max_context = kMaxContext,
                           .max_step_tokens = 256,
                           .block_tokens = kBlockTokens[cell[2]],
                           .max_runs = kMaxContext / kBlockTokens[cell[2]],
                           .view = static_cast<KvView>(cell[0]),
                           .placement = static_cast<PlacementPolicy>(cell[1]),
                           .prefix_cache = (cell[6] & 1) != 0,
                           .max_wait_ms = 0,  // a busy machine may take minutes
                           .num_threads = 1,
                           .prompt_chunk = kChunks[cell[4]]};
  options.placement_seed =
      options.placement == PlacementPolicy::kScattered ? 1 + cell[3] + 3 * cell[4] : 0;
  if (cell[5] == kFewRuns) options.max_runs = 3;
  options.host_kv_bytes = HostBytes(cell, config);
  options.preempt_seed = cell[7] == kForWantOfBlocks ? 0 : 1 + cell[0];
  // Tight: room for one typical sequence beside the one that must always fit.
  if (!IsStatic(cell))
    options.kv_tokens =
        cell[5] == kTight ? kMaxContext + 64 : std::uint64_t{kRows[cell[3]]} * kMaxContext;
  return options;
}

inline std::string NameOf(const Cell& cell) {
  static constexpr std::array<const char*, 4> kPreempted = {"", " recomputed", " parked",
                                                            " parked where there is room"};
  static constexpr std::array<const char*, 3> kPools = {"ample", "tight", "few-runs"};
  return std::string(KvViewName(static_cast<KvView>(cell[0]))) + " " +
         PlacementPolicyName(static_cast<PlacementPolicy>(cell[1])) + " block " +
         std::to_string(kBlockTokens[cell[2]]) + " rows " + std::to_string(kRows[cell[3]]) +
         " chunk " + std::to_string(kChunks[cell[4]]) + " " + kPools[cell[5]] +
         ((cell[6] & 1) != 0 ? " cache" : "") + ((cell[6] & 2) != 0 ? " forks" : "") +
         kPreempted[cell[7]];
}

// Prompts that begin alike: one of three beginnings of up to 70 tokens, cut anywhere, then their
// own.
inline std::vector<Request> MakeRequests(const Model& model) {
  Rng rng(20261125, "views");
  const auto word = [&] { return static_cast<std::int32_t>(rng.Below(model.config().vocab_size)); };
  std::array<std::vector<std::int32_t>, 3> beginnings;
  for (auto& beginning : beginnings) {
    for (int i = 0; i < 70; ++i)
      beginning.push_back(word());
  }
  std::vector<Request> requests(kNumPrompts);
  for (Request& request : requests) {
    request.prompt = beginnings[rng.Below(3)];
    request.prompt.resize(1 + rng.Below(request.prompt.size()));
    for (std::uint64_t i = rng.Below(20); i > 0; --i)
      request.prompt.push_back(word());
    request.max_tokens = static_cast<std::uint32_t>(rng.Between(1, 36));
    request.sampling.seed = rng.Next();
    request.sampling.temperature = rng.Below(3) == 0 ? 0.0f : 0.9f;
    request.stop_ids = model.tokenizer().stop_ids();
  }
  return requests;
}

inline Cell RandomCell(Rng& rng) {
  Cell cell;
  for (std::size_t axis = 0; axis < kNumAxes; ++axis)
    cell[axis] = static_cast<std::uint32_t>(rng.Below(kAxisSizes[axis]));
  return cell;
}

// Greedy: of 60 random cells the one with most pairs not yet seen, until all are.
inline std::vector<Cell> PairwiseCover() {
  using Pair = std::array<std::uint32_t, 4>;
  std::set<Pair> missing;
  const auto pairs_of = [](const Cell& cell) {
    std::vector<Pair> pairs;
    for (std::uint32_t a = 0; a < kNumAxes; ++a) {
      for (std::uint32_t b = a + 1; b < kNumAxes; ++b)
        pairs.push_back({a, cell[a], b, cell[b]});
    }
    return pairs;
  };
  for (std::uint32_t a = 0; a < kNumAxes; ++a) {
    for (std::uint32_t b = a + 1; b < kNumAxes; ++b) {
      for (std::uint32_t i = 0; i < kAxisSizes[a]; ++i) {
        for (std::uint32_t j = 0; j < kAxisSizes[b]; ++j)
          missing.insert({a, i, b, j});
      }
    }
  }
  Rng rng(1, "cover");
  std::vector<Cell> cells;
  while (!missing.empty()) {
    Cell best = {};
    std::size_t best_gain = 0;
    for (int i = 0; i < 60; ++i) {
      Cell cell = RandomCell(rng);
      // One missing pair is put in, so that the last ones are found as well.
      auto pair = missing.begin();
      std::advance(pair, static_cast<std::ptrdiff_t>(rng.Below(missing.size())));
      cell[(*pair)[0]] = (*pair)[1];
      cell[(*pair)[2]] = (*pair)[3];
      std::size_t gain = 0;
      for (const Pair& p : pairs_of(cell))
        gain += missing.count(p);
      if (gain > best_gain) {
        best_gain = gain;
        best = cell;
      }
    }
    for (const Pair& p : pairs_of(best))
      missing.erase(p);
    cells.push_back(best);
  }
  return cells;
}

inline std::vector<Cell> WholeProduct() {
  std::vector<Cell> cells(1, Cell{});
  for (std::size_t axis = 0; axis < kNumAxes; ++axis) {
    const std::size_t count = cells.size();
    for (std::uint32_t value = 1; value < kAxisSizes[axis]; ++value) {
      for (std::size_t i = 0; i < count; ++i) {
        cells.push_back(cells[i]);
        cells.back()[axis] = value;
      }
    }
  }
  return cells;
}

// Part `part` of `num_parts`, from 1, of the whole product; together they are all of it. It is
// shuffled first, always alike, so that each part is a random sample of the whole and takes as
// long as any other.
inline std::vector<Cell> PartOfProduct(std::size_t part, std::size_t num_parts) {
  CHECK(part >= 1 && part <= num_parts);
  std::vector<Cell> cells = WholeProduct();
  Rng rng(20261126, "product");
  for (std::size_t i = cells.size(); i > 1; --i)
    std::swap(cells[i - 1], cells[rng.Below(i)]);
  std::vector<Cell> some;
  for (std::size_t i = part - 1; i < cells.size(); i += num_parts)
    some.push_back(cells[i]);
  return some;
}

// One sequence at a time, its history in one contiguous place, nothing shared.
inline EngineOptions DenseOptions() {
  return {.max_rows = 1,
          .max_context = kMaxContext,
          .view = KvView::kStatic,
          .prefix_cache = false,
          .max_wait_ms = 0,
          .num_threads = 1};
}

// kNumSamples outputs of every request, in order.
inline std::vector<Output> ServeRequests(Engine& engine, const std::vector<Request>& requests,
                                         bool forks) {
  std::map<RequestId, std::size_t> index;
  for (std::size_t r = 0; r < requests.size(); ++r) {
    const std::uint32_t num_samples = forks ? kNumSamples : 1;
    for (std::uint32_t s = 0; s < kNumSamples; s += num_samples) {
      Request one = requests[r];
      one.num_samples = num_samples;
      one.sampling.seed += s;
      const Result<RequestId> id = engine.Submit(std::move(one));
      CHECK(id.has_value());
      for (std::uint32_t i = 0; i < num_samples; ++i)
        index[RequestId{static_cast<std::uint64_t>(*id) + i}] = r * kNumSamples + s + i;
    }
  }
  return ServeAll(engine, index);
}

}  // namespace kvrm
