// SPDX-License-Identifier: Apache-2.0
// LogitEditor: logits as a request wants them changed before a token is drawn.
//
// In this order, each on the outcome of the one before:
//   1. the mask of a grammar, and allowed_ids: everything else is banned
//   2. bad_words: what would complete one of them is banned; output tokens alone are looked at
//   3. min_tokens: stop ids are banned as long as the output is shorter
//   4. bias: added; -Inf bans
//   5. penalties: a token of the prompt or the output has a positive logit divided by
//      repetition_penalty, a negative one multiplied; one of the output then loses
//      frequency_penalty as often as it occurs and presence_penalty once. With a penalty_window
//      only so many last tokens of prompt and output count.
// What is banned stays so. Where min_tokens would leave nothing at all, it is not applied.
//
// Threading: one thread. Memory: 8 bytes a token of the vocabulary, reserved by the constructor.
// Cost: a pass over the vocabulary, and with penalties two over the tokens in the window.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"
#include "exec/logit_stats.h"

namespace kvrm {

// A banned token's logit: finite, as statistics of infinities are not, and of no weight beside any
// logit of a model.
inline constexpr float kBannedLogit = -1e30f;

constexpr std::size_t NumMaskWords(std::uint32_t vocab_size) {
  return (std::size_t{vocab_size} + 31) / 32;
}

// What is asked of one sample. Views, valid during the call.
struct LogitEdits {
  const LogitRules* rules = nullptr;         // null: none
  std::span<const std::int32_t> tokens;      // prompt, then output so far
  std::uint32_t num_prompt_tokens = 0;       // of those
  std::span<const std::int32_t> stop_ids;    // banned by min_tokens
  std::span<const std::uint32_t> allowed{};  // [NumMaskWords] bit i % 32 of word i / 32: token i
                                             // may be drawn; empty: all may

  std::span<const std::int32_t> output() const { return tokens.subspan(num_prompt_tokens); }
};

class LogitEditor {
 public:
  // `kernels` outlives the editor.
  LogitEditor(std::uint32_t vocab_size, const CpuKernels& kernels);

  // Whether anything would change.
  static bool Changes(const SamplingParams& params, const LogitEdits& edits) noexcept;
  // Edits a copy. Returns whether any token is left. Requires: finite logits, [vocab]; ids in
  // the edits, stop ids excepted, are below vocab.
  bool Edit(std::span<const float> logits, const SamplingParams& params,
            const LogitEdits& edits) noexcept;
  // Of the last call of Edit.
  std::span<const float> logits() const noexcept { return logits_; }
  LogitStats stats() const noexcept { return {.maxima = maxima_, .sums = sums_}; }

 private:
  void Copy(std::span<const float> logits, const LogitEdits& edits) noexcept;
  void CopyMasked(std::span<const float> logits, std::span<const std::uint32_t> allowed) noexcept;
  void BanWords(const LogitEdits& edits) noexcept;
  void BanStops(const LogitEdits& edits) noexcept;
  void AddBias(const LogitEdits& edits) noexcept;
  void Penalise(const SamplingParams& params, const LogitEdits& edits) noexcept;
  bool TakeStats() noexcept;

  const CpuKernels& kernels_;
  std::vector<float> logits_;          // [vocab]
  std::vector<float> maxima_;          // [chunks]
  std::vector<float> sums_;            // [chunks]
  std::vector<std::uint32_t> counts_;  // [vocab] all zero between calls
};

}  // namespace kvrm
