// SPDX-License-Identifier: Apache-2.0
// Sequence: one request's mutable state inside the engine.
//
//   [0, num_computed)               in the cache
//   [num_computed, tokens.size())   known, to be computed; the last one's logits are sampled
//
// While decoding exactly one token is to be computed. After preemption num_computed is what the
// prefix cache still has, and the rest is computed once more, output tokens included; but where it
// was parked [0, num_computed) lies in the host tier and comes back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/request.h"
#include "grammar/matcher.h"
#include "step/ids.h"
#include "step/prefix_key.h"

namespace kvrm {

struct Sequence {
  RequestId id{};
  SamplingParams sampling;
  LogitRules rules;
  std::unique_ptr<GrammarMatcher> matcher;  // where the output is in its grammar; null: none
  std::vector<std::int32_t> stop_ids;
  std::vector<std::int32_t> tokens;  // prompt, then output; capacity for all of max_length
  std::uint32_t num_prompt_tokens = 0;
  std::uint32_t max_length = 0;  // prompt and output together
  std::uint32_t num_computed = 0;
  std::uint32_t num_ever_computed = 0;  // the high-water mark: beyond it nothing is recomputed
  std::uint32_t num_cached_tokens = 0;  // as TokenEvent
  std::uint32_t num_published_blocks = 0;
  std::uint32_t num_top_logprobs = 0;
  // What is wanted of the prompt's positions, of each once, and how many have given it so far.
  std::optional<std::uint32_t> num_prompt_logprobs;
  Pooling pooling = Pooling::kNone;
  std::uint32_t num_seen = 0;
  std::vector<double> pooled;  // [hidden_dim] with pooling: the sum so far
  Embedding embedding;         // its values have that capacity
  // Names of the full blocks of `tokens`, as far as they are known; capacity for all of max_length,
  // and none without a prefix cache.
  std::vector<PrefixKey> keys;
  PrefixKey root = {};
  std::uint64_t log_salt = 0;  // of the descriptor log: requests with one cache_salt have one
  // Another sample's sequence, with the same prompt, that this one shares it with: it waits until
  // that one has computed it. 0: nobody's.
  RequestId sample_of{};
  std::unique_ptr<Sequence> next_sample;  // on the way to the engine thread only
  SeqId seq{};                            // valid while running
  std::optional<ParkedId> parked = {};    // while it waits to be resumed

  // Nanoseconds of the engine's clock; 0: not yet, or never.
  std::int64_t submitted_ns = 0;
  std::int64_t queued_ns = 0;     // when it last began to wait
  std::uint64_t queued_step = 0;  // the same, in steps
  std::int64_t admitted_ns = 0;   // the first time
  std::int64_t first_token_ns = 0;
  std::int64_t last_token_ns = 0;
  std::int64_t deadline_ns = 0;       // of the whole
  std::int64_t wait_deadline_ns = 0;  // of the wait before the first step
  std::uint32_t max_predict_ms = 0;
  std::int32_t priority = 0;  // lower first; kAgedPriority for who has waited too long
  std::uint64_t tenant = 0;
  float tenant_weight = 1.0f;
  std::uint32_t tenant_place = 0;  // in the scheduler's FairShare
  std::uint32_t num_preemptions = 0;
  std::uint32_t num_queued_tokens = 0;  // that it counts in the queue's bound; 0 once admitted

  std::uint32_t length() const { return static_cast<std::uint32_t>(tokens.size()); }
  std::uint32_t num_to_compute() const { return length() - num_computed; }
  std::uint32_t num_output_tokens() const { return length() - num_prompt_tokens; }

  // Whether logits, or hidden states, of positions before the last are wanted still.
  bool wants_prompt() const {
    return (num_prompt_logprobs || pooling == Pooling::kMean) && num_seen < num_prompt_tokens;
  }
  // Of its next `num_tokens` tokens, how many from the end are sampled.
  std::uint32_t NumSamples(std::uint32_t num_tokens) const {
    const std::uint32_t end = num_computed + num_tokens;
    if (!wants_prompt()) return end == length() ? 1 : 0;
    const std::uint32_t begin = std::max(num_computed, num_seen);
    return end > begin ? end - begin : 0;
  }
  // How many tokens may come from the prefix cache: the last one's logits are wanted always.
  std::uint32_t max_found() const {
    return wants_prompt() ? std::min(num_seen, length() - 1) : length() - 1;
  }
};

}  // namespace kvrm
