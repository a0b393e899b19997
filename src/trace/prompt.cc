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

// 64 bits that stand for the token at `position`.
std::uint64_t Draw(const Workload& workload, std::size_t idx, std::uint32_t position) {
  const TraceRequest& request = workload.requests[idx];
  const std::uint32_t block = position / workload.hash_block_tokens;
  if (block < request.num_hashes) {
    const std::uint64_t id = workload.hash_ids[request.first_hash + block];
    return Mix64(Mix64(id ^ 0x6b76726d) + position % workload.hash_block_tokens);
  }
  return Mix64(Mix64(Mix64(workload.seed ^ 0x70726f6d7074) + idx) + position);
}

}  // namespace

std::vector<std::int32_t> PromptTokens(const Workload& workload, std::size_t idx,
                                       const PromptVocab& vocab) {
  CHECK(vocab.first_id < vocab.vocab_size);
  std::vector<std::int32_t> tokens(workload.requests[idx].prompt_tokens);
  const std::uint64_t span = vocab.vocab_size - vocab.first_id;
  for (std::uint32_t p = 0; p < tokens.size(); ++p)
    tokens[p] = static_cast<std::int32_t>(vocab.first_id + Draw(workload, idx, p) % span);
  return tokens;
}

std::string PromptText(const Workload& workload, std::size_t idx) {
  std::string text;
  const std::uint32_t length = workload.requests[idx].prompt_tokens;
  for (std::uint32_t p = 0; p < length; ++p)
    text += kWords[Draw(workload, idx, p) % std::size(kWords)];
  return text;
}

}  // namespace kvrm
