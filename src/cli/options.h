// SPDX-License-Identifier: Apache-2.0
// Flags and habits that several commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "model/dummy_model.h"
#include "model/weights.h"

namespace kvrm {

// Adds -m / --model; empty means the demo model.
void AddModelFlag(CLI::App& command, std::string* path);
// Loads it, or throws StartError.
Model LoadModel(const std::string& path);

// -m / --model, or --dummy in its place.
struct ModelFlags {
  std::string path;
  std::string dummy;
  std::uint32_t dummy_context = 0;  // tokens; 0: the shape's own
};
void AddModelFlags(CLI::App& command, ModelFlags* flags);
// What they ask for. Throws StartError.
class LoadedModel {
 public:
  // The context of `dummy` is the flags'.
  explicit LoadedModel(const ModelFlags& flags, DummyOptions dummy = {});
  const Model& model() const { return dummy_ ? dummy_->model() : *file_; }

 private:
  std::unique_ptr<DummyModel> dummy_;
  std::optional<Model> file_;
};

// Adds the flags of the KV cache and of the memory: --kv-view, --memory-budget and their kin.
void AddKvFlags(CLI::App& command, EngineOptions* engine);

// Adds what bounds a step: --itl-factor, --easy-step-ms, --max-step-ms, --min-step-prompt-tokens.
void AddPaceFlags(CLI::App& command, StepPaceOptions* pace);

// Adds --kv-dtype alone.
void AddKvDTypeFlag(CLI::App& command, DType* type);

// A number from `least` to `most`, which NaN is not: CLI::Range lets it pass.
CLI::Validator NumberFrom(double least, double most);

// Adds a flag whose values are words; `take` says whether it knows one. `help` ends with all of
// them.
void AddChoiceFlag(CLI::App& command, const std::string& flag, const std::string& help,
                   std::function<bool(const std::string&)> take);

// Whether a person reads this stream (file descriptor 1 or 2).
bool IsTerminal(int fd);

// "1,2,3" or "1 2 3" to ids; throws StartError naming the first thing that is no id.
std::vector<std::int32_t> ParseTokenIds(std::string_view text);

// For EngineOptions::load_progress: a line on stderr while weights are packed, if a person waits.
std::function<void(std::uint64_t done, std::uint64_t total)> ShowLoading();

// One line on stderr, rewritten in place, on a terminal only and at most ten times a second.
class Progress {
 public:
  Progress(std::string label, std::uint64_t total);
  ~Progress();
  void Update(std::uint64_t done);

 private:
  const std::string label_;
  const std::uint64_t total_;
  const bool shown_;
  std::int64_t last_ns_ = 0;
};

}  // namespace kvrm
