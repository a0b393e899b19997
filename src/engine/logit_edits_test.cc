// SPDX-License-Identifier: Apache-2.0
#include "engine/logit_edits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/request_checks.h"
#include "engine/sampler.h"

namespace kvrm {
namespace {

using Ids = std::vector<std::int32_t>;

std::vector<float> RandomLogits(std::uint32_t n, Rng& rng) {
  std::vector<float> logits(n);
  for (float& logit : logits)
    logit = static_cast<float>(rng.Uniform() * 12.0 - 6.0);
  return logits;
}

// Everything a request can ask, owning what LogitEdits only looks at.
struct Asked {
  SamplingParams params;
  LogitRules rules;
  Ids tokens;
  std::uint32_t num_prompt_tokens = 0;
  Ids stop_ids;
  std::vector<std::uint32_t> allowed;

  LogitEdits edits() const {
    return {.rules = &rules,
            .tokens = tokens,
            .num_prompt_tokens = num_prompt_tokens,
            .stop_ids = stop_ids,
            .allowed = allowed};
  }
};

// The definition, token by token.
std::vector<float> PlainlyEdited(const std::vector<float>& logits, const Asked& asked,
                                 bool ban_stops) {
  const Ids output(asked.tokens.begin() + asked.num_prompt_tokens, asked.tokens.end());
  const std::size_t window = asked.params.penalty_window < 0
                                 ? asked.tokens.size()
                                 : static_cast<std::size_t>(asked.params.penalty_window);
  std::set<std::int32_t> seen;
  std::map<std::int32_t, int> counts;
  for (std::size_t i = 0; i < asked.tokens.size(); ++i) {
    if (i + window < asked.tokens.size()) continue;
    seen.insert(asked.tokens[i]);
    if (i >= asked.num_prompt_tokens) ++counts[asked.tokens[i]];
  }
  std::vector<float> edited;
  for (std::int32_t id = 0; id < static_cast<std::int32_t>(logits.size()); ++id) {
    const auto at = static_cast<std::size_t>(id);
    const auto has = [id](const Ids& ids) {
      return std::find(ids.begin(), ids.end(), id) != ids.end();
    };
    bool banned = !asked.allowed.empty() && (asked.allowed[at / 32] & 1u << (at % 32)) == 0;
    banned |= !asked.rules.allowed_ids.empty() && !has(asked.rules.allowed_ids);
    for (const Ids& word : asked.rules.bad_words) {
      Ids after = output;
      after.push_back(id);
      banned |= after.size() >= word.size() &&
                std::equal(word.begin(), word.end(), after.end() - std::ptrdiff_t(word.size()));
    }
    banned |= ban_stops && output.size() < asked.rules.min_tokens && has(asked.stop_ids);
    float logit = logits[at];
    for (const LogitBias& bias : asked.rules.bias) {
      if (bias.token != id) continue;
      banned |= std::isinf(bias.bias);
      if (!std::isinf(bias.bias)) logit += bias.bias;
    }
    if (seen.count(id) > 0) {
      logit = logit > 0 ? logit / asked.params.repetition_penalty
                        : logit * asked.params.repetition_penalty;
      logit -= asked.params.frequency_penalty * static_cast<float>(counts[id]);
      if (counts[id] > 0) logit -= asked.params.presence_penalty;
    }
    edited.push_back(banned ? kBannedLogit : logit);
  }
  return edited;
}

Ids RandomIds(std::size_t count, std::uint32_t vocab_size, Rng& rng) {
  Ids ids;
  for (std::size_t i = 0; i < count; ++i)
    ids.push_back(static_cast<std::int32_t>(rng.Below(vocab_size)));
  return ids;
}

Asked RandomlyAsked(std::uint32_t vocab_size, Rng& rng) {
  Asked asked;
  asked.tokens = RandomIds(1 + rng.Below(60), vocab_size, rng);
  asked.num_prompt_tokens = 1 + static_cast<std::uint32_t>(rng.Below(asked.tokens.size()));
  if (rng.Below(2) == 0) asked.params.repetition_penalty = 1.3f;
  if (rng.Below(2) == 0) asked.params.presence_penalty = 0.7f;
  if (rng.Below(2) == 0) asked.params.frequency_penalty = -0.4f;
  if (rng.Below(2) == 0) asked.params.penalty_window = static_cast<std::int32_t>(rng.Below(70));
  asked.stop_ids = RandomIds(rng.Below(4), vocab_size, rng);
  if (rng.Below(2) == 0) asked.rules.min_tokens = static_cast<std::uint32_t>(rng.Below(60));
  for (const std::int32_t id : RandomIds(rng.Below(5), vocab_size, rng)) {
    asked.rules.bias.push_back({id, rng.Below(3) == 0 ? -INFINITY : 2.5f});
  }
  if (rng.Below(4) == 0) asked.rules.allowed_ids = RandomIds(1 + rng.Below(30), vocab_size, rng);
  for (std::size_t i = rng.Below(3); i > 0; --i) {
    // One that the output is about to complete, as a random one never is.
    const std::size_t length = std::min<std::size_t>(rng.Below(3), asked.tokens.size());
    Ids word(asked.tokens.end() - std::ptrdiff_t(length), asked.tokens.end());
    word.push_back(static_cast<std::int32_t>(rng.Below(vocab_size)));
    asked.rules.bad_words.push_back(word);
  }
  if (rng.Below(2) == 0) {
    for (std::size_t i = 0; i < NumMaskWords(vocab_size); ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(rng.Next());
      asked.allowed.push_back(i % 3 == 0 ? 0 : i % 3 == 1 ? ~0u : bits);
    }
  }
  return asked;
}

TEST(LogitEdits, AreWhatTheirDefinitionSays) {
  Rng rng(1);
  int num_left = 0;
  for (int round = 0; round < 2000; ++round) {
    const auto vocab_size = static_cast<std::uint32_t>(100 + rng.Below(400));
    LogitEditor editor(vocab_size, SelectCpuKernels());
    for (int again = 0; again < 2; ++again) {  // Nothing of the first is left for the second.
      const std::vector<float> logits = RandomLogits(vocab_size, rng);
      const Asked asked = RandomlyAsked(vocab_size, rng);
      const bool left = editor.Edit(logits, asked.params, asked.edits());
      std::vector<float> plain = PlainlyEdited(logits, asked, true);
      const auto is_left = [](float logit) { return logit > kBannedLogit; };
      if (std::none_of(plain.begin(), plain.end(), is_left))
        plain = PlainlyEdited(logits, asked, false);
      ASSERT_EQ(std::vector<float>(editor.logits().begin(), editor.logits().end()), plain);
      ASSERT_EQ(left, std::any_of(plain.begin(), plain.end(), is_left));
      num_left += left ? 1 : 0;
    }
  }
  EXPECT_GT(num_left, 3500);
}

// A sampler, and the statistics of what it samples from.
class EditedSampler {
 public:
  EditedSampler(std::uint32_t vocab_size, const CpuKernels& kernels)
      : kernels_(kernels),
        sampler_(vocab_size, kernels),
        maxima_(NumLogitChunks(vocab_size)),
        sums_(maxima_.size()) {}

  Sampled Sample(const std::vector<float>& logits, const Asked& asked) {
    Count(logits);
    return sampler_.Sample(logits, stats(), asked.params, asked.edits());
  }
  Sampled SampleUnedited(const std::vector<float>& logits, const Asked& asked) {
    Count(logits);
    return sampler_.Sample(logits, stats(), asked.params,
                           static_cast<std::uint32_t>(asked.edits().output().size()));
  }

 private:
  void Count(const std::vector<float>& logits) {
    kernels_.logit_stats(logits.data(), static_cast<std::uint32_t>(logits.size()), maxima_.data(),
                         sums_.data());
  }
  LogitStats stats() const { return {.maxima = maxima_, .sums = sums_}; }

  const CpuKernels& kernels_;
  Sampler sampler_;
  std::vector<float> maxima_;
  std::vector<float> sums_;
};

void AddTruncation(int kind, Rng& rng, SamplingParams& params) {
  params.seed = rng.Next();
  params.temperature = kind % 3 == 0 ? 0.0f : kind % 3 == 1 ? 1.0f : 0.6f;
  if (kind % 4 == 1) params.top_k = 20;
  if (kind % 4 == 2) params.top_p = 0.95f;
  if (kind % 4 == 3) params.min_p = 0.01f;
}

TEST(LogitEdits, OnlyWhatIsLeftIsDrawn) {
  for (const char* table : {"scalar", "avx2", "avx512", "avx512_bf16"}) {
    const CpuKernels* kernels = FindCpuKernels(table);
    if (kernels == nullptr) continue;
    Rng rng(2);
    EditedSampler sampler(300, *kernels);
    for (int round = 0; round < 3000; ++round) {
      const std::vector<float> logits = RandomLogits(300, rng);
      Asked asked = RandomlyAsked(300, rng);
      AddTruncation(round, rng, asked.params);
      const Sampled sampled = sampler.Sample(logits, asked);
      if (sampled.token < 0) {
        EXPECT_TRUE(sampled.nothing_allowed);
        continue;
      }
      std::vector<float> plain = PlainlyEdited(logits, asked, true);
      if (*std::max_element(plain.begin(), plain.end()) <= kBannedLogit)
        plain = PlainlyEdited(logits, asked, false);
      ASSERT_GT(plain[static_cast<std::size_t>(sampled.token)], kBannedLogit) << table << round;
      // The model's own probability, which no edit touches.
      ASSERT_NEAR(sampled.logprob, LogProb(logits, sampled.token), 1e-5f);
    }
  }
}

TEST(LogitEdits, TheOnlyTokenLeftIsDrawnHoweverUnlikely) {
  const std::vector<float> logits = {50.0f, -50.0f, 20.0f, -80.0f};
  EditedSampler sampler(4, SelectCpuKernels());
  Rng rng(3);
  for (int kind = 0; kind < 12; ++kind) {
    Asked asked;
    asked.tokens = {0};
    asked.num_prompt_tokens = 1;
    asked.allowed = {0b1000};
    AddTruncation(kind, rng, asked.params);
    EXPECT_EQ(sampler.Sample(logits, asked).token, 3) << kind;
  }
}

TEST(LogitEdits, WithoutAnyTheBitsAreTheSame) {
  Rng rng(4);
  EditedSampler sampler(1000, SelectCpuKernels());
  for (int round = 0; round < 500; ++round) {
    const std::vector<float> logits = RandomLogits(1000, rng);
    Asked asked;
    asked.tokens = RandomIds(30, 1000, rng);
    asked.num_prompt_tokens = 10;
    asked.rules.min_tokens = 20;  // reached
    asked.stop_ids = {1, 2};
    AddTruncation(round, rng, asked.params);
    const Sampled a = sampler.Sample(logits, asked);
    const Sampled b = sampler.SampleUnedited(logits, asked);
    ASSERT_EQ(a.token, b.token);
    ASSERT_EQ(std::memcmp(&a.logprob, &b.logprob, sizeof(float)), 0);
    // A mask of everything takes the other path to the same draw.
    asked.allowed.assign(NumMaskWords(1000), ~0u);
    const Sampled c = sampler.Sample(logits, asked);
    ASSERT_EQ(c.token, b.token);
    ASSERT_EQ(c.logprob, b.logprob);
  }
}

TEST(LogitEdits, NothingLeftIsSaidAndMinTokensGivesWay) {
  const std::vector<float> logits = {1.0f, 2.0f, 3.0f};
  EditedSampler sampler(3, SelectCpuKernels());
  Asked asked;
  asked.tokens = {0};
  asked.num_prompt_tokens = 1;
  asked.params.temperature = 0.0f;
  asked.stop_ids = {1, 99999, -1};
  asked.rules.min_tokens = 5;
  asked.rules.allowed_ids = {1, 2};
  EXPECT_EQ(sampler.Sample(logits, asked).token, 2);
  asked.rules.bias = {{2, -INFINITY}};
  EXPECT_EQ(sampler.Sample(logits, asked).token, 1);
  asked.rules.bad_words = {{1}};
  const Sampled sampled = sampler.Sample(logits, asked);
  EXPECT_EQ(sampled.token, -1);
  EXPECT_TRUE(sampled.nothing_allowed);
}

TEST(RequestChecks, NameTheFieldAndTheLimit) {
  const auto message = [](const std::optional<Error>& error) {
    return error ? error->message : std::string();
  };
  const auto of_params = [&](const SamplingParams& params) { return message(ErrorIn(params)); };
  EXPECT_EQ(of_params({}), "");
  EXPECT_EQ(of_params({.repetition_penalty = 0.0f}), "repetition_penalty must be in [0.01, 100]");
  EXPECT_EQ(of_params({.presence_penalty = NAN}), "presence_penalty must be in [-100, 100]");
  EXPECT_EQ(of_params({.frequency_penalty = 101.0f}), "frequency_penalty must be in [-100, 100]");
  EXPECT_EQ(of_params({.penalty_window = -2}), "penalty_window must be at least -1");
  const auto of_rules = [&](const LogitRules& rules) { return message(ErrorIn(rules, 10)); };
  EXPECT_EQ(of_rules({.bias = {{9, -INFINITY}}, .allowed_ids = {0}, .bad_words = {{1, 2}}}), "");
  EXPECT_EQ(of_rules({.bias = {{10, 1.0f}}}), "logit_bias has token id 10; ids are below 10");
  EXPECT_EQ(of_rules({.bias = {{1, INFINITY}}}), "logit_bias must be in [-100, 100]");
  EXPECT_EQ(of_rules({.bias = std::vector<LogitBias>(301)}),
            "logit_bias has 301 items; at most 300 are taken");
  EXPECT_EQ(of_rules({.allowed_ids = {-1}}), "allowed_token_ids has token id -1; ids are below 10");
  EXPECT_EQ(of_rules({.bad_words = {{}}}), "a bad word must have 1 to 32 tokens, not 0");
}

}  // namespace
}  // namespace kvrm
