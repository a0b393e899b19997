// SPDX-License-Identifier: Apache-2.0
// The loops that say what this processor can do at most, for `kvrm bench`: one that only reads
// memory, and for each kind of multiply-add one whose operands stay in registers. One set for each
// table of kernels, so that a table is measured against what its own instructions reach.
//
// Threading: pure functions.
//
// HAZARD: included under instruction-set flags, as kernels/cpu_kernels.h: plain structs and
// declarations only.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kvrm {

enum class PeakKind : uint8_t {
  kInt8,  // 8-bit integers summed in 32 bits
  kBf16,  // bfloat16 summed in float
  kF32,
};
inline constexpr int kNumPeakKinds = 3;

// What a loop needs beyond the flags its file is compiled with.
enum class PeakFeature : uint8_t { kNone, kAvxVnni, kAvx512Bf16 };

struct PeakLoop {
  const char* instruction;  // null: this entry is empty
  PeakKind kind;
  PeakFeature feature;
  uint64_t macs_per_round;  // multiply-adds
  // The number returned depends on all of the work, so that none of it can be left out.
  uint64_t (*run)(uint64_t rounds);
};
inline constexpr int kMaxPeakLoops = 4;
inline constexpr size_t kPeakReadUnit = 1024;

struct PeakLoops {
  const char* name;  // of the CpuKernels
  // Reads `bytes`, a multiple of kPeakReadUnit, from memory aligned to 64 bytes.
  uint64_t (*read)(const void* data, size_t bytes);
  PeakLoop loops[kMaxPeakLoops];
};

extern const PeakLoops kScalarPeak;
extern const PeakLoops kAvx2Peak;
extern const PeakLoops kAvx512Peak;

// Those of the table of kernels called `name`; scalar's for a table without any.
const PeakLoops& FindPeakLoops(const char* name);
// Whether this processor, of which the table's own needs are known to be met, runs the loop.
bool CanRun(const PeakLoop& loop);

}  // namespace kvrm
