// SPDX-License-Identifier: Apache-2.0
// Fuzz: grammar/compile_fuzz.h says what is done.
#include <cstddef>
#include <cstdint>

#include "grammar/compile_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvrm::CompileAndFollow(kvrm::GrammarKind::kGbnf, {data, size});
  return 0;
}
