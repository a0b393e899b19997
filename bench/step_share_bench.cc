// SPDX-License-Identifier: Apache-2.0
// Which share of a step is the host's?
//
// Steady decode of 1, 8, 64 and 256 rows at a context of about 128 tokens, over the production path
// (StepLoop, KvCache, StepBuilder, CpuExecutor of two workers) on the demo model and on random
// weights in the shape of a model of 135 million parameters in Q8_0. A step's wall time is parted
// into the executor's (Run and Wait) and the host's: Extend, Plan, AddRow, Commit, Launch, Land,
// Latch, Retire, and the naming (SHA-256) and publishing of blocks that are full. The host's caches
// are as cold as the executor has left them; the column `alone` is the same steps without running
// them. The share is that of the host's median in it and the executor's fastest step, the worse for
// the host on a machine with other work. Sampling (greedy, with log-probabilities) is timed by
// itself and is in neither.
//
// Expected: the host takes less than 1 % of a step, and less than 50 us at 64 rows.
//
// Sequences begin with prompts of 113 to 128 tokens, whose steps are not run (numbers near one
// stand in the pool instead), and decode 16 tokens: every row fills one block in a round, so at 64
// rows four do in each step. The pool holds twice what is live, so blocks are evicted as they are
// in a server that has run for a while.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/result.h"
#include "base/rng.h"
#include "device/host_device.h"
#include "engine/parts.h"
#include "engine/sampler.h"
#include "engine/step_loop.h"
#include "exec/cpu_executor.h"
#include "model/graph.h"
#include "step/prefix_key.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint32_t kStepsPerRound = kBlockTokens;
constexpr std::uint32_t kLongestPrompt = 128;
constexpr std::uint32_t kMaxContext = 256;
constexpr std::uint32_t kWorkers = 2;
// A setting is measured for so long, in whole rounds, one at least.
constexpr std::int64_t kMeasureNs = 3'000'000'000;
constexpr std::size_t kMaxSteps = 20'000;

std::int64_t NowNs() {
  static const SystemClock clock;
  return clock.NowNs();
}

// The executor, and how long it ran.
class TimedExecutor final : public Executor {
 public:
  TimedExecutor(std::unique_ptr<Executor> executor, const bool* only_fill, std::int64_t* run_ns)
      : executor_(std::move(executor)), only_fill_(only_fill), run_ns_(run_ns) {}

  std::span<const Bucket> buckets() const noexcept override { return executor_->buckets(); }
  void Run(const StepView& step) noexcept override {
    if (*only_fill_) return;
    const std::int64_t begin = NowNs();
    executor_->Run(step);
    *run_ns_ += NowNs() - begin;
  }
  void Wait() noexcept override {
    if (*only_fill_) return;
    const std::int64_t begin = NowNs();
    executor_->Wait();
    *run_ns_ += NowNs() - begin;
  }
  std::span<const float> Logits(std::uint32_t sample) const noexcept override {
    return executor_->Logits(sample);
  }
  LogitStats Stats(std::uint32_t sample) const noexcept override {
    return executor_->Stats(sample);
  }
  std::span<const std::uint64_t> replays() const noexcept override { return executor_->replays(); }

 private:
  const std::unique_ptr<Executor> executor_;
  const bool* const only_fill_;
  std::int64_t* const run_ns_;
};

// Random Q8_0 weights, tied embeddings.
class RandomModel {
 public:
  RandomModel() : rng_(20261125, "step share") {
    config_.num_layers = 30;
    config_.hidden_dim = 576;
    config_.ffn_dim = 1536;
    config_.num_heads = 9;
    config_.num_kv_heads = 3;
    config_.head_dim = config_.rope_dim = 64;
    config_.vocab_size = 49152;
    config_.max_context = 2048;
    config_.tied_output = true;
    const std::uint32_t kv = config_.num_kv_heads * config_.head_dim;
    // A row's norm is 0.1, so logits have a deviation of 2.5, as those of trained models do.
    weights_.embedding = weights_.output = Matrix(config_.vocab_size, config_.hidden_dim, 0x0400);
    weights_.output_norm = Norm();
    for (std::uint32_t l = 0; l < config_.num_layers; ++l) {
      LayerWeights layer;
      layer.attention_norm = Norm();
      layer.q = Matrix(config_.hidden_dim, config_.hidden_dim);
      layer.k = Matrix(kv, config_.hidden_dim);
      layer.v = Matrix(kv, config_.hidden_dim);
      layer.output = Matrix(config_.hidden_dim, config_.hidden_dim);
      layer.mlp_norm = Norm();
      layer.gate = Matrix(config_.ffn_dim, config_.hidden_dim);
      layer.up = Matrix(config_.ffn_dim, config_.hidden_dim);
      layer.down = Matrix(config_.hidden_dim, config_.ffn_dim);
      weights_.layers.push_back(layer);
    }
  }
  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }

 private:
  // `scale` of every block is an F16; with 2^-11 rows of 576 have a norm near 1.
  WeightTensor Matrix(std::uint32_t rows, std::uint32_t cols, std::uint16_t scale = 0x1000) {
    constexpr std::size_t kQ8BlockBytes = 34;
    const std::size_t num_blocks = std::size_t{rows} * cols / 32;
    std::vector<std::byte>& bytes = storage_.emplace_back(num_blocks * kQ8BlockBytes);
    for (std::size_t b = 0; b < num_blocks; ++b) {
      std::byte* const block = &bytes[b * kQ8BlockBytes];
      std::memcpy(block, &scale, sizeof scale);
      for (std::size_t i = 0; i < 4; ++i) {
        const std::uint64_t random = rng_.Next();
        std::memcpy(block + sizeof scale + i * sizeof random, &random, sizeof random);
      }
    }
    return {.data = bytes, .type = DType::kQ8_0, .rows = rows, .cols = cols};
  }
  WeightTensor Norm() {
    norms_.emplace_back(config_.hidden_dim, 1.0f);
    return {.data = std::as_bytes(std::span(norms_.back())),
            .type = DType::kF32,
            .rows = 1,
            .cols = config_.hidden_dim};
  }

  Rng rng_;
  ModelConfig config_;
  ModelWeights weights_;
  std::deque<std::vector<std::byte>> storage_;
  std::deque<std::vector<float>> norms_;
};

class ShareBench {
 public:
  ShareBench(const ModelConfig& config, const ModelWeights& weights, std::uint32_t num_rows)
      : vocab_size_(config.vocab_size),
        num_rows_(num_rows),
        loop_(Parts(config, weights), Options(num_rows)),
        sampler_(config.vocab_size, SelectCpuKernels()),
        tokens_(num_rows),
        keys_(num_rows),
        root_(PrefixRoot("bench", loop_.cache().options().layout, "")),
        rng_(num_rows, "prompts") {
    const std::span<std::byte> memory = loop_.cache().memory();
    std::memset(memory.data(), 0x3b, memory.size());
  }

  void Run(const char* name) {
    run_executor_ = false;
    Measure();
    const double alone = Quantile(&host_ns_, 0.5);
    run_executor_ = true;
    Measure();
    const double host = Quantile(&host_ns_, 0.5);
    const double executor = Quantile(&executor_ns_, 0.0);
    std::printf("%-6s %5u %7zu %8.2f %8.2f %8.2f %10.2f %12.1f %12.1f %9.3f %12.1f\n", name,
                num_rows_, host_ns_.size(), alone, Quantile(&host_ns_, 0.0), host,
                Quantile(&host_ns_, 0.99), Quantile(&executor_ns_, 0.5), executor,
                100 * host / (host + executor), Quantile(&sampler_ns_, 0.0));
    std::fflush(stdout);
    CHECK(loop_.cache().stats().num_run_overflows == 0);
  }

 private:
  static StepLoopOptions Options(std::uint32_t num_rows) {
    return {.limits = {.max_rows = num_rows,
                       .max_tokens = std::max(num_rows, kLongestPrompt),
                       .max_runs = 32,
                       .max_groups = 64,
                       .max_samples = num_rows,
                       .block_tokens = kBlockTokens},
            .max_seqs = num_rows,
            .max_context = kMaxContext,
            .kv_tokens = std::uint64_t{num_rows} * kMaxContext,
            .max_move_bytes_per_step = std::uint64_t{16} << 20,
            .prefix_cache = true};
  }
  EngineParts Parts(const ModelConfig& config, const ModelWeights& weights) {
    return {.layout = {.num_layers = config.num_layers,
                       .num_kv_heads = config.num_kv_heads,
                       .head_dim = config.head_dim,
                       .block_tokens = kBlockTokens,
                       .dtype = DType::kF16},
            .vocab_size = config.vocab_size,
            .max_context = config.max_context,
            .device = &device_,
            .make_executor = [this, &config,
                              &weights](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
              return std::make_unique<TimedExecutor>(
                  std::make_unique<CpuExecutor>(BuildDecoder(config, weights),
                                                CpuExecutorOptions{.limits = needs.limits,
                                                                   .layout = needs.layout,
                                                                   .num_workers = kWorkers,
                                                                   .kernels = &SelectCpuKernels()},
                                                device_, needs.memory),
                  &only_fill_, &run_ns_);
            }};
  }

  void Measure() {
    Round();
    host_ns_.clear();
    executor_ns_.clear();
    sampler_ns_.clear();
    const std::int64_t end = NowNs() + kMeasureNs;
    do {
      Round();
    } while (NowNs() < end && host_ns_.size() < kMaxSteps);
  }

  // Microseconds.
  static double Quantile(std::vector<std::int64_t>* ns, double quantile) {
    std::ranges::sort(*ns);
    const auto at = static_cast<std::size_t>(quantile * static_cast<double>(ns->size()));
    return static_cast<double>((*ns)[std::min(at, ns->size() - 1)]) / 1000;
  }

  void Publish(std::uint32_t s) {
    const std::span<const std::int32_t> tokens(tokens_[s]);
    std::vector<PrefixKey>& keys = keys_[s];
    while ((keys.size() + 1) * kBlockTokens <= tokens.size()) {
      keys.push_back(NextPrefixKey(keys.empty() ? root_ : keys.back(),
                                   tokens.subspan(keys.size() * kBlockTokens, kBlockTokens)));
    }
    loop_.cache().Publish(SeqId{s}, tokens, keys);
  }

  // A new sequence whose prompt is in the cache.
  void Begin(std::uint32_t s) {
    const std::uint32_t length = kLongestPrompt - s % kBlockTokens;
    tokens_[s].resize(length);
    for (std::int32_t& token : tokens_[s])
      token = static_cast<std::int32_t>(rng_.Below(vocab_size_));
    keys_[s].clear();
    KvCache& cache = loop_.cache();
    CHECK(cache.Open(SeqId{s}, length + kStepsPerRound));
    CHECK(cache.Extend(SeqId{s}, length));
    only_fill_ = true;
    loop_.Begin();
    CHECK(cache.AddRow(loop_.builder(),
                       {.seq = SeqId{s}, .first_position = 0, .tokens = tokens_[s]}));
    CHECK(loop_.Commit());
    only_fill_ = !run_executor_;
    Publish(s);
    // The token that the prompt's logits would have given.
    next_[s] = static_cast<std::int32_t>(rng_.Below(vocab_size_));
  }

  void Step() {
    KvCache& cache = loop_.cache();
    run_ns_ = 0;
    const std::int64_t begin = NowNs();
    for (std::uint32_t s = 0; s < num_rows_; ++s)
      CHECK(cache.Extend(SeqId{s}, static_cast<std::uint32_t>(tokens_[s].size()) + 1));
    loop_.Begin();
    for (std::uint32_t s = 0; s < num_rows_; ++s) {
      CHECK(cache.AddRow(loop_.builder(),
                         {.seq = SeqId{s},
                          .first_position = static_cast<std::uint32_t>(tokens_[s].size()),
                          .tokens = std::span(&next_[s], 1),
                          .num_samples = 1}));
    }
    CHECK(loop_.Commit());
    for (std::uint32_t s = 0; s < num_rows_; ++s) {
      tokens_[s].push_back(next_[s]);
      if (tokens_[s].size() % kBlockTokens == 0) Publish(s);
    }
    const std::int64_t end = NowNs();
    host_ns_.push_back(end - begin - run_ns_);
    executor_ns_.push_back(run_ns_);
    for (std::uint32_t s = 0; s < num_rows_ && run_executor_; ++s) {
      const auto output_idx = static_cast<std::uint32_t>(tokens_[s].size());
      next_[s] =
          sampler_
              .Sample(loop_.executor().Logits(s), loop_.executor().Stats(s), sampling_, output_idx)
              .token;
      CHECK(next_[s] >= 0);
    }
    sampler_ns_.push_back(NowNs() - end);
  }

  void Round() {
    for (std::uint32_t s = 0; s < num_rows_; ++s) {
      tokens_[s].reserve(kMaxContext);
      keys_[s].reserve(kMaxContext / kBlockTokens);
      Begin(s);
    }
    for (std::uint32_t i = 0; i < kStepsPerRound; ++i)
      Step();
    for (std::uint32_t s = 0; s < num_rows_; ++s)
      loop_.cache().Release(SeqId{s});
  }

  const std::uint32_t vocab_size_;
  const std::uint32_t num_rows_;
  bool run_executor_ = true;
  bool only_fill_ = false;  // steps are committed and not run
  std::int64_t run_ns_ = 0;
  HostDevice device_;
  StepLoop loop_;
  Sampler sampler_;
  const SamplingParams sampling_ = {.temperature = 0.0f};
  std::vector<std::vector<std::int32_t>> tokens_;
  std::vector<std::vector<PrefixKey>> keys_;
  std::vector<std::int32_t> next_ = std::vector<std::int32_t>(num_rows_);
  const PrefixKey root_;
  Rng rng_;
  std::vector<std::int64_t> host_ns_;
  std::vector<std::int64_t> executor_ns_;
  std::vector<std::int64_t> sampler_ns_;
};

void RunAll() {
  std::printf("microseconds a step; %s kernels, %u workers\n", SelectCpuKernels().name, kWorkers);
  std::printf("%-6s %5s %7s %8s %8s %8s %10s %12s %12s %9s %12s\n", "model", "rows", "steps",
              "alone", "host min", "median", "p99", "exec median", "exec min", "share %",
              "sampling min");
  const Model demo = OrThrow(Model::LoadDemo());
  const RandomModel random;
  for (const std::uint32_t rows : {1u, 8u, 64u, 256u})
    ShareBench(demo.config(), demo.weights(), rows).Run("demo");
  for (const std::uint32_t rows : {1u, 8u, 64u, 256u})
    ShareBench(random.config(), random.weights(), rows).Run("135M");
}

}  // namespace
}  // namespace kvrm

int main() {
  try {
    kvrm::RunAll();
  } catch (const kvrm::StartError& error) {
    std::fprintf(stderr, "step_share_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
