// SPDX-License-Identifier: Apache-2.0
#include "engine/scorer.h"

#include <algorithm>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr SeqId kSeq{0};

StepLoopOptions LoopOptions(const ScorerOptions& options) {
  return {.limits = {.max_rows = 1,
                     .max_tokens = options.chunk,
                     .max_runs = 1024,
                     .max_groups = 1,
                     .max_samples = options.chunk,
                     .block_tokens = 16},
          .max_seqs = 1,
          .max_context = options.max_context,
          .kv_tokens = options.max_context};
}

}  // namespace

Scorer::Scorer(const Model& model, const ScorerOptions& options)
    : chunk_(options.chunk),
      loop_(HostParts(model, device_,
                      {.num_threads = options.num_threads,
                       .kernels = options.kernels,
                       .kv_dtype = options.kv_dtype,
                       .progress = options.load_progress}),
            LoopOptions(options)) {}

void Scorer::Score(std::span<const std::int32_t> tokens, const Sink& sink) {
  KvCache& cache = loop_.cache();
  const auto num_tokens = static_cast<std::uint32_t>(tokens.size());
  CHECK(cache.Open(kSeq, num_tokens));
  for (std::uint32_t begin = 0; begin < num_tokens; begin += chunk_) {
    const std::uint32_t count = std::min(chunk_, num_tokens - begin);
    CHECK(cache.Extend(kSeq, begin + count));
    loop_.Begin();
    CHECK(cache.AddRow(loop_.builder(), {.seq = kSeq,
                                         .first_position = begin,
                                         .tokens = tokens.subspan(begin, count),
                                         .num_samples = count}));
    CHECK(loop_.Commit());
    for (std::uint32_t i = 0; i < count; ++i)
      sink(begin + i, loop_.executor().Logits(i));
  }
  cache.Release(kSeq);
}

}  // namespace kvrm
