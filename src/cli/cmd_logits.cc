// SPDX-License-Identifier: Apache-2.0
// kvrm logits: the raw logits at every position, for parity checks against other engines.
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "engine/scorer.h"

namespace kvrm {
namespace {

struct LogitsFlags {
  std::string model;
  std::string tokens;
  std::string output;
  bool reference = false;
  std::uint32_t threads = 0;
};

void RunLogits(const LogitsFlags& flags) {
  const Model model = LoadModel(flags.model);
  const std::vector<std::int32_t> tokens = ParseTokenIds(flags.tokens);
  const ModelConfig& config = model.config();
  if (tokens.empty()) throw StartError("--tokens names no token");
  if (tokens.size() > config.max_context) {
    throw StartError("--tokens has " + std::to_string(tokens.size()) +
                     " tokens; the model's context holds " + std::to_string(config.max_context));
  }
  for (const std::int32_t id : tokens) {
    if (static_cast<std::uint32_t>(id) >= config.vocab_size) {
      throw StartError("--tokens: id " + std::to_string(id) + " is not below the vocabulary's " +
                       std::to_string(config.vocab_size));
    }
  }
  ScorerOptions options = {.max_context = static_cast<std::uint32_t>(tokens.size()),
                           .num_threads = flags.threads,
                           .load_progress = ShowLoading()};
  if (flags.reference) {
    options.kernels = "reference";
    options.kv_dtype = DType::kF32;
  }
  Scorer scorer(model, options);
  std::string bytes(tokens.size() * config.vocab_size * sizeof(float), '\0');
  Progress progress("logits: token", tokens.size());
  scorer.Score(tokens, [&](std::uint32_t position, std::span<const float> logits) {
    std::memcpy(bytes.data() + std::size_t{position} * logits.size_bytes(), logits.data(),
                logits.size_bytes());
    progress.Update(position + 1);
  });
  OrThrow(WriteFile(flags.output, bytes));
  std::fprintf(stderr, "%s: float32 little-endian [%zu, %u]\n", flags.output.c_str(), tokens.size(),
               config.vocab_size);
}

}  // namespace

void AddLogitsCommand(CLI::App& app) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* command = app.add_subcommand("logits", "write the logits at every position to a file");
  AddModelFlag(*command, &flags->model);
  command->add_option("--tokens", flags->tokens, "token ids, separated by commas")->required();
  command->add_option("-o,--output", flags->output, "file: float32 [tokens, vocabulary]")
      ->required();
  command->add_flag("--reference", flags->reference,
                    "dequantised weights, float32 activations and KV");
  command->add_option("-t,--threads", flags->threads, "worker threads; 0: all cores");
  command->callback([flags] { RunLogits(*flags); });
}

}  // namespace kvrm
