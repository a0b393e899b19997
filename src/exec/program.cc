// SPDX-License-Identifier: Apache-2.0
#include "exec/program.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "exec/logit_stats.h"

namespace kvrm {
namespace {

static_assert(kLogitChunk % kOutTile == 0, "shares of the logits are whole tiles and whole chunks");

// What instructions touch, for deciding barriers: buffers of the graph, then the prepared operand
// of each format, then the cache by layers, then the two layer buffers.
struct Access {
  std::uint32_t resource;
  std::uint32_t begin;
  std::uint32_t end;
  bool write;
  Split split;
};

bool SameWorker(const Access& a, const Access& b) {
  if (a.split != b.split) return false;
  if (a.split == Split::kColumn) return a.begin == b.begin && a.end == b.end;
  return a.split == Split::kToken || a.split == Split::kSample || a.split == Split::kChunk;
}

bool Conflict(const Access& a, const Access& b) {
  return a.resource == b.resource && a.begin < b.end && b.begin < a.end && (a.write || b.write) &&
         !SameWorker(a, b);
}

// The file's bytes are not read again: their pages leave this process, so that a model is resident
// once. The system keeps them for the next start as long as it has memory; whoever reads them after
// all finds them there or in the file.
void GiveBack(std::span<const std::byte> bytes) {
  constexpr std::size_t kPage = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes.data()) + kPage - 1) / kPage * kPage;
  const auto end = reinterpret_cast<std::uintptr_t>(bytes.data() + bytes.size()) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

class Compiler {
 public:
  Compiler(const Graph& graph, const ProgramOptions& options, Device& device, WorkerTeam& team)
      : graph_(graph), options_(options), device_(device), team_(team) {}

  Program Compile() {
    PlaceBuffers();
    PackWeights();
    EmitStage(0);
    for (const Op& op : graph_.ops)
      Emit(op);
    EmitLogitStats();
    program_.hidden = Address(graph_.hidden);
    program_.hidden_stride = Stride(graph_.hidden);
    program_.logits = Address(graph_.logits);
    program_.logits_stride = Stride(graph_.logits);
    program_.num_barriers = 1;  // Join.
    for (const Instruction& i : program_.code)
      program_.num_barriers += i.barrier ? 1 : 0;
    return std::move(program_);
  }

 private:
  struct PackJob {
    const MatKernel* kernel;
    const std::byte* source;
    std::byte* target;
    std::uint32_t rows;
    std::uint32_t cols;
    std::uint32_t num_workers;
  };

  std::size_t Rows(const Buffer& buffer) const {
    return buffer.per_sample ? options_.max_samples : options_.max_tokens;
  }

  void PlaceBuffers() {
    std::size_t floats = 0;
    std::vector<std::size_t> offsets;
    for (const Buffer& buffer : graph_.buffers) {
      offsets.push_back(floats);
      // Rows start on cache lines, so that workers on neighbouring tokens never share one.
      strides_.push_back(OddLines(std::size_t{buffer.width} * sizeof(float)) / sizeof(float));
      floats += strides_.back() * Rows(buffer);
    }
    const std::span<std::byte> arena = device_.Reserve(floats * sizeof(float), "activations");
    for (const std::size_t offset : offsets) {
      buffers_.push_back(reinterpret_cast<float*>(arena.data()) + offset);
    }
  }

  const MatKernel& KernelOf(const WeightTensor& weight) const {
    return options_.kernels->mat[static_cast<int>(weight.type)];
  }

  // Cache lines of their own.
  std::uint64_t PackedBytes(const WeightTensor& weight) const {
    return (KernelOf(weight).packed_bytes(weight.rows, weight.cols) + 63) / 64 * 64;
  }

  static void Pack(void* argument, std::uint32_t worker) {
    const PackJob& job = *static_cast<const PackJob*>(argument);
    const std::uint32_t tiles = (job.rows + kOutTile - 1) / kOutTile;
    const auto row = [&](std::uint32_t w) {
      return std::min<std::uint32_t>(
          job.rows,
          static_cast<std::uint32_t>(std::uint64_t{tiles} * w / job.num_workers) * kOutTile);
    };
    job.kernel->pack(job.target, job.source, job.rows, job.cols, row(worker), row(worker + 1));
  }

  // Every matrix that is multiplied by, once, even when it serves as embedding and output.
  void PackWeights() {
    std::uint64_t bytes = 0;
    std::vector<std::pair<const WeightTensor*, std::uint64_t>> jobs;
    for (const Op& op : graph_.ops) {
      if (op.kind != OpKind::kMatMul || packed_.contains(op.weight->data.data())) continue;
      const MatKernel& kernel = KernelOf(*op.weight);
      packed_[op.weight->data.data()] = op.weight->data.data();
      if (kernel.packed_bytes == nullptr) continue;
      jobs.emplace_back(op.weight, bytes);
      bytes += PackedBytes(*op.weight);
    }
    if (jobs.empty()) return;
    const std::span<std::byte> memory = device_.Reserve(bytes, "packed weights");
    std::uint64_t packed_bytes = 0;
    for (const auto& [weight, offset] : jobs) {
      PackJob job = {.kernel = &KernelOf(*weight),
                     .source = weight->data.data(),
                     .target = memory.data() + offset,
                     .rows = weight->rows,
                     .cols = weight->cols,
                     .num_workers = team_.num_workers()};
      packed_[weight->data.data()] = job.target;
      if (options_.only_reserve) continue;
      team_.Start(&Pack, &job);
      team_.Join();
      if (weight->is_mapped) GiveBack(weight->data);
      packed_bytes += PackedBytes(*weight);
      if (options_.progress) options_.progress(packed_bytes, bytes);
    }
  }

  float* Address(Slice slice) const { return buffers_[Index(slice.buffer)] + slice.begin; }
  std::size_t Stride(Slice slice) const { return strides_[Index(slice.buffer)]; }

  Access Read(Slice slice, Split split) const {
    return {Index(slice.buffer), slice.begin, slice.begin + slice.width, false, split};
  }
  Access Write(Slice slice, Split split) const {
    return {Index(slice.buffer), slice.begin, slice.begin + slice.width, true, split};
  }
  std::uint32_t PreparedResource(ActFormat format, bool by_column) const {
    return static_cast<std::uint32_t>(graph_.buffers.size()) +
           2 * static_cast<std::uint32_t>(format) + (by_column ? 1 : 0);
  }
  std::uint32_t CacheResource() const {
    return static_cast<std::uint32_t>(graph_.buffers.size()) + 2 * kNumActFormats;
  }
  std::uint32_t LayerBufferResource() const { return CacheResource() + 1; }

  void Append(Instruction instruction, std::initializer_list<Access> accesses) {
    for (const Access& access : accesses) {
      for (const Access& earlier : since_barrier_) {
        instruction.barrier = instruction.barrier || Conflict(access, earlier);
      }
    }
    if (instruction.barrier) since_barrier_.clear();
    since_barrier_.insert(since_barrier_.end(), accesses);
    program_.code.push_back(instruction);
    // A write makes prepared copies of what it overwrote stale.
    for (const Access& access : accesses) {
      if (!access.write) continue;
      for (PreparedSlice& prepared : prepared_) {
        if (prepared.resource == access.resource && prepared.begin < access.end &&
            access.begin < prepared.end) {
          prepared = {};
        }
      }
    }
  }

  Instruction Basic(const Op& op, Code code) const {
    const bool per_sample = graph_.buffers[Index(op.out.buffer)].per_sample;
    Instruction i;
    i.code = code;
    i.split = per_sample ? Split::kSample : Split::kToken;
    i.per_sample = per_sample;
    i.layer = op.layer;
    i.num_heads = op.num_heads;
    i.width = op.out.width;
    i.out = Address(op.out);
    i.in = Address(op.in);
    i.in2 = Address(op.in2);
    i.out_stride = Stride(op.out);
    i.in_stride = Stride(op.in);
    i.in2_stride = Stride(op.in2);
    return i;
  }

  static const float* Vector(const WeightTensor* weight) {
    return weight == nullptr ? nullptr : reinterpret_cast<const float*>(weight->data.data());
  }

  void Emit(const Op& op) {
    switch (op.kind) {
      case OpKind::kEmbed:
        return EmitEmbed(op);
      case OpKind::kAngles:
        return Append(Basic(op, Code::kAngles), {Write(op.out, Split::kToken)});
      case OpKind::kRmsNorm:
        return EmitNorm(op, Code::kRmsNorm);
      case OpKind::kHeadNorm:
        return EmitNorm(op, Code::kHeadNorm);
      case OpKind::kMatMul:
        return EmitMatMul(op);
      case OpKind::kRope:
        return Append(Basic(op, Code::kRope),
                      {Write(op.out, Split::kToken), Read(op.in2, Split::kToken)});
      case OpKind::kStoreKv: {
        Instruction i = Basic(op, Code::kStoreKv);
        i.per_sample = false;
        i.needs_layer = true;
        i.split = Split::kToken;
        const std::uint32_t buffer = op.layer % 2;
        return Append(i, {Read(op.in, Split::kToken), Read(op.in2, Split::kToken),
                          Access{CacheResource(), op.layer, op.layer + 1, true, Split::kToken},
                          Access{LayerBufferResource(), buffer, buffer + 1, true, Split::kToken}});
      }
      case OpKind::kAttention:
        return EmitAttention(op);
      case OpKind::kSwiGlu:
        return EmitSwiGlu(op);
      case OpKind::kGather: {
        Instruction i = Basic(op, Code::kGather);
        // The rows read are not the rows written: a token's row may be another worker's.
        i.split = Split::kSample;
        return Append(i, {Write(op.out, Split::kSample), Read(op.in, Split::kSample)});
      }
    }
  }

  // Both inputs are products' outputs: each worker takes the columns that it has just written.
  void EmitSwiGlu(const Op& op) {
    Instruction i = Basic(op, Code::kSwiGlu);
    i.split = Split::kColumn;
    Append(i, {Write(op.out, i.split), Read(op.in, i.split), Read(op.in2, i.split)});
  }

  void EmitEmbed(const Op& op) {
    Instruction i = Basic(op, Code::kEmbed);
    i.matrix = {.data = op.weight->data.data(),
                .rows = op.weight->rows,
                .cols = op.weight->cols,
                .type = op.weight->type};
    const auto packed = packed_.find(op.weight->data.data());
    if (packed != packed_.end()) {
      i.matrix.data = packed->second;
      i.kernel = &KernelOf(*op.weight);
    } else {
      // Never multiplied by: rows are read from the file's layout as they are.
      i.kernel = &FindCpuKernels("reference")->mat[static_cast<int>(op.weight->type)];
      CHECK(i.kernel->packed_bytes == nullptr);
    }
    Append(i, {Write(op.out, Split::kToken)});
  }

  void EmitAttention(const Op& op) {
    const std::uint32_t buffer = op.layer % 2;
    Instruction i = Basic(op, Code::kAttention);
    i.split = Split::kItem;
    Append(i, {Write(op.out, Split::kItem), Read(op.in, Split::kItem),
               Access{CacheResource(), op.layer, op.layer + 1, false, Split::kItem},
               Access{LayerBufferResource(), buffer, buffer + 1, false, Split::kItem}});
    EmitStage(op.layer + 1);
  }

  // What the cache holds of a layer before this step is gathered while the layer before attends;
  // the step's own tokens are stored into both. It needs no barrier: between it and what touches
  // the buffer before and after lie those around the layers' products.
  void EmitStage(std::uint32_t layer) {
    if (!options_.layer_windows || layer >= NumLayers()) return;
    const std::uint32_t buffer = layer % 2;
    Instruction stage;
    stage.code = Code::kStage;
    stage.split = Split::kBlock;
    stage.optional = true;
    stage.needs_layer = true;
    stage.layer = layer;
    Append(stage, {Access{CacheResource(), layer, layer + 1, false, Split::kBlock},
                   Access{LayerBufferResource(), buffer, buffer + 1, true, Split::kBlock}});
    CHECK(!program_.code.back().barrier);
  }

  std::uint32_t NumLayers() const {
    std::uint32_t num_layers = 0;
    for (const Op& op : graph_.ops)
      num_layers = op.kind == OpKind::kAttention ? std::max(num_layers, op.layer + 1) : num_layers;
    return num_layers;
  }

  void EmitNorm(const Op& op, Code code) {
    Instruction i = Basic(op, code);
    i.vector = Vector(op.weight);
    Append(i, {Write(op.out, i.split), Read(op.in, i.split)});
  }

  // The operand of a product in the format its kernel reads, prepared once however many products
  // read it.
  void Prepare(const Op& op, ActFormat format) {
    PreparedSlice& have = prepared_[static_cast<std::size_t>(format)];
    const Access operand = Read(op.in, Split::kToken);
    if (have.resource == operand.resource && have.begin == operand.begin &&
        have.end == operand.end) {
      return;
    }
    const bool per_sample = graph_.buffers[Index(op.in.buffer)].per_sample;
    Instruction i;
    i.code = Code::kPrepare;
    const bool by_column = WrittenByColumn(operand);
    i.split = by_column ? Split::kColumn : per_sample ? Split::kSample : Split::kToken;
    i.per_sample = per_sample;
    i.width = op.in.width;
    i.in = Address(op.in);
    i.in_stride = Stride(op.in);
    i.act = &options_.kernels->act[static_cast<std::size_t>(format)];
    i.prepared = PreparedMemory(format, by_column);
    i.prepared_stride = OddLines(i.act->bytes(op.in.width));
    Append(i, {Read(op.in, i.split),
               Access{PreparedResource(format, by_column), 0, op.in.width, true, i.split}});
    have = {operand.resource, operand.begin, operand.end, by_column};
  }

  // Since the last barrier, so that to go on by column takes none.
  bool WrittenByColumn(const Access& operand) const {
    return std::any_of(since_barrier_.begin(), since_barrier_.end(), [&](const Access& earlier) {
      return earlier.write && earlier.split == Split::kColumn &&
             earlier.resource == operand.resource && earlier.begin == operand.begin &&
             earlier.end == operand.end;
    });
  }

  // What is prepared by column has memory of its own: with the operand of the product before, which
  // the other workers may still read, it would have to wait for them.
  std::byte* PreparedMemory(ActFormat format, bool by_column) {
    std::byte*& memory = prepared_memory_[static_cast<std::size_t>(format)][by_column ? 1 : 0];
    if (memory != nullptr) return memory;
    std::uint32_t widest = 0;
    for (const Op& op : graph_.ops) {
      if (op.kind == OpKind::kMatMul) widest = std::max(widest, op.in.width);
    }
    const std::size_t rows = std::max(options_.max_tokens, options_.max_samples);
    const std::size_t bytes =
        OddLines(options_.kernels->act[static_cast<std::size_t>(format)].bytes(widest));
    memory = device_.Reserve(rows * bytes, "prepared operands").data();
    return memory;
  }

  void EmitMatMul(const Op& op) {
    const MatKernel& kernel = KernelOf(*op.weight);
    const bool direct = kernel.act == ActFormat::kF32;
    if (!direct) Prepare(op, kernel.act);
    Instruction i = Basic(op, Code::kMatMul);
    const bool is_logits = op.out.buffer == graph_.logits.buffer;
    i.split = is_logits ? Split::kChunk : Split::kColumn;
    if (is_logits) i.share_outputs = kLogitChunk;
    i.accumulate = op.accumulate;
    i.kernel = &kernel;
    i.vector = Vector(op.bias);
    i.matrix = {.data = packed_.at(op.weight->data.data()),
                .rows = op.weight->rows,
                .cols = op.weight->cols,
                .type = op.weight->type};
    if (direct) {
      i.prepared = nullptr;
      return Append(i, {Write(op.out, i.split), Read(op.in, Split::kOutput)});
    }
    const bool by_column = prepared_[static_cast<std::size_t>(kernel.act)].by_column;
    i.prepared = PreparedMemory(kernel.act, by_column);
    i.prepared_stride =
        OddLines(options_.kernels->act[static_cast<std::size_t>(kernel.act)].bytes(op.in.width));
    Append(i, {Write(op.out, i.split), Access{PreparedResource(kernel.act, by_column), 0,
                                              op.in.width, false, Split::kOutput}});
  }

  // Every worker takes the chunks whose logits it has just written: no barrier.
  void EmitLogitStats() {
    program_.stats_stride =
        OddLines(NumLogitChunks(graph_.logits.width) * sizeof(float)) / sizeof(float);
    const std::size_t floats = 2 * program_.stats_stride * options_.max_samples;
    program_.stats = reinterpret_cast<float*>(
        device_.Reserve(floats * sizeof(float), "logit statistics").data());
    Instruction i;
    i.code = Code::kLogitStats;
    i.split = Split::kChunk;
    i.per_sample = true;
    i.width = graph_.logits.width;
    i.in = Address(graph_.logits);
    i.in_stride = Stride(graph_.logits);
    i.out = program_.stats;
    i.out_stride = 2 * program_.stats_stride;
    Append(i, {Read(graph_.logits, Split::kChunk)});
  }

  struct PreparedSlice {
    std::uint32_t resource = ~0u;
    std::uint32_t begin = 0;
    std::uint32_t end = 0;
    bool by_column = false;
  };

  const Graph& graph_;
  const ProgramOptions& options_;
  Device& device_;
  WorkerTeam& team_;
  Program program_;
  std::vector<float*> buffers_;
  std::vector<std::size_t> strides_;
  std::map<const std::byte*, const std::byte*> packed_;  // by the file's address
  std::array<PreparedSlice, kNumActFormats> prepared_ = {};
  std::array<std::array<std::byte*, 2>, kNumActFormats> prepared_memory_ = {};  // [1]: by column
  std::vector<Access> since_barrier_;
};

}  // namespace

std::size_t OddLines(std::size_t bytes) {
  return ((bytes + 63) / 64 | 1) * 64;
}

Program CompileProgram(const Graph& graph, const ProgramOptions& options, Device& device,
                       WorkerTeam& team) {
  return Compiler(graph, options, device, team).Compile();
}

}  // namespace kvrm
