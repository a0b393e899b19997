// SPDX-License-Identifier: Apache-2.0
// Program: a decode program of fixed shape that knows nothing of blocks. What to implement.
//
// The program owns its layout of one token's keys and values, a record of opaque bytes, and reads
// the KV cache as one dense contiguous tensor
//
//   kv[lanes][window_tokens][record_bytes]
//
// A lane is one sequence; position p of it is the record kv[lane][p]. Shapes are fixed when the
// program is made: two graphs, of 1 and of step_tokens tokens a lane, and nothing is ever compiled,
// captured or allocated again.
//
// Nothing here names KV-RM but the device: memory, and "copy a list of groups".
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device.h"

namespace foreign {

struct Shape {
  std::uint32_t lanes = 0;
  std::uint32_t window_tokens = 0;  // the longest context; a multiple of 16
  std::uint32_t record_bytes = 0;   // a multiple of 8
  std::uint32_t step_tokens = 0;    // of a lane in one call, at most
  std::uint32_t vocab = 0;
};

// One call of a graph. Arrays are host memory but for `kv` and what `home` points to, which are
// the device's.
struct DenseCall {
  std::uint32_t step_tokens = 0;         // which graph: 1 or Shape::step_tokens
  const std::int32_t* tokens = nullptr;  // [lanes][step_tokens]
  const std::uint32_t* first = nullptr;  // [lanes] position of the lane's first token
  const std::uint32_t* count = nullptr;  // [lanes] tokens that are there; 0: an idle lane
  std::byte* kv = nullptr;               // [lanes][window_tokens][record_bytes]
  std::byte* const* home = nullptr;      // [lanes][step_tokens] the record's second place, or null
  float* logits = nullptr;               // [lanes][step_tokens][vocab]
};

class Program {
 public:
  virtual ~Program() = default;
  virtual Shape shape() const = 0;
  // The memory that kv lies in, and its copies. Lives as long as the program.
  virtual kvrm::Device& device() = 0;
  // Whether device().Map can show blocks of the pool in windows that Run reads whole and writes.
  virtual bool offers_mapping() const { return false; }
  // For every lane and every t < count[lane]: token t is at position p = first[lane] + t; its
  // record is written to kv[lane][p], and to home[lane][t] where that is not null; its logits come
  // from the records at positions 0 .. p of its lane. Returns when all of that is done.
  //
  // What must hold:
  //   a  a lane's logits depend, to the bit, on its own tokens alone: not on the other lanes, not
  //      on the lane's number, not on the graph, not on how a prompt was cut into calls
  //   b  nothing is written for idle lanes and for t >= count[lane]
  //   c  what lies in kv[lane] beyond p is never part of a result, whatever finite bytes it holds
  virtual void Run(const DenseCall& call) = 0;
};

}  // namespace foreign
