// SPDX-License-Identifier: Apache-2.0
// Any calls of the C interface in any order: a status, never an abort. run with -max_len=4096
#include <cstddef>
#include <cstdint>

#include "capi/random_calls_for_test.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvrm::RandomCalls({data, size}).Run();
  return 0;
}
