// SPDX-License-Identifier: Apache-2.0
#include "bench/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>

#include "base/check.h"
#include "base/rng.h"
#include "engine/sampler.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kDraws = 4;  // of every row, in every repetition

struct Way {
  const char* name;
  SamplingParams params;
};
constexpr Way kWays[] = {
    {"greedy", {.temperature = 0.0f}},
    {"t=1", {}},
    {"t=0.8", {.temperature = 0.8f}},
    {"top_k=40", {.top_k = 40}},
    {"top_p=0.95", {.top_p = 0.95f}},
    {"t=0.8,top_p=0.95", {.temperature = 0.8f, .top_p = 0.95f}},
    {"top_k=40,top_p=0.95", {.top_p = 0.95f, .top_k = 40}},
    {"min_p=0.05", {.min_p = 0.05f}},
};

void FillZipf(std::span<float> logits, Rng* rng) {
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(-1.2 * std::log(static_cast<double>(i + 1)));
  for (std::size_t i = logits.size(); i > 1; --i)
    std::swap(logits[i - 1], logits[rng->Below(i)]);
}

void FillNormal(std::span<float> logits, Rng* rng) {
  for (float& logit : logits) {
    double sum = 0;
    for (int i = 0; i < 12; ++i)
      sum += rng->Uniform();
    logit = static_cast<float>(2.5 * (sum - 6.0));
  }
}

class Rows {
 public:
  Rows(std::uint32_t vocab, std::uint32_t num_rows, bool zipf, const BenchOptions& options)
      : vocab_(vocab),
        num_rows_(num_rows),
        kernels_(BenchKernels(options)),
        num_chunks_(NumLogitChunks(vocab)),
        sampler_(vocab, kernels_) {
    CheckMemory("the logits", std::uint64_t{vocab} * num_rows * sizeof(float));
    logits_.resize(std::size_t{vocab} * num_rows);
    maxima_.resize(std::size_t{num_chunks_} * num_rows);
    sums_.resize(maxima_.size());
    Rng rng(options.seed, "sample");
    for (std::uint32_t row = 0; row < num_rows; ++row)
      zipf ? FillZipf(Row(row), &rng) : FillNormal(Row(row), &rng);
  }

  std::span<float> Row(std::uint32_t row) {
    return std::span(logits_).subspan(std::size_t{row} * vocab_, vocab_);
  }

  double StatsSeconds(std::uint32_t repetitions) {
    const double seconds =
        LeastSeconds(SystemClock(), repetitions, num_rows_, [&](std::uint64_t row) {
          kernels_.logit_stats(Row(static_cast<std::uint32_t>(row)).data(), vocab_,
                               &maxima_[row * num_chunks_], &sums_[row * num_chunks_]);
        });
    return seconds / num_rows_;
  }

  // Of one row, the mean over all rows and draws.
  double SampleSeconds(const SamplingParams& params, std::uint32_t repetitions) {
    const std::uint64_t count = std::uint64_t{num_rows_} * kDraws;
    const double seconds = LeastSeconds(SystemClock(), repetitions, count, [&](std::uint64_t i) {
      const auto row = static_cast<std::uint32_t>(i % num_rows_);
      const LogitStats stats = {
          .maxima = std::span(maxima_).subspan(std::size_t{row} * num_chunks_, num_chunks_),
          .sums = std::span(sums_).subspan(std::size_t{row} * num_chunks_, num_chunks_)};
      CHECK(sampler_.Sample(Row(row), stats, params, static_cast<std::uint32_t>(i)).token >= 0);
    });
    return seconds / static_cast<double>(count);
  }

 private:
  const std::uint32_t vocab_;
  const std::uint32_t num_rows_;
  const CpuKernels& kernels_;
  const std::uint32_t num_chunks_;
  Sampler sampler_;
  std::vector<float> logits_;  // [num_rows][vocab]
  std::vector<float> maxima_;  // [num_rows][num_chunks]
  std::vector<float> sums_;
};

}  // namespace

void RunSampleBench(const SampleBench& bench, const BenchOptions& options, const BenchSink& sink) {
  CheckBenchOptions(options);
  for (const std::uint32_t vocab : bench.vocabs) {
    for (const std::uint32_t num_rows : bench.rows) {
      for (const bool zipf : {true, false}) {
        Rows rows(vocab, num_rows, zipf, options);
        const double stats_seconds = rows.StatsSeconds(options.repetitions);
        for (const Way& way : kWays) {
          sink({{"bench", "sample"},
                {"vocab", vocab},
                {"rows", num_rows},
                {"logits", zipf ? "zipf" : "normal"},
                {"way", way.name},
                {"sample_microseconds",
                 Rounded(rows.SampleSeconds(way.params, options.repetitions) * 1e6)},
                {"stats_microseconds", Rounded(stats_seconds * 1e6)}});
        }
      }
    }
  }
}

}  // namespace kvrm
