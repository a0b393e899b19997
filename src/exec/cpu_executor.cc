// SPDX-License-Identifier: Apache-2.0
#include "exec/cpu_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "exec/attention_split.h"
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

StepProfile::Kind KindOf(Code code) {
  if (code == Code::kMatMul || code == Code::kPrepare) return StepProfile::Kind::kMatMul;
  return code == Code::kAttention ? StepProfile::Kind::kAttention : StepProfile::Kind::kOther;
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
  State(Graph graph_in, const CpuExecutorOptions& options_in, Device& device_in,
        std::span<std::byte> memory_in)
      : graph(std::move(graph_in)),
        options(options_in),
        device(device_in),
        memory(memory_in),
        team(options.num_workers),
        program(CompileProgram(graph,
                               {.kernels = options.kernels,
                                .max_tokens = options.limits.max_tokens,
                                .max_samples = options.limits.max_samples,
                                .layer_windows = !options.layer_buffers.empty(),
                                .progress = options.progress,
                                .only_reserve = options.only_reserve},
                               device, team)),
        buckets(PlanBuckets(options.limits)),
        num_replays(buckets.size()),
        runs(std::size_t{options.limits.max_rows} * options.limits.max_runs),
        token_row(options.limits.max_tokens),
        buffer_block(options.layer_buffers.empty() ? 0 : options.limits.max_tokens),
        split({.num_workers = options.num_workers,
               .num_kv_heads = graph.config.num_kv_heads,
               .sliding_window = graph.config.sliding_window,
               .max_units = MaxUnits()}) {
    const ModelConfig& config = graph.config;
    for (std::uint32_t i = 0; i < config.rope_dim / 2; ++i) {
      double frequency = std::pow(static_cast<double>(config.rope_base),
                                  -2.0 * i / static_cast<double>(config.rope_dim));
      if (!config.rope_factors.empty()) {
        frequency /= static_cast<double>(config.rope_factors[i]);
      }
      frequencies.push_back(frequency);
    }
    matmul_scratch =
        device.Reserve(std::size_t{kMatMulScratchBytes} * options.num_workers, "matmul scratch");
    ReserveScratch();
    CHECK(options.layer_buffers.size() % (2 * options.layout.layer_bytes()) == 0);
    if (options.profile != nullptr) {
      for (const Instruction& i : program.code)
        options.profile->instructions.push_back({.kind = KindOf(i.code)});
    }
  }

  // Of the longest row that is worth dividing: no longer than the pool, unless it has holes.
  std::uint32_t MaxUnits() const {
    const std::uint64_t pool_tokens =
        memory.size() / options.layout.block_bytes() * options.layout.block_tokens;
    return static_cast<std::uint32_t>(
        std::min<std::uint64_t>(graph.config.max_context, pool_tokens) / kAttentionUnit + 1);
  }

  void ReserveScratch() {
    const ModelConfig& config = graph.config;
    const std::uint32_t group = config.num_heads / config.num_kv_heads;
    const std::size_t floats =
        AttentionScratchFloats(std::max(group, options.kernels->attention_heads), config.head_dim) +
        kWorkerGapBytes / sizeof(float);
    const std::size_t slot = MaxUnits() * AttentionPartialFloats(group, config.head_dim);
    const std::size_t all = floats * options.num_workers + slot * split.num_slots();
    auto* memory_of_all =
        reinterpret_cast<float*>(device.Reserve(all * sizeof(float), "attention scratch").data());
    for (std::uint32_t w = 0; w < options.num_workers; ++w)
      scratch.push_back(memory_of_all + w * floats);
    for (std::uint32_t i = 0; i < split.num_slots(); ++i)
      slots.push_back(memory_of_all + floats * options.num_workers + i * slot);
  }

  // Everything the workers share for one step, derived from the descriptor before they start. What
  // is read or written of the cache in this step is checked here and nowhere else.
  void Latch(const StepView& view) noexcept {
    step = view;
    const StepHeader& header = *view.header;
    CHECK(header.num_tokens <= options.limits.max_tokens);
    CHECK(header.num_samples <= options.limits.max_samples);
    last_deadline = view.LastDeadline();
    has_layer_windows = (header.flags & kStepLayerWindows) != 0;
    CHECK(!has_layer_windows || !options.layer_buffers.empty());
    for (std::uint32_t row = 0; row < header.num_rows; ++row) {
      LatchRuns(row);
      if (has_layer_windows) LatchBufferBlocks(row);
      for (std::uint32_t t = view.row_start[row]; t < view.row_start[row + 1]; ++t) {
        token_row[t] = row;
      }
    }
    const std::uint64_t num_slots =
        memory.size() / options.layout.block_bytes() * options.layout.block_tokens;
    for (const SlotId slot : view.slots)
      CHECK(Index(slot) < num_slots);
    for (const SlotId slot : view.mirrors)
      CHECK(Index(slot) < num_slots);
    LatchSlices();
    split.Plan(step.positions, header.padded_tokens);
  }

  void LatchRuns(std::uint32_t row) noexcept {
    const std::span<const std::byte> space =
        has_layer_windows ? options.layer_buffers.first(LayerBufferBytes()) : memory;
    CHECK(step.num_runs[row] <= options.limits.max_runs);
    AttentionRun* target = &runs[std::size_t{row} * options.limits.max_runs];
    std::uint64_t num_blocks = 0;
    for (const Extent& extent : step.RowRuns(row)) {
      const bool is_hole = extent.start == kSentinelBlock;
      CHECK(is_hole || (std::uint64_t{Index(extent.start)} + extent.num_blocks) * BlockStride() <=
                           space.size());
      *target++ = {.base = is_hole ? nullptr
                                   : reinterpret_cast<const std::uint8_t*>(space.data()) +
                                         Index(extent.start) * BlockStride(),
                   .num_blocks = extent.num_blocks};
      num_blocks += extent.num_blocks;
    }
    const std::uint64_t num_positions = num_blocks * options.layout.block_tokens;
    const std::int32_t last = step.positions[step.row_start[row + 1] - 1];
    CHECK(static_cast<std::uint64_t>(last) < num_positions);
    CHECK(step.header->padded_tokens <= num_positions);
  }

  // Where in the layer buffers the row's tokens are stored: the blocks of its runs that hold their
  // positions. A live row writes into no hole (D3).
  void LatchBufferBlocks(std::uint32_t row) noexcept {
    const std::uint32_t block_tokens = options.layout.block_tokens;
    std::uint32_t token = step.row_start[row];
    const std::uint32_t end = step.row_start[row + 1];
    std::uint64_t first = 0;  // number of the run's first block in the row
    for (const Extent& run : step.RowRuns(row)) {
      for (; token < end; ++token) {
        const std::uint64_t number =
            static_cast<std::uint32_t>(step.positions[token]) / block_tokens;
        if (number >= first + run.num_blocks) break;
        CHECK(number >= first && run.start != kSentinelBlock);
        buffer_block[token] = Index(run.start) + static_cast<std::uint32_t>(number - first);
      }
      first += run.num_blocks;
    }
    CHECK(token == end);
  }

  void LatchSlices() noexcept {
    num_slices = 0;
    for (const TransferGroup& group : step.groups) {
      if (group.kind != GroupKind::kLayerSlices) continue;
      CHECK(has_layer_windows && group.source_tier == 0 && group.target_tier == 0);
      CHECK((std::uint64_t{Index(group.source)} + group.num_blocks) *
                options.layout.block_bytes() <=
            memory.size());
      CHECK((std::uint64_t{Index(group.target)} + group.num_blocks) *
                options.layout.layer_bytes() <=
            LayerBufferBytes());
      num_slices += group.num_blocks;
    }
  }

  std::size_t LayerBufferBytes() const noexcept { return options.layer_buffers.size() / 2; }
  // From block to block of what attention reads.
  std::size_t BlockStride() const noexcept {
    return has_layer_windows ? options.layout.layer_bytes() : options.layout.block_bytes();
  }

  static void Work(void* argument, std::uint32_t worker) {
    State& state = *static_cast<State*>(argument);
    if (worker == 0 && state.options.profile != nullptr) return state.WorkProfiled();
    for (const Instruction& instruction : state.program.code) {
      if (instruction.optional && !state.has_layer_windows) continue;
      if (instruction.barrier) state.team.Barrier();
      if (instruction.needs_layer) state.AwaitLayer(instruction.layer);
      state.Execute(instruction, worker);
    }
  }

  // What worker 0 does in Work, timed.
  void WorkProfiled() noexcept {
    StepProfile& profile = *options.profile;
    const bool first = profile.steps++ == 0;
    StepProfile::Instruction* timed = nullptr;
    std::int64_t begin_ns = 0;
    const auto end_instruction = [&] {
      const std::int64_t now_ns = profile.clock->NowNs();
      const std::int64_t ns = now_ns - begin_ns;
      begin_ns = now_ns;
      if (timed != nullptr) timed->least_ns = first ? ns : std::min(timed->least_ns, ns);
    };
    for (std::size_t i = 0; i < program.code.size(); ++i) {
      const Instruction& instruction = program.code[i];
      if (instruction.optional && !has_layer_windows) continue;
      if (instruction.barrier) team.Barrier();
      end_instruction();
      timed = &profile.instructions[i];
      Execute(instruction, 0);
    }
    end_instruction();
  }

  // A worker that has nothing to do in the instruction waits as well: what it does in the ones
  // after may touch the layer.
  void AwaitLayer(std::uint32_t layer) const noexcept {
    if (layer > 0 && layer <= last_deadline) device.WaitLayer(layer);
  }

  void Execute(const Instruction& i, std::uint32_t worker) noexcept {
    const std::uint32_t num_rows =
        i.per_sample ? step.header->num_samples : step.header->num_tokens;
    switch (i.code) {
      case Code::kMatMul:
        return MatMul(i, worker, num_rows);
      case Code::kStage:
        return Stage(i.layer, worker);
      case Code::kAttention:
        return Attention(i, worker);
      case Code::kLogitStats:
        return Stats(i, worker, num_rows);
      default:
        break;
    }
    if (i.split == Split::kColumn) {
      const Range columns = ShareOutputs(i.width, i.share_outputs, worker);
      for (std::uint32_t row = 0; row < num_rows; ++row)
        ExecuteColumns(i, row, columns);
      return;
    }
    const Range rows = Share(num_rows, worker, options.num_workers);
    for (std::uint32_t row = rows.begin; row < rows.end; ++row)
      ExecuteRow(i, row);
  }

  void ExecuteColumns(const Instruction& i, std::uint32_t row, Range columns) const noexcept {
    if (columns.begin == columns.end) return;
    const float* in = i.in + row * i.in_stride;
    if (i.code == Code::kPrepare) {
      return i.act->prepare(in, i.prepared + row * i.prepared_stride, i.width, columns.begin,
                            columns.end);
    }
    CHECK(i.code == Code::kSwiGlu);
    options.kernels->swiglu(in + columns.begin, i.in2 + row * i.in2_stride + columns.begin,
                            i.out + row * i.out_stride + columns.begin,
                            columns.end - columns.begin);
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
        return i.act->prepare(in, i.prepared + row * i.prepared_stride, i.width, 0, i.width);
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
        StoreKv(i.layer, step.slots[row], in, in2);
        if (!step.mirrors.empty()) StoreKv(i.layer, step.mirrors[row], in, in2);
        if (has_layer_windows) StoreIntoBuffer(i.layer, row, in, in2);
        return;
      case Code::kGather:
        std::memcpy(out, i.in + step.sample_token[row] * i.in_stride, i.width * sizeof(float));
        return;
      case Code::kMatMul:
      case Code::kStage:
      case Code::kAttention:
      case Code::kSwiGlu:
      case Code::kLogitStats:
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

  void StoreKv(std::uint32_t layer, SlotId slot, const float* k, const float* v) const noexcept {
    const KvLayout& layout = options.layout;
    const std::uint32_t in_block = Index(slot) % layout.block_tokens;
    std::byte* const block =
        memory.data() + Index(slot) / layout.block_tokens * layout.block_bytes();
    StoreToken(block + layout.k_offset(layer, 0), in_block, k, v);
  }

  // The token's copy in the layer's buffer, where its block has been gathered.
  void StoreIntoBuffer(std::uint32_t layer, std::uint32_t token, const float* k,
                       const float* v) const noexcept {
    const KvLayout& layout = options.layout;
    std::byte* const block = options.layer_buffers.data() + layer % 2 * LayerBufferBytes() +
                             std::size_t{buffer_block[token]} * layout.layer_bytes();
    StoreToken(block, static_cast<std::uint32_t>(step.positions[token]) % layout.block_tokens, k,
               v);
  }

  // `slice`: one layer of a block.
  void StoreToken(std::byte* slice, std::uint32_t in_block, const float* k,
                  const float* v) const noexcept {
    const KvLayout& layout = options.layout;
    std::byte* const tile = slice + in_block / kTileTokens * layout.tile_bytes();
    options.kernels->store_kv(
        {.k = k,
         .v = v,
         .k_tile = reinterpret_cast<std::uint8_t*>(tile),
         .v_tile = reinterpret_cast<std::uint8_t*>(tile + layout.v_offset(0, 0)),
         .head_bytes = layout.head_bytes(),
         .lane = in_block % kTileTokens,
         .num_kv_heads = layout.num_kv_heads,
         .head_dim = layout.head_dim,
         .dtype = layout.dtype});
  }

  void MatMul(const Instruction& i, std::uint32_t worker, std::uint32_t num_rows) const noexcept {
    if (num_rows == 0) return;
    const Range share = ShareOutputs(i.matrix.rows, i.share_outputs, worker);
    if (share.begin == share.end) return;
    i.kernel->matmul(
        {.w = i.matrix,
         .x = i.prepared != nullptr ? static_cast<const void*>(i.prepared) : i.in,
         .x_stride = i.prepared != nullptr ? i.prepared_stride : i.in_stride * sizeof(float),
         .y = i.out,
         .y_stride = i.out_stride,
         .bias = i.vector,
         .num_tokens = num_rows,
         .out_begin = share.begin,
         .out_end = share.end,
         .accumulate = i.accumulate,
         .scratch = matmul_scratch.data() + std::size_t{worker} * kMatMulScratchBytes});
  }

  // Of `n` outputs, in multiples of `unit`.
  Range ShareOutputs(std::uint32_t n, std::uint32_t unit, std::uint32_t worker) const noexcept {
    const Range units = Share((n + unit - 1) / unit, worker, options.num_workers);
    return {std::min(units.begin * unit, n), std::min(units.end * unit, n)};
  }

  // Of the chunks that this worker's share of the logits' product is made of.
  void Stats(const Instruction& i, std::uint32_t worker, std::uint32_t num_rows) const noexcept {
    const Range share = ShareOutputs(i.width, kLogitChunk, worker);
    if (share.begin == share.end) return;
    for (std::uint32_t row = 0; row < num_rows; ++row) {
      float* maxima = i.out + row * i.out_stride + share.begin / kLogitChunk;
      options.kernels->logit_stats(i.in + row * i.in_stride + share.begin, share.end - share.begin,
                                   maxima, maxima + i.out_stride / 2);
    }
  }

  // Gathers the layer of every block that the step shows, as it was before the step, into this
  // layer's buffer.
  void Stage(std::uint32_t layer, std::uint32_t worker) const noexcept {
    const std::size_t block_bytes = options.layout.block_bytes();
    const std::size_t layer_bytes = options.layout.layer_bytes();
    std::byte* const buffer = options.layer_buffers.data() + layer % 2 * LayerBufferBytes();
    const std::byte* const slices = memory.data() + layer * layer_bytes;
    const Range share = Share(num_slices, worker, options.num_workers);
    std::uint32_t first = 0;  // number of the group's first slice among all
    for (const TransferGroup& group : step.groups) {
      if (first >= share.end) break;
      if (group.kind != GroupKind::kLayerSlices) continue;
      const std::uint32_t end = std::min(first + group.num_blocks, share.end);
      for (std::uint32_t slice = std::max(first, share.begin); slice < end; ++slice) {
        std::memcpy(buffer + (Index(group.target) + (slice - first)) * layer_bytes,
                    slices + (Index(group.source) + (slice - first)) * block_bytes, layer_bytes);
      }
      first += group.num_blocks;
    }
  }

  void Attention(const Instruction& i, std::uint32_t worker) noexcept {
    const std::uint32_t num_heads = options.layout.num_kv_heads;
    AttentionPiece piece;
    for (std::uint32_t n = 0; split.Piece(worker, n, &piece); ++n) {
      const std::uint32_t num_tokens = TokensOfPass(worker, n, piece);
      if (num_tokens > 1) {
        for (std::uint32_t head = 0; head < num_heads; ++head) {
          AttentionArgs args = ArgsOf(i, worker, piece.item + head);
          args.end += num_tokens - 1;
          args.num_tokens = num_tokens;
          args.q_stride = i.in_stride;
          args.out_stride = i.out_stride;
          const std::uint32_t next = head + 1 < num_heads ? head + 1 : num_tokens * num_heads;
          AttentionArgs following;
          if (ArgsOfPiece(i, worker, n + next, &following)) args.following = &following;
          options.kernels->attention(args);
        }
        n += num_tokens * num_heads - 1;
        continue;
      }
      AttentionArgs args = ArgsOf(i, worker, piece.item);
      AttentionArgs following;
      if (ArgsOfPiece(i, worker, n + 1, &following)) args.following = &following;
      if (piece.slot == kWholeItem) {
        if (step.header->padded_tokens != 0) AttendPadding(args, step.header->padded_tokens);
        options.kernels->attention(args);
        continue;
      }
      const std::uint32_t first = args.begin / kAttentionUnit;
      const std::size_t size = AttentionPartialFloats(args.group, args.head_dim);
      AttendUnits(options.kernels->attention_unit, args, piece.unit_begin, piece.unit_end,
                  slots[piece.slot] + (piece.unit_begin - first) * size);
      if (split.Finish(piece.slot))
        MergeUnits(args, slots[piece.slot], (args.end - 1) / kAttentionUnit + 1 - first);
    }
  }

  // Tokens that may share their passes, from piece `n` of the worker on: all items of theirs are
  // whole and are this worker's.
  std::uint32_t TokensOfPass(std::uint32_t worker, std::uint32_t n,
                             const AttentionPiece& piece) const noexcept {
    const std::uint32_t num_heads = options.layout.num_kv_heads;
    const std::uint32_t most =
        options.kernels->attention_heads / (graph.config.num_heads / num_heads);
    if (piece.slot != kWholeItem || piece.item % num_heads != 0 || step.header->padded_tokens != 0)
      return 1;
    const std::uint32_t first = piece.item / num_heads;
    const auto position = static_cast<std::uint32_t>(step.positions[first]);
    std::uint32_t count = 0;
    for (; count < most && first + count < step.header->num_tokens; ++count) {
      const std::int32_t next = step.positions[first + count];
      if (token_row[first + count] != token_row[first] ||
          static_cast<std::uint32_t>(next) != position + count ||
          (position + count) / kAttentionUnit != position / kAttentionUnit ||
          split.Begin(next) != split.Begin(step.positions[first]))
        break;
      AttentionPiece last;
      if (!split.Piece(worker, n + (count + 1) * num_heads - 1, &last) || last.slot != kWholeItem)
        break;
    }
    return std::max(count, 1u);
  }

  // Of piece `n` of the worker, if there is one, from its first unit on.
  bool ArgsOfPiece(const Instruction& i, std::uint32_t worker, std::uint32_t n,
                   AttentionArgs* args) const noexcept {
    AttentionPiece piece;
    if (!split.Piece(worker, n, &piece)) return false;
    *args = ArgsOf(i, worker, piece.item);
    args->begin = std::max(args->begin, piece.unit_begin * kAttentionUnit);
    return true;
  }

  AttentionArgs ArgsOf(const Instruction& i, std::uint32_t worker,
                       std::uint32_t item) const noexcept {
    const KvLayout& layout = options.layout;
    const std::uint32_t group = graph.config.num_heads / graph.config.num_kv_heads;
    // In a layer buffer a block is one layer.
    const std::uint32_t layer = has_layer_windows ? 0 : i.layer;
    const std::size_t buffer = has_layer_windows ? i.layer % 2 * LayerBufferBytes() : 0;
    const std::uint32_t token = item / layout.num_kv_heads;
    const std::uint32_t head = item % layout.num_kv_heads;
    const std::uint32_t row = token_row[token];
    const std::int32_t position = step.positions[token];
    return {.q = i.in + token * i.in_stride + std::size_t{head} * group * layout.head_dim,
            .out = i.out + token * i.out_stride + std::size_t{head} * group * layout.head_dim,
            .runs = &runs[std::size_t{row} * options.limits.max_runs],
            .scratch = scratch[worker],
            .block_bytes = BlockStride(),
            .k_offset = buffer + layout.k_offset(layer, head),
            .v_offset = buffer + layout.v_offset(layer, head),
            .num_runs = step.num_runs[row],
            .group = group,
            .head_dim = layout.head_dim,
            .block_tokens = layout.block_tokens,
            .begin = split.Begin(position),
            .end = static_cast<std::uint32_t>(position) + 1,
            .scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim)),
            .dtype = layout.dtype};
  }

  // Computes over the tiles of [0, num_tokens) that the row does not attend. The outcome goes where
  // the row's own will replace it, so that nothing of what lies there, NaN neither, can leak.
  void AttendPadding(const AttentionArgs& args, std::uint32_t num_tokens) const noexcept {
    AttentionArgs padding = args;
    padding.begin = 0;
    padding.end = args.begin / kTileTokens * kTileTokens;
    if (padding.begin < padding.end) options.kernels->attention(padding);
    padding.begin = (args.end + kTileTokens - 1) / kTileTokens * kTileTokens;
    padding.end = num_tokens;
    if (padding.begin < padding.end) options.kernels->attention(padding);
  }

  const Graph graph;
  const CpuExecutorOptions options;
  Device& device;
  const std::span<std::byte> memory;  // blocks of the pool, then of the windows
  WorkerTeam team;
  Program program;
  std::vector<Bucket> buckets;
  std::vector<std::uint64_t> num_replays;
  std::vector<double> frequencies;  // [rope_dim / 2] radians per position
  std::vector<float*> scratch;      // [num_workers]
  std::vector<float*> slots;        // of divided items: [MaxUnits] partial results

  // The step in flight.
  StepView step;
  std::uint32_t last_deadline = 0;  // of its copies
  bool has_layer_windows = false;
  std::uint32_t num_slices = 0;             // of all kLayerSlices groups
  std::vector<AttentionRun> runs;           // [max_rows][max_runs]
  std::vector<std::uint32_t> token_row;     // [max_tokens]
  std::vector<std::uint32_t> buffer_block;  // [max_tokens] with layer windows
  AttentionSplit split;
  std::span<std::byte> matmul_scratch;  // [num_workers][kMatMulScratchBytes]
  bool running = false;
};

CpuExecutor::CpuExecutor(Graph graph, const CpuExecutorOptions& options, Device& device,
                         std::span<std::byte> kv_memory)
    : state_(std::make_unique<State>(std::move(graph), options, device, kv_memory)) {}

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

LogitStats CpuExecutor::Stats(std::uint32_t sample) const noexcept {
  const State& s = *state_;
  CHECK(!s.running && sample < s.step.header->num_samples);
  const float* maxima = s.program.stats + 2 * s.program.stats_stride * sample;
  const std::size_t num_chunks = NumLogitChunks(s.graph.logits.width);
  return {.maxima = {maxima, num_chunks}, .sums = {maxima + s.program.stats_stride, num_chunks}};
}

std::span<const float> CpuExecutor::Hidden(std::uint32_t sample) const noexcept {
  const State& s = *state_;
  CHECK(!s.running && sample < s.step.header->num_samples);
  return {s.program.hidden + sample * s.program.hidden_stride, s.graph.hidden.width};
}

std::span<const std::uint64_t> CpuExecutor::replays() const noexcept {
  return state_->num_replays;
}

std::uint32_t CpuExecutor::num_barriers() const noexcept {
  return state_->program.num_barriers;
}

}  // namespace kvrm
