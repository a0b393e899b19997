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

#define KVRM_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::kvrm::CheckFailed(#condition, __FILE__, __LINE__))

#ifdef KVRM_DEBUG_CHECKS
#define KVRM_DCHECK(condition) KVRM_CHECK(condition)
#else
#define KVRM_DCHECK(condition) static_cast<void>(sizeof(!(condition)))
#endif

// Installed headers use the long names alone: projects that use the package have a CHECK already.
#ifndef KVRM_INSTALLED
#define CHECK(condition) KVRM_CHECK(condition)
#define DCHECK(condition) KVRM_DCHECK(condition)
#endif
