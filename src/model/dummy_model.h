// SPDX-License-Identifier: Apache-2.0
// DummyModel: a model of a public shape with random weights, made without any file, so that anyone
// can repeat a measurement.
//
// The weights are of a scale that keeps activations near one and gives logits a spread as trained
// models have, so that sampling has work to do; what is generated has no meaning. The vocabulary
// has the 256 bytes and made-up words, of which encoding uses the bytes only.
//
// It is a GGUF image like any other. To cost next to nothing, all tensors but the output's show
// the same few pages of random blocks again and again, each beginning somewhere else: the image
// takes the memory of its output matrix and 32 MiB a type, and packing it makes distinct weights.
// `distinct` gives every tensor memory of its own, for kernels that read the file's layout in
// place and would find the shared pages in their cache.
//
// Threading: as Model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/weights.h"

namespace kvrm {

struct DummyOptions {
  std::uint64_t seed = 1;
  bool distinct = false;
  // Tokens, 1 to kMaxContextTokens; 0: the shape's own. Rotary angles stay as they are: with random
  // weights a longer context costs what it costs and means no less than a short one.
  std::uint32_t context = 0;
  // Of memory, for the weights to be packed into; 0: what the system says.
  std::uint64_t available_bytes = 0;
};

class DummyModel {
 public:
  // "1.2B" or "1.2B:q4_k_m": one of Shapes(), one of Types(); without a type q8_0. Types that need
  // rows of 256 are replaced where a shape has none, as converters do: q4_k and q5_k by q5_0, q6_k
  // by q8_0. Throws StartError for another name, or naming the bytes when memory lacks.
  explicit DummyModel(std::string_view spec, const DummyOptions& options = {});
  ~DummyModel();
  DummyModel(const DummyModel&) = delete;
  DummyModel& operator=(const DummyModel&) = delete;

  const Model& model() const;
  // Of memory that the image itself takes.
  std::uint64_t committed_bytes() const;

  static std::vector<std::string> Shapes();
  static std::vector<std::string> Types();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace kvrm
