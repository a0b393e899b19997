// SPDX-License-Identifier: Apache-2.0
// CHECK and DCHECK: what must hold, or the program is wrong.
//
// CHECK is always on, in release too: it guards memory and ownership. DCHECK is for per-element
// conditions on hot paths and is on in debug builds only. Neither is for input: bad input is a
// value (base/result.h).
#pragma once

namespace kvrm {

// Prints the expression with its place and aborts. Never returns, never allocates.
[[noreturn]] void CheckFailed(const char* expression, const char* file, int line) noexcept;

}  // namespace kvrm

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::kvrm::CheckFailed(#condition, __FILE__, __LINE__))

#ifdef KVRM_DEBUG_CHECKS
#define DCHECK(condition) CHECK(condition)
#else
#define DCHECK(condition) static_cast<void>(sizeof(!(condition)))
#endif
