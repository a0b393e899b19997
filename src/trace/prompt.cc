// SPDX-License-Identifier: Apache-2.0
#include "trace/prompt.h"

#include <iterator>

#include "base/check.h"
#include "base/rng.h"

namespace kvrm {
namespace {

// Short words that are one token, with the space before them, in the usual vocabularies.
constexpr const char* kWords[] = {
    " the",   " of",   " and",  " to",   " in",    " is",   " that",  " it",  " was",   " for",
    " on",    " are",  " as",   " with", " his",   " they", " at",    " be",  " this",  " have",
    " from",  " or",   " one",  " had",  " by",    " word", " but",   " not", " what",  " all",
    " were",  " we",   " when", " your", " can",   " said", " there", " use", " an",    " each",
    " which", " she",  " do",   " how",  " their", " if",   " will",  " up",  " other", " about",
    " out",   " many", " then", " them", " these", " so",   " some",  " her", " would", " make",
    " like",  " him",  " into", " time"};

// Calls take(draw), 64 bits that stand for a token, for every position in order.
template <typename Take>
void DrawAll(const Workload& workload, std::size_t idx, const Take& take) {
  const TraceRequest& request = workload.requests[idx];
  const std::uint32_t block_tokens = workload.hash_block_tokens;
  std::uint32_t position = 0;
  for (const std::uint64_t id : workload.HashIds(request)) {
    const std::uint64_t seed = Mix64(id ^ 0x6b76726d);
    for (std::uint32_t i = 0; i < block_tokens && position < request.prompt_tokens; ++i, ++position)
      take(Mix64(seed + i));
  }
  const std::uint64_t seed = Mix64(Mix64(workload.seed ^ 0x70726f6d7074) + idx);
  for (; position < request.prompt_tokens; ++position)
    take(Mix64(seed + position));
}

}  // namespace

std::vector<std::int32_t> PromptTokens(const Workload& workload, std::size_t idx,
                                       const PromptVocab& vocab) {
  CHECK(vocab.first_id < vocab.vocab_size);
  std::vector<std::int32_t> tokens;
  tokens.reserve(workload.requests[idx].prompt_tokens);
  const std::uint64_t span = vocab.vocab_size - vocab.first_id;
  DrawAll(workload, idx, [&](std::uint64_t draw) {
    tokens.push_back(static_cast<std::int32_t>(vocab.first_id + draw % span));
  });
  return tokens;
}

std::string PromptText(const Workload& workload, std::size_t idx) {
  std::string text;
  DrawAll(workload, idx, [&text](std::uint64_t draw) { text += kWords[draw % std::size(kWords)]; });
  return text;
}

}  // namespace kvrm
