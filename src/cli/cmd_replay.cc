// SPDX-License-Identifier: Apache-2.0
// kvrm replay: a trace or a generated workload against a server, the engine or the simulator.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/replay_flags.h"
#include "device/host_device.h"
#include "engine/engine.h"
#include "replay/cost_device.h"
#include "replay/device_profile.h"
#include "replay/driver.h"
#include "replay/engine_target.h"
#include "replay/fleet_target.h"
#include "replay/record.h"
#include "replay/report.h"
#include "replay/text.h"
#include "replay/url_target.h"
#include "trace/generate.h"
#include "trace/trace_file.h"

namespace kvrm {
namespace {

// Set by the first SIGINT: the replay ends there and reports what it has. The second one kills.
std::atomic<bool> stop_asked = false;
static_assert(std::atomic<bool>::is_always_lock_free);

void AskStop(int) {
  stop_asked.store(true, std::memory_order_relaxed);
}

constexpr std::int64_t kProgressNs = 200'000'000;

double Seconds(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-9;
}

Workload WorkloadOf(const ReplayFlags& flags) {
  Workload workload;
  ShapeOptions shape = flags.shape;
  if (!flags.trace.empty()) {
    std::optional<TraceFormat> format;
    if (!flags.format.empty()) format = FindTraceFormat(flags.format);
    ParsedTrace trace = OrThrow(ReadTrace(flags.trace, format));
    if (trace.num_left_out > 0)
      std::fprintf(stderr, "%llu requests without a prompt or an output are left out\n",
                   static_cast<unsigned long long>(trace.num_left_out));
    workload = std::move(trace.workload);
    OrThrow(Overlay(flags.num_copies, &workload));
    workload.seed = flags.generate.seed;
  } else {
    GenerateOptions generate = flags.generate;
    // The process itself has the rate: what it does in bursts is not stretched.
    if (flags.shape.rate_rps > 0.0) generate.rate_rps = flags.shape.rate_rps;
    shape.rate_rps = 0.0;
    if (flags.num_clients > 0) {
      generate.arrivals = ArrivalProcess::kClosed;
      generate.num_clients = flags.num_clients;
    } else if (!flags.has_arrivals && generate.family == WorkloadFamily::kBursty) {
      generate.arrivals = ArrivalProcess::kOnOff;
    }
    workload = Generate(generate);
  }
  Shape(shape, &workload);
  if (workload.requests.empty()) throw StartError("no request of the workload is left");
  return workload;
}

// What every target is told, and what becomes of the record.
class Replay {
 public:
  Replay(const ReplayFlags& flags, RecordHeader header)
      : flags_(flags), header_(std::move(header)) {
    header_.command = flags.command;
    header_.num_replicas = flags.summary || flags.num_replicas > 1 ? flags.num_replicas : 0;
    options_.warmup_requests = flags.warmup;
    options_.stop_ns = static_cast<std::int64_t>(std::llround(flags.stop_s * 1e9));
    options_.stop = &stop_asked;
    options_.progress = [this](const ReplayProgress& progress) { Show(progress); };
  }
  ~Replay() { Clear(); }

  // Runs it against one target and reports.
  void Run(const Workload& workload, const std::function<void(ReplayRun&)>& target,
           const std::function<std::int64_t()>& now_ns) {
    header_.workload = workload.name;
    header_.seed = workload.seed;
    header_.num_requests = workload.requests.size();
    header_.offered_rps = OfferedRate(workload);
    for (const Phase& phase : workload.phases)
      header_.phases.push_back({phase.name, phase.begin_ns});
    std::string path = flags_.record;
    std::FILE* temporary = nullptr;
    if (path.empty()) {
      temporary = std::tmpfile();
      if (temporary == nullptr) throw StartError("cannot make a temporary file for the record");
      path = "/proc/self/fd/" + std::to_string(::fileno(temporary));
    }
    RecordWriter writer(path, header_);
    ReplayRun run(workload, options_, writer);
    target(run);
    writer.End(now_ns());
    Clear();
    if (!flags_.silent) Report(path);
    if (temporary != nullptr) std::fclose(temporary);
  }

 private:
  void Show(const ReplayProgress& p) {
    if (!shown_ || clock_.NowNs() - last_shown_ns_ < kProgressNs) return;
    const double wall_s = Seconds(clock_.NowNs() - last_shown_ns_);
    const double rate = static_cast<double>(p.num_outputs - last_outputs_) / wall_s;
    last_shown_ns_ = clock_.NowNs();
    last_outputs_ = p.num_outputs;
    std::fprintf(
        stderr,
        "\r\033[K%7.1f s  %llu sent, %llu running, %llu ended, %llu failed, %.0f tokens/s %.*s",
        Seconds(p.now_ns), static_cast<unsigned long long>(p.num_sent),
        static_cast<unsigned long long>(p.num_running),
        static_cast<unsigned long long>(p.num_ended), static_cast<unsigned long long>(p.num_failed),
        rate, static_cast<int>(p.phase.size()), p.phase.data());
  }
  void Clear() {
    if (shown_ && last_shown_ns_ != 0) std::fprintf(stderr, "\r\033[K");
    last_shown_ns_ = 0;
  }

  void Report(const std::string& path) const {
    const Record record = OrThrow(ReadRecord(path));
    const ReportedRecord reported = {.name = flags_.record.empty() ? "replay" : flags_.record,
                                     .record = &record,
                                     .metrics = Measure(record, ParseGoodput(flags_.goodput))};
    const std::string text = flags_.json ? ReportJson({&reported, 1}) : ReportText(reported);
    std::fwrite(text.data(), 1, text.size(), stdout);
  }

  const ReplayFlags& flags_;
  RecordHeader header_;
  ReplayOptions options_;
  SystemClock clock_;
  const bool shown_ = IsTerminal(2);
  std::int64_t last_shown_ns_ = 0;
  std::uint64_t last_outputs_ = 0;
};

Workload VictimWorkload(const ReplayFlags& flags, std::uint64_t pool_tokens,
                        std::uint32_t max_context) {
  VictimOptions victim = flags.victim;
  victim.seed = flags.generate.seed;
  if (victim.pool_tokens == 0) victim.pool_tokens = pool_tokens;
  if (victim.pool_tokens == 0)
    throw StartError("the target does not say how many tokens its pool has: give --pool-tokens");
  if (max_context > 0) {
    victim.max_context = max_context;
    if (victim.long_prompt + 16 > max_context) {
      std::fprintf(stderr, "the long prompt is cut from %u to %u tokens: the context is %u\n",
                   victim.long_prompt, max_context - 16, max_context);
      victim.long_prompt = max_context - 16;
    }
  }
  return GenerateVictim(victim);
}

void RunUrl(const ReplayFlags& flags) {
  const SystemClock clock;
  UrlTargetOptions options = flags.target;
  options.url = flags.url;
  UrlTarget target(options, clock);
  const Workload workload = flags.victims
                                ? VictimWorkload(flags, target.pool_tokens(), target.max_context())
                                : WorkloadOf(flags);
  RecordHeader header = {.target = flags.url, .clock = "real"};
  header.config = {{"model", target.model()},
                   {"vocab", std::to_string(target.vocab_size())},
                   {"prompts", options.chat           ? "chat"
                               : options.text_prompts ? "text"
                                                      : "token ids"}};
  const std::int64_t begin_ns = clock.NowNs();
  Replay(flags, std::move(header))
      .Run(
          workload, [&target](ReplayRun& run) { target.Run(run); },
          [&clock, begin_ns] { return clock.NowNs() - begin_ns; });
}

std::string PaceText(const StepPaceOptions& pace) {
  if (pace.max_step_seconds > 0) return Format("%g ms", pace.max_step_seconds * 1e3);
  return pace.itl_factor > 0 ? Format("%g quiet steps", pace.itl_factor) : "none";
}

// What tells one configuration of an engine from another.
std::vector<std::pair<std::string, std::string>> ConfigOf(const Engine& engine) {
  const EngineOptions& options = engine.options();
  const KvStats kv = engine.kv_stats();
  return {{"view", KvViewName(options.view)},
          {"placement", PlacementPolicyName(options.placement)},
          {"kv dtype", KvDTypeName(options.kv_dtype)},
          {"rows", std::to_string(options.max_rows)},
          {"context", std::to_string(engine.max_context())},
          {"step tokens", std::to_string(options.max_step_tokens)},
          {"pace", PaceText(options.pace)},
          {"block tokens", std::to_string(options.block_tokens)},
          {"blocks", std::to_string(kv.num_blocks)},
          {"max runs", std::to_string(options.max_runs)},
          {"prefix cache", options.prefix_cache ? "on" : "off"}};
}

// What the engine of a replay stands on.
struct EngineReplay {
  Engine& engine;
  const StepProbe& probe;
  const Clock& clock;
  EngineTargetOptions options;
};

void RunEngine(const ReplayFlags& flags, const EngineReplay& replay, RecordHeader header) {
  Engine& engine = replay.engine;
  const std::uint64_t pool_tokens =
      std::uint64_t{engine.kv_stats().num_blocks} * engine.options().block_tokens;
  const Workload workload =
      flags.victims ? VictimWorkload(flags, pool_tokens, engine.max_context()) : WorkloadOf(flags);
  for (auto& each : ConfigOf(engine))
    header.config.push_back(std::move(each));
  EngineTarget target(engine, replay.probe, replay.clock, replay.options);
  const std::int64_t begin_ns = replay.clock.NowNs();
  Replay(flags, std::move(header))
      .Run(
          workload, [&target](ReplayRun& run) { target.Run(run); },
          [&replay, begin_ns] { return replay.clock.NowNs() - begin_ns; });
}

}  // namespace

void StopReplayOnInterrupt() {
  struct sigaction action = {};
  action.sa_handler = AskStop;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
}

bool IsReplayStopped() {
  return stop_asked.load(std::memory_order_relaxed);
}

DeviceProfile LoadDeviceProfile(const std::string& name) {
  if (const std::optional<DeviceProfile> known = FindDeviceProfile(name)) return *known;
  return OrThrow(ParseDeviceProfile(OrThrow(ReadFile(name, 1u << 16))));
}

void ReplayOnModel(const ReplayFlags& flags, const Model& model) {
  const SystemClock clock;
  const EngineOptions& options = flags.engine;
  HostDevice device({.copy_thread = options.num_threads != 0 &&
                                    options.num_threads < std::thread::hardware_concurrency()});
  StepProbe probe;
  const EngineParts parts = HostParts(model, device,
                                      {.num_threads = options.num_threads,
                                       .kernels = options.kernels,
                                       .kv_dtype = options.kv_dtype,
                                       .progress = ShowLoading()});
  Engine engine(Probed(parts, &probe), options, clock);
  const EngineTargetOptions target = {
      .vocab = {.first_id = 0, .vocab_size = model.config().vocab_size}, .wait = SleepUntil};
  RunEngine(flags, {engine, probe, clock, target},
            {.target = "engine",
             .clock = "real",
             .config = {{"model", flags.model.dummy.empty() ? model.config().name
                                                            : "dummy " + flags.model.dummy},
                        {"threads", std::to_string(options.num_threads)}}});
}

namespace {

// The step's budget of bytes is one of the device's.
EngineOptions ProfileEngineOptions(const EngineOptions& asked, const DeviceProfile& profile) {
  EngineOptions options = asked;
  options.kernels = "scalar";  // The sampler's: the same on every machine.
  options.max_move_bytes_per_step =
      std::max(options.max_move_bytes_per_step / ProfileBytesScale(profile), std::uint64_t{1});
  return options;
}

void ReplayOnFleet(const ReplayFlags& flags, const DeviceProfile& profile) {
  const Workload workload = WorkloadOf(flags);
  FleetTarget fleet(profile, {.num_replicas = flags.num_replicas,
                              .route = flags.route,
                              .engine = ProfileEngineOptions(flags.engine, profile),
                              .seed = flags.generate.seed});
  RecordHeader header = {.target = "sim", .clock = "virtual"};
  header.config = {{"profile", profile.name},
                   {"replicas", std::to_string(flags.num_replicas)},
                   {"route", RoutePolicyName(flags.route)}};
  for (auto& each : ConfigOf(fleet.engine()))
    header.config.push_back(std::move(each));
  Replay(flags, std::move(header))
      .Run(
          workload, [&fleet](ReplayRun& run) { fleet.Run(run); },
          [&fleet] { return fleet.now_ns(); });
}

}  // namespace

void ReplayOnProfile(const ReplayFlags& flags, const DeviceProfile& profile) {
  if (!CanShow(profile, flags.engine.view))
    throw StartError(profile.name + " reads contiguous windows only: it has no view '" +
                     KvViewName(flags.engine.view) + "'");
  if (flags.num_replicas > 1) return ReplayOnFleet(flags, profile);
  SimClock clock;
  CostDevice device;
  StepProbe probe;
  Engine engine(ProfileParts(profile, device, &probe, &clock, flags.generate.seed),
                ProfileEngineOptions(flags.engine, profile), clock);
  const EngineTargetOptions target = {
      .vocab = {.first_id = 0, .vocab_size = kProfileVocab},
      .bytes_scale = ProfileBytesScale(profile),
      .wait = [&clock](std::int64_t now_ns, std::int64_t until_ns) {
        if (until_ns != kNever) clock.Advance(std::max<std::int64_t>(until_ns - now_ns, 0));
      }};
  RunEngine(flags, {engine, probe, clock, target},
            {.target = "sim", .clock = "virtual", .config = {{"profile", profile.name}}});
}

namespace {

void RunReplay(const ReplayFlags& flags) {
  if (flags.num_replicas > 1 && flags.profile.empty())
    throw StartError("--replicas is for described devices: give --profile");
  if (flags.victims && (flags.num_replicas > 1 || flags.summary))
    throw StartError(
        "--victims asks when every token of one engine came: without --replicas and "
        "--summary");
  if (flags.num_copies > 1 && flags.trace.empty())
    throw StartError("--copies is for traces: give --trace, or --requests and --rate");
  StopReplayOnInterrupt();
  if (!flags.url.empty()) return RunUrl(flags);
  if (!flags.profile.empty()) return ReplayOnProfile(flags, LoadDeviceProfile(flags.profile));
  ReplayOnModel(flags, LoadedModel(flags.model).model());
}

template <typename Kind>
CLI::Option* AddName(CLI::App& command, const std::string& flag, const std::string& help,
                     const std::string& names,
                     std::function<std::optional<Kind>(std::string_view)> find,
                     std::function<void(Kind)> take) {
  return command.add_option_function<std::string>(
      flag,
      [flag, names, find, take](const std::string& text) {
        const std::optional<Kind> found = find(text);
        if (!found) throw CLI::ValidationError(flag, "'" + text + "' is none of " + names);
        take(*found);
      },
      help + ": " + names);
}

template <typename Kind>
std::string Names(int count, const char* (*name)(Kind)) {
  std::string names;
  for (int i = 0; i < count; ++i)
    names += (i > 0 ? ", " : "") + std::string(name(static_cast<Kind>(i)));
  return names;
}

void AddGenerateFlags(CLI::App& command, ReplayFlags* flags) {
  GenerateOptions& generate = flags->generate;
  command.add_option("--trace", flags->trace, "a trace file; without it a workload is generated");
  command.add_option("--format", flags->format, "of the trace: azure, burstgpt, mooncake")
      ->check(CLI::IsMember({"azure", "burstgpt", "mooncake"}));
  AddName<WorkloadFamily>(command, "--workload", "what is generated",
                          Names(kNumWorkloadFamilies, WorkloadFamilyName), FindWorkloadFamily,
                          [&generate](WorkloadFamily family) { generate.family = family; });
  AddName<ArrivalProcess>(command, "--arrivals", "when requests arrive",
                          Names(kNumArrivalProcesses, ArrivalProcessName), FindArrivalProcess,
                          [flags](ArrivalProcess process) {
                            flags->generate.arrivals = process;
                            flags->has_arrivals = true;
                          });
  command.add_option("--requests", generate.num_requests, "how many are generated")
      ->check(CLI::Range(std::size_t{1}, kMaxTraceRequests))
      ->capture_default_str();
  command.add_option("--rate", flags->shape.rate_rps,
                     "requests a second; of a trace: its times are scaled to it");
  command.add_option("--cv", generate.cv, "of gamma arrivals")->check(CLI::PositiveNumber);
  command
      .add_option("--clients", flags->num_clients,
                  "closed loop: so many clients, one request each at a time")
      ->check(CLI::Range(1u, 100000u));
  command.add_option("--think", generate.think_s, "mean seconds a client waits between requests")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--length-scale", generate.length_scale, "of generated lengths")
      ->check(CLI::PositiveNumber);
  command.add_option("-s,--seed", generate.seed, "of everything that is drawn");
}

void AddShapeFlags(CLI::App& command, ReplayFlags* flags) {
  ShapeOptions& shape = flags->shape;
  command.add_option("--skip", shape.skip, "requests left out at the front");
  command.add_option("--max-requests", shape.max_requests, "and at the end; 0: none");
  command.add_option("--begin", shape.begin_s, "seconds of the trace's own time left out");
  command.add_option("--duration", shape.duration_s, "seconds of it that are kept; 0: all");
  command
      .add_option("--copies", flags->num_copies,
                  "of a trace: so many laid over one another, each turned by a share of its time")
      ->check(CLI::Range(1u, 100000u));
  command.add_option("--time-scale", shape.time_scale, "0.5: twice as fast")
      ->check(CLI::PositiveNumber);
  command.add_option("--max-prompt", shape.max_prompt, "longer prompts are cut");
  command.add_option("--max-output", shape.max_output, "longer outputs are cut");
  command.add_option("--warmup", flags->warmup, "first requests that are not counted");
  command.add_option("--stop-after", flags->stop_s, "seconds, then what runs is cancelled")
      ->check(CLI::NonNegativeNumber);
}

void AddVictimFlags(CLI::App& command, ReplayFlags* flags) {
  VictimOptions& victim = flags->victim;
  command.add_flag("--victims", flags->victims,
                   "streams that decode steadily while a long prompt, a burst and more than the "
                   "pool holds arrive");
  command.add_option("--num-victims", victim.num_victims)->capture_default_str();
  command.add_option("--victim-output", victim.victim_output,
                     "tokens of a victim before it begins anew; 0: as many as fit");
  command.add_option("--phase", victim.phase_s, "seconds of each phase")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--long-prompt", victim.long_prompt, "tokens")->capture_default_str();
  command.add_option("--burst", victim.num_burst, "requests at once")->capture_default_str();
  command.add_option("--pool-tokens", victim.pool_tokens,
                     "of the target; 0: as it says. The last phase asks for twice as many");
}

void AddUrlFlags(CLI::App& command, ReplayFlags* flags) {
  UrlTargetOptions& target = flags->target;
  command.add_option("--url", flags->url, "an OpenAI-compatible server, like http://host:8080");
  command.add_option("--api-key", target.api_key, "of the server")->envname("KVRM_REPLAY_API_KEY");
  command.add_option("--served-model", target.model, "its model; the first it names otherwise");
  command.add_flag("--text", target.text_prompts, "prompts as words, for servers that take no ids");
  command.add_flag("--chat", target.chat, "/v1/chat/completions, with words");
  command.add_option("--vocab", target.vocab_size, "token ids of prompts stay below it");
  command.add_option("--first-id", target.first_id, "and from here on");
  command.add_option("--pid", target.pid, "of a server on this machine, for its resident memory");
}

}  // namespace

void AddReplayWorkloadFlags(CLI::App& command, ReplayFlags* flags) {
  AddGenerateFlags(command, flags);
  AddShapeFlags(command, flags);
}

void AddReplayEngineFlags(CLI::App& command, ReplayFlags* flags) {
  EngineOptions& engine = flags->engine;
  AddModelFlags(command, &flags->model);
  command.add_option("--profile", flags->profile,
                     "no model, but virtual time on the device that this file describes, or on "
                     "a known one: example, a100, h200, gh200, npu");
  command.add_option("-c,--ctx-size,--max-model-len", engine.max_context,
                     "tokens of context; 0: the model's");
  command.add_option("-p,--parallel,--max-num-seqs", engine.max_rows, "sequences decoded at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      .add_option("-b,--batch-size,--max-num-batched-tokens", engine.max_step_tokens,
                  "tokens of one step")
      ->capture_default_str();
  command.add_option("-t,--threads", engine.num_threads, "worker threads; 0: all cores");
  command.add_option("--block-size", engine.block_tokens, "tokens of one KV block")
      ->capture_default_str();
  command.add_option("--kv-tokens", engine.kv_tokens, "tokens the KV pool holds; 0: as kvrm serve");
  command.add_option("--max-num-queued-reqs", engine.max_queued, "requests that may wait")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      .add_option("--max-wait-ms", engine.max_wait_ms,
                  "in the queue, then a request fails; 0: for ever")
      ->capture_default_str();
  AddPaceFlags(command, &engine.pace);
  AddKvFlags(command, &engine);
}

std::string CommandOf(const CLI::App& app, const std::vector<std::string>& without) {
  std::string command = "kvrm " + app.get_name();
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 ||
        std::ranges::any_of(without, [&](const auto& name) { return option->check_name(name); }))
      continue;
    command += " " + option->get_name();
    if (option->get_expected_min() == 0) continue;
    for (const std::string& value : option->results())
      command += " " + value;
  }
  return command;
}

void AddReplayCommand(CLI::App& app) {
  auto flags = std::make_shared<ReplayFlags>();
  CLI::App* command =
      app.add_subcommand("replay", "run a trace or a generated workload and record every token");
  AddUrlFlags(*command, flags.get());
  AddReplayEngineFlags(*command, flags.get());
  AddReplayWorkloadFlags(*command, flags.get());
  AddVictimFlags(*command, flags.get());
  CLI::Option* const replicas =
      command
          ->add_option("--replicas", flags->num_replicas,
                       "so many engines behind a router, with --profile; the record is summarised")
          ->check(CLI::Range(1u, kMaxReplicas))
          ->capture_default_str();
  AddName<RoutePolicy>(*command, "--route", "which of them a request goes to",
                       Names(kNumRoutePolicies, RoutePolicyName), FindRoutePolicy,
                       [flags](RoutePolicy policy) { flags->route = policy; })
      ->needs(replicas);
  command->add_flag("--summary", flags->summary,
                    "a summarised record: of every request the first and the last output, of all "
                    "else histograms and sums");
  command->add_option("-o,--record", flags->record, "file for the record, for kvrm report");
  command->add_option("--goodput", flags->goodput,
                      "limits a good request keeps, like ttft:500 tpot:100 e2el:10000, in ms");
  command->add_flag("--json", flags->json, "print JSON");
  command->callback([flags, command] {
    // A key has no place in a file that is passed on.
    flags->command = CommandOf(*command, {"--api-key"});
    RunReplay(*flags);
  });
}

}  // namespace kvrm
