// SPDX-License-Identifier: Apache-2.0
// The flags of kvrm serve, with the spellings of llama-server and vLLM, and the options they make.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "base/log.h"
#include "cli/options.h"
#include "engine/engine.h"
#include "server/api.h"

namespace kvrm {

struct ServeFlags {
  ModelFlags model;
  std::string alias;
  std::string api_key_file;
  std::string record_trace;  // a file; empty: none
  bool public_without_key = false;
  std::uint32_t drain_seconds = 30;
  bool verbose = false;
  bool no_access_log = false;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
  EngineOptions engine;
  ServerOptions server;  // api_keys of --api-key only
};

void AddServeFlags(CLI::App& command, ServeFlags* flags);

// Sets the level and the format of the log.
void ApplyLogFlags(const ServeFlags& flags);

// With the keys of both sources. Throws StartError, also for an address beyond this machine without
// a key.
ServerOptions ServerOptionsOf(const ServeFlags& flags);

}  // namespace kvrm
