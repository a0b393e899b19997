// SPDX-License-Identifier: Apache-2.0
#include "engine/logit_edits.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace kvrm {
namespace {

// In LogitEditor::counts_: the token is in the window. Below it, how often it was put out.
constexpr std::uint32_t kSeen = 0x80000000u;

bool IsNeutral(const SamplingParams& params) noexcept {
  return params.repetition_penalty == 1.0f && params.presence_penalty == 0.0f &&
         params.frequency_penalty == 0.0f;
}

bool IsAllowed(std::span<const std::uint32_t> allowed, std::size_t token) noexcept {
  return allowed.empty() || (allowed[token / 32] >> (token % 32) & 1u) != 0;
}

bool BansStops(const LogitEdits& edits) noexcept {
  return edits.rules != nullptr && edits.output().size() < edits.rules->min_tokens;
}

}  // namespace

LogitEditor::LogitEditor(std::uint32_t vocab_size, const CpuKernels& kernels)
    : kernels_(kernels),
      logits_(vocab_size),
      maxima_(NumLogitChunks(vocab_size)),
      sums_(maxima_.size()),
      counts_(vocab_size) {}

bool LogitEditor::Changes(const SamplingParams& params, const LogitEdits& edits) noexcept {
  if (!edits.allowed.empty() || !IsNeutral(params)) return true;
  if (edits.rules == nullptr) return false;
  const LogitRules& rules = *edits.rules;
  return !rules.bias.empty() || !rules.allowed_ids.empty() || !rules.bad_words.empty() ||
         (BansStops(edits) && !edits.stop_ids.empty());
}

bool LogitEditor::Edit(std::span<const float> logits, const SamplingParams& params,
                       const LogitEdits& edits) noexcept {
  CHECK(logits.size() == logits_.size());
  CHECK(edits.allowed.empty() ||
        edits.allowed.size() == NumMaskWords(static_cast<std::uint32_t>(logits.size())));
  for (const bool ban_stops : {true, false}) {
    Copy(logits, edits);
    if (edits.rules != nullptr) {
      BanWords(edits);
      if (ban_stops && BansStops(edits)) BanStops(edits);
      AddBias(edits);
    }
    Penalise(params, edits);
    if (TakeStats()) return true;
    if (!BansStops(edits)) break;
  }
  return false;
}

void LogitEditor::Copy(std::span<const float> logits, const LogitEdits& edits) noexcept {
  if (edits.rules != nullptr && !edits.rules->allowed_ids.empty()) {
    std::fill(logits_.begin(), logits_.end(), kBannedLogit);
    for (const std::int32_t id : edits.rules->allowed_ids) {
      const auto token = static_cast<std::size_t>(id);
      if (IsAllowed(edits.allowed, token)) logits_[token] = logits[token];
    }
  } else if (!edits.allowed.empty()) {
    CopyMasked(logits, edits.allowed);
  } else {
    std::copy(logits.begin(), logits.end(), logits_.begin());
  }
}

// Most words of a grammar's mask are of one kind.
void LogitEditor::CopyMasked(std::span<const float> logits,
                             std::span<const std::uint32_t> allowed) noexcept {
  for (std::size_t word = 0; word < allowed.size(); ++word) {
    const std::size_t begin = word * 32;
    const std::size_t count = std::min<std::size_t>(32, logits.size() - begin);
    const std::uint32_t bits = allowed[word];
    float* target = &logits_[begin];
    if (bits == 0) {
      std::fill(target, target + count, kBannedLogit);
    } else if (bits == ~0u) {
      std::copy(&logits[begin], &logits[begin] + count, target);
    } else {
      for (std::size_t i = 0; i < count; ++i)
        target[i] = (bits >> i & 1u) != 0 ? logits[begin + i] : kBannedLogit;
    }
  }
}

void LogitEditor::BanWords(const LogitEdits& edits) noexcept {
  const std::span<const std::int32_t> output = edits.output();
  for (const std::vector<std::int32_t>& word : edits.rules->bad_words) {
    const std::size_t num_before = word.size() - 1;
    if (num_before > output.size()) continue;
    if (std::equal(word.begin(), word.end() - 1, output.last(num_before).begin()))
      logits_[static_cast<std::size_t>(word.back())] = kBannedLogit;
  }
}

void LogitEditor::BanStops(const LogitEdits& edits) noexcept {
  for (const std::int32_t id : edits.stop_ids) {
    const auto token = static_cast<std::size_t>(id);  // A client's own may be no token at all.
    if (token < logits_.size()) logits_[token] = kBannedLogit;
  }
}

void LogitEditor::AddBias(const LogitEdits& edits) noexcept {
  for (const LogitBias& bias : edits.rules->bias) {
    float& logit = logits_[static_cast<std::size_t>(bias.token)];
    if (logit <= kBannedLogit) continue;
    logit = std::isinf(bias.bias) ? kBannedLogit : logit + bias.bias;
  }
}

void LogitEditor::Penalise(const SamplingParams& params, const LogitEdits& edits) noexcept {
  if (IsNeutral(params)) return;
  const std::size_t num_tokens = edits.tokens.size();
  const std::size_t begin =
      params.penalty_window < 0
          ? 0
          : num_tokens - std::min(num_tokens, static_cast<std::size_t>(params.penalty_window));
  for (std::size_t i = begin; i < num_tokens; ++i) {
    std::uint32_t& count = counts_[static_cast<std::size_t>(edits.tokens[i])];
    count = (count | kSeen) + (i >= edits.num_prompt_tokens ? 1 : 0);
  }
  for (std::size_t i = begin; i < num_tokens; ++i) {
    const auto token = static_cast<std::size_t>(edits.tokens[i]);
    const std::uint32_t count = counts_[token] & ~kSeen;
    const bool is_first = counts_[token] != 0;
    counts_[token] = 0;
    float& logit = logits_[token];
    if (!is_first || logit <= kBannedLogit) continue;
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * static_cast<float>(count);
    if (count > 0) logit -= params.presence_penalty;
  }
}

bool LogitEditor::TakeStats() noexcept {
  kernels_.logit_stats(logits_.data(), static_cast<std::uint32_t>(logits_.size()), maxima_.data(),
                       sums_.data());
  return *std::max_element(maxima_.begin(), maxima_.end()) > kBannedLogit;
}

}  // namespace kvrm
