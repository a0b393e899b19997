// SPDX-License-Identifier: Apache-2.0
// Prompts for requests that have only lengths: equal hash ids give equal tokens, everything else
// differs.
//
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trace/workload.h"

namespace kvrm {

// Ids in [first_id, vocab_size).
struct PromptVocab {
  std::uint32_t first_id = 0;
  std::uint32_t vocab_size = 0;
};

// The prompt of request `idx`, exactly prompt_tokens long. Token p is a function of its hash id and
// p, or of the workload's seed, idx and p where no id reaches. Requires: first_id < vocab_size.
std::vector<std::int32_t> PromptTokens(const Workload& workload, std::size_t idx,
                                       const PromptVocab& vocab);

// The same as text for servers that take no token ids: one common English word a token. What length
// it has there is for the server's tokenizer to say.
std::string PromptText(const Workload& workload, std::size_t idx);

}  // namespace kvrm
