// SPDX-License-Identifier: Apache-2.0
#include "reference.h"

#include <algorithm>

#include "random.h"

namespace foreign {

std::int32_t Sample(std::span<const float> logits, std::uint64_t seed, std::uint32_t position) {
  Random random(seed * 1000003 + position);
  std::size_t best = 0;
  float best_score = 0;
  for (std::size_t v = 0; v < logits.size(); ++v) {
    const float score = logits[v] + 6.0f * random.Unit();
    if (v == 0 || score > best_score) {
      best = v;
      best_score = score;
    }
  }
  return static_cast<std::int32_t>(best);
}

Reference::Reference(Program& program)
    : program_(program),
      shape_(program.shape()),
      tensor_(program.device().Reserve(
          std::size_t{shape_.lanes} * shape_.window_tokens * shape_.record_bytes, "reference")),
      tokens_(std::size_t{shape_.lanes} * shape_.step_tokens),
      first_(shape_.lanes),
      count_(shape_.lanes),
      home_(tokens_.size(), nullptr),
      logits_(tokens_.size() * shape_.vocab) {}

Trace Reference::Run(const Request& request, const Feeding& feeding) {
  Trace trace = {.tokens = request.prompt, .logits = {}};
  std::uint32_t done = 0;
  for (std::uint32_t n = 0; n < request.max_new; ++n) {
    while (done < trace.tokens.size()) {
      const auto left = static_cast<std::uint32_t>(trace.tokens.size()) - done;
      const std::uint32_t count = std::min(left, feeding.chunk);
      Call(feeding, std::span(trace.tokens).subspan(done, count), done);
      done += count;
    }
    const std::uint32_t step_tokens = feeding.chunk == 1 ? 1 : shape_.step_tokens;
    const std::size_t index = std::size_t{feeding.lane} * step_tokens + count_[feeding.lane] - 1;
    const auto logits = std::span(logits_).subspan(index * shape_.vocab, shape_.vocab);
    trace.logits.emplace_back(logits.begin(), logits.end());
    trace.tokens.push_back(Sample(logits, request.seed, done));
    if (trace.tokens.back() == kEndToken) break;
  }
  return trace;
}

void Reference::Call(const Feeding& feeding, std::span<const std::int32_t> tokens,
                     std::uint32_t first) {
  const std::uint32_t step_tokens = feeding.chunk == 1 ? 1 : shape_.step_tokens;
  for (std::uint32_t lane = 0; lane < shape_.lanes; ++lane) {
    const bool is_own = lane == feeding.lane;
    first_[lane] = is_own || feeding.company ? first : 0;
    count_[lane] = is_own || feeding.company ? static_cast<std::uint32_t>(tokens.size()) : 0;
    for (std::uint32_t t = 0; t < step_tokens; ++t) {
      const std::int32_t token = t < tokens.size() ? tokens[t] : 0;
      const auto shifted = static_cast<std::uint32_t>(token) + (is_own ? 0 : lane + 1);
      tokens_[std::size_t{lane} * step_tokens + t] =
          static_cast<std::int32_t>(shifted % shape_.vocab);
    }
  }
  program_.Run({.step_tokens = step_tokens,
                .tokens = tokens_.data(),
                .first = first_.data(),
                .count = count_.data(),
                .kv = tensor_.data(),
                .home = home_.data(),
                .logits = logits_.data()});
}

}  // namespace foreign
