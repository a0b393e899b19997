// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/result.h"

namespace kvrm {
namespace {

constexpr std::int64_t kProgressIntervalNs = 100'000'000;

// An option whose values are names; anything else is refused with all of them.
struct ChoiceTexts {
  std::string flag;
  std::string help;
  std::string names;
};
template <typename T, typename Name, typename Find>
void AddChoice(CLI::App& command, const ChoiceTexts& texts, T* value, Name name, Find find) {
  command
      .add_option_function<std::string>(
          texts.flag,
          [texts, value, find](const std::string& text) {
            const std::optional<T> found = find(text);
            if (!found)
              throw CLI::ValidationError(texts.flag, "'" + text + "' is none of " + texts.names);
            *value = *found;
          },
          texts.help + ": " + texts.names)
      ->default_str(name(*value));
}

// AsSizeValue takes "-5" and 2^64 for the largest number there is. This one, added after it, runs
// before it.
std::string CheckSize(std::string& text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc()) return "";
  return "not a number of bytes below 2^64, like 4G: " + text;
}

}  // namespace

void AddModelFlag(CLI::App& command, std::string* path) {
  command.add_option("-m,--model", *path,
                     "GGUF file or Hugging Face folder; without it the built-in demo model");
}

Model LoadModel(const std::string& path) {
  return OrThrow(path.empty() ? Model::LoadDemo() : Model::Load(path));
}

void AddKvDTypeFlag(CLI::App& command, DType* type) {
  std::string names;
  for (const DType each : kKvDTypes)
    names += (names.empty() ? "" : ", ") + std::string(KvDTypeName(each));
  AddChoice(command, {"--kv-dtype", "what keys and values are kept in", names}, type, KvDTypeName,
            FindKvDType);
}

void AddModelFlags(CLI::App& command, ModelFlags* flags) {
  AddModelFlag(command, &flags->path);
  const auto list = [](const std::vector<std::string>& names) {
    std::string all;
    for (const std::string& name : names)
      all += (all.empty() ? "" : ", ") + name;
    return all;
  };
  command
      .add_option("--dummy", flags->dummy,
                  "instead of a model: random weights of a public shape, SHAPE[:TYPE]; SHAPE " +
                      list(DummyModel::Shapes()) + "; TYPE " + list(DummyModel::Types()))
      ->excludes("--model");
  command.add_option("--dummy-context", flags->dummy_context,
                     "tokens of context that the dummy takes; 0: its shape's");
}

LoadedModel::LoadedModel(const ModelFlags& flags, DummyOptions dummy) {
  dummy.context = flags.dummy_context;
  if (flags.dummy.empty() && flags.dummy_context != 0)
    throw StartError("--dummy-context is of --dummy, and there is none");
  if (flags.dummy.empty()) {
    file_ = LoadModel(flags.path);
  } else {
    dummy_ = std::make_unique<DummyModel>(flags.dummy, dummy);
  }
}

CLI::Validator NumberFrom(double least, double most) {
  const std::string range = CLI::Range(least, most).get_description();
  const auto check = [=](std::string& text) {
    double number = 0;
    const bool is_number = CLI::detail::lexical_cast(text, number);
    if (is_number && number >= least && number <= most) return std::string();
    return "'" + text.substr(0, 40) + "' is no " + range;
  };
  return CLI::Validator(check, range);
}

// One number in three spellings.
void AddHostTierFlags(CLI::App& command, EngineOptions* engine) {
  CLI::Option* const bytes =
      command
          .add_option("--host-kv-bytes", engine->host_kv_bytes,
                      "bytes of the memory where sequences are parked for want of blocks, like 4G; "
                      "0: none; else all that may be parked, at most a quarter of memory")
          ->transform(CLI::AsSizeValue(false))
          ->transform(CLI::Validator(CheckSize, ""));
  const auto add_alias = [&](const char* names, const char* help, double unit) {
    return command
        .add_option_function<double>(
            names,
            [engine, unit](double count) {
              engine->host_kv_bytes = static_cast<std::uint64_t>(count * unit);
            },
            help)
        ->check(NumberFrom(0, 1e9))
        ->excludes(bytes);
  };
  CLI::Option* const mib =
      add_alias("--cache-ram", "the same in MiB, as llama-server has it", 1024.0 * 1024.0);
  add_alias("--kv-offloading-size", "the same in GiB, as vLLM has it", 1024.0 * 1024.0 * 1024.0)
      ->excludes(mib);
}

void AddPaceFlags(CLI::App& command, StepPaceOptions* pace) {
  command
      .add_option("--itl-factor", pace->itl_factor,
                  "a step with prompts takes at most so many times a step without; 0: no limit")
      ->capture_default_str();
  command
      .add_option_function<double>(
          "--easy-step-ms", [pace](const double& ms) { pace->easy_step_seconds = ms / 1000; },
          "where the model itself is slow a step with prompts may take so long; 0: no longer than "
          "--itl-factor says")
      ->default_str(std::to_string(std::lround(pace->easy_step_seconds * 1000)))
      ->check(NumberFrom(0, 3'600'000));
  command
      .add_option_function<double>(
          "--max-step-ms", [pace](const double& ms) { pace->max_step_seconds = ms / 1000; },
          "the same as a time, in place of both")
      ->check(NumberFrom(0, 3'600'000));
  command
      .add_option("--min-step-prompt-tokens", pace->min_prompt_tokens,
                  "prompt tokens that a step takes at least")
      ->capture_default_str();
}

void AddKvFlags(CLI::App& command, EngineOptions* engine) {
  std::string views;
  for (int v = 0; v < kNumKvViews; ++v)
    views += (v > 0 ? ", " : "") + std::string(KvViewName(static_cast<KvView>(v)));
  AddChoice(command, {"--kv-view", "what a row shows of its history", views}, &engine->view,
            KvViewName, FindKvView);
  std::string policies;
  for (int p = 0; p < kNumPlacementPolicies; ++p) {
    const auto policy = static_cast<PlacementPolicy>(p);
    if (policy == PlacementPolicy::kLanes) continue;  // the static views' own
    policies += (p > 0 ? ", " : "") + std::string(PlacementPolicyName(policy));
  }
  AddChoice(command, {"--kv-placement", "where new blocks go", policies}, &engine->placement,
            PlacementPolicyName, [](const std::string& text) {
              const auto found = FindPlacementPolicy(text);
              return found == PlacementPolicy::kLanes ? std::nullopt : found;
            });
  AddKvDTypeFlag(command, &engine->kv_dtype);
  AddChoice(
      command, {"--prefix-cache", "keep finished prefixes for others", "on, off"},
      &engine->prefix_cache, [](bool on) { return on ? "on" : "off"; },
      [](const std::string& text) -> std::optional<bool> {
        if (text != "on" && text != "off") return std::nullopt;
        return text == "on";
      });
  command
      .add_option("--prefix-cache-tokens", engine->prefix_cache_tokens,
                  "tokens that the prefix cache keeps beside those of running requests; without it "
                  "as many as these had at once so far")
      ->check(CLI::Range(std::uint64_t{0}, ~std::uint64_t{0} - 1));
  std::string elastic;
  for (int e = 0; e < kNumKvElastic; ++e)
    elastic += (e > 0 ? ", " : "") + std::string(KvElasticName(static_cast<KvElastic>(e)));
  AddChoice(command,
            {"--kv-elastic",
             "the pool's memory comes and goes as it is used; tight: with less beside it, in more "
             "runs",
             elastic},
            &engine->elastic_kv, KvElasticName, FindKvElastic);
  command.add_option("--max-runs", engine->max_runs, "runs of blocks a row shows at most")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  command
      .add_option("--max-move-bytes-per-step", engine->max_move_bytes_per_step,
                  "KV bytes that one step moves at most, like 16M")
      ->transform(CLI::AsSizeValue(false))
      ->transform(CLI::Validator(CheckSize, ""))
      ->capture_default_str();
  command
      .add_option("--max-edits-per-step", engine->max_edits_per_step,
                  "copies and mappings of one step at most")
      ->capture_default_str();
  AddHostTierFlags(command, engine);
  command
      .add_option("--memory-budget", engine->memory_budget,
                  "bytes that may be reserved in all, like 4G; more is refused at start")
      ->transform(CLI::AsSizeValue(false))
      ->transform(CLI::Validator(CheckSize, ""));
  command.add_option("--descriptor-log", engine->descriptor_log,
                     "file that records every step for kvrm verify; it holds the users' tokens");
}

void AddChoiceFlag(CLI::App& command, const std::string& flag, const std::string& help,
                   std::function<bool(const std::string&)> take) {
  command.add_option_function<std::string>(
      flag,
      [flag, help, take = std::move(take)](const std::string& text) {
        if (!take(text)) throw CLI::ValidationError(flag, "'" + text + "' is no " + help);
      },
      help);
}

bool IsTerminal(int fd) {
  return ::isatty(fd) == 1;
}

std::vector<std::int32_t> ParseTokenIds(std::string_view text) {
  std::vector<std::int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto is_separator = [](char c) {
    return c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t';
  };
  while (true) {
    while (at != end && is_separator(*at))
      ++at;
    if (at == end) return ids;
    std::int32_t id = 0;
    const std::from_chars_result result = std::from_chars(at, end, id);
    if (result.ec != std::errc() || id < 0 || (result.ptr != end && !is_separator(*result.ptr))) {
      const char* stop = at;
      while (stop != end && !is_separator(*stop) && stop - at < 20)
        ++stop;
      throw StartError("'" + std::string(at, stop) + "' is not a token id");
    }
    ids.push_back(id);
    at = result.ptr;
  }
}

std::function<void(std::uint64_t done, std::uint64_t total)> ShowLoading() {
  constexpr std::uint64_t kMiB = 1u << 20;
  return [progress = std::shared_ptr<Progress>()](std::uint64_t done, std::uint64_t total) mutable {
    if (!progress) progress = std::make_shared<Progress>("loading weights, MiB", total / kMiB);
    progress->Update(done / kMiB);
    if (done >= total) progress.reset();
  };
}

Progress::Progress(std::string label, std::uint64_t total)
    : label_(std::move(label)), total_(total), shown_(IsTerminal(2)) {}

Progress::~Progress() {
  if (last_ns_ != 0) std::fprintf(stderr, "\r\033[K");
}

void Progress::Update(std::uint64_t done) {
  if (!shown_) return;
  const std::int64_t now_ns = SystemClock().NowNs();
  if (now_ns - last_ns_ < kProgressIntervalNs) return;
  last_ns_ = now_ns;
  std::fprintf(stderr, "\r\033[K%s %llu of %llu", label_.c_str(),
               static_cast<unsigned long long>(done), static_cast<unsigned long long>(total_));
}

}  // namespace kvrm
