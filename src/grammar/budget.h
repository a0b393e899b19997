// SPDX-License-Identifier: Apache-2.0
// Budget: what compiling one grammar may cost, counted and not timed, so that a grammar is refused
// on every machine or on none.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace kvrm::grammar {

// A unit is about an edge looked at and takes 10 to 14 ns on one core of a busy server: in all
// below the 250 ms that a request may cost a worker.
constexpr std::uint64_t kMaxCompileWork = 15'000'000;
// With the tree before it (grammar/ast.h) below 32 MiB.
constexpr std::uint64_t kMaxCompileBytes = std::uint64_t{18} << 20;

class Budget {
 public:
  // Returns whether it is still within bounds. Bytes are what is held at the same time.
  bool Spend(std::uint64_t work, std::uint64_t bytes = 0) {
    work_ += work;
    bytes_ += bytes;
    return ok();
  }
  void GiveBack(std::uint64_t bytes) { bytes_ -= bytes; }
  bool ok() const { return work_ <= kMaxCompileWork && bytes_ <= kMaxCompileBytes; }
  std::uint64_t work() const { return work_; }
  std::uint64_t bytes() const { return bytes_; }

  Error TooLarge() const {
    return {
        ErrorCode::kTooLarge,
        work_ > kMaxCompileWork
            ? "the grammar takes more than " + std::to_string(kMaxCompileWork) + " steps to compile"
            : "the grammar takes more than " + std::to_string(kMaxCompileBytes >> 20) +
                  " MiB to compile"};
  }

 private:
  std::uint64_t work_ = 0;
  std::uint64_t bytes_ = 0;
};

}  // namespace kvrm::grammar
