// SPDX-License-Identifier: Apache-2.0
// Log-probabilities and embeddings of the engine beside what the scorer's logits give in plain
// double arithmetic; and that neither chunks, neighbours nor the prefix cache change a bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/scorer.h"
#include "model/weights.h"

namespace kvrm {
namespace {

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

const SystemClock kClock;

std::vector<std::int32_t> Prompt() {
  return Demo().tokenizer().Encode(
      "Once upon a time there was a little girl who lived near the sea. One day she found a shell, "
      "and the shell could talk.",
      {});
}

struct Outcome {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;      // of the tokens
  std::vector<TopLogprobs> prompt;  // by position
  std::vector<TopLogprobs> output;  // by position
  std::vector<float> embedding;
  std::uint32_t num_cached_tokens = 0;
  FinishReason finish = FinishReason::kNone;
};

using Outcomes = std::map<RequestId, Outcome>;

// Takes what waits, as a server does: events first, then what belongs to them.
void Take(Engine& engine, std::uint32_t num_prompt_tokens, Outcomes& outcomes) {
  std::vector<TokenEvent> events(64);
  events.resize(engine.Poll(events));
  TopLogprobs logprobs;
  while (engine.PollLogprobs(&logprobs)) {
    Outcome& outcome = outcomes[logprobs.request];
    (logprobs.position < num_prompt_tokens ? outcome.prompt : outcome.output).push_back(logprobs);
  }
  Embedding embedding;
  while (engine.PollEmbedding(&embedding))
    outcomes[embedding.request].embedding = embedding.values;
  for (const TokenEvent& event : events) {
    Outcome& outcome = outcomes[event.request];
    EXPECT_EQ(outcome.finish, FinishReason::kNone);
    outcome.finish = event.finish;
    outcome.num_cached_tokens = event.num_cached_tokens;
    if (event.token < 0) continue;
    outcome.tokens.push_back(event.token);
    outcome.logprobs.push_back(event.logprob);
  }
}

Outcomes RunToEnd(Engine& engine, std::uint32_t num_prompt_tokens) {
  Outcomes outcomes;
  do {
    engine.Step();
    Take(engine, num_prompt_tokens, outcomes);
  } while (engine.stats().num_running + engine.stats().num_waiting > 0);
  return outcomes;
}

EngineOptions Small() {
  return {.max_rows = 4, .max_context = 256, .max_queued = 8, .num_threads = 1};
}

Request Asking(std::uint32_t num_top) {
  return {.prompt = Prompt(),
          .max_tokens = 12,
          .sampling = {.temperature = 0.8f, .seed = 5},
          .num_top_logprobs = num_top,
          .num_prompt_logprobs = num_top};
}

// What a position's log-probabilities are, in double, from logits alone.
class PlainLogprobs {
 public:
  explicit PlainLogprobs(std::span<const float> logits) : logits_(logits.begin(), logits.end()) {
    const double greatest = *std::max_element(logits_.begin(), logits_.end());
    double sum = 0;
    for (const double logit : logits_)
      sum += std::exp(logit - greatest);
    log_sum_ = greatest + std::log(sum);
  }
  double Of(std::int32_t token) const {
    return logits_[static_cast<std::size_t>(token)] - log_sum_;
  }
  std::uint32_t RankOf(std::int32_t token) const {
    const double own = logits_[static_cast<std::size_t>(token)];
    return 1 + static_cast<std::uint32_t>(std::count_if(logits_.begin(), logits_.end(),
                                                        [&](double x) { return x > own; }));
  }
  std::vector<std::int32_t> Likeliest(std::size_t count) const {
    std::vector<std::int32_t> ids(logits_.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
      return logits_[static_cast<std::size_t>(a)] > logits_[static_cast<std::size_t>(b)];
    });
    ids.resize(count);
    return ids;
  }

 private:
  std::vector<double> logits_;
  double log_sum_ = 0;
};

void ExpectIs(const PlainLogprobs& plain, const TopLogprobs& actual) {
  EXPECT_NEAR(static_cast<double>(actual.token.logprob), plain.Of(actual.token.token), 2e-5);
  EXPECT_EQ(actual.rank, plain.RankOf(actual.token.token));
  std::vector<std::int32_t> likeliest;
  for (std::uint32_t i = 0; i < actual.num_top; ++i) {
    likeliest.push_back(actual.likeliest[i].token);
    EXPECT_NEAR(static_cast<double>(actual.likeliest[i].logprob),
                plain.Of(actual.likeliest[i].token), 2e-5);
  }
  EXPECT_EQ(likeliest, plain.Likeliest(actual.num_top));
}

TEST(Logprobs, AreThoseOfTheLogitsOfEveryPosition) {
  const std::vector<std::int32_t> prompt = Prompt();
  const auto num_prompt_tokens = static_cast<std::uint32_t>(prompt.size());
  Engine engine(Demo(), Small(), kClock);
  const RequestId id = OrThrow(engine.Submit(Asking(7)));
  const Outcome outcome = RunToEnd(engine, num_prompt_tokens).at(id);
  ASSERT_EQ(outcome.tokens.size(), 12u);
  ASSERT_EQ(outcome.prompt.size(), prompt.size() - 1);
  ASSERT_EQ(outcome.output.size(), 12u);

  std::vector<std::int32_t> text = prompt;
  text.insert(text.end(), outcome.tokens.begin(), outcome.tokens.end());
  Scorer scorer(Demo(), {.max_context = 256, .num_threads = 1});
  scorer.Score(text, [&](std::uint32_t position, std::span<const float> logits) {
    const std::uint32_t next = position + 1;
    if (next == text.size()) return;
    const TopLogprobs& actual = next < num_prompt_tokens ? outcome.prompt[next - 1]
                                                         : outcome.output[next - num_prompt_tokens];
    SCOPED_TRACE(next);
    EXPECT_EQ(actual.position, next);
    EXPECT_EQ(actual.token.token, text[next]);
    EXPECT_EQ(actual.num_top, 7u);
    ExpectIs(PlainLogprobs(logits), actual);
    if (next < num_prompt_tokens) return;
    EXPECT_EQ(actual.token.logprob, outcome.logprobs[next - num_prompt_tokens]);
  });
}

std::vector<std::uint32_t> Bits(const Outcome& outcome) {
  std::vector<std::uint32_t> bits;
  for (const auto* all : {&outcome.prompt, &outcome.output}) {
    for (const TopLogprobs& one : *all) {
      bits.push_back(one.position);
      bits.push_back(static_cast<std::uint32_t>(one.token.token));
      bits.push_back(std::bit_cast<std::uint32_t>(one.token.logprob));
      bits.push_back(one.rank);
      for (std::uint32_t i = 0; i < one.num_top; ++i) {
        bits.push_back(static_cast<std::uint32_t>(one.likeliest[i].token));
        bits.push_back(std::bit_cast<std::uint32_t>(one.likeliest[i].logprob));
      }
    }
  }
  return bits;
}

TEST(Logprobs, DoNotDependOnChunksNeighboursOrTheCache) {
  const auto num_prompt_tokens = static_cast<std::uint32_t>(Prompt().size());
  Engine alone(Demo(), Small(), kClock);
  const RequestId id = OrThrow(alone.Submit(Asking(20)));
  const std::vector<std::uint32_t> expected = Bits(RunToEnd(alone, num_prompt_tokens).at(id));
  ASSERT_GT(expected.size(), 1000u);
  for (const std::uint32_t chunk : {1u, 3u, 5u, 64u}) {
    SCOPED_TRACE(chunk);
    EngineOptions options = Small();
    options.prompt_chunk = chunk;
    Engine engine(Demo(), options, kClock);
    for (int again = 0; again < 2; ++again) {  // The second time the cache has the whole prompt.
      std::vector<RequestId> ids;
      for (int i = 0; i < 6; ++i) {
        Request other = Asking(20);
        if (i % 2 == 1) other.num_prompt_logprobs = std::nullopt;
        ids.push_back(OrThrow(engine.Submit(other)));
      }
      const Outcomes outcomes = RunToEnd(engine, num_prompt_tokens);
      for (std::size_t i = 0; i < ids.size(); i += 2) {
        EXPECT_EQ(Bits(outcomes.at(ids[i])), expected);
        EXPECT_EQ(outcomes.at(ids[i]).num_cached_tokens, 0u);
      }
      EXPECT_TRUE(outcomes.at(ids[1]).prompt.empty());
      EXPECT_TRUE(again == 0 || outcomes.at(ids[1]).num_cached_tokens > 0);
    }
    engine.CheckInvariants();
  }
}

// A pool that holds one and a half of them: each is preempted, some within the prompt.
TEST(Logprobs, ComeOnceThoughTheirRequestIsPreempted) {
  const auto num_prompt_tokens = static_cast<std::uint32_t>(Prompt().size());
  Request request = Asking(3);
  request.max_tokens = 120;
  Engine alone(Demo(), Small(), kClock);
  const RequestId id = OrThrow(alone.Submit(request));
  const std::vector<std::uint32_t> expected = Bits(RunToEnd(alone, num_prompt_tokens).at(id));
  EngineOptions options = Small();
  options.kv_tokens = 256;
  options.prompt_chunk = 4;
  Engine engine(Demo(), options, kClock);
  std::vector<RequestId> ids;
  for (int i = 0; i < 6; ++i)
    ids.push_back(OrThrow(engine.Submit(request)));
  const Outcomes outcomes = RunToEnd(engine, num_prompt_tokens);
  EXPECT_GT(engine.stats().num_preemptions, 0u);
  for (const RequestId one : ids)
    EXPECT_EQ(Bits(outcomes.at(one)), expected);
}

TEST(Logprobs, OfThePromptComeWithTheFirstOfSeveralSamples) {
  const auto num_prompt_tokens = static_cast<std::uint32_t>(Prompt().size());
  Request request = Asking(2);
  request.num_samples = 3;
  Engine engine(Demo(), Small(), kClock);
  const RequestId first = OrThrow(engine.Submit(request));
  const Outcomes outcomes = RunToEnd(engine, num_prompt_tokens);
  ASSERT_EQ(outcomes.size(), 3u);
  for (std::uint64_t i = 0; i < 3; ++i) {
    const Outcome& outcome = outcomes.at(RequestId{static_cast<std::uint64_t>(first) + i});
    EXPECT_EQ(outcome.prompt.size(), i == 0 ? num_prompt_tokens - 1 : 0);
    EXPECT_EQ(outcome.output.size(), 12u);
  }
}

Outcome Embed(Engine& engine, const std::vector<std::int32_t>& prompt, Pooling pooling) {
  Request request;
  request.prompt = prompt;
  request.pooling = pooling;
  const RequestId id = OrThrow(engine.Submit(request));
  return RunToEnd(engine, 0).at(id);
}

TEST(Embeddings, AreTheLastHiddenStateOrTheMeanOfAll) {
  std::vector<std::int32_t> prompt = Prompt();
  prompt.resize(21);
  Engine engine(Demo(), Small(), kClock);
  const Outcome mean = Embed(engine, prompt, Pooling::kMean);
  EXPECT_EQ(mean.finish, FinishReason::kStop);
  EXPECT_TRUE(mean.tokens.empty());
  ASSERT_EQ(mean.embedding.size(), Demo().config().hidden_dim);
  // The hidden state at a position is the last one of the prompt that ends there.
  std::vector<double> sum(mean.embedding.size());
  std::vector<float> last;
  for (std::size_t length = 1; length <= prompt.size(); ++length) {
    last = Embed(engine, {prompt.begin(), prompt.begin() + std::ptrdiff_t(length)}, Pooling::kLast)
               .embedding;
    ASSERT_EQ(last.size(), sum.size());
    for (std::size_t k = 0; k < sum.size(); ++k)
      sum[k] += static_cast<double>(last[k]);
  }
  for (std::size_t k = 0; k < sum.size(); ++k)
    EXPECT_EQ(mean.embedding[k], static_cast<float>(sum[k] / static_cast<double>(prompt.size())));
  EXPECT_NE(mean.embedding, last);

  EngineOptions options = Small();
  options.prompt_chunk = 2;
  Engine other(Demo(), options, kClock);
  EXPECT_EQ(Embed(other, prompt, Pooling::kMean).embedding, mean.embedding);
  EXPECT_EQ(Embed(other, prompt, Pooling::kLast).embedding, last);
  EXPECT_EQ(Embed(other, prompt, Pooling::kMean).embedding, mean.embedding);
  other.CheckInvariants();
}

TEST(Embeddings, HaveNeitherSamplesNorLogprobs) {
  Engine engine(Demo(), Small(), kClock);
  Request request = Asking(1);
  request.pooling = Pooling::kLast;
  EXPECT_EQ(engine.Submit(request).error().code, ErrorCode::kInvalidArgument);
  request = Asking(kMaxTopLogprobs + 1);
  EXPECT_EQ(engine.Submit(request).error().message, "top_logprobs must be at most 20");
}

}  // namespace
}  // namespace kvrm
