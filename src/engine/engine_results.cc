// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/mutant.h"
#include "engine/engine_state.h"

namespace kvrm {

void Engine::State::Emit(const TokenEvent& event) noexcept {
  outbox.Push(event);
}

void Engine::State::Finish(RequestId id, FinishReason reason) noexcept {
  std::unique_ptr<Sequence> sequence = scheduler.Remove(id);
  CHECK(sequence != nullptr);
  num_accepted.fetch_sub(1);
  CountEnd(*sequence, reason);
  // Memory goes back on the consumer's thread, not on the step path; there is room for all.
  finished.TryPush(std::move(sequence));
}

void Engine::State::Fail(RequestId id, FinishReason reason) noexcept {
  Emit({.request = id, .finish = reason});
  Finish(id, reason);
}

void Engine::State::TakeResults() noexcept {
  std::uint32_t sample = 0;
  if (loop.log() != nullptr) sampled_tokens.assign(NumScheduledSamples(), -1);
  for (const PlannedRow& row : scheduled) {
    Sequence& sequence = *row.sequence;
    const std::uint32_t begin = sequence.num_computed;
    const std::uint32_t num_samples = sequence.NumSamples(row.num_tokens);
    const bool is_good = !sequence.wants_prompt() ||
                         TakePrompt(sequence, begin + row.num_tokens, {sample, num_samples});
    sequence.num_computed += row.num_tokens;
    CountTokens(sequence, begin);
    sample += num_samples;
    scheduler.Charge(sequence, row.num_tokens);
    metrics.runs_per_row.Observe(static_cast<double>(loop.cache().home(sequence.seq).size()));
    if (!is_good) {
      Fail(sequence.id, FinishReason::kError);
    } else if (sequence.num_to_compute() == 0) {
      TakeToken(sequence, sample - 1);
    } else if (IsMutant(Mutant::kSampleOfAnother)) {
      ++sample;
    }
  }
  if (loop.log() == nullptr) return;
  loop.log()->Sampled(StepId{Index(loop.next_step()) - 1}, sampled_tokens);
}

std::size_t Engine::State::NumScheduledSamples() const noexcept {
  std::size_t count = 0;
  for (const PlannedRow& row : scheduled)
    count += row.sequence->NumSamples(row.num_tokens);
  return count;
}

bool Engine::State::TakePrompt(Sequence& sequence, std::uint32_t end, Samples samples) noexcept {
  if (samples.count == 0) return true;  // Computed once more: they were taken before.
  for (std::uint32_t i = 0; i < samples.count; ++i) {
    const std::uint32_t next = end - samples.count + i + 1;
    const std::uint32_t sample = samples.first + i;
    if (sequence.pooling == Pooling::kMean) {
      const std::span<const float> hidden = loop.executor().Hidden(sample);
      for (std::size_t k = 0; k < hidden.size(); ++k)
        sequence.pooled[k] += static_cast<double>(hidden[k]);
    } else if (next < sequence.num_prompt_tokens) {
      if (!PushLogprobs(sequence, sample, next, *sequence.num_prompt_logprobs)) return false;
    }
  }
  sequence.num_seen = end;
  return true;
}

bool Engine::State::PushLogprobs(const Sequence& sequence, std::uint32_t sample,
                                 std::uint32_t position, std::uint32_t num_top) noexcept {
  TopLogprobs logprobs;
  logprobs.request = sequence.id;
  logprobs.position = position;
  logprobs.token.token = sequence.tokens[position];
  if (!sampler.Rank(loop.executor().Logits(sample), loop.executor().Stats(sample), num_top,
                    &logprobs)) {
    return false;
  }
  outbox.Push(logprobs);
  return true;
}

void Engine::State::EndEmbedding(Sequence& sequence, std::uint32_t sample) noexcept {
  std::vector<float>& values = sequence.embedding.values;
  CHECK(values.capacity() >= hidden_dim);
  const std::span<const float> last = loop.executor().Hidden(sample);
  const double num_tokens = static_cast<double>(sequence.num_prompt_tokens);
  bool is_finite = true;
  for (std::size_t k = 0; k < hidden_dim; ++k) {
    values.push_back(sequence.pooling == Pooling::kMean
                         ? static_cast<float>(sequence.pooled[k] / num_tokens)
                         : last[k]);
    is_finite &= std::isfinite(values[k]);
  }
  if (is_finite) {
    Publish(sequence);
    counts[kCachedTokens] += sequence.num_cached_tokens;
    sequence.embedding.request = sequence.id;
    outbox.Push(std::move(sequence.embedding));
  }
  const FinishReason finish = is_finite ? FinishReason::kStop : FinishReason::kError;
  Emit({.request = sequence.id, .finish = finish, .num_cached_tokens = sequence.num_cached_tokens});
  Finish(sequence.id, finish);
}

void Engine::State::CountTokens(Sequence& sequence, std::uint32_t begin) noexcept {
  const std::uint32_t end = sequence.num_computed;
  const std::uint32_t seen = std::min(std::max(sequence.num_ever_computed, begin), end);
  counts[kRecomputed] += seen - begin;
  const std::uint32_t prompt_end = std::min(sequence.num_prompt_tokens, end);
  if (prompt_end > seen) counts[kPromptTokens] += prompt_end - seen;
  sequence.num_ever_computed = std::max(sequence.num_ever_computed, end);
}

void Engine::State::Publish(Sequence& sequence) noexcept {
  const std::uint32_t num_full = sequence.num_computed / options.block_tokens;
  if (num_full == sequence.num_published_blocks) return;
  if (options.prefix_cache) {
    ExtendKeys(sequence, sequence.num_computed);
    loop.cache().Publish(sequence.seq, std::span(sequence.tokens).first(sequence.num_computed),
                         std::span(sequence.keys).first(num_full));
  }
  sequence.num_published_blocks = num_full;
  if (attention_window == 0 || sequence.num_computed + 1 <= attention_window) return;
  const std::uint32_t end = sequence.num_computed + 1 - attention_window;
  loop.cache().Trim(sequence.seq, 0, end);
  if (loop.log() != nullptr) loop.log()->Trimmed(sequence.seq, 0, end);
}

void Engine::State::ExtendKeys(Sequence& sequence, std::uint32_t num_tokens) const noexcept {
  const std::span<const std::int32_t> tokens(sequence.tokens);
  while (sequence.keys.size() < num_tokens / options.block_tokens) {
    const std::size_t first = sequence.keys.size() * options.block_tokens;
    const PrefixKey& parent = sequence.keys.empty() ? sequence.root : sequence.keys.back();
    sequence.keys.push_back(NextPrefixKey(parent, tokens.subspan(first, options.block_tokens)));
  }
}

bool Engine::State::IsStop(const Sequence& sequence, std::int32_t token) noexcept {
  const std::vector<std::int32_t>& stops = sequence.stop_ids;
  return std::find(stops.begin(), stops.end(), token) != stops.end();
}

Sampled Engine::State::Sample(Sequence& sequence, std::uint32_t sample) noexcept {
  const Sampled nothing = {.nothing_allowed = true};
  LogitEdits edits = {.rules = &sequence.rules,
                      .tokens = sequence.tokens,
                      .num_prompt_tokens = sequence.num_prompt_tokens,
                      .stop_ids = sequence.stop_ids};
  if (sequence.matcher != nullptr) {
    edits.allowed = guide.Allowed(*sequence.matcher, sequence.stop_ids);
    if (edits.allowed.empty()) return nothing;
  }
  const Sampled sampled = sampler.Sample(loop.executor().Logits(sample),
                                         loop.executor().Stats(sample), sequence.sampling, edits);
  if (sampled.token < 0 || sequence.matcher == nullptr || IsStop(sequence, sampled.token))
    return sampled;
  return guide.Accept(*sequence.matcher, sampled.token) ? sampled : nothing;
}

void Engine::State::TakeToken(Sequence& sequence, std::uint32_t sample) noexcept {
  if (sequence.pooling != Pooling::kNone) return EndEmbedding(sequence, sample);
  const Sampled sampled = Sample(sequence, sample);
  // Samples that were forked off share the logits of their parent's.
  if (loop.log() != nullptr && sampled_tokens[sample] < 0) sampled_tokens[sample] = sampled.token;
  if (sampled.token < 0) {
    return Fail(sequence.id,
                sampled.nothing_allowed ? FinishReason::kNothingAllowed : FinishReason::kError);
  }
  Publish(sequence);
  if (sequence.num_output_tokens() == 0) {
    counts[kCachedTokens] += sequence.num_cached_tokens;
    while (Sequence* other = scheduler.Fork(sequence))
      TakeToken(*other, sample);
  }
  CHECK(sequence.tokens.size() < sequence.tokens.capacity());
  sequence.tokens.push_back(sampled.token);
  ObserveToken(sequence);
  ++counts[kOutputTokens];
  if (sequence.num_top_logprobs > 0)
    PushLogprobs(sequence, sample, sequence.length() - 1, sequence.num_top_logprobs);
  const bool stops_here = IsStop(sequence, sampled.token);
  const FinishReason finish = stops_here                                 ? FinishReason::kStop
                              : sequence.length() == sequence.max_length ? FinishReason::kLength
                                                                         : FinishReason::kNone;
  Emit({.request = sequence.id,
        .token = sampled.token,
        .logprob = sampled.logprob,
        .finish = finish,
        .num_cached_tokens = sequence.num_cached_tokens});
  if (finish != FinishReason::kNone) Finish(sequence.id, finish);
}

}  // namespace kvrm
