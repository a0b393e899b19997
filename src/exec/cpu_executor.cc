// SPDX-License-Identifier: Apache-2.0
#include "exec/cpu_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "exec/program.h"

namespace kvrm {
namespace {

struct Range {
  std::uint32_t begin;
  std::uint32_t end;
};

// The fixed share of `worker` in [0, n).
Range Share(std::uint32_t n, std::uint32_t worker, std::uint32_t num_workers) {
  return {static_cast<std::uint32_t>(std::uint64_t{n} * worker / num_workers),
          static_cast<std::uint32_t>(std::uint64_t{n} * (worker + 1) / num_workers)};
}

std::size_t AttentionScratchFloats(const ModelConfig& config) {
  const std::size_t group = config.num_heads / config.num_kv_heads;
  return (group * (kAttentionUnit + config.head_dim + 4) + 15) / 16 * 16;
}

}  // namespace

std::vector<Bucket> PlanBuckets(const StepLimits& limits) {
  CHECK(limits.max_rows >= 1 && limits.max_tokens >= limits.max_rows);
  std::vector<Bucket> buckets;
  // Rows double from bucket to bucket, or quadruple where there would be more than six.
  std::uint32_t factor = 2;
  while (std::uint64_t{1} << (factor == 2 ? 5 : 10) < limits.max_rows && factor < 4)
    factor *= 2;
  for (std::uint64_t rows = 1; rows < limits.max_rows && buckets.size() < 5; rows *= factor) {
    const auto n = static_cast<std::uint32_t>(rows);
    buckets.push_back({.max_rows = n, .max_tokens = n});
  }
  buckets.push_back({.max_rows = limits.max_rows, .max_tokens = limits.max_rows});
  const std::uint32_t quarter = limits.max_tokens / 4;
  if (quarter > limits.max_rows) {
    buckets.push_back({.max_rows = limits.max_rows, .max_tokens = quarter});
  }
  if (limits.max_tokens > limits.max_rows) {
    buckets.push_back({.max_rows = limits.max_rows, .max_tokens = limits.max_tokens});
  }
  CHECK(buckets.size() <= kMaxBuckets);
  return buckets;
}

struct CpuExecutor::State {
  State(Graph graph_in, const CpuExecutorOptions& options_in, Device& device,
        std::span<std::byte> pool_in)
      : graph(std::move(graph_in)),
        options(options_in),
        pool(pool_in),
        team(options.num_workers),
        program(CompileProgram(graph,
                               {.kernels = options.kernels,
                                .max_tokens = options.limits.max_tokens,
                                .max_samples = options.limits.max_samples,
                                .progress = options.progress},
                               device, team)),
        buckets(PlanBuckets(options.limits)),
        num_replays(buckets.size()),
        runs(std::size_t{options.limits.max_rows} * options.limits.max_runs),
        token_row(options.limits.max_tokens),
        item_begin(options.num_workers + 1) {
    const ModelConfig& config = graph.config;
    for (std::uint32_t i = 0; i < config.rope_dim / 2; ++i) {
      double frequency = std::pow(static_cast<double>(config.rope_base),
                                  -2.0 * i / static_cast<double>(config.rope_dim));
      if (!config.rope_factors.empty()) {
        frequency /= static_cast<double>(config.rope_factors[i]);
      }
      frequencies.push_back(frequency);
    }
    const std::size_t floats = AttentionScratchFloats(config);
    const std::span<std::byte> memory =
        device.Reserve(floats * sizeof(float) * options.num_workers, "attention scratch");
    for (std::uint32_t w = 0; w < options.num_workers; ++w) {
      scratch.push_back(reinterpret_cast<float*>(memory.data()) + w * floats);
    }
  }

  // Everything the workers share for one step, derived from the descriptor before they start.
  void Latch(const StepView& view) noexcept {
    step = view;
    const std::size_t block_bytes = options.layout.block_bytes();
    const StepHeader& header = *view.header;
    CHECK(header.num_tokens <= options.limits.max_tokens);
    CHECK(header.num_samples <= options.limits.max_samples);
    for (std::uint32_t row = 0; row < header.num_rows; ++row) {
      AttentionRun* target = &runs[std::size_t{row} * options.limits.max_runs];
      for (const Extent& extent : view.RowRuns(row)) {
        CHECK((std::uint64_t{Index(extent.start)} + extent.num_blocks) * block_bytes <=
              pool.size());
        *target++ = {.base = reinterpret_cast<const std::uint8_t*>(pool.data()) +
                             Index(extent.start) * block_bytes,
                     .num_blocks = extent.num_blocks};
      }
      for (std::uint32_t t = view.row_start[row]; t < view.row_start[row + 1]; ++t) {
        token_row[t] = row;
      }
    }
    SplitAttention();
  }

  // Divides the (token, kv head) items so that every worker reads about as much of the cache. Who
  // computes an item does not change its value.
  void SplitAttention() noexcept {
    const std::uint32_t heads = graph.config.num_kv_heads;
    std::uint64_t total = 0;
    for (const std::int32_t position : step.positions)
      total += Cost(position);
    const std::uint32_t num_items = step.header->num_tokens * heads;
    std::uint32_t worker = 0;
    std::uint64_t passed = 0;
    item_begin[0] = 0;
    for (std::uint32_t item = 0; item < num_items; ++item) {
      while (worker + 1 < options.num_workers &&
             passed * options.num_workers >= total * heads * (worker + 1)) {
        item_begin[++worker] = item;
      }
      passed += Cost(step.positions[item / heads]);
    }
    while (worker < options.num_workers)
      item_begin[++worker] = num_items;
  }

  std::uint64_t Cost(std::int32_t position) const noexcept {
    std::uint64_t context = static_cast<std::uint64_t>(position) + 1;
    if (graph.config.sliding_window != 0) {
      context = std::min<std::uint64_t>(context, graph.config.sliding_window);
    }
    return context + kAttentionUnit;  // A fixed part for the query, the output and the overhead.
  }

  static void Work(void* argument, std::uint32_t worker) {
    State& state = *static_cast<State*>(argument);
    for (const Instruction& instruction : state.program.code) {
      if (instruction.barrier) state.team.Barrier();
      state.Execute(instruction, worker);
    }
  }

  void Execute(const Instruction& i, std::uint32_t worker) const noexcept {
    const std::uint32_t num_rows =
        i.per_sample ? step.header->num_samples : step.header->num_tokens;
    switch (i.code) {
      case Code::kMatMul:
        return MatMul(i, worker, num_rows);
      case Code::kAttention:
        return Attention(i, worker);
      default:
        break;
    }
    const Range rows = Share(num_rows, worker, options.num_workers);
    for (std::uint32_t row = rows.begin; row < rows.end; ++row)
      ExecuteRow(i, row);
  }

  void ExecuteRow(const Instruction& i, std::uint32_t row) const noexcept {
    const CpuKernels& kernels = *options.kernels;
    const ModelConfig& config = graph.config;
    float* out = i.out + row * i.out_stride;
    const float* in = i.in + row * i.in_stride;
    const float* in2 = i.in2 + row * i.in2_stride;
    switch (i.code) {
      case Code::kEmbed: {
        const std::int32_t id = step.token_ids[row];
        CHECK(id >= 0 && static_cast<std::uint32_t>(id) < i.matrix.rows);
        return i.kernel->row(i.matrix, static_cast<std::uint32_t>(id), out);
      }
      case Code::kAngles:
        return Angles(step.positions[row], out);
      case Code::kRmsNorm:
        return kernels.rms_norm(in, i.vector, config.rms_eps, out, i.width);
      case Code::kPrepare:
        return i.act->prepare(in, i.prepared + row * i.prepared_stride, i.width);
      case Code::kHeadNorm:
        for (std::uint32_t head = 0; head < i.num_heads; ++head) {
          float* x = out + head * config.head_dim;
          kernels.rms_norm(x, i.vector, config.rms_eps, x, config.head_dim);
        }
        return;
      case Code::kRope:
        return kernels.rope(
            {.x = out,
             .cosine = in2,
             .sine = in2 + config.rope_dim / 2,
             .num_heads = i.num_heads,
             .head_dim = config.head_dim,
             .rope_dim = config.rope_dim,
             .style = config.rope_halves ? RopeStyle::kHalves : RopeStyle::kInterleaved});
      case Code::kStoreKv:
        return StoreKv(i.layer, row, in, in2);
      case Code::kSwiGlu:
        return kernels.swiglu(in, in2, out, i.width);
      case Code::kGather:
        std::memcpy(out, i.in + step.sample_token[row] * i.in_stride, i.width * sizeof(float));
        return;
      case Code::kMatMul:
      case Code::kAttention:
        CHECK(false);
    }
  }

  // Rotary angles (Su et al. 2021), computed once per token of a step, in double: the product of a
  // long position and a small frequency loses digits in float.
  void Angles(std::int32_t position, float* out) const noexcept {
    const std::size_t half = frequencies.size();
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = position * frequencies[i];
      out[i] = static_cast<float>(std::cos(angle));
      out[half + i] = static_cast<float>(std::sin(angle));
    }
  }

  void StoreKv(std::uint32_t layer, std::uint32_t token, const float* k,
               const float* v) const noexcept {
    const KvLayout& layout = options.layout;
    const std::uint32_t slot = Index(step.slots[token]);
    const std::uint32_t in_block = slot % layout.block_tokens;
    std::byte* block = pool.data() + slot / layout.block_tokens * layout.block_bytes() +
                       in_block / kTileTokens * layout.tile_bytes();
    options.kernels->store_kv(
        {.k = k,
         .v = v,
         .k_tile = reinterpret_cast<std::uint8_t*>(block + layout.k_offset(layer, 0)),
         .v_tile = reinterpret_cast<std::uint8_t*>(block + layout.v_offset(layer, 0)),
         .head_bytes = layout.head_bytes(),
         .lane = in_block % kTileTokens,
         .num_kv_heads = layout.num_kv_heads,
         .head_dim = layout.head_dim,
         .dtype = layout.dtype});
  }

  void MatMul(const Instruction& i, std::uint32_t worker, std::uint32_t num_rows) const noexcept {
    if (num_rows == 0) return;
    const std::uint32_t tiles = (i.matrix.rows + kOutTile - 1) / kOutTile;
    const Range share = Share(tiles, worker, options.num_workers);
    if (share.begin == share.end) return;
    i.kernel->matmul(
        {.w = i.matrix,
         .x = i.prepared != nullptr ? static_cast<const void*>(i.prepared) : i.in,
         .x_stride = i.prepared != nullptr ? i.prepared_stride : i.in_stride * sizeof(float),
         .y = i.out,
         .y_stride = i.out_stride,
         .bias = i.vector,
         .num_tokens = num_rows,
         .out_begin = share.begin * kOutTile,
         .out_end = std::min(share.end * kOutTile, i.matrix.rows),
         .accumulate = i.accumulate});
  }

  void Attention(const Instruction& i, std::uint32_t worker) const noexcept {
    const KvLayout& layout = options.layout;
    const std::uint32_t group = graph.config.num_heads / graph.config.num_kv_heads;
    for (std::uint32_t item = item_begin[worker]; item < item_begin[worker + 1]; ++item) {
      const std::uint32_t token = item / layout.num_kv_heads;
      const std::uint32_t head = item % layout.num_kv_heads;
      const std::uint32_t row = token_row[token];
      const std::uint32_t end = static_cast<std::uint32_t>(step.positions[token]) + 1;
      const std::uint32_t window = graph.config.sliding_window;
      options.kernels->attention(
          {.q = i.in + token * i.in_stride + std::size_t{head} * group * layout.head_dim,
           .out = i.out + token * i.out_stride + std::size_t{head} * group * layout.head_dim,
           .runs = &runs[std::size_t{row} * options.limits.max_runs],
           .scratch = scratch[worker],
           .block_bytes = layout.block_bytes(),
           .k_offset = layout.k_offset(i.layer, head),
           .v_offset = layout.v_offset(i.layer, head),
           .num_runs = step.num_runs[row],
           .group = group,
           .head_dim = layout.head_dim,
           .block_tokens = layout.block_tokens,
           .begin = window != 0 && end > window ? end - window : 0,
           .end = end,
           .scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim)),
           .dtype = layout.dtype});
    }
  }

  const Graph graph;
  const CpuExecutorOptions options;
  const std::span<std::byte> pool;
  WorkerTeam team;
  Program program;
  std::vector<Bucket> buckets;
  std::vector<std::uint64_t> num_replays;
  std::vector<double> frequencies;  // [rope_dim / 2] radians per position
  std::vector<float*> scratch;      // [num_workers]

  // The step in flight.
  StepView step;
  std::vector<AttentionRun> runs;         // [max_rows][max_runs]
  std::vector<std::uint32_t> token_row;   // [max_tokens]
  std::vector<std::uint32_t> item_begin;  // [num_workers + 1] attention items of each worker
  bool running = false;
};

CpuExecutor::CpuExecutor(Graph graph, const CpuExecutorOptions& options, Device& device,
                         std::span<std::byte> pool)
    : state_(std::make_unique<State>(std::move(graph), options, device, pool)) {}

CpuExecutor::~CpuExecutor() = default;

std::span<const Bucket> CpuExecutor::buckets() const noexcept {
  return state_->buckets;
}

void CpuExecutor::Run(const StepView& step) noexcept {
  State& s = *state_;
  CHECK(!s.running && step.header->bucket < s.buckets.size());
  const Bucket& bucket = s.buckets[step.header->bucket];
  CHECK(step.header->num_rows <= bucket.max_rows && step.header->num_tokens <= bucket.max_tokens);
  s.running = true;
  ++s.num_replays[step.header->bucket];
  s.Latch(step);
  s.team.Start(&State::Work, &s);
}

void CpuExecutor::Wait() noexcept {
  CHECK(state_->running);
  state_->team.Join();
  state_->running = false;
}

std::span<const float> CpuExecutor::Logits(std::uint32_t sample) const noexcept {
  const State& s = *state_;
  CHECK(!s.running && sample < s.step.header->num_samples);
  return {s.program.logits + sample * s.program.logits_stride, s.graph.logits.width};
}

std::span<const std::uint64_t> CpuExecutor::replays() const noexcept {
  return state_->num_replays;
}

std::uint32_t CpuExecutor::num_barriers() const noexcept {
  return state_->program.num_barriers;
}

}  // namespace kvrm
