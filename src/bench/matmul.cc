// SPDX-License-Identifier: Apache-2.0
#include "bench/matmul.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <span>
#include <string>

#include "base/check.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/system_memory.h"
#include "device/host_device.h"
#include "exec/program.h"
#include "model/random_blocks.h"

namespace kvrm {
namespace {

// Distinct random blocks; the rest of a matrix repeats them, one block later each time.
constexpr std::uint64_t kDistinctBytes = std::uint64_t{8} << 20;

// A pass over all copies is cut short where it would take longer than this at the roof, which is
// where arithmetic binds and it matters little where the weights are.
constexpr double kPassRoofSeconds = 0.03;
constexpr std::uint64_t kMinCopies = 4;

std::uint64_t AlignUp64(std::uint64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

std::uint64_t FileBytes(DType type, const MatShape& shape) {
  return std::uint64_t{shape.outputs} * (shape.inputs / DTypeBlockElements(type)) *
         DTypeBlockBytes(type);
}

// One worker's share of the outputs, as in the executor.
struct Share {
  std::uint32_t begin;
  std::uint32_t end;
};
Share ShareOf(std::uint32_t outputs, std::uint32_t worker, std::uint32_t num_workers) {
  const std::uint64_t tiles = (outputs + kOutTile - 1) / kOutTile;
  const auto edge = [&](std::uint32_t w) {
    return static_cast<std::uint32_t>(
        std::min<std::uint64_t>(tiles * w / num_workers * kOutTile, outputs));
  };
  return {edge(worker), edge(worker + 1)};
}

struct Job {
  const MatKernel* kernel;
  MatMulArgs args;                    // without the share
  std::span<const std::byte> source;  // to pack
  std::byte* target;
  std::span<std::byte> scratch;  // [num_workers][kMatMulScratchBytes]
  std::uint32_t num_workers;
};

void Pack(void* argument, std::uint32_t worker) {
  const Job& job = *static_cast<const Job*>(argument);
  const Share share = ShareOf(job.args.w.rows, worker, job.num_workers);
  if (share.begin == share.end) return;
  job.kernel->pack(job.target, job.source.data(), job.args.w.rows, job.args.w.cols, share.begin,
                   share.end);
}

void Multiply(void* argument, std::uint32_t worker) {
  const Job& job = *static_cast<const Job*>(argument);
  const Share share = ShareOf(job.args.w.rows, worker, job.num_workers);
  if (share.begin == share.end) return;
  MatMulArgs args = job.args;
  args.out_begin = share.begin;
  args.out_end = share.end;
  args.scratch = &job.scratch[std::size_t{worker} * kMatMulScratchBytes];
  job.kernel->matmul(args);
}

void FillWeights(DType type, std::uint64_t seed, std::uint32_t inputs,
                 std::span<std::byte> target) {
  const std::uint64_t block_bytes = DTypeBlockBytes(type);
  const std::uint64_t distinct =
      std::min<std::uint64_t>(kDistinctBytes / block_bytes * block_bytes, target.size());
  Rng rng(seed, DTypeName(type));
  const double deviation = std::clamp(1 / std::sqrt(static_cast<double>(inputs)), 1e-3, 1.0);
  FillRandomBlocks(type, deviation, &rng, target.first(distinct));
  for (std::uint64_t at = distinct; at < target.size();) {
    const std::uint64_t bytes = std::min(distinct - block_bytes, target.size() - at);
    std::memcpy(&target[at], &target[block_bytes], bytes);
    at += bytes;
  }
}

// One type and shape: its copies, and the rows that meet them.
class Product {
 public:
  Product(const MatMulBench& bench, const BenchOptions& options, DType type, MatShape shape,
          WorkerTeam& team)
      : kernels_(BenchKernels(options)),
        kernel_(kernels_.mat[static_cast<int>(type)]),
        act_(kernels_.act[static_cast<int>(kernel_.act)]),
        type_(type),
        shape_(shape),
        team_(team) {
    copy_bytes_ = AlignUp64(kernel_.packed_bytes != nullptr
                                ? kernel_.packed_bytes(shape.outputs, shape.inputs)
                                : FileBytes(type, shape));
    const std::uint64_t wanted =
        bench.weight_bytes != 0 ? bench.weight_bytes
                                : std::min(2 * LastLevelCacheBytes(), AvailableMemoryBytes() / 2);
    num_copies_ = std::max<std::uint64_t>((wanted + copy_bytes_ - 1) / copy_bytes_, 1);
    CheckMemory("matmul: a set of weights", num_copies_ * copy_bytes_ + FileBytes(type, shape));
    copies_ = device_.Reserve(num_copies_ * copy_bytes_, "packed weights");
    source_ = device_.Reserve(FileBytes(type, shape), "weights");
    FillWeights(type, options.seed, shape.inputs, source_);
    const std::uint32_t max_rows = *std::max_element(bench.rows.begin(), bench.rows.end());
    PrepareRows(options.seed, max_rows);
    for (std::uint64_t i = 0; i < num_copies_; ++i)
      PlaceCopy(i);
  }

  void Report(std::uint32_t rows, const BenchOptions& options, const Peaks& peaks,
              const BenchSink& sink) {
    const double bytes =
        static_cast<double>(copy_bytes_) +
        static_cast<double>(rows) * static_cast<double>(x_stride_ + shape_.outputs * sizeof(float));
    const double macs = static_cast<double>(rows) * shape_.outputs * shape_.inputs;
    const PeakKind kind = KindOf(kernel_.act);
    const double roof_seconds = peaks.RoofSeconds(bytes, macs, kind);
    const std::uint64_t count =
        std::min(num_copies_,
                 std::max(kMinCopies, static_cast<std::uint64_t>(kPassRoofSeconds / roof_seconds)));
    const double seconds = LeastSeconds(SystemClock(), options.repetitions, count,
                                        [&](std::uint64_t copy) { Run(copy, rows); }) /
                           static_cast<double>(count);
    sink({{"bench", "matmul"},
          {"type", DTypeName(type_)},
          {"shape", std::to_string(shape_.outputs) + "x" + std::to_string(shape_.inputs)},
          {"rows", rows},
          {"bytes", static_cast<std::uint64_t>(bytes)},
          {"microseconds", Rounded(seconds * 1e6)},
          {"gb_per_s", Rounded(bytes / seconds * 1e-9)},
          {"gmac_per_s", Rounded(macs / seconds * 1e-9)},
          {"roof_share", Rounded(roof_seconds / seconds, 3)},
          {"bound",
           bytes / peaks.read_bytes.all > macs / peaks.Macs(kind) ? "memory" : "arithmetic"},
          {"workers", team_.num_workers()},
          {"kernels", kernels_.name}});
  }

 private:
  void PrepareRows(std::uint64_t seed, std::uint32_t max_rows) {
    x_stride_ = OddLines(act_.bytes(shape_.inputs));
    x_ = device_.Reserve(x_stride_ * max_rows, "prepared rows");
    scratch_ =
        device_.Reserve(std::size_t{kMatMulScratchBytes} * team_.num_workers(), "matmul scratch");
    y_ = device_.Reserve(std::uint64_t{max_rows} * shape_.outputs * sizeof(float), "outputs");
    Rng rng(seed, "rows");
    std::vector<float> row(shape_.inputs);
    for (std::uint32_t r = 0; r < max_rows; ++r) {
      for (float& value : row)
        value = static_cast<float>((rng.Uniform() - 0.5) * 3.5);
      act_.prepare(row.data(), &x_[r * x_stride_], shape_.inputs, 0, shape_.inputs);
    }
  }

  Job JobOf(std::uint64_t copy, std::uint32_t rows) const {
    return {.kernel = &kernel_,
            .args = {.w = {.data = &copies_[copy * copy_bytes_],
                           .rows = shape_.outputs,
                           .cols = shape_.inputs,
                           .type = type_},
                     .x = x_.data(),
                     .x_stride = x_stride_,
                     .y = reinterpret_cast<float*>(y_.data()),
                     .y_stride = shape_.outputs,
                     .bias = nullptr,
                     .num_tokens = rows,
                     .out_begin = 0,
                     .out_end = 0,
                     .accumulate = false,
                     .scratch = nullptr},
            .source = source_,
            .target = &copies_[copy * copy_bytes_],
            .scratch = scratch_,
            .num_workers = team_.num_workers()};
  }

  void PlaceCopy(std::uint64_t copy) {
    Job job = JobOf(copy, 1);
    if (kernel_.packed_bytes == nullptr) {
      std::memcpy(job.target, source_.data(), source_.size());
      return;
    }
    team_.Start(&Pack, &job);
    team_.Join();
  }

  void Run(std::uint64_t copy, std::uint32_t rows) {
    Job job = JobOf(copy, rows);
    team_.Start(&Multiply, &job);
    team_.Join();
  }

  const CpuKernels& kernels_;
  const MatKernel& kernel_;
  const ActKernel& act_;
  const DType type_;
  const MatShape shape_;
  WorkerTeam& team_;
  HostDevice device_;
  std::uint64_t copy_bytes_ = 0;
  std::uint64_t num_copies_ = 0;
  std::uint64_t x_stride_ = 0;  // bytes
  std::span<std::byte> copies_;
  std::span<std::byte> source_;
  std::span<std::byte> x_;
  std::span<std::byte> y_;
  std::span<std::byte> scratch_;
};

void CheckBench(const MatMulBench& bench, const BenchOptions& options) {
  CHECK(!bench.types.empty() && !bench.shapes.empty() && !bench.rows.empty());
  const CpuKernels& kernels = BenchKernels(options);
  for (const DType type : bench.types) {
    // Prepared rows are of whole blocks of 32 bytes.
    const std::uint32_t act_block =
        kernels.mat[static_cast<int>(type)].act == ActFormat::kQ8 ? 32 : 1;
    const std::uint32_t block = std::max(DTypeBlockElements(type), act_block);
    for (const MatShape& shape : bench.shapes) {
      if (shape.inputs % block == 0) continue;
      throw StartError("--shape " + std::to_string(shape.outputs) + "x" +
                       std::to_string(shape.inputs) + ": " + DTypeName(type) +
                       " needs inputs that are a multiple of " + std::to_string(block));
    }
  }
}

}  // namespace

std::vector<MatShape> ParseShapes(std::string_view flag, std::string_view text) {
  std::vector<MatShape> shapes;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](char after, std::uint32_t* value) {
    const std::from_chars_result result = std::from_chars(at, end, *value);
    at = result.ptr;
    const bool ends = at == end ? after == ',' : *at == after;
    return result.ec == std::errc() && *value >= 1 && *value <= kMaxBenchDim && ends;
  };
  while (true) {
    MatShape shape;
    bool good = number('x', &shape.outputs);
    if (good) ++at;
    good = good && number(',', &shape.inputs);
    if (!good) {
      throw StartError(std::string(flag) + " must be OUTPUTSxINPUTS, each from 1 to " +
                       std::to_string(kMaxBenchDim) + ", with commas between them, not '" +
                       std::string(text.substr(0, 40)) + "'");
    }
    shapes.push_back(shape);
    if (at == end) return shapes;
    ++at;
  }
}

std::vector<MatShape> DefaultShapes() {
  return {{2048, 2048}, {512, 2048}, {8192, 2048}, {2048, 8192}, {128256, 2048}};
}

void RunMatMulBench(const MatMulBench& bench, const BenchOptions& options, const Peaks& peaks,
                    WorkerTeam& team, const BenchSink& sink) {
  CheckBench(bench, options);
  for (const DType type : bench.types) {
    for (const MatShape& shape : bench.shapes) {
      Product product(bench, options, type, shape, team);
      for (const std::uint32_t rows : bench.rows)
        product.Report(rows, options, peaks, sink);
    }
  }
}

}  // namespace kvrm
