// SPDX-License-Identifier: Apache-2.0
// BindWeights: from the tensors of a file, by their names, to the weights of a decoder, by role.
//
// Every tensor must be known, of the right shape and of a type we compute with; what is left over
// is refused by name, because it means another architecture than the configuration says.
// Private to model/weights.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/config.h"
#include "model/weights.h"

namespace kvrm {

// A tensor of either kind of file.
struct StoredTensor {
  std::string_view name;
  std::string_view type_name;  // as the file says
  std::optional<DType> type;   // empty: not one we compute with
  std::uint64_t rows = 1;
  std::uint64_t cols = 1;
  bool is_matrix_or_vector = true;  // false: more than two dimensions
  bool taken = false;
  bool is_mapped = false;  // from a file, as WeightTensor says
  std::span<const std::byte> data;
};

enum class TensorNaming { kGguf, kHuggingFace };

struct BoundWeights {
  ModelWeights weights;
  // Norms and biases that were not F32 in the file. A deque: the weights point into its elements.
  std::deque<std::vector<float>> converted;
  std::uint64_t weight_bytes = 0;
  std::uint64_t num_parameters = 0;
};

// Fills in what only the tensors tell: vocab_size (or checks it), tied_output, qkv_bias.
// `name` stands in error messages.
Result<BoundWeights> BindWeights(const std::string& name, std::vector<StoredTensor> tensors,
                                 TensorNaming naming, ModelConfig* config);

}  // namespace kvrm
