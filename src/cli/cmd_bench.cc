// SPDX-License-Identifier: Apache-2.0
// kvrm bench: what this machine can do at most, and how much of it the kernels and the executor do.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "bench/attention.h"
#include "bench/bench.h"
#include "bench/masks.h"
#include "bench/matmul.h"
#include "bench/peak.h"
#include "bench/pinned_threads.h"
#include "bench/sample.h"
#include "bench/steps.h"
#include "bench/victims.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "exec/worker_team.h"
#include "model/gguf.h"
#include "replay/calibrate.h"

namespace kvrm {
namespace {

struct BenchFlags {
  BenchOptions options;
  bool json = false;
};

void Write(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw StartError("cannot write standard output");
  }
}

BenchSink Sink(const BenchFlags& flags) {
  return flags.json ? JsonLines(Write) : TextTable(Write);
}

void AddCommonFlags(CLI::App& command, BenchFlags* flags) {
  command.add_option("-t,--workers", flags->options.num_workers, "worker threads; 0: all cores");
  command
      .add_option("--repetitions", flags->options.repetitions,
                  "repetitions of which the least time counts")
      ->capture_default_str();
  command.add_option("-s,--seed", flags->options.seed, "of weights and activations")
      ->capture_default_str();
  command.add_flag("--json", flags->json, "one JSON object a line (docs/benchmarking.md)");
}

void AddPeakCommand(CLI::App& bench) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = bench.add_subcommand("peak", "memory bandwidth and rates of multiply-adds");
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    WorkerTeam team(CheckBenchOptions(flags->options));
    const PinnedThreads pinned;
    ReportPeaks(MeasurePeaks({.repetitions = flags->options.repetitions},
                             BenchKernels(flags->options), team, SystemClock()),
                Sink(*flags));
  });
}

// What every other command begins with: the peaks that its lines are compared with.
Peaks ReportedPeaks(const BenchFlags& flags, WorkerTeam& team, const BenchSink& sink) {
  // Many repetitions are for what takes longer than a piece of memory or a loop.
  const Peaks peaks = MeasurePeaks({.repetitions = std::min(flags.options.repetitions, 5u)},
                                   BenchKernels(flags.options), team, SystemClock());
  ReportPeaks(peaks, sink);
  return peaks;
}

struct MatMulFlags : BenchFlags {
  std::vector<std::string> types = {"q8_0"};
  std::string shapes;
  std::string rows = "1,8,32,512";
};

void AddMatMulCommand(CLI::App& bench) {
  auto flags = std::make_shared<MatMulFlags>();
  CLI::App* command = bench.add_subcommand("matmul", "matrix products as the executor calls them");
  command->add_option("--type", flags->types, "types of the weights, with commas between them")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--shape", flags->shapes,
                      "OUTPUTSxINPUTS, with commas between them; without it those of 1.2B");
  command->add_option("--rows", flags->rows, "rows of activations")->capture_default_str();
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    MatMulBench matmul = {
        .types = {},
        .shapes = flags->shapes.empty() ? DefaultShapes() : ParseShapes("--shape", flags->shapes),
        .rows = ParseCounts("--rows", flags->rows, kMaxBenchRows)};
    for (const std::string& type : flags->types)
      matmul.types.push_back(ParseDType("--type", type));
    WorkerTeam team(CheckBenchOptions(flags->options));
    const PinnedThreads pinned;
    const BenchSink sink = Sink(*flags);
    const Peaks peaks = ReportedPeaks(*flags, team, sink);
    RunMatMulBench(matmul, flags->options, peaks, team, sink);
  });
}

struct AttentionFlags : BenchFlags {
  std::vector<std::string> types = {"f16"};
  std::string heads = "32/8x64,32/8x128,16/8x128";
  std::string rows = "1,8";
  std::string contexts = "512,4096";
};

void AddAttentionCommand(CLI::App& bench) {
  auto flags = std::make_shared<AttentionFlags>();
  CLI::App* command =
      bench.add_subcommand("attention", "one new token a row over histories of given lengths");
  command->add_option("--kv-type", flags->types, "types of the cache: f16, bf16, f32, q8_0")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--heads", flags->heads, "HEADS/KV_HEADSxHEAD_DIM, with commas between them")
      ->capture_default_str();
  command->add_option("--rows", flags->rows, "rows of a step")->capture_default_str();
  command->add_option("--context", flags->contexts, "tokens of history")->capture_default_str();
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    AttentionBench attention = {
        .types = {},
        .heads = ParseHeads("--heads", flags->heads),
        .rows = ParseCounts("--rows", flags->rows, kMaxBenchRows),
        .contexts = ParseCounts("--context", flags->contexts, kMaxBenchContext)};
    for (const std::string& type : flags->types)
      attention.types.push_back(ParseKvType("--kv-type", type));
    WorkerTeam team(CheckBenchOptions(flags->options));
    const PinnedThreads pinned;
    const BenchSink sink = Sink(*flags);
    const Peaks peaks = ReportedPeaks(*flags, team, sink);
    RunAttentionBench(attention, flags->options, peaks, team, sink);
  });
}

struct StepsFlags : BenchFlags {
  ModelFlags model;
  std::string kv_type = "f16";
  std::string rows = "1,8";
  std::string contexts = "128,1024";
  std::string mixed;
  std::string tokens = "512,2048";
  std::uint32_t chunk = EngineOptions{}.max_step_tokens;
};

void RunSteps(const StepsFlags& flags, StepsBench steps) {
  steps.kv_type = ParseKvType("--kv-type", flags.kv_type);
  const std::uint32_t num_workers = CheckBenchOptions(flags.options);
  // What reads the file's layout in place must not find the dummy's shared pages in its cache.
  const CpuKernels& kernels = BenchKernels(flags.options);
  const bool in_place = kernels.mat[static_cast<int>(DType::kQ8_0)].packed_bytes == nullptr;
  const LoadedModel loaded(flags.model, {.seed = flags.options.seed, .distinct = in_place});
  CheckStepsBench(steps, loaded.model());
  const BenchSink sink = Sink(flags);
  Peaks peaks;
  {
    // Gone before the executor has threads of its own.
    WorkerTeam team(num_workers);
    const PinnedThreads pinned;
    peaks = ReportedPeaks(flags, team, sink);
  }
  RunStepsBench(steps, flags.options, loaded.model(), peaks, sink);
}

void AddStepsFlags(CLI::App& command, StepsFlags* flags) {
  AddModelFlags(command, &flags->model);
  command.add_option("--kv-type", flags->kv_type, "type of the cache: f16, bf16, f32, q8_0")
      ->capture_default_str();
  AddCommonFlags(command, flags);
}

void AddDecodeCommand(CLI::App& bench) {
  auto flags = std::make_shared<StepsFlags>();
  CLI::App* command = bench.add_subcommand("decode", "whole decode steps of the executor");
  command->add_option("--rows", flags->rows, "rows of a step")->capture_default_str();
  command->add_option("--context", flags->contexts, "tokens of history of every row")
      ->capture_default_str();
  command->add_option("--mixed", flags->mixed,
                      "one more step, whose rows have these contexts, like 64,64,300,4000");
  AddStepsFlags(*command, flags.get());
  command->callback([flags] {
    const std::vector<std::uint32_t> mixed =
        flags->mixed.empty() ? std::vector<std::uint32_t>()
                             : ParseCounts("--mixed", flags->mixed, kMaxBenchContext);
    RunSteps(*flags, {.decode = DecodeCases(
                          ParseCounts("--rows", flags->rows, kMaxStepRows),
                          ParseCounts("--context", flags->contexts, kMaxBenchContext), mixed)});
  });
}

void AddPrefillCommand(CLI::App& bench) {
  auto flags = std::make_shared<StepsFlags>();
  CLI::App* command = bench.add_subcommand("prefill", "a prompt in chunks, as the engine cuts it");
  command->add_option("--tokens", flags->tokens, "lengths of the prompt")->capture_default_str();
  command->add_option("--chunk", flags->chunk, "tokens that one step takes")
      ->check(CLI::Range(1u, kMaxBenchRows))
      ->capture_default_str();
  AddStepsFlags(*command, flags.get());
  command->callback([flags] {
    RunSteps(*flags, {.prompts = ParseCounts("--tokens", flags->tokens, kMaxBenchContext),
                      .chunk = flags->chunk});
  });
}

struct SampleFlags : BenchFlags {
  std::string vocabs = "49152,151936";
  std::string rows = "1,8,64";
};

void AddSampleCommand(CLI::App& bench) {
  auto flags = std::make_shared<SampleFlags>();
  CLI::App* command = bench.add_subcommand("sample", "logits to tokens on the engine's thread");
  command->add_option("--vocab", flags->vocabs, "tokens of the vocabulary")->capture_default_str();
  command->add_option("--rows", flags->rows, "rows, one after the other")->capture_default_str();
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    const SampleBench sample = {.vocabs = ParseCounts("--vocab", flags->vocabs, kMaxBenchVocab),
                                .rows = ParseCounts("--rows", flags->rows, kMaxBenchRows)};
    const PinnedThreads pinned;
    RunSampleBench(sample, flags->options, Sink(*flags));
  });
}

struct VictimsFlags : BenchFlags {
  ModelFlags model;
  VictimsBench victims;
};

void AddVictimsCommand(CLI::App& bench) {
  auto flags = std::make_shared<VictimsFlags>();
  CLI::App* command =
      bench.add_subcommand("victims", "gaps between tokens of streams that others disturb");
  VictimsBench& victims = flags->victims;
  command
      ->add_option("--budget", victims.budgets,
                   "of a step: pace, or numbers of tokens, with commas between them")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--disturbance", victims.disturbances,
                   "prompt, burst, oversubscribed, with commas between them")
      ->delimiter(',')
      ->capture_default_str();
  const auto count = [command](const char* name, std::uint32_t& value, const char* text) {
    command->add_option(name, value, text)->check(CLI::Range(1, 65536))->capture_default_str();
  };
  count("--streams", victims.streams, "streams that decode all the time");
  count("--quiet-tokens", victims.quiet_tokens, "of each before the disturbance");
  count("--disturbed-tokens", victims.disturbed_tokens, "of each after its begin, at most");
  count("--long-prompt", victims.long_prompt, "tokens of the prompt that arrives");
  count("--burst", victims.burst, "requests that arrive at once");
  count("--burst-prompt", victims.burst_prompt, "tokens of the prompt of each of them");
  count("--burst-output", victims.burst_output, "tokens that each of them asks for");
  AddPaceFlags(*command, &victims.pace);
  command->add_flag("--processor-time", victims.processor_time,
                    "of the one worker, instead of real time: what others take does not count");
  AddModelFlags(*command, &flags->model);
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    const LoadedModel loaded(flags->model, {.seed = flags->options.seed});
    RunVictimsBench(flags->victims, flags->options, loaded.model(), Sink(*flags));
  });
}

struct ProfileFlags {
  ModelFlags model;
  EngineOptions engine;
  CalibrateOptions calibrate;
};

void RunProfile(const ProfileFlags& flags) {
  const SystemClock clock;
  const LoadedModel loaded(flags.model);
  const Model& model = loaded.model();
  HostDevice device;
  const EngineOptions& engine = flags.engine;
  const EngineParts parts = HostParts(model, device,
                                      {.num_threads = engine.num_threads,
                                       .kernels = engine.kernels,
                                       .kv_dtype = engine.kv_dtype,
                                       .progress = ShowLoading()});
  const std::vector<StepCell> cells = MeasureSteps(flags.calibrate, parts, engine, clock);
  const std::string name = flags.model.dummy.empty() ? model.config().name : flags.model.dummy;
  const DeviceProfile profile = FitProfile(
      cells, {.name = name,
              .move_byte_ns = MeasureMoveByteNs(clock),
              .kv_token_bytes = static_cast<std::uint32_t>(parts.layout.token_bytes()) / 8 * 8,
              .max_context = std::max(parts.max_context, 64u)});
  for (const StepCell& cell : cells) {
    std::fprintf(stderr, "%5.0f rows %5.0f tokens %9.0f KiB attended: %9.3f ms, fitted %+5.1f %%\n",
                 cell.rows, cell.tokens, cell.attended_bytes / 1024, cell.ns * 1e-6,
                 100.0 * (PredictNs(profile, cell) / cell.ns - 1.0));
  }
  Write(DeviceProfileJson(profile));
}

void AddProfileCommand(CLI::App& bench) {
  auto flags = std::make_shared<ProfileFlags>();
  CLI::App* command = bench.add_subcommand(
      "profile", "what a step of the engine costs: a device profile for kvrm replay --profile");
  CalibrateOptions& calibrate = flags->calibrate;
  command->add_option("--rows", calibrate.rows, "rows that decode, with commas between them")
      ->delimiter(',')
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  command->add_option("--context", calibrate.contexts, "tokens of history of every row")
      ->delimiter(',')
      ->check(CLI::Range(1u, kMaxBenchContext))
      ->capture_default_str();
  const auto count = [command](const char* flag, std::uint32_t& value, const char* text) {
    command->add_option(flag, value, text)
        ->check(CLI::Range(2u, kMaxBenchContext))
        ->capture_default_str();
  };
  count("--decode-steps", calibrate.decode_steps, "of each pair of them");
  count("--repetitions", calibrate.repetitions, "of each prompt");
  count("--longest-prompt", calibrate.longest_prompt, "tokens");
  count("-b,--batch-size,--max-num-batched-tokens", calibrate.max_step_tokens,
        "tokens of one step");
  command->add_option("-s,--seed", calibrate.seed, "of prompts")->capture_default_str();
  command->add_option("-t,--threads", flags->engine.num_threads, "worker threads; 0: all cores");
  AddModelFlags(*command, &flags->model);
  command->callback([flags] { RunProfile(*flags); });
}

struct MaskFlags : BenchFlags {
  std::string model;
};

void AddMaskCommand(CLI::App& bench) {
  auto flags = std::make_shared<MaskFlags>();
  CLI::App* command = bench.add_subcommand("masks", "which tokens a grammar allows, per token");
  command->add_option("-m,--model", flags->model,
                      "GGUF file whose vocabulary is taken; without it the demo model's");
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    if (flags->model.empty()) {
      const Model demo = LoadModel("");
      return RunMaskBench(demo.tokenizer(), flags->options, Sink(*flags));
    }
    const GgufFile file = OrThrow(GgufFile::Open(flags->model));
    RunMaskBench(OrThrow(Tokenizer::FromGguf(file)), flags->options, Sink(*flags));
  });
}

}  // namespace

void AddBenchCommand(CLI::App& app) {
  CLI::App* bench = app.add_subcommand(
      "bench", "bytes, GB/s, GMAC/s and their share of the peak measured in the same run");
  bench->require_subcommand(1);
  AddPeakCommand(*bench);
  AddMatMulCommand(*bench);
  AddAttentionCommand(*bench);
  AddDecodeCommand(*bench);
  AddPrefillCommand(*bench);
  AddSampleCommand(*bench);
  AddVictimsCommand(*bench);
  AddMaskCommand(*bench);
  AddProfileCommand(*bench);
}

}  // namespace kvrm
