// SPDX-License-Identifier: Apache-2.0
// A request of random tokens, decoded greedily: what is submitted to measure steps.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "engine/request.h"

namespace kvrm {

inline Request RandomRequest(Rng& rng, std::uint32_t vocab_size, std::uint32_t num_prompt,
                             std::uint32_t num_output) {
  Request request;
  for (std::uint32_t i = 0; i < num_prompt; ++i)
    request.prompt.push_back(static_cast<std::int32_t>(rng.Below(vocab_size)));
  request.max_tokens = num_output;
  request.sampling.temperature = 0.0f;
  return request;
}

}  // namespace kvrm
