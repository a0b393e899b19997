// SPDX-License-Identifier: Apache-2.0
#include "step/dtype.h"

namespace kvrm {
namespace {

struct Row {
  const char* name;
  uint32_t block_elements;
  uint32_t block_bytes;
};

constexpr Row kRows[kNumDTypes] = {
    {"F32", 1, 4},    {"F16", 1, 2},      {"BF16", 1, 2},     {"Q8_0", 32, 34},   {"Q4_0", 32, 18},
    {"Q5_0", 32, 22}, {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210},
};

}  // namespace

const char* DTypeName(DType type) {
  return kRows[static_cast<int>(type)].name;
}
uint32_t DTypeBlockElements(DType type) {
  return kRows[static_cast<int>(type)].block_elements;
}
uint32_t DTypeBlockBytes(DType type) {
  return kRows[static_cast<int>(type)].block_bytes;
}

}  // namespace kvrm
