// SPDX-License-Identifier: Apache-2.0
// Outputs of many requests, compared bit for bit. Tests only.
#pragma once

#include <bit>
#include <cstdint>
#include <map>
#include <vector>

#include "engine/engine.h"

namespace kvrm {

struct Output {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint32_t> logprob_bits;
  FinishReason finish = FinishReason::kNone;
  friend bool operator==(const Output&, const Output&) = default;
};

// Steps the engine until every request of `index` has ended; outputs lie where `index` says.
inline std::vector<Output> ServeAll(Engine& engine, const std::map<RequestId, std::size_t>& index) {
  std::vector<Output> outputs(index.size());
  std::size_t num_finished = 0;
  while (num_finished < outputs.size()) {
    engine.Step();
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      Output& output = outputs[index.at(event.request)];
      output.tokens.push_back(event.token);
      output.logprob_bits.push_back(std::bit_cast<std::uint32_t>(event.logprob));
      output.finish = event.finish;
      if (event.finish != FinishReason::kNone) ++num_finished;
    }
  }
  return outputs;
}

}  // namespace kvrm
