// SPDX-License-Identifier: Apache-2.0
#include "bench/steps.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "base/rng.h"
#include "bench/attention.h"
#include "bench/pinned_threads.h"
#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "model/graph.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kBlockTokens = 16;

// What a step must move and multiply at least.
struct Work {
  double weight_bytes = 0;
  double kv_bytes = 0;
  double macs[kNumPeakKinds] = {};

  double bytes() const { return weight_bytes + kv_bytes; }
  double all_macs() const { return std::accumulate(std::begin(macs), std::end(macs), 0.0); }
  double MacSeconds(const Peaks& peaks) const {
    double seconds = 0;
    for (int kind = 0; kind < kNumPeakKinds; ++kind)
      seconds += macs[kind] / peaks.Macs(static_cast<PeakKind>(kind));
    return seconds;
  }
  double ByteSeconds(const Peaks& peaks) const { return bytes() / peaks.read_bytes.all; }
};

// Seconds of steps.
struct Times {
  double whole = 0;      // the least of each
  double kinds[3] = {};  // sums of the least of each instruction, by StepProfile::Kind

  double quiet() const { return std::accumulate(std::begin(kinds), std::end(kinds), 0.0); }
};

// One row of one step.
struct Piece {
  std::uint32_t row = 0;    // whose history
  std::uint32_t begin = 0;  // positions [begin, end) are this step's tokens
  std::uint32_t end = 0;
  bool samples = true;
};

std::uint32_t BlocksFor(std::uint32_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

class StepRunner {
 public:
  StepRunner(const StepsBench& bench, const BenchOptions& options, const Model& model)
      : options_(options),
        model_(model),
        graph_(BuildDecoder(model.config(), model.weights())),
        kernels_(BenchKernels(options)),
        layout_({.num_layers = model.config().num_layers,
                 .num_kv_heads = model.config().num_kv_heads,
                 .head_dim = model.config().head_dim,
                 .block_tokens = kBlockTokens,
                 .dtype = bench.kv_type}),
        limits_(LimitsOf(bench)),
        pool_(ReservePool(PoolBlocks(bench) * layout_.block_bytes(), &device_)) {
    // Numbers of ordinary size in all three types; memory never written would be one page of zeros.
    std::memset(pool_.data(), 0x3b, pool_.size());
    profile_.clock = &clock_;
    executor_ =
        std::make_unique<CpuExecutor>(graph_,
                                      CpuExecutorOptions{.limits = limits_,
                                                         .layout = layout_,
                                                         .num_workers = CheckBenchOptions(options),
                                                         .kernels = &kernels_,
                                                         .profile = &profile_},
                                      device_, pool_);
  }

  void Decode(const DecodeCase& c, const Peaks& peaks, const BenchSink& sink) {
    std::vector<Piece> step;
    for (std::uint32_t row = 0; row < c.contexts.size(); ++row)
      step.push_back({.row = row, .begin = c.contexts[row] - 1, .end = c.contexts[row]});
    const auto rows = static_cast<std::uint32_t>(c.contexts.size());
    json::object line = {{"bench", "decode"},
                         {"model", model_.config().name},
                         {"kv_type", DTypeName(layout_.dtype)},
                         {"rows", rows},
                         {"context", c.name}};
    Finish(rows, WorkOf({step}), Time({step}, c.contexts), peaks, &line);
    sink(line);
  }

  void Prefill(std::uint32_t tokens, std::uint32_t chunk, const Peaks& peaks,
               const BenchSink& sink) {
    std::vector<std::vector<Piece>> steps;
    for (std::uint32_t begin = 0; begin < tokens; begin += chunk) {
      const std::uint32_t end = std::min(begin + chunk, tokens);
      steps.push_back({{.row = 0, .begin = begin, .end = end, .samples = end == tokens}});
    }
    json::object line = {{"bench", "prefill"},
                         {"model", model_.config().name},
                         {"kv_type", DTypeName(layout_.dtype)},
                         {"tokens", tokens},
                         {"chunk", chunk}};
    Finish(tokens, WorkOf(steps), Time(steps, {tokens}), peaks, &line);
    sink(line);
  }

 private:
  static StepLimits LimitsOf(const StepsBench& bench) {
    StepLimits limits = {.max_rows = 1,
                         .max_tokens = bench.prompts.empty() ? 1 : bench.chunk,
                         .max_runs = 1,
                         .max_groups = 1,
                         .max_samples = 1,
                         .block_tokens = kBlockTokens};
    for (const DecodeCase& c : bench.decode)
      limits.max_rows = std::max(limits.max_rows, static_cast<std::uint32_t>(c.contexts.size()));
    limits.max_tokens = std::max(limits.max_tokens, limits.max_rows);
    limits.max_samples = limits.max_rows;
    return limits;
  }

  static std::span<std::byte> ReservePool(std::uint64_t bytes, HostDevice* device) {
    CheckMemory("the KV pool of the longest case", bytes);
    return device->Reserve(bytes, "kv pool");
  }

  // Of the case that needs most, and the sentinel.
  static std::uint64_t PoolBlocks(const StepsBench& bench) {
    std::uint64_t most = 0;
    for (const DecodeCase& c : bench.decode) {
      std::uint64_t blocks = 0;
      for (const std::uint32_t context : c.contexts)
        blocks += BlocksFor(context);
      most = std::max(most, blocks);
    }
    for (const std::uint32_t tokens : bench.prompts)
      most = std::max<std::uint64_t>(most, BlocksFor(tokens));
    return 1 + most;
  }

  Times Time(const std::vector<std::vector<Piece>>& steps,
             const std::vector<std::uint32_t>& contexts) {
    Times times;
    const PinnedThreads pinned;
    for (const std::vector<Piece>& step : steps) {
      StepBuilder builder(limits_, 1);
      const StepView view = Build(step, contexts, &builder);
      const auto run = [&](std::uint64_t) {
        executor_->Run(view);
        executor_->Wait();
      };
      run(0);  // What is touched for the first time is not the step's cost.
      profile_.steps = 0;
      times.whole += LeastSeconds(clock_, options_.repetitions, 1, run);
      for (const StepProfile::Instruction& i : profile_.instructions)
        times.kinds[static_cast<int>(i.kind)] += static_cast<double>(i.least_ns) * 1e-9;
    }
    return times;
  }

  StepView Build(const std::vector<Piece>& step, const std::vector<std::uint32_t>& contexts,
                 StepBuilder* builder) {
    CHECK(builder->Begin());
    Rng rng(options_.seed, "tokens");
    std::uint32_t num_tokens = 0;
    std::vector<std::uint32_t> first_block(contexts.size() + 1, 1);
    for (std::size_t row = 0; row < contexts.size(); ++row)
      first_block[row + 1] = first_block[row] + BlocksFor(contexts[row]);
    for (const Piece& piece : step) {
      std::vector<std::int32_t> tokens(piece.end - piece.begin);
      for (std::int32_t& token : tokens)
        token = static_cast<std::int32_t>(rng.Below(model_.config().vocab_size));
      const Extent run = {BlockId{first_block[piece.row]}, BlocksFor(piece.end)};
      builder->AddRow({.seq = SeqId{piece.row},
                       .first_position = piece.begin,
                       .tokens = tokens,
                       .runs = {&run, 1},
                       .num_samples = piece.samples ? 1u : 0u});
      num_tokens += piece.end - piece.begin;
    }
    const std::span<const Bucket> buckets = executor_->buckets();
    std::uint32_t bucket = 0;
    while (buckets[bucket].max_rows < step.size() || buckets[bucket].max_tokens < num_tokens)
      ++bucket;
    builder->Commit(bucket, buckets[bucket].max_rows);
    return builder->Latch();
  }

  // Keys and values are read once for each step, however many tokens of a chunk attend them.
  Work WorkOf(const std::vector<std::vector<Piece>>& steps) const {
    const ModelConfig& config = graph_.config;
    Work work;
    for (const std::vector<Piece>& step : steps) {
      work.weight_bytes += static_cast<double>(graph_.weight_bytes_per_step());
      double tokens = 0;
      double samples = 0;
      for (const Piece& piece : step) {
        const double count = piece.end - piece.begin;
        tokens += count;
        samples += piece.samples ? 1 : 0;
        work.kv_bytes += static_cast<double>(layout_.token_bytes()) * piece.end;
        const double attended = count * (piece.begin + piece.end + 1.0) / 2;
        work.macs[static_cast<int>(PeakKind::kF32)] +=
            2 * attended * config.num_heads * config.head_dim * config.num_layers;
      }
      for (const Op& op : graph_.ops) {
        if (op.kind != OpKind::kMatMul) continue;
        const bool per_sample = graph_.buffers[Index(op.out.buffer)].per_sample;
        const ActFormat act = kernels_.mat[static_cast<int>(op.weight->type)].act;
        work.macs[static_cast<int>(KindOf(act))] +=
            (per_sample ? samples : tokens) * op.weight->rows * op.weight->cols;
      }
    }
    return work;
  }

  // `tokens` of the steps, and what they are measured by.
  void Finish(double tokens, const Work& work, const Times& times, const Peaks& peaks,
              json::object* line) const {
    const double roof_s = std::max(work.ByteSeconds(peaks), work.MacSeconds(peaks));
    const double quiet_s = std::max(times.quiet(), 1e-9);
    const auto share = [&](StepProfile::Kind kind) {
      return Rounded(times.kinds[static_cast<int>(kind)] / quiet_s, 3);
    };
    json::object& l = *line;
    l["milliseconds"] = Rounded(times.whole * 1e3);
    l["quiet_milliseconds"] = Rounded(quiet_s * 1e3);
    l["tokens_per_s"] = Rounded(tokens / times.whole);
    l["weight_bytes"] = static_cast<std::uint64_t>(work.weight_bytes);
    l["kv_bytes"] = static_cast<std::uint64_t>(work.kv_bytes);
    l["gb_per_s"] = Rounded(work.bytes() / times.whole * 1e-9);
    l["gmac_per_s"] = Rounded(work.all_macs() / times.whole * 1e-9);
    l["roof_share"] = Rounded(roof_s / times.whole, 3);
    l["quiet_roof_share"] = Rounded(roof_s / quiet_s, 3);
    l["bound"] = work.ByteSeconds(peaks) > work.MacSeconds(peaks) ? "memory" : "arithmetic";
    l["matmul_share"] = share(StepProfile::Kind::kMatMul);
    l["attention_share"] = share(StepProfile::Kind::kAttention);
    l["other_share"] = share(StepProfile::Kind::kOther);
    l["workers"] = CheckBenchOptions(options_);
    l["kernels"] = kernels_.name;
  }

  const BenchOptions options_;
  const Model& model_;
  const Graph graph_;
  const CpuKernels& kernels_;
  const KvLayout layout_;
  const StepLimits limits_;
  const SystemClock clock_;
  HostDevice device_;
  const std::span<std::byte> pool_;
  StepProfile profile_;
  std::unique_ptr<CpuExecutor> executor_;
};

void CheckContext(const char* what, std::uint32_t tokens, const Model& model) {
  if (tokens <= model.config().max_context) return;
  throw StartError(std::string(what) + " is " + std::to_string(tokens) + "; the model has " +
                   std::to_string(model.config().max_context) + " tokens of context");
}

}  // namespace

std::vector<DecodeCase> DecodeCases(const std::vector<std::uint32_t>& rows,
                                    const std::vector<std::uint32_t>& contexts,
                                    const std::vector<std::uint32_t>& mixed) {
  std::vector<DecodeCase> cases;
  for (const std::uint32_t context : contexts) {
    for (const std::uint32_t count : rows)
      cases.push_back({std::to_string(context), std::vector<std::uint32_t>(count, context)});
  }
  if (!mixed.empty()) cases.push_back({"mixed", mixed});
  return cases;
}

void CheckStepsBench(const StepsBench& bench, const Model& model) {
  for (const DecodeCase& c : bench.decode) {
    for (const std::uint32_t context : c.contexts)
      CheckContext("--context", context, model);
  }
  for (const std::uint32_t tokens : bench.prompts)
    CheckContext("--tokens", tokens, model);
  CheckKvHeadDim(bench.kv_type, model.config().head_dim);
}

void RunStepsBench(const StepsBench& bench, const BenchOptions& options, const Model& model,
                   const Peaks& peaks, const BenchSink& sink) {
  CheckStepsBench(bench, model);
  StepRunner runner(bench, options, model);
  for (const DecodeCase& c : bench.decode)
    runner.Decode(c, peaks, sink);
  for (const std::uint32_t tokens : bench.prompts)
    runner.Prefill(tokens, bench.chunk, peaks, sink);
}

}  // namespace kvrm
