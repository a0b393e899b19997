// SPDX-License-Identifier: Apache-2.0
// The conformance kit: does a program of fixed shape give, over KV-RM, exactly what it gives over a
// plain contiguous cache, whatever moves beneath it? docs/conformance.md says what each check means
// and what to look at when it fails.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "program.h"
#include "session.h"

namespace foreign {

// Makes a program anew, weights and all; each check takes one of its own.
using MakeProgram = std::function<std::unique_ptr<Program>()>;

struct KitOptions {
  std::uint64_t seed = 1;
  std::uint32_t num_requests = 24;  // a check
  std::uint32_t num_rounds = 3;     // of every check, each with seeds of its own
  std::string only;                 // one check by name; empty: all of them
};

enum class Outcome { kPassed, kFailed, kSkipped };

struct CheckResult {
  std::string name;
  Outcome outcome = Outcome::kPassed;
  std::string what;  // the first thing that went wrong, or why it was skipped
  SessionFigures figures;
};

// Runs the checks in the order in which they should be made to pass. Deterministic by seed.
std::vector<CheckResult> RunConformance(const MakeProgram& make, const KitOptions& options);
// Names of all checks, in that order.
std::vector<std::string> CheckNames();

}  // namespace foreign
