// SPDX-License-Identifier: Apache-2.0
// A call as a model made it, what its name may be, and what a parser of answers has found so far.
// Plain data.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace kvrm {

inline constexpr std::size_t kMaxToolNameBytes = 64;

inline bool IsToolNameChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.';
}

struct ToolCall {
  std::string name;
  std::string arguments;  // a JSON object
};

struct ToolCallDelta {
  std::size_t call_idx = 0;
  bool begins = false;  // the call's first delta, which has its name
  std::string name = {};
  std::string arguments = {};  // to be appended: JSON text
};

struct OutputDelta {
  std::string content = {};
  std::string reasoning = {};  // of formats whose marks tell it from content
  std::vector<ToolCallDelta> calls = {};
};

}  // namespace kvrm
