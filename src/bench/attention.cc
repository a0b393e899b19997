// SPDX-License-Identifier: Apache-2.0
#include "bench/attention.h"

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
#include "step/layout.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kBlockTokens = 16;  // as engines have
constexpr std::uint32_t kMaxLayers = 256;
constexpr std::uint32_t kMaxHeadDim = 512;
constexpr std::uint32_t kMaxHeads = 4096;

// One shape of one type: `rows` histories of `context` tokens in every layer.
class Histories {
 public:
  Histories(const AttentionBench& bench, const BenchOptions& options, DType type,
            const HeadShape& shape, WorkerTeam& team)
      : kernels_(BenchKernels(options)), shape_(shape), team_(team) {
    const std::uint32_t max_rows = *std::max_element(bench.rows.begin(), bench.rows.end());
    const std::uint32_t max_context =
        *std::max_element(bench.contexts.begin(), bench.contexts.end());
    const std::uint64_t wanted =
        bench.kv_bytes != 0 ? bench.kv_bytes
                            : std::min(2 * LastLevelCacheBytes(), AvailableMemoryBytes() / 2);
    layout_ = {.num_layers = 1,
               .num_kv_heads = shape.kv_heads,
               .head_dim = shape.head_dim,
               .block_tokens = kBlockTokens,
               .dtype = type};
    pool_bytes_ = std::max(wanted, Blocks(max_context) * max_rows * layout_.layer_bytes());
    CheckMemory("attention: the KV pool", pool_bytes_);
    pool_ = device_.Reserve(pool_bytes_, "kv pool");
    const std::uint32_t group = shape.heads / shape.kv_heads;
    scratch_floats_ = AttentionScratchFloats(group, shape.head_dim);
    scratch_ = Floats(scratch_floats_ * team.num_workers(), "attention scratch");
    q_ = Floats(std::uint64_t{max_rows} * shape.heads * shape.head_dim, "queries");
    out_ = Floats(q_.size(), "outputs");
    Rng rng(options.seed, "attention");
    for (float& value : q_)
      value = static_cast<float>((rng.Uniform() - 0.5) * 3.5);
    FillPool(&rng);
  }

  void Report(std::uint32_t rows, std::uint32_t context, const BenchOptions& options,
              const Peaks& peaks, const BenchSink& sink) {
    rows_ = rows;
    context_ = context;
    const std::uint64_t row_bytes = Blocks(context) * layout_.layer_bytes();
    layout_.num_layers = static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(pool_bytes_ / (rows * row_bytes), 1, kMaxLayers));
    const double seconds = LeastSeconds(SystemClock(), options.repetitions, layout_.num_layers,
                                        [&](std::uint64_t layer) {
                                          layer_ = static_cast<std::uint32_t>(layer);
                                          team_.Start(&Attend, this);
                                          team_.Join();
                                        }) /
                           layout_.num_layers;
    const double elements = 2.0 * rows * context * shape_.kv_heads * shape_.head_dim;
    const double bytes =
        elements * static_cast<double>(layout_.tile_bytes()) / (kTileTokens * shape_.head_dim);
    const double macs = elements * shape_.heads / shape_.kv_heads;
    const double roof_seconds = peaks.RoofSeconds(bytes, macs, PeakKind::kF32);
    sink(
        {{"bench", "attention"},
         {"kv_type", DTypeName(layout_.dtype)},
         {"heads", std::to_string(shape_.heads) + "/" + std::to_string(shape_.kv_heads) + "x" +
                       std::to_string(shape_.head_dim)},
         {"rows", rows},
         {"context", context},
         {"bytes", static_cast<std::uint64_t>(bytes)},
         {"microseconds", Rounded(seconds * 1e6)},
         {"gb_per_s", Rounded(bytes / seconds * 1e-9)},
         {"gmac_per_s", Rounded(macs / seconds * 1e-9)},
         {"roof_share", Rounded(roof_seconds / seconds, 3)},
         {"bound", bytes / peaks.read_bytes.all > macs / peaks.Macs(PeakKind::kF32) ? "memory"
                                                                                    : "arithmetic"},
         {"workers", team_.num_workers()},
         {"kernels", kernels_.name}});
  }

 private:
  static std::uint64_t Blocks(std::uint32_t context) {
    return (std::uint64_t{context} + kBlockTokens - 1) / kBlockTokens;
  }

  std::span<float> Floats(std::uint64_t count, const char* owner) {
    const std::span<std::byte> bytes = device_.Reserve(count * sizeof(float), owner);
    return {reinterpret_cast<float*>(bytes.data()), count};
  }

  // One layer of a block by the kernel that stores tokens, the rest of the pool as copies of it.
  void FillPool(Rng* rng) {
    std::vector<float> k(std::size_t{shape_.kv_heads} * shape_.head_dim);
    std::vector<float> v(k.size());
    for (std::uint32_t token = 0; token < kBlockTokens; ++token) {
      for (std::size_t i = 0; i < k.size(); ++i) {
        k[i] = static_cast<float>((rng->Uniform() - 0.5) * 3.5);
        v[i] = static_cast<float>((rng->Uniform() - 0.5) * 3.5);
      }
      kernels_.store_kv(
          {.k = k.data(),
           .v = v.data(),
           .k_tile = reinterpret_cast<std::uint8_t*>(pool_.data() + layout_.k_offset(0, 0)),
           .v_tile = reinterpret_cast<std::uint8_t*>(pool_.data() + layout_.v_offset(0, 0)),
           .head_bytes = layout_.head_bytes(),
           .lane = token,
           .num_kv_heads = shape_.kv_heads,
           .head_dim = shape_.head_dim,
           .dtype = layout_.dtype});
    }
    const std::uint64_t bytes = layout_.layer_bytes();
    for (std::uint64_t at = bytes; at + bytes <= pool_.size(); at += bytes)
      std::memcpy(&pool_[at], pool_.data(), bytes);
  }

  static void Attend(void* argument, std::uint32_t worker) {
    static_cast<Histories*>(argument)->Attend(worker);
  }

  void Attend(std::uint32_t worker) const {
    const std::uint32_t items = rows_ * shape_.kv_heads;
    const std::uint64_t num_workers = team_.num_workers();
    const std::uint64_t end = std::uint64_t{items} * (worker + 1) / num_workers;
    const std::uint32_t group = shape_.heads / shape_.kv_heads;
    const std::uint64_t num_blocks = Blocks(context_);
    for (std::uint64_t item = std::uint64_t{items} * worker / num_workers; item < end; ++item) {
      const std::uint64_t row = item / shape_.kv_heads;
      const auto head = static_cast<std::uint32_t>(item % shape_.kv_heads);
      const AttentionRun run = {.base = reinterpret_cast<const std::uint8_t*>(pool_.data()) +
                                        row * num_blocks * layout_.block_bytes(),
                                .num_blocks = static_cast<std::uint32_t>(num_blocks)};
      const std::uint64_t at = item * group * shape_.head_dim;
      kernels_.attention({.q = &q_[at],
                          .out = &out_[at],
                          .runs = &run,
                          .scratch = &scratch_[worker * scratch_floats_],
                          .block_bytes = layout_.block_bytes(),
                          .k_offset = layout_.k_offset(layer_, head),
                          .v_offset = layout_.v_offset(layer_, head),
                          .num_runs = 1,
                          .group = group,
                          .head_dim = shape_.head_dim,
                          .block_tokens = kBlockTokens,
                          .begin = 0,
                          .end = context_,
                          .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                          .dtype = layout_.dtype});
    }
  }

  const CpuKernels& kernels_;
  const HeadShape shape_;
  WorkerTeam& team_;
  HostDevice device_;
  KvLayout layout_;
  std::uint64_t pool_bytes_ = 0;
  std::uint64_t scratch_floats_ = 0;
  std::span<std::byte> pool_;
  std::span<float> scratch_;
  std::span<float> q_;
  std::span<float> out_;

  // What the workers are doing.
  std::uint32_t rows_ = 0;
  std::uint32_t context_ = 0;
  std::uint32_t layer_ = 0;
};

}  // namespace

std::vector<HeadShape> ParseHeads(std::string_view flag, std::string_view text) {
  std::vector<HeadShape> shapes;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](char after, std::uint32_t max, std::uint32_t* value) {
    const std::from_chars_result result = std::from_chars(at, end, *value);
    at = result.ptr;
    const bool good = result.ec == std::errc() && *value >= 1 && *value <= max &&
                      (at == end ? after == ',' : *at == after);
    // A comma at the end is missing what it announces.
    if (at != end && ++at == end) return false;
    return good;
  };
  do {
    HeadShape shape;
    const bool good = number('/', kMaxHeads, &shape.heads) &&
                      number('x', kMaxHeads, &shape.kv_heads) &&
                      number(',', kMaxHeadDim, &shape.head_dim) &&
                      shape.heads % shape.kv_heads == 0 && shape.head_dim % 2 == 0;
    if (!good) {
      throw StartError(std::string(flag) +
                       " must be HEADS/KV_HEADSxHEAD_DIM, with commas between them, at most " +
                       std::to_string(kMaxHeads) + " heads, a multiple of the kv heads, and an " +
                       "even dimension of at most " + std::to_string(kMaxHeadDim) + ", not '" +
                       std::string(text.substr(0, 40)) + "'");
    }
    shapes.push_back(shape);
  } while (at != end);
  return shapes;
}

DType ParseKvType(std::string_view flag, std::string_view text) {
  const DType type = ParseDType(flag, text);
  if (type == DType::kF32 || type == DType::kF16 || type == DType::kBf16 || type == DType::kQ8_0)
    return type;
  throw StartError(std::string(flag) + " '" + std::string(text.substr(0, 40)) +
                   "' is none of f32, f16, bf16, q8_0");
}

void RunAttentionBench(const AttentionBench& bench, const BenchOptions& options, const Peaks& peaks,
                       WorkerTeam& team, const BenchSink& sink) {
  CHECK(!bench.rows.empty() && !bench.contexts.empty());
  for (const DType type : bench.types) {
    for (const HeadShape& shape : bench.heads) {
      Histories histories(bench, options, type, shape, team);
      for (const std::uint32_t rows : bench.rows) {
        for (const std::uint32_t context : bench.contexts)
          histories.Report(rows, context, options, peaks, sink);
      }
    }
  }
}

}  // namespace kvrm
