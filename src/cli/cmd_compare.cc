// SPDX-License-Identifier: Apache-2.0
// kvrm compare: one workload over several configurations of the engine, in turns.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/replay_flags.h"
#include "engine/step_loop.h"
#include "replay/compare.h"
#include "replay/record.h"

namespace kvrm {
namespace {

struct CompareFlags {
  ReplayFlags replay;
  std::vector<KvView> views = {KvView::kExtents, KvView::kPaged,  KvView::kStagedWindows,
                               KvView::kMapped,  KvView::kStatic, KvView::kStaticBucketed};
  std::vector<PlacementPolicy> placements = {PlacementPolicy::kSoft};
  std::vector<std::uint64_t> memories = {65536};
  std::uint32_t num_repetitions = 5;
  std::string target;
  std::string folder;
  std::string html;
  std::string command;
  std::string replay_command;  // of a run, without what differs between runs
};

// What runs: a model or the description of a device.
struct CompareTarget {
  std::optional<LoadedModel> loaded = {};
  std::optional<DeviceProfile> profile = {};

  std::uint32_t num_layers() const {
    return profile ? profile->num_layers : loaded->model().config().num_layers;
  }
  std::uint32_t max_context() const {
    return profile ? profile->max_context : loaded->model().config().max_context;
  }
  std::string name() const {
    return profile ? "simulated " + profile->name : "engine, " + loaded->model().config().name;
  }
  void Run(const ReplayFlags& flags) const {
    if (profile) return ReplayOnProfile(flags, *profile);
    ReplayOnModel(flags, loaded->model());
  }
};

std::vector<ComparedChoice> ChoicesOf(const CompareFlags& flags) {
  std::vector<ComparedChoice> choices;
  for (const std::uint64_t memory : flags.memories) {
    for (const KvView view : flags.views) {
      for (const PlacementPolicy placement : flags.placements) {
        // A static view has a place of its own for everyone.
        if (IsStaticView(view) && placement != flags.placements.front()) continue;
        choices.push_back({view, placement, memory});
      }
    }
  }
  return choices;
}

std::string FileName(const std::string& name, std::uint32_t repetition) {
  std::string file = name;
  for (char& c : file)
    c = c == ' ' ? '-' : c;
  return file + "." + std::to_string(repetition + 1) + ".jsonl";
}

// A repetition has its own seed; a part of a trace that is cut by --max-requests, its own part.
ReplayFlags FlagsOf(const CompareFlags& flags, std::uint32_t repetition) {
  ReplayFlags run = flags.replay;
  run.silent = true;
  run.generate.seed += repetition;
  if (!run.trace.empty()) run.shape.skip += repetition * run.shape.max_requests;
  return run;
}

std::string CommandOfRun(const CompareFlags& flags, const ReplayFlags& run) {
  std::string command = flags.replay_command;
  if (run.shape.skip > 0) command += " --skip " + std::to_string(run.shape.skip);
  command += " --seed " + std::to_string(run.generate.seed) + " --kv-view " +
             KvViewName(run.engine.view) + " --max-num-seqs " +
             std::to_string(run.engine.max_rows) + " --host-kv-bytes 0 --max-wait-ms 0";
  if (run.engine.kv_tokens > 0) command += " --kv-tokens " + std::to_string(run.engine.kv_tokens);
  if (run.engine.placement != PlacementPolicy::kLanes)
    command += std::string(" --kv-placement ") + PlacementPolicyName(run.engine.placement);
  return command + " -o " + run.record;
}

void RunOnce(const CompareFlags& flags, const CompareTarget& target, const ComparedChoice& choice,
             std::uint32_t repetition, ComparedConfig* config) {
  ReplayFlags run = FlagsOf(flags, repetition);
  SizeForMemory(choice, target.num_layers(), &run.engine);
  run.record = (std::filesystem::path(flags.folder) / FileName(config->name, repetition)).string();
  run.command = CommandOfRun(flags, run);
  config->max_rows = run.engine.max_rows;
  config->pool_tokens = run.engine.kv_tokens;
  target.Run(run);
  const Record record = OrThrow(ReadRecord(run.record));
  const Metrics metrics = Measure(record, {});
  std::vector<double> values;
  for (const ComparedMeasure& measure : ComparedMeasures())
    values.push_back(measure.value(metrics, record));
  config->runs.push_back(std::move(values));
  config->records.push_back(run.record);
  config->commands.push_back(run.command);
}

void WriteHtml(const std::string& path, const Comparison& comparison) {
  std::vector<Record> records;
  records.reserve(comparison.configs.size());
  std::vector<ReportedRecord> reported;
  for (const ComparedConfig& config : comparison.configs) {
    if (config.records.empty()) continue;
    records.push_back(OrThrow(ReadRecord(config.records.front())));
    reported.push_back(
        {.name = config.name, .record = &records.back(), .metrics = Measure(records.back(), {})});
  }
  OrThrow(WriteFile(path, ReportHtml(reported, CompareHtml(comparison))));
}

// In turns: every configuration once, then every one again.
void RunAll(const CompareFlags& flags, const CompareTarget& target, Comparison* comparison) {
  const std::vector<ComparedChoice> choices = ChoicesOf(flags);
  for (const ComparedChoice& choice : choices)
    comparison->configs.push_back({.name = ChoiceName(choice, choices)});
  Progress progress("runs", choices.size() * flags.num_repetitions);
  std::uint64_t done = 0;
  for (std::uint32_t r = 0; r < flags.num_repetitions; ++r) {
    for (std::size_t i = 0; i < choices.size(); ++i) {
      progress.Update(done++);
      ComparedConfig& config = comparison->configs[i];
      if (!config.refused.empty() || IsReplayStopped()) continue;
      try {
        RunOnce(flags, target, choices[i], r, &config);
      } catch (const StartError& error) {
        // What cannot start at all says so in its line; what did once must again.
        if (r > 0) throw;
        config.refused = error.what();
      }
    }
  }
}

void RunCompare(CompareFlags* flags) {
  StopReplayOnInterrupt();
  CompareTarget target;
  ReplayFlags& replay = flags->replay;
  if (flags->target == "sim" && replay.profile.empty()) replay.profile = "a100";
  if (flags->target == "engine" && !replay.profile.empty())
    throw StartError("--profile is of the target sim");
  if (!replay.profile.empty()) {
    target.profile = LoadDeviceProfile(replay.profile);
  } else {
    target.loaded.emplace(replay.model);
  }
  if (replay.engine.max_context == 0) replay.engine.max_context = target.max_context();
  std::error_code error;
  std::filesystem::create_directories(flags->folder, error);
  if (error) throw StartError("cannot make " + flags->folder + ": " + error.message());
  Comparison comparison = {.target = target.name(), .command = flags->command};
  RunAll(*flags, target, &comparison);
  for (const ComparedConfig& config : comparison.configs) {
    if (config.records.empty()) continue;
    comparison.workload = OrThrow(ReadRecord(config.records.front())).header.workload;
    break;
  }
  const std::string json = CompareJson(comparison);
  const std::string text = replay.json ? json : CompareText(comparison);
  std::fwrite(text.data(), 1, text.size(), stdout);
  OrThrow(WriteFile((std::filesystem::path(flags->folder) / "compare.json").string(), json));
  if (!flags->html.empty()) WriteHtml(flags->html, comparison);
  if (comparison.workload.empty()) throw StartError("no configuration could start");
}

template <typename T, typename Find>
void AddList(CLI::App& command, const std::string& flag, const std::string& help,
             std::vector<T>* list, Find find) {
  // Those of one engine are in the way.
  command.remove_option(command.get_option(flag));
  command
      .add_option_function<std::vector<std::string>>(
          flag,
          [flag, list, find](const std::vector<std::string>& names) {
            list->clear();
            for (const std::string& name : names) {
              const auto found = find(name);
              if (!found) throw CLI::ValidationError(flag, "'" + name + "' is unknown");
              list->push_back(*found);
            }
          },
          help)
      ->delimiter(',');
}

}  // namespace

void AddCompareCommand(CLI::App& app) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* command = app.add_subcommand(
      "compare", "one workload over several KV configurations at equal memory, with intervals");
  AddReplayEngineFlags(*command, &flags->replay);
  AddReplayWorkloadFlags(*command, &flags->replay);
  AddList(*command, "--kv-view", "views, like static,static-bucket,paged,extents,staged,mapped",
          &flags->views, FindKvView);
  AddList(*command, "--kv-placement", "allocators, like soft,lifo,in-place", &flags->placements,
          [](const std::string& name) {
            const auto found = FindPlacementPolicy(name);
            return found == PlacementPolicy::kLanes ? std::nullopt : found;
          });
  // What the memory decides.
  for (const char* name : {"--kv-tokens", "--cache-ram", "--kv-offloading-size", "--host-kv-bytes",
                           "--max-wait-ms", "--memory-budget", "--descriptor-log"})
    command->remove_option(command->get_option(name));
  command
      ->add_option("--kv-memory", flags->memories,
                   "tokens of KV that pool, windows and layer buffers take together")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--repeat", flags->num_repetitions, "runs of each")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  command->add_option("--target", flags->target, "engine, or sim: virtual time (--profile)")
      ->check(CLI::IsMember({"engine", "sim"}));
  command->add_option("-o,--output", flags->folder, "folder for records and compare.json")
      ->required();
  command->add_option("--html", flags->html, "also write one page that needs nothing else");
  command->add_flag("--json", flags->replay.json, "print JSON");
  command->callback([flags, command] {
    flags->command = CommandOf(*command, {});
    flags->replay_command =
        "kvrm replay" +
        CommandOf(*command, {"--kv-view", "--kv-placement", "--kv-memory", "--repeat", "--target",
                             "--output", "--html", "--json", "--seed", "--skip", "--max-num-seqs"})
            .substr(std::string("kvrm compare").size());
    if (flags->target == "sim" && flags->replay.profile.empty())
      flags->replay_command += " --profile a100";
    RunCompare(flags.get());
  });
}

}  // namespace kvrm
