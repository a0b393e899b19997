// SPDX-License-Identifier: Apache-2.0
// What kvrm replay and kvrm compare share: a workload, a target that is no URL, one run of both.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/options.h"
#include "engine/engine.h"
#include "replay/device_profile.h"
#include "replay/router.h"
#include "replay/url_target.h"
#include "trace/generate.h"

namespace kvrm {

struct ReplayFlags {
  std::string trace;
  std::string format;
  std::uint32_t num_copies = 1;  // of the trace
  GenerateOptions generate;
  bool has_arrivals = false;
  std::uint32_t num_clients = 0;
  VictimOptions victim;
  bool victims = false;
  ShapeOptions shape;
  std::uint64_t warmup = 0;
  double stop_s = 0.0;
  std::string url;
  UrlTargetOptions target;
  std::string profile;
  std::uint32_t num_replicas = 1;
  RoutePolicy route = RoutePolicy::kLeastOutstanding;
  bool summary = false;  // a summarised record
  ModelFlags model;
  EngineOptions engine = {.max_queued = 4096};
  std::string record;
  std::vector<std::string> goodput;
  bool json = false;
  bool silent = false;  // no report of the run
  std::string command;
};

// Flags of the workload and of the engine, in process or simulated.
void AddReplayWorkloadFlags(CLI::App& command, ReplayFlags* flags);
void AddReplayEngineFlags(CLI::App& command, ReplayFlags* flags);

// As typed: "kvrm " and its name, then every option that was given but for those of `without`.
std::string CommandOf(const CLI::App& command, const std::vector<std::string>& without);

// A profile of a name or of a file. Throws StartError.
DeviceProfile LoadDeviceProfile(const std::string& name);

// The first SIGINT ends runs from now on; the second one the process.
void StopReplayOnInterrupt();
bool IsReplayStopped();

// One run, recorded. Throws StartError.
void ReplayOnModel(const ReplayFlags& flags, const Model& model);
void ReplayOnProfile(const ReplayFlags& flags, const DeviceProfile& profile);

}  // namespace kvrm
