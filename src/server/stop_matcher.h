// SPDX-License-Identifier: Apache-2.0
// StopMatcher: cuts a stream of text at the first stop string, and never lets part of one out.
//
// The first stop string is the one that is complete first; of two complete at the same byte, the
// longer. That does not depend on how the text was cut into pieces. Text that may still become a
// stop string is held back, and no more than that.
//
// Given whole UTF-8 sequences and stop strings that are valid UTF-8, what comes out is whole too: a
// held part begins where a stop string begins.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvrm {

class StopMatcher {
 public:
  // Empty strings are not allowed. Cost per byte grows with the stop strings' lengths (limits of
  // the API: 8 strings of 128 bytes).
  // `include`: the stop string is let out, and what follows it is not.
  explicit StopMatcher(std::vector<std::string> stops, bool include = false);

  // Returns the text that has become certain. After a match: "".
  std::string Push(std::string_view text);
  // The text has ended: what was held was no stop string.
  std::string Finish();
  bool matched() const { return matched_; }
  // The stop string. Requires: matched().
  const std::string& match() const { return match_; }

 private:
  std::size_t HeldBytes() const;

  std::vector<std::string> stops_;
  std::string held_;
  std::string match_;
  bool include_ = false;
  bool matched_ = false;
};

}  // namespace kvrm
