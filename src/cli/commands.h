// SPDX-License-Identifier: Apache-2.0
// The subcommands of kvrm, one file each. A command registers itself and runs in its callback;
// it throws StartError for what the user can mend, which main prints in one line (exit code 2).
#pragma once

#include <CLI/CLI.hpp>

namespace kvrm {

void AddRunCommand(CLI::App& app);
void AddServeCommand(CLI::App& app);
void AddTokenizeCommands(CLI::App& app);  // tokenize and detokenize
void AddVerifyCommand(CLI::App& app);
void AddInspectCommand(CLI::App& app);
void AddLogitsCommand(CLI::App& app);
void AddPerplexityCommand(CLI::App& app);
void AddSimCommand(CLI::App& app);
void AddBenchCommand(CLI::App& app);
void AddReplayCommand(CLI::App& app);
void AddCompareCommand(CLI::App& app);
void AddReportCommand(CLI::App& app);
void AddRecordCommand(CLI::App& app);

}  // namespace kvrm
