// SPDX-License-Identifier: Apache-2.0
// Peaks: what this machine can do at most, measured in the run that is compared with it.
//
// Bandwidth: a buffer much larger than the caches, on huge pages where the system grants them, read
// from end to end several times. It is read in pieces, and each piece counts with the least of its
// times, so that a neighbour must disturb every pass over a piece to be seen. Arithmetic: loops
// whose operands stay in registers (kernels/avx_peak.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "bench/bench.h"
#include "exec/worker_team.h"
#include "kernels/avx_peak.h"

namespace kvrm {

// By one worker alone and by all together, per second.
struct PeakRate {
  double one = 0;
  double all = 0;
};

struct Peaks {
  struct Arithmetic {
    const char* instruction;
    PeakKind kind;
    PeakRate macs;  // multiply-adds
  };
  const char* kernels = "";
  std::uint32_t num_workers = 0;
  std::uint64_t buffer_bytes = 0;
  PeakRate read_bytes;
  std::vector<Arithmetic> arithmetic;

  // Multiply-adds per second of all workers, by the best instruction of the kind; where the table
  // has none of it, by that for floats.
  double Macs(PeakKind kind) const;
  // Seconds that moving and multiplying so much takes at least: the longer of the two.
  double RoofSeconds(double bytes, double macs, PeakKind kind) const;
};

struct PeakOptions {
  std::uint32_t repetitions = 5;
  // 0: the larger of 1 GiB and four times the last-level cache, or half of the memory there is.
  std::uint64_t buffer_bytes = 0;
};

// Throws StartError when the memory cannot be had.
Peaks MeasurePeaks(const PeakOptions& options, const CpuKernels& kernels, WorkerTeam& team,
                   const Clock& clock);

void ReportPeaks(const Peaks& peaks, const BenchSink& sink);

// The kind of multiply-adds behind a format of activations.
PeakKind KindOf(ActFormat format);

}  // namespace kvrm
