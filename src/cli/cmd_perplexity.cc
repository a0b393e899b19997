// SPDX-License-Identifier: Apache-2.0
// kvrm perplexity: how well a model predicts a text.
//
// The text is tokenised as one stream, with the special tokens the model wants in front, and cut
// into windows. Each window is predicted from an empty context; its first token is given, every
// other one is scored. Perplexity = exp(-mean ln p).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "engine/sampler.h"
#include "engine/scorer.h"

namespace kvrm {
namespace {

constexpr std::uint64_t kMaxTextBytes = std::uint64_t{1} << 30;

struct PerplexityFlags {
  std::string model;
  std::string file;
  std::uint32_t window = 512;
  std::uint64_t max_tokens = 0;
  std::uint32_t threads = 0;
  DType kv_dtype = DType::kF16;
  bool reference = false;
};

void RunPerplexity(const PerplexityFlags& flags) {
  const Model model = LoadModel(flags.model);
  const std::string text = OrThrow(ReadFile(flags.file, kMaxTextBytes));
  std::vector<std::int32_t> tokens = model.tokenizer().Encode(text, {.add_special = true});
  if (flags.max_tokens != 0 && tokens.size() > flags.max_tokens) tokens.resize(flags.max_tokens);
  const std::uint32_t window = std::min(flags.window, model.config().max_context);
  if (window < 2) throw StartError("--window must be at least 2 tokens");
  if (tokens.size() < 2) {
    throw StartError(flags.file + " and --max-tokens leave fewer than 2 tokens to score");
  }

  ScorerOptions options = {.max_context = window,
                           .num_threads = flags.threads,
                           .kv_dtype = flags.kv_dtype,
                           .load_progress = ShowLoading()};
  if (flags.reference) {
    options.kernels = "reference";
    options.kv_dtype = DType::kF32;
  }
  Scorer scorer(model, options);
  double sum = 0.0;
  double sum_squares = 0.0;
  std::uint64_t count = 0;
  Progress progress("perplexity: token", tokens.size());
  for (std::size_t begin = 0; begin < tokens.size(); begin += window) {
    const std::span<const std::int32_t> part =
        std::span(tokens).subspan(begin, std::min<std::size_t>(window, tokens.size() - begin));
    if (part.size() < 2) break;
    scorer.Score(part, [&](std::uint32_t position, std::span<const float> logits) {
      if (position + 1 == part.size()) return;
      const double loss = -static_cast<double>(LogProb(logits, part[position + 1]));
      sum += loss;
      sum_squares += loss * loss;
      ++count;
      progress.Update(begin + position);
    });
  }
  const double n = static_cast<double>(count);
  const double mean = sum / n;
  const double deviation = std::sqrt(std::max(0.0, sum_squares / n - mean * mean) / n);
  std::printf("perplexity %.4f +- %.4f over %llu tokens in windows of %u\n", std::exp(mean),
              std::exp(mean) * deviation, static_cast<unsigned long long>(count), window);
}

}  // namespace

void AddPerplexityCommand(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* command = app.add_subcommand("perplexity", "measure how well a model predicts a text");
  AddModelFlag(*command, &flags->model);
  command->add_option("-f,--file", flags->file, "text file")->required();
  command->add_option("-w,--window,-c,--ctx-size", flags->window,
                      "tokens predicted from one empty context");
  command->add_option("-n,--max-tokens", flags->max_tokens, "use the first so many; 0: all");
  command->add_option("-t,--threads", flags->threads, "worker threads; 0: all cores");
  AddKvDTypeFlag(*command, &flags->kv_dtype);
  command->add_flag("--reference", flags->reference,
                    "dequantised weights, float32 activations and KV");
  command->callback([flags] { RunPerplexity(*flags); });
}

}  // namespace kvrm
