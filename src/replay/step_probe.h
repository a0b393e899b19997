// SPDX-License-Identifier: Apache-2.0
// StepProbe: what the steps of an executor were, read off their descriptors.
//
// Threading: the engine's thread.
#pragma once

#include <cstdint>

#include "engine/parts.h"

namespace kvrm {

// What the last step was, as its descriptor says it.
struct StepProbe {
  std::uint64_t num_steps = 0;  // so far
  std::uint32_t num_rows = 0;
  std::uint32_t num_tokens = 0;
  std::uint32_t num_groups = 0;
  std::uint64_t moved_bytes = 0;
  // Copies: a group each, and one a layer where all rows are gathered layer by layer.
  std::uint32_t num_copies = 0;
  std::uint32_t num_maps = 0;
  // Tokens of history that its rows attend, padding included: what a decoder reads.
  std::uint64_t attended_tokens = 0;
  // Over the tokens of rows that have more than one: positions each attends. What a prompt
  // computes.
  std::uint64_t prompt_pairs = 0;

  void See(const StepView& step, const KvLayout& layout);
};

// The same parts; every step that their executor runs is seen. `probe` outlives the executor.
EngineParts Probed(EngineParts parts, StepProbe* probe);

}  // namespace kvrm
