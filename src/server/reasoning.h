// SPDX-License-Identifier: Apache-2.0
// ReasoningSplitter: splits off what a model thinks before it answers: <think> ... </think> at the
// beginning. What comes out does not depend on how the text was cut into pieces.
//
// Threading: one thread. Memory: what may be the beginning of a mark.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvrm {

class ReasoningSplitter {
 public:
  // `inside`: the prompt itself opened it.
  explicit ReasoningSplitter(bool inside) : state_(inside ? State::kInside : State::kBefore) {}

  struct Parts {
    std::string reasoning;
    std::string content;
  };
  Parts Push(std::string_view text);
  Parts Finish();

 private:
  enum class State : std::uint8_t { kBefore, kInside, kBehind, kContent };
  std::string held_;
  State state_;
};

// Whether a prompt ends by opening it, or the channel of thoughts (server/harmony.h).
bool EndsInReasoning(std::string_view prompt);

}  // namespace kvrm
