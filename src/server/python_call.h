// SPDX-License-Identifier: Apache-2.0
// A tool call that is written as Python does it, with literals as keyword arguments:
//
//   name(text="a", count=2, flags=[True, None], more={"k": 'v'})
//
// Inside of a value JSON's true, false and null are read too: templates write dictionaries so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "server/tool_call.h"

namespace kvrm {

// Finds the end of a call, byte by byte. Knows names, quotes and brackets; judges no values.
class PythonCallScanner {
 public:
  enum class Status : std::uint8_t { kMore, kDone, kBad };
  // After kDone or kBad: not before it was assigned anew.
  Status Push(char c);

 private:
  std::size_t depth_ = 0;  // of brackets; 0: in the name
  char quote_ = '\0';      // of the string that is open
  bool escaped_ = false;
};

// `text` as a scanner ended it. nullopt: malformed, or values nested deeper than JSON may be.
std::optional<ToolCall> ReadPythonCall(std::string_view text);

}  // namespace kvrm
