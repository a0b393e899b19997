// SPDX-License-Identifier: Apache-2.0
// What follows from the options of an engine: what was left open filled in, and the limits of its
// parts. Thread-safe: functions of their arguments and of the machine's memory.
#pragma once

#include <cstdint>

#include "engine/engine.h"
#include "engine/outbox.h"
#include "engine/parts.h"
#include "engine/step_loop.h"

namespace kvrm {

// Prompt positions whose logits one step computes, beside those of its rows: each costs a pass over
// the output matrix's activations, and room for a vocabulary of logits.
inline constexpr std::uint32_t kPromptSamples = 16;

// Checked and complete. Throws StartError with the number that is wrong and its limit.
EngineOptions ResolvedOptions(EngineOptions options, const EngineParts& parts);

// What follows takes resolved options.

// Free tokens that newcomers leave. 5 % of the pool: with it the median run stays at 16 blocks and
// more in a pool that is 90 % full, without it at 8 (docs/decisions/0013-allocation-policy.md). A
// static view has a place for everyone.
std::uint32_t HeadroomTokens(const EngineOptions& options);

// `layout` is the executor's.
StepLoopOptions LoopOptions(const EngineOptions& options, KvLayout layout, bool only_reserve);

// A step makes at most one event for each row, and one for each sample that is forked off; where
// rows end, more of these find room than there were rows left. Commands take what room is left, and
// Stop ends everything at once.
OutboxLimits OutboxLimitsOf(const EngineOptions& options);

}  // namespace kvrm
