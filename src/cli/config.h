// SPDX-License-Identifier: Apache-2.0
// Flags from the environment and from a file: the command line wins over KVRM_ARG_<FLAG>, which
// wins over the file that --config or KVRM_ARG_CONFIG names.
//
// KVRM_ARG_MAX_NUM_SEQS=8 is --max-num-seqs 8; every spelling of a flag has its variable. A list
// is separated by commas. A variable of that prefix that is no flag is refused: what one meant to
// set, a key above all, would silently be missing.
//
// The file has one `flag = value` a line, after TOML: "quoted", 'quoted' or bare values, [lists] of
// them in one line, true and false, # comments. Errors name the line and the flag.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace kvrm {

// Adds --config, and has both sources read once the command line has been. Call it when every other
// flag of the command has been added. What is wrong with them throws StartError.
void AddConfigSources(CLI::App& command);

}  // namespace kvrm
