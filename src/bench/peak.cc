// SPDX-License-Identifier: Apache-2.0
#include "bench/peak.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "base/system_memory.h"
#include "device/host_device.h"

namespace kvrm {
namespace {

// Some 0.2 ms of all workers together, far less than a scheduler's time slice: on a machine with
// neighbours there are moments of that length in which every worker runs.
constexpr std::uint64_t kPieceBytes = std::uint64_t{4} << 20;
constexpr double kLoopSeconds = 0.2e-3;
constexpr std::uint32_t kPassesPerRepetition = 3;
constexpr std::uint32_t kTriesPerRepetition = 200;

struct ReadJob {
  const PeakLoops* loops;
  std::span<const std::byte> data;
  std::uint32_t num_workers;
};

void ReadPart(void* argument, std::uint32_t worker) {
  const ReadJob& job = *static_cast<const ReadJob*>(argument);
  const std::uint64_t units = job.data.size() / kPeakReadUnit;
  const std::uint64_t begin = units * worker / job.num_workers * kPeakReadUnit;
  const std::uint64_t end = units * (worker + 1) / job.num_workers * kPeakReadUnit;
  volatile std::uint64_t sink = job.loops->read(job.data.data() + begin, end - begin);
  static_cast<void>(sink);
}

struct LoopJob {
  const PeakLoop* loop;
  std::uint64_t rounds;
};

void RunLoop(void* argument, std::uint32_t) {
  const LoopJob& job = *static_cast<const LoopJob*>(argument);
  volatile std::uint64_t sink = job.loop->run(job.rounds);
  static_cast<void>(sink);
}

// By one worker alone: a team of this thread only.
template <typename Measure>
PeakRate OneAndAll(WorkerTeam& team, Measure measure) {
  WorkerTeam alone(1);
  PeakRate rate;
  rate.one = measure(alone);
  // The workers of a real run are as many as here, never fewer.
  rate.all = team.num_workers() == 1 ? rate.one : measure(team);
  return rate;
}

double ReadRate(const PeakLoops& loops, std::span<const std::byte> buffer,
                std::uint32_t repetitions, WorkerTeam& team, const Clock& clock) {
  const auto read_piece = [&](std::uint64_t piece) {
    ReadJob job = {.loops = &loops,
                   .data = buffer.subspan(piece * kPieceBytes, kPieceBytes),
                   .num_workers = team.num_workers()};
    team.Start(&ReadPart, &job);
    team.Join();
  };
  const double seconds = LeastSeconds(clock, repetitions * kPassesPerRepetition,
                                      buffer.size() / kPieceBytes, read_piece);
  return static_cast<double>(buffer.size()) / seconds;
}

double LoopRate(const PeakLoop& loop, std::uint32_t repetitions, WorkerTeam& team,
                const Clock& clock) {
  LoopJob job = {.loop = &loop, .rounds = 1000};
  const auto run = [&](std::uint64_t) {
    team.Start(&RunLoop, &job);
    team.Join();
  };
  // By this thread alone, so that what it costs to wake the others has no part in it.
  const double trial =
      LeastSeconds(clock, kTriesPerRepetition, 1, [&](std::uint64_t) { RunLoop(&job, 0); });
  job.rounds =
      std::max<std::uint64_t>(1000, static_cast<std::uint64_t>(1000 * kLoopSeconds / trial));
  const double seconds = LeastSeconds(clock, repetitions * kTriesPerRepetition, 1, run);
  return static_cast<double>(loop.macs_per_round * job.rounds) * team.num_workers() / seconds;
}

std::uint64_t BufferBytes(std::uint64_t asked) {
  const std::uint64_t bytes =
      asked != 0 ? asked
                 : std::min(std::max(std::uint64_t{1} << 30, 4 * LastLevelCacheBytes()),
                            AvailableMemoryBytes() / 2);
  return std::max<std::uint64_t>(bytes / kPieceBytes, 1) * kPieceBytes;
}

}  // namespace

double Peaks::Macs(PeakKind kind) const {
  double best = 0;
  for (const Arithmetic& a : arithmetic) {
    if (a.kind == kind) best = std::max(best, a.macs.all);
  }
  return best == 0 && kind != PeakKind::kF32 ? Macs(PeakKind::kF32) : best;
}

double Peaks::RoofSeconds(double bytes, double macs, PeakKind kind) const {
  return std::max(bytes / read_bytes.all, macs / Macs(kind));
}

Peaks MeasurePeaks(const PeakOptions& options, const CpuKernels& kernels, WorkerTeam& team,
                   const Clock& clock) {
  const PeakLoops& loops = FindPeakLoops(kernels.name);
  Peaks peaks = {.kernels = kernels.name,
                 .num_workers = team.num_workers(),
                 .buffer_bytes = BufferBytes(options.buffer_bytes),
                 .read_bytes = {},
                 .arithmetic = {}};
  HostDevice device;
  const std::span<std::byte> buffer = device.Reserve(peaks.buffer_bytes, "bandwidth buffer");
  // Memory that was never written is one page of zeros.
  std::memset(buffer.data(), 1, buffer.size());
  peaks.read_bytes = OneAndAll(team, [&](WorkerTeam& workers) {
    return ReadRate(loops, buffer, options.repetitions, workers, clock);
  });
  for (const PeakLoop& loop : loops.loops) {
    if (!CanRun(loop)) continue;
    const PeakRate macs = OneAndAll(team, [&](WorkerTeam& workers) {
      return LoopRate(loop, options.repetitions, workers, clock);
    });
    peaks.arithmetic.push_back({loop.instruction, loop.kind, macs});
  }
  return peaks;
}

void ReportPeaks(const Peaks& peaks, const BenchSink& sink) {
  const auto line = [&](const char* what, const char* unit, const PeakRate& rate) {
    sink({{"bench", "peak"},
          {"what", what},
          {"unit", unit},
          {"one_worker", Rounded(rate.one * 1e-9)},
          {"all_workers", Rounded(rate.all * 1e-9)},
          {"workers", peaks.num_workers},
          {"kernels", peaks.kernels}});
  };
  line("read", "GB/s", peaks.read_bytes);
  for (const Peaks::Arithmetic& a : peaks.arithmetic)
    line(a.instruction, "GMAC/s", a.macs);
}

PeakKind KindOf(ActFormat format) {
  switch (format) {
    case ActFormat::kQ8:
      return PeakKind::kInt8;
    case ActFormat::kBf16:
      return PeakKind::kBf16;
    case ActFormat::kF32:
      break;
  }
  return PeakKind::kF32;
}

}  // namespace kvrm
