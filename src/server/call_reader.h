// SPDX-License-Identifier: Apache-2.0
// CallReader: one JSON object that is a tool call, byte by byte.
//
// Of {"name": ..., "arguments": {...}} the name and the arguments' own text; "parameters" and
// "tool_name" are other spellings, and the members may lie in a "function". Structure is followed,
// values are not judged. Depth is counted, not recursed into, and bounded.
//
// Threading: one thread. Memory: name and arguments until they are taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvrm {

class CallReader {
 public:
  enum class Status : std::uint8_t { kMore, kDone, kBad };
  static constexpr std::size_t kMaxDepth = 64;
  static constexpr std::size_t kMaxNameBytes = 256;

  // With a name: the object is its arguments.
  void Start(std::optional<std::string> name);
  // The first byte is '{'. After kDone or kBad: not before another Start.
  Status Push(char c);
  const std::optional<std::string>& name() const { return name_; }
  // Text of the arguments since the last call.
  std::string TakeArguments();

 private:
  enum class Expect : std::uint8_t { kKey, kColon, kValue, kComma };
  enum class Target : std::uint8_t { kNone, kKey, kName, kArguments, kArgumentsString };

  Status PushInString(char c);
  Status PushStructure(char c);
  Status PushAtBase(char c);
  Status BeginValue(char c);
  Status Open(char c);
  Status Close(char c);
  Status EndString();
  void EndValue();
  void Capture(char c);

  std::string open_;      // the brackets that are open
  std::size_t base_ = 1;  // depth of the object whose members count
  Expect expect_ = Expect::kKey;
  Target target_ = Target::kNone;
  bool in_string_ = false;
  bool escaped_ = false;
  bool in_scalar_ = false;
  bool whole_is_arguments_ = false;
  bool has_arguments_ = false;  // The first ones count.
  std::string captured_;        // of a string, with its quotes
  std::string key_;
  std::optional<std::string> name_;
  std::string arguments_;
};

}  // namespace kvrm
