// SPDX-License-Identifier: Apache-2.0
// Sampler: logits to one token, as a pure function of (logits, parameters, output index).
//
// Order: edits of the logits (engine/logit_edits.h), temperature, top_k, top_p, min_p. Ties in the
// logits go to the lower id. The draw uses a number mixed from the seed and the output index alone,
// so it does not depend on what else runs.
//
// The logits come with their statistics by chunks (exec/logit_stats.h), so that greedy sampling and
// the log-probability cost a pass over the chunks, a draw at temperature 1 one chunk more, and
// truncation only those chunks that hold a candidate. Other temperatures weigh the vocabulary once
// more, unless top_k or min_p bounds the candidates. All sums have one fixed order.
//
// Log-probabilities are the model's own: of the logits before any edit.
//
// Threading: engine thread only. Memory: scratch for the vocabulary is reserved by the constructor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/candidates.h"
#include "engine/logit_edits.h"
#include "engine/request.h"
#include "exec/logit_stats.h"

namespace kvrm {

struct Sampled {
  std::int32_t token = -1;       // -1: the logits are not all finite, or nothing is allowed
  float logprob = 0.0f;          // ln softmax(logits)[token], before edits and truncation
  bool nothing_allowed = false;  // no token is left by the edits
};

class Sampler {
 public:
  // `kernels` outlives the sampler.
  Sampler(std::uint32_t vocab_size, const CpuKernels& kernels);
  // `output_idx`: how many output tokens came before. Requires: logits.size() == vocab_size, and
  // statistics of these logits; at most the last bits depend on who made them.
  Sampled Sample(std::span<const float> logits, const LogitStats& stats,
                 const SamplingParams& params, std::uint32_t output_idx) noexcept;
  // With edits. Without any, to the bit as above. Requires: as LogitEditor::Edit.
  Sampled Sample(std::span<const float> logits, const LogitStats& stats,
                 const SamplingParams& params, const LogitEdits& edits) noexcept;
  // Fills in the log-probability and the rank of out->token, and the `num_top` likeliest, at most
  // kMaxTopLogprobs: of these logits as they are. False: they are not all finite.
  bool Rank(std::span<const float> logits, const LogitStats& stats, std::uint32_t num_top,
            TopLogprobs* out) noexcept;

 private:
  // One sample's logits and what is wanted of them.
  struct Input {
    std::span<const float> logits;
    const LogitStats& stats;
    const SamplingParams& params;
    LogitWeighting weighting;  // at the temperature
    double uniform = 0;        // the draw
  };
  struct Target {
    double weight = 0;  // from the greatest logit on
    Reach reach{};
  };
  std::int32_t Draw(std::span<const float> logits, const LogitStats& stats,
                    const SamplingParams& params, std::uint32_t output_idx,
                    float greatest) noexcept;
  double WeighChunks(const LogitStats& stats, float greatest) noexcept;
  double TotalWeight(const Input& input) noexcept;
  std::int32_t DrawFromAll(const Input& input) noexcept;
  std::int32_t DrawFromChunk(const Input& input, std::uint32_t chunk, double target) noexcept;
  std::int32_t DrawFromSome(const Input& input) noexcept;
  std::int32_t DrawFromShare(const Input& input, float floor) noexcept;
  Candidates::Place FindInShare(const Input& input, float floor, const Target& target) noexcept;
  void AddTop(const Input& input, float floor, std::uint32_t top_k) noexcept;
  static float Bound(const Input& input, double depth, LogitRange range) noexcept;
  float GreatestChunksBound(const LogitStats& stats, std::uint32_t top_k) noexcept;

  const std::uint32_t vocab_size_;
  const CpuKernels& kernels_;
  std::vector<float> chunk_weights_;  // [chunks] at temperature 1, later at the request's
  std::vector<float> chunk_scratch_;  // [chunks]
  Candidates candidates_;
  WeightHistogram histogram_;
  LogitEditor editor_;
};

// ln softmax(logits)[token], summed in double in the order of ids. Logits must be finite.
float LogProb(std::span<const float> logits, std::int32_t token) noexcept;

}  // namespace kvrm
