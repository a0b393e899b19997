// SPDX-License-Identifier: Apache-2.0
// Reference: one request at a time on a plain contiguous tensor, without KV-RM. What every other
// run must equal, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "program.h"

namespace foreign {

inline constexpr std::int32_t kEndToken = 0;

struct Request {
  std::uint32_t id = 0;
  std::uint32_t arrival = 0;  // step
  std::vector<std::int32_t> prompt;
  std::uint32_t max_new = 0;  // ends earlier with kEndToken
  std::uint64_t seed = 0;     // of its sampling
};

struct Trace {
  std::vector<std::int32_t> tokens;        // prompt and output
  std::vector<std::vector<float>> logits;  // [output token][vocab]
};

// The token with the highest logit plus noise that depends on seed and position alone.
std::int32_t Sample(std::span<const float> logits, std::uint64_t seed, std::uint32_t position);

// How a reference run feeds the program; none of it may change a bit.
struct Feeding {
  std::uint32_t lane = 0;
  std::uint32_t chunk = 1;  // tokens of the prompt in one call
  bool company = false;     // the other lanes are busy with tokens of their own
};

class Reference {
 public:
  // Reserves one tensor of the program's device.
  explicit Reference(Program& program);
  Trace Run(const Request& request, const Feeding& feeding = {});

 private:
  void Call(const Feeding& feeding, std::span<const std::int32_t> tokens, std::uint32_t first);

  Program& program_;
  const Shape shape_;
  const std::span<std::byte> tensor_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint32_t> first_;
  std::vector<std::uint32_t> count_;
  std::vector<std::byte*> home_;
  std::vector<float> logits_;
};

}  // namespace foreign
