// SPDX-License-Identifier: Apache-2.0
// Attention and the store of K and V: the same bits however the history is cut, nothing from lanes
// that are not attended, and the distance from the float32 model within a derived bound.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "kernels/test_weights.h"
#include "step/layout.h"

namespace kvrm {
namespace {

// K and V of one sequence, as floats: [tokens][num_kv_heads][head_dim].
struct History {
  std::uint32_t tokens;
  std::uint32_t num_kv_heads;
  std::uint32_t head_dim;
  std::vector<float> k;
  std::vector<float> v;
};

History RandomHistory(Rng& rng, std::uint32_t tokens, std::uint32_t heads, std::uint32_t head_dim) {
  History history = {tokens, heads, head_dim, {}, {}};
  history.k = Normals(rng, std::size_t{tokens} * heads * head_dim);
  history.v = Normals(rng, std::size_t{tokens} * heads * head_dim);
  return history;
}

// The history stored in blocks, each an allocation of its exact size, so that a read beyond is seen
// by the address sanitizer. What is never stored is all ones: NaN in every format.
class Cache {
 public:
  Cache(const CpuKernels& table, const History& history, DType dtype, std::uint32_t block_tokens)
      : layout_{2, history.num_kv_heads, history.head_dim, block_tokens, dtype} {
    const std::uint32_t blocks = (history.tokens + block_tokens - 1) / block_tokens;
    for (std::uint32_t b = 0; b < blocks; ++b)
      blocks_.emplace_back(layout_.block_bytes(), std::uint8_t{0xff});
    for (std::uint32_t t = 0; t < history.tokens; ++t) {
      const std::size_t row = std::size_t{t} * history.num_kv_heads * history.head_dim;
      std::uint8_t* block = blocks_[t / block_tokens].data();
      const std::uint64_t tile = t % block_tokens / kTileTokens * layout_.tile_bytes();
      table.store_kv({.k = &history.k[row],
                      .v = &history.v[row],
                      .k_tile = block + layout_.k_offset(1, 0) + tile,
                      .v_tile = block + layout_.v_offset(1, 0) + tile,
                      .head_bytes = layout_.head_bytes(),
                      .lane = t % kTileTokens,
                      .num_kv_heads = history.num_kv_heads,
                      .head_dim = history.head_dim,
                      .dtype = dtype});
    }
  }

  // Attention of `group` heads over one kv head. Runs of one block each, or as long as they get.
  std::vector<float> Attend(const CpuKernels& table, const std::vector<float>& q,
                            std::uint32_t group, std::uint32_t head, std::uint32_t begin,
                            std::uint32_t end) const {
    return AttendRuns(table, q, group, head, begin, end, RunsOfBlocks());
  }

  std::vector<float> AttendRuns(const CpuKernels& table, const std::vector<float>& q,
                                std::uint32_t group, std::uint32_t head, std::uint32_t begin,
                                std::uint32_t end, const std::vector<AttentionRun>& runs) const {
    const std::uint32_t dim = layout_.head_dim;
    std::vector<float> out(std::size_t{group} * dim);
    std::vector<float> scratch(AttentionScratchFloats(group, dim));
    AttentionArgs args = ArgsOf(head, group, begin, end, runs);
    args.q = q.data();
    args.out = out.data();
    args.scratch = scratch.data();
    if (pieces_.empty()) {
      table.attention(args);
    } else {
      AttendInPieces(table, args);
    }
    return out;
  }

  // The `num_tokens` tokens up to `end` in one pass. Rows of q and of the result are apart by more
  // than they are long.
  std::vector<float> AttendTokens(const CpuKernels& table, const std::vector<float>& q,
                                  std::uint32_t group, std::uint32_t num_tokens,
                                  std::uint32_t begin, std::uint32_t end) const {
    const std::uint32_t dim = layout_.head_dim;
    const std::size_t width = std::size_t{group} * dim;
    const std::size_t stride = width + 5;
    const std::vector<AttentionRun> runs = RunsOfBlocks();
    std::vector<float> apart(num_tokens * stride, NAN), out(num_tokens * stride), packed;
    for (std::size_t t = 0; t < num_tokens; ++t)
      std::copy_n(&q[t * width], width, &apart[t * stride]);
    std::vector<float> scratch(AttentionScratchFloats(group * num_tokens, dim));
    AttentionArgs args = ArgsOf(0, group, begin, end, runs);
    args.q = apart.data();
    args.out = out.data();
    args.scratch = scratch.data();
    args.num_tokens = num_tokens;
    args.q_stride = args.out_stride = stride;
    table.attention(args);
    for (std::size_t t = 0; t < num_tokens; ++t)
      packed.insert(packed.end(), &out[t * stride], &out[t * stride] + width);
    return packed;
  }

  AttentionArgs ArgsOf(std::uint32_t head, std::uint32_t group, std::uint32_t begin,
                       std::uint32_t end, const std::vector<AttentionRun>& runs) const {
    return {.q = nullptr,
            .out = nullptr,
            .runs = runs.data(),
            .scratch = nullptr,
            .block_bytes = layout_.block_bytes(),
            .k_offset = layout_.k_offset(1, head),
            .v_offset = layout_.v_offset(1, head),
            .num_runs = static_cast<std::uint32_t>(runs.size()),
            .group = group,
            .head_dim = layout_.head_dim,
            .block_tokens = layout_.block_tokens,
            .begin = begin,
            .end = end,
            .scale = Scale(layout_.head_dim),
            .dtype = layout_.dtype,
            .following = following_};
  }

  // From now on what is attended is followed by that.
  void Follow(const AttentionArgs* following) { following_ = following; }

  // From now on units [0, pieces[0]), [pieces[0], pieces[1]) and so on are attended by calls of
  // their own, the last first, each with memory of its own, and then merged.
  void Cut(std::vector<std::uint32_t> pieces) { pieces_ = std::move(pieces); }

  static float Scale(std::uint32_t head_dim) {
    return 1.0f / std::sqrt(static_cast<float>(head_dim));
  }

  // The same blocks side by side, as `cut` runs of unlike lengths.
  std::vector<std::uint8_t> Contiguous() const {
    std::vector<std::uint8_t> all;
    for (const auto& block : blocks_)
      all.insert(all.end(), block.begin(), block.end());
    return all;
  }
  std::uint32_t num_blocks() const { return static_cast<std::uint32_t>(blocks_.size()); }
  const KvLayout& layout() const { return layout_; }
  const std::vector<std::uint8_t>& block(std::uint32_t i) const { return blocks_[i]; }

 private:
  std::vector<AttentionRun> RunsOfBlocks() const {
    std::vector<AttentionRun> runs;
    for (const auto& block : blocks_)
      runs.push_back({block.data(), 1});
    return runs;
  }

  // Without q, out and scratch. `runs` outlives the result.
  void AttendInPieces(const CpuKernels& table, AttentionArgs args) const {
    const std::size_t size = AttentionPartialFloats(args.group, args.head_dim);
    std::vector<float> partials(pieces_.back() * size);
    for (std::size_t i = pieces_.size(); i-- > 0;) {
      const std::uint32_t begin = i == 0 ? 0 : pieces_[i - 1];
      std::vector<float> scratch(AttentionScratchFloats(args.group, args.head_dim));
      args.scratch = scratch.data();
      AttendUnits(table.attention_unit, args, begin, pieces_[i], &partials[begin * size]);
    }
    std::vector<float> scratch(AttentionScratchFloats(args.group, args.head_dim));
    args.scratch = scratch.data();
    MergeUnits(args, partials.data(), pieces_.back());
  }

  KvLayout layout_;
  std::vector<std::vector<std::uint8_t>> blocks_;
  std::vector<std::uint32_t> pieces_;
  const AttentionArgs* following_ = nullptr;
};

constexpr DType kKvTypes[] = {DType::kF32, DType::kF16, DType::kBf16, DType::kQ8_0};

bool CanStore(DType dtype, std::uint32_t head_dim) {
  return dtype != DType::kQ8_0 || head_dim % kKvScaleValues == 0;
}

TEST(StoreKv, EveryTableStoresTheBytesOfTheScalarOne) {
  for (const DType dtype : kKvTypes) {
    for (const std::uint32_t dim : {2u, 8u, 16u, 32u, 46u, 64u, 96u, 128u}) {
      if (!CanStore(dtype, dim)) continue;
      Rng rng(dim);
      History history = RandomHistory(rng, 37, 3, dim);
      const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, 65519.0f, 65520.0f, 1e-7f, 3e-8f};
      for (std::size_t i = 0; i < history.k.size(); i += 13)
        history.k[i] = history.v[i] = special[i % 8];
      const Cache expected(kScalarKernels, history, dtype, 32);
      for (const CpuKernels* table : Tables()) {
        const Cache cache(*table, history, dtype, 32);
        for (std::uint32_t b = 0; b < cache.num_blocks(); ++b)
          EXPECT_EQ(cache.block(b), expected.block(b)) << table->name << " head_dim " << dim;
      }
    }
  }
}

TEST(AttentionInvariance, BlockSizeRunsAndGroupNeverChangeABit) {
  constexpr std::uint32_t kTokens = 211;
  constexpr std::uint32_t kGroup = 7;
  for (const CpuKernels* table : Tables()) {
    for (const DType dtype : kKvTypes) {
      for (const std::uint32_t dim : {8u, 32u, 64u, 80u, 96u}) {
        if (!CanStore(dtype, dim)) continue;
        Rng rng(dim);
        const History history = RandomHistory(rng, kTokens, 2, dim);
        const std::vector<float> q = Normals(rng, kGroup * dim);
        const Cache small(*table, history, dtype, 16);
        const Cache large(*table, history, dtype, 64);
        for (const auto& [begin, end] : {std::pair{0u, 1u},
                                         {0u, 64u},
                                         {0u, kTokens},
                                         {0u, 100u},
                                         {37u, 101u},
                                         {64u, 65u},
                                         {130u, kTokens},
                                         {63u, 64u}}) {
          const std::vector<float> expected = small.Attend(*table, q, kGroup, 1, begin, end);
          EXPECT_EQ(large.Attend(*table, q, kGroup, 1, begin, end), expected) << table->name;
          const std::vector<std::uint8_t> all = small.Contiguous();
          const std::uint8_t* base = all.data();
          const std::uint64_t bytes = small.layout().block_bytes();
          const std::vector<AttentionRun> runs = {
              {base, 3}, {base + 3 * bytes, 6}, {base + 9 * bytes, small.num_blocks() - 9}};
          EXPECT_EQ(small.AttendRuns(*table, q, kGroup, 1, begin, end, runs), expected);
          for (std::uint32_t g = 0; g < kGroup; ++g) {
            const std::vector<float> one(&q[g * dim], &q[g * dim] + dim);
            const std::vector<float> alone = small.Attend(*table, one, 1, 1, begin, end);
            EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &expected[g * dim]))
                << table->name << " head " << g << " of " << begin << ".." << end;
          }
        }
      }
    }
  }
}

TEST(AttentionInvariance, WhoeverComputesAUnitTheBitsAreTheSame) {
  constexpr std::uint32_t kTokens = 1600;  // four units, the last of them short
  for (const CpuKernels* table : Tables()) {
    for (const DType dtype : kKvTypes) {
      Rng rng(23);
      const History history = RandomHistory(rng, kTokens, 1, 32);
      const std::vector<float> q = Normals(rng, 5 * 32);
      Cache cache(*table, history, dtype, 16);
      Cache cut = cache;
      for (const auto& [begin, end] : {std::pair{0u, kTokens},
                                       {0u, 512u},
                                       {0u, 513u},
                                       {511u, 1025u},
                                       {700u, 1536u},
                                       {1536u, 1537u}}) {
        const std::vector<float> expected = cache.Attend(*table, q, 5, 0, begin, end);
        for (const std::vector<std::uint32_t>& pieces :
             {std::vector<std::uint32_t>{4}, {1, 4}, {1, 2, 3, 4}, {3, 4}}) {
          cut.Cut(pieces);
          EXPECT_EQ(cut.Attend(*table, q, 5, 0, begin, end), expected)
              << table->name << ' ' << DTypeName(dtype) << ' ' << begin << ".." << end;
        }
      }
    }
  }
}

// What a token attends ends at itself, also where its value, its scales or its keys are not finite.
void CheckTokensOfAPass(const CpuKernels& table, DType dtype, Rng& rng) {
  const std::uint32_t dims[] = {8, 18, 32, 64, 96, 128};
  const std::uint32_t dim = dtype == DType::kQ8_0 ? 32u << rng.Below(3) : dims[rng.Below(6)];
  const auto group = static_cast<std::uint32_t>(1 + rng.Below(table.attention_heads / 2));
  const std::uint32_t most = table.attention_heads / group;
  const auto num_tokens = static_cast<std::uint32_t>(2 + rng.Below(most - 1));
  // The last tokens of a unit, or of two and a part of one.
  const auto units = static_cast<std::uint32_t>(rng.Below(3));
  const auto in_unit =
      static_cast<std::uint32_t>(num_tokens + rng.Below(kAttentionUnit - num_tokens + 1));
  const std::uint32_t end = units * kAttentionUnit + in_unit;
  const auto begin = static_cast<std::uint32_t>(rng.Below(2) * rng.Below(end - num_tokens + 1));
  History history = RandomHistory(rng, end, 1, dim);
  if (rng.Below(3) == 0) {  // of the last token, and of none before it
    history.k[(end - 1) * dim] = NAN;
    history.v[(end - 1) * dim + dim / 2] = INFINITY;
  }
  const std::vector<float> q = Normals(rng, std::size_t{num_tokens} * group * dim);
  const Cache cache(table, history, dtype, 16);
  const std::vector<float> out = cache.AttendTokens(table, q, group, num_tokens, begin, end);
  const std::size_t width = std::size_t{group} * dim;
  for (std::uint32_t t = 0; t < num_tokens; ++t) {
    const std::vector<float> own(&q[t * width], &q[t * width] + width);
    const std::vector<float> alone =
        cache.Attend(table, own, group, 0, begin, end - (num_tokens - 1 - t));
    EXPECT_EQ(std::memcmp(alone.data(), &out[t * width], width * sizeof(float)), 0)
        << table.name << ' ' << DTypeName(dtype) << " token " << t << " of " << num_tokens << ", "
        << group << " heads of " << dim << ", " << begin << ".." << end;
  }
}

TEST(AttentionInvariance, TokensThatShareAPassHaveTheBitsTheyHaveAlone) {
  std::uint32_t num_checked = 0;
  for (const CpuKernels* table : Tables()) {
    if (table->attention_heads == 0) continue;
    for (const DType dtype : kKvTypes) {
      Rng rng(31);
      for (int i = 0; i < 60; ++i, ++num_checked)
        CheckTokensOfAPass(*table, dtype, rng);
    }
  }
  EXPECT_EQ(num_checked == 0, FindCpuKernels("avx512") == nullptr);
}

// What follows lies at addresses that nobody may read.
TEST(Attention, WhatFollowsIsAskedForAndNeverRead) {
  constexpr std::uint32_t kTokens = 1100;
  const std::vector<AttentionRun> nowhere = {
      {reinterpret_cast<const std::uint8_t*>(std::uintptr_t{4096}), 64}};
  for (const CpuKernels* table : Tables()) {
    for (const DType dtype : kKvTypes) {
      Rng rng(12);
      Cache cache(*table, RandomHistory(rng, kTokens, 1, 32), dtype, 32);
      const std::vector<float> q = Normals(rng, 3 * 32);
      for (const auto& [begin, end] : {std::pair{0u, 1u}, {0u, 600u}, {5u, 1071u}}) {
        cache.Follow(nullptr);
        const std::vector<float> alone = cache.Attend(*table, q, 3, 0, begin, end);
        for (const auto& [from, to] : {std::pair{0u, 1u}, {40u, 800u}, {1024u, 2000u}}) {
          const AttentionArgs following = cache.ArgsOf(0, 3, from, to, nowhere);
          cache.Follow(&following);
          EXPECT_EQ(cache.Attend(*table, q, 3, 0, begin, end), alone) << table->name;
        }
      }
    }
  }
}

// Slots after `end` and before `begin` may hold anything: here NaN and Inf, for both formats.
TEST(Attention, WhatIsNotAttendedHasNoInfluence) {
  constexpr std::uint32_t kTokens = 96;
  for (const CpuKernels* table : Tables()) {
    for (const DType dtype : kKvTypes) {
      Rng rng(11);
      const History clean = RandomHistory(rng, kTokens, 1, 32);
      const std::vector<float> q = Normals(rng, 3 * 32);
      for (const auto& [begin, end] : {std::pair{0u, 1u}, {0u, 17u}, {5u, 71u}, {66u, 67u}}) {
        History dirty = clean;
        for (std::uint32_t t = 0; t < kTokens; ++t) {
          if (t >= begin && t < end) continue;
          for (std::uint32_t d = 0; d < 32; ++d) {
            dirty.k[t * 32 + d] = t % 2 ? NAN : INFINITY;
            dirty.v[t * 32 + d] = t % 3 ? NAN : -INFINITY;
          }
        }
        EXPECT_EQ(Cache(*table, dirty, dtype, 16).Attend(*table, q, 3, 0, begin, end),
                  Cache(*table, clean, dtype, 16).Attend(*table, q, 3, 0, begin, end))
            << table->name << " " << begin << ".." << end;
      }
    }
  }
}

// A score is off by at most delta = (head_dim + 2) u scale sum |q k|; then a weight by the factor
// e^(2 delta) (its own score's and the maximum's) and the error of exp, 2e-7, and so is the sum
// they are divided by; the sums of n weighted values and the corrections of each unit add one
// rounding each. To first order, all of it times the greatest |v|.
double BoundOf(const History& history, const float* q) {
  const std::uint32_t dim = history.head_dim;
  double magnitude = 0, greatest = 0;
  for (std::uint32_t t = 0; t < history.tokens; ++t) {
    double sum = 0;
    for (std::uint32_t d = 0; d < dim; ++d) {
      sum += std::abs(static_cast<double>(q[d] * history.k[t * dim + d]));
      greatest = std::max(greatest, std::abs(static_cast<double>(history.v[t * dim + d])));
    }
    magnitude = std::max(magnitude, sum);
  }
  const double delta = (dim + 2) * kRounding * magnitude * static_cast<double>(Cache::Scale(dim));
  const double units = history.tokens / kAttentionUnit + 1;
  return 2 * (2 * delta + 2e-7 + (history.tokens + 2 * units + 2) * kRounding) * greatest;
}

// Both of 2 query heads over the one kv head of `history`.
void ExpectNear(const std::vector<float>& out, const std::vector<float>& truth,
                const History& history, const std::vector<float>& q, const std::string& what) {
  const std::uint32_t dim = history.head_dim;
  for (std::uint32_t g = 0; g < 2; ++g) {
    const double bound = BoundOf(history, &q[g * dim]);
    for (std::uint32_t d = 0; d < dim; ++d)
      EXPECT_LE(std::abs(static_cast<double>(out[g * dim + d] - truth[g * dim + d])), bound)
          << what << " head_dim " << dim;
  }
}

void CheckDistance(const CpuKernels& table, std::uint32_t tokens, std::uint32_t dim) {
  Rng rng(tokens * 1000 + dim);
  const History history = RandomHistory(rng, tokens, 1, dim);
  const std::vector<float> q = Normals(rng, 2 * dim);
  const CpuKernels& reference = *FindCpuKernels("reference");
  const std::vector<float> truth =
      Cache(reference, history, DType::kF32, 16).Attend(reference, q, 2, 0, 0, tokens);
  const std::vector<float> out =
      Cache(table, history, DType::kF32, 16).Attend(table, q, 2, 0, 0, tokens);
  ExpectNear(out, truth, history, q, table.name + (" tokens " + std::to_string(tokens)));
}

TEST(Attention, IsWithinItsDerivedBoundOfTheReference) {
  for (const CpuKernels* table : Tables()) {
    for (std::uint32_t tokens = 1; tokens < 140; tokens += 1 + tokens / 20)
      CheckDistance(*table, tokens, 32);
    for (const std::uint32_t dim : {2u, 6u, 8u, 18u, 46u, 80u, 96u, 128u, 256u, 512u})
      CheckDistance(*table, 75, dim);
  }
}

// The greatest magnitude of each block of 32 over 253: half a step of the quantisation, and 0.4 %
// for the rounding of its scale to BF16.
double HalfStep(const float* x, std::uint32_t block) {
  double greatest = 0;
  for (std::uint32_t i = 0; i < 32; ++i)
    greatest = std::max(greatest, std::abs(static_cast<double>(x[32 * block + i])));
  return greatest / 253;
}

// Of Q8_0 against attention over the floats that were stored. A score is off by the half steps of
// the key times |q| and those of the query times |k| as stored; with delta the greatest of these
// errors, each share of the softmax is off by the factor e^(2 delta) at most, and each value by its
// own half step. Weights of 16 bits are off by half of 1 / 65535 each, and the weights of a unit
// sum up to 1 at least.
double BoundOfQ8(const History& history, const float* q) {
  const std::uint32_t dim = history.head_dim;
  double delta = 0, greatest = 0, value_step = 0;
  for (std::uint32_t t = 0; t < history.tokens; ++t) {
    const float* k = &history.k[t * dim];
    double off = 0;
    for (std::uint32_t d = 0; d < dim; ++d) {
      const double key_step = HalfStep(k, d / 32);
      const double key = std::abs(static_cast<double>(k[d])) + key_step;
      off += key_step * std::abs(static_cast<double>(q[d])) + HalfStep(q, d / 32) * key;
      greatest = std::max(greatest, std::abs(static_cast<double>(history.v[t * dim + d])));
      value_step = std::max(value_step, HalfStep(&history.v[t * dim], d / 32));
    }
    delta = std::max(delta, off * static_cast<double>(Cache::Scale(dim)));
  }
  const double weight_step = std::min(history.tokens, kAttentionUnit) * 0.5 / 65535;
  return std::expm1(2 * delta) * (greatest + value_step) + value_step +
         weight_step * 1.01 * greatest;
}

TEST(Attention, OfQ8IsWithinItsDerivedBoundOfWhatWasStored) {
  const CpuKernels& reference = *FindCpuKernels("reference");
  for (const CpuKernels* table : Tables()) {
    double worst = 0;
    for (const auto& [tokens, dim] :
         {std::pair{1u, 32u}, {40u, 32u}, {75u, 64u}, {600u, 64u}, {75u, 96u}, {90u, 128u}}) {
      Rng rng(tokens + dim);
      const History history = RandomHistory(rng, tokens, 1, dim);
      const std::vector<float> q = Normals(rng, 2 * dim);
      const std::vector<float> truth =
          Cache(reference, history, DType::kF32, 16).Attend(reference, q, 2, 0, 0, tokens);
      const std::vector<float> out =
          Cache(*table, history, DType::kQ8_0, 16).Attend(*table, q, 2, 0, 0, tokens);
      for (std::uint32_t i = 0; i < 2 * dim; ++i) {
        const double bound =
            BoundOf(history, &q[i / dim * dim]) + BoundOfQ8(history, &q[i / dim * dim]);
        const double off = std::abs(static_cast<double>(out[i] - truth[i]));
        EXPECT_LE(off, bound) << table->name << ' ' << tokens << ' ' << dim;
        worst = std::max(worst, off);
      }
    }
    EXPECT_GT(worst, 1e-4) << "bytes are not that exact";
  }
}

TEST(Attention, ManyQueryHeadsShareOneKvHead) {
  Rng rng(13);
  const History history = RandomHistory(rng, 70, 1, 64);
  const std::vector<float> q = Normals(rng, 32 * 64);
  for (const CpuKernels* table : Tables()) {
    const Cache cache(*table, history, DType::kF16, 16);
    const std::vector<float> all = cache.Attend(*table, q, 32, 0, 0, 70);
    for (std::uint32_t g = 0; g < 32; ++g) {
      const std::vector<float> alone =
          cache.Attend(*table, {&q[g * 64], &q[g * 64] + 64}, 1, 0, 0, 70);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &all[g * 64])) << table->name;
    }
  }
}

// Blocks of 16 of which some are not there: holes[b] says so.
struct Holed {
  History remaining;
  std::vector<AttentionRun> runs;      // holes as long as they are
  std::vector<AttentionRun> by_block;  // one run a block
};

Holed DropBlocks(const History& history, const Cache& cache, const std::vector<bool>& holes) {
  Holed holed = {{0, 1, history.head_dim, {}, {}}, {}, {}};
  const std::size_t dim = history.head_dim;
  for (std::uint32_t b = 0; b < cache.num_blocks(); ++b) {
    const AttentionRun run = {holes[b] ? nullptr : cache.block(b).data(), 1};
    holed.by_block.push_back(run);
    if (holes[b] && b > 0 && holes[b - 1]) {
      ++holed.runs.back().num_blocks;
    } else {
      holed.runs.push_back(run);
    }
    for (std::uint32_t t = 16 * b; !holes[b] && t < std::min(16 * b + 16, history.tokens); ++t) {
      const auto at = static_cast<std::ptrdiff_t>(t * dim);
      const auto end = at + static_cast<std::ptrdiff_t>(dim);
      History& left = holed.remaining;
      left.k.insert(left.k.end(), history.k.begin() + at, history.k.begin() + end);
      left.v.insert(left.v.end(), history.v.begin() + at, history.v.begin() + end);
      ++left.tokens;
    }
  }
  return holed;
}

// Without rotation a key does not know its position: attention over a history with holes is that
// over the history without them, within rounding; and to the bit where holes are whole units.
TEST(Attention, OverHolesIsThatOverTheRemainingPositions) {
  constexpr std::uint32_t kTokens = 250;
  const CpuKernels& reference = *FindCpuKernels("reference");
  for (const CpuKernels* table : Tables()) {
    for (std::uint64_t seed = 0; seed < 24; ++seed) {
      Rng rng(seed);
      const std::uint32_t dim = seed % 2 == 0 ? 32 : 10;
      const History history = RandomHistory(rng, kTokens, 1, dim);
      const std::vector<float> q = Normals(rng, 2 * dim);
      const Cache cache(*table, history, DType::kF32, 16);
      std::vector<bool> holes(cache.num_blocks());
      const std::uint32_t granule = seed < 12 ? 1 : 4;  // blocks
      for (std::uint32_t b = 0; b < cache.num_blocks(); ++b) {
        const bool first = b % granule == 0;
        holes[b] = first ? rng.Below(2) == 0 && b + 4 < cache.num_blocks() : bool{holes[b - 1]};
      }
      const Holed holed = DropBlocks(history, cache, holes);
      const std::vector<float> out = cache.AttendRuns(*table, q, 2, 0, 0, kTokens, holed.runs);
      EXPECT_EQ(cache.AttendRuns(*table, q, 2, 0, 0, kTokens, holed.by_block), out) << table->name;
      const std::uint32_t left = holed.remaining.tokens;
      const std::vector<float> truth =
          Cache(reference, holed.remaining, DType::kF32, 16).Attend(reference, q, 2, 0, 0, left);
      ExpectNear(out, truth, holed.remaining, q, table->name + (" seed " + std::to_string(seed)));
      if (granule == 1) continue;
      EXPECT_EQ(Cache(*table, holed.remaining, DType::kF32, 16).Attend(*table, q, 2, 0, 0, left),
                out)
          << table->name << " seed " << seed;
    }
  }
}

TEST(Attention, SkipsUnitsOfHolesBeforeAndAfterTheBeginning) {
  for (const CpuKernels* table : Tables()) {
    Rng rng(5);
    const History history = RandomHistory(rng, 200, 1, 16);
    const std::vector<float> q = Normals(rng, 2 * 16);
    const Cache cache(*table, history, DType::kF16, 16);
    // Blocks [0, 6) are a hole: positions [0, 96). Blocks of the last run are not all needed.
    const std::vector<std::uint8_t> all = cache.Contiguous();
    const std::uint8_t* base = all.data();
    const std::uint64_t bytes = cache.layout().block_bytes();
    const std::vector<AttentionRun> runs = {{nullptr, 2}, {nullptr, 4}, {base + 6 * bytes, 7}};
    const std::vector<AttentionRun> one = {{base, cache.num_blocks()}};
    for (const std::uint32_t end : {97u, 130u, 200u}) {
      const std::vector<float> expected = cache.AttendRuns(*table, q, 2, 0, 96, end, one);
      for (const std::uint32_t begin : {0u, 5u, 64u, 80u, 96u})
        EXPECT_EQ(cache.AttendRuns(*table, q, 2, 0, begin, end, runs), expected)
            << table->name << ' ' << begin << ".." << end;
    }
  }
}

}  // namespace
}  // namespace kvrm
