// SPDX-License-Identifier: Apache-2.0
// CompletionChunk: what one event of a streamed completion says, of what a replay wants to know.
//
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvrm {

struct CompletionChunk {
  bool done = false;        // "[DONE]"
  bool has_output = false;  // of choice 0: a token or more of them
  std::string finish = {};  // of choice 0; "": not yet
  bool has_usage = false;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens = 0;
  std::uint32_t cached_tokens = 0;
  std::string error = {};
};

// Total: what cannot be read is an error in the chunk.
CompletionChunk ParseCompletionChunk(std::string_view data);

}  // namespace kvrm
