// SPDX-License-Identifier: Apache-2.0
// Random weights of any type, in the file's layout.
#pragma once

#include <cstddef>
#include <span>

#include "base/rng.h"
#include "step/dtype.h"

namespace kvrm {

// Fills `target` with blocks whose elements are spread about zero with the given standard
// deviation, to within a few percent. No NaN, no infinity. Requires: whole blocks; deviation in
// [1e-3, 1].
void FillRandomBlocks(DType type, double deviation, Rng* rng, std::span<std::byte> target);

}  // namespace kvrm
