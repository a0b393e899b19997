// SPDX-License-Identifier: Apache-2.0
#include "engine/step_pace.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvrm {
namespace {

// While nobody is used to anything, prompts come first: those that arrive together at an idle
// engine would otherwise wait for one another's streams.
constexpr double kColdFactor = 4;
// What kFewRows rows without a history take: up to which itl_factor alone counts, and from which on
// a step may take all of easy_step_seconds. In between it is a line.
constexpr double kQuickSeconds = 0.010;
constexpr double kSlowSeconds = 0.016;
constexpr double kFewRows = 4;
// Of its time: a quiet step that was predicted so well.
constexpr double kKnown = 0.25;

}  // namespace

void StepPace::Observe(const StepLoad& load, double seconds, double now_s) noexcept {
  const double predicted = cost_.Predict(load);
  cost_.Observe(load, seconds);
  ++num_steps_;
  if (load.rows <= 0) return;
  if (load.prompt_tokens <= 0) {
    const bool is_known = std::abs(predicted - seconds) <= kKnown * seconds;
    quiet_due_ = is_known ? kQuietEverySteps : kQuietSoonSteps;
  } else if (quiet_due_ > 0) {
    --quiet_due_;
  }
  if (now_s - last_decoded_s_ > kIdleSeconds) num_usual_ = 0;
  last_decoded_s_ = now_s;
  if (num_usual_ < kColdSteps) {
    // Company is not rationed yet: what comes in now is what streams are used to.
    usual_.rows = num_usual_ == 0 ? load.rows : std::max(usual_.rows, load.rows);
    usual_.context = num_usual_ == 0 ? load.context : std::max(usual_.context, load.context);
    if (++num_usual_ == kColdSteps) cold_end_ = num_steps_;
  } else {
    usual_.rows += (load.rows - usual_.rows) / kMemorySteps;
    usual_.context += (load.context - usual_.context) / kMemorySteps;
  }
  // Streams grow by a token a step; where others end and begin, what there is does not.
  usual_.context = std::min(usual_.context + usual_.rows, std::max(usual_.context, load.context));
  const auto tokens = static_cast<std::uint32_t>(load.prompt_tokens);
  trusted_tokens_ = std::max(trusted_tokens_, 2 * tokens);
}

double StepPace::QuietSeconds() const noexcept {
  // Few rows are always let in, so they are never more than what is usual.
  StepLoad quiet = usual_;
  const double few = options_.free_rows;
  if (quiet.rows < few) {
    quiet.context *= few / std::max(quiet.rows, 1.0);
    quiet.rows = few;
  }
  return cost_.Predict(quiet);
}

// By the model and not by the quiet step: a small model's is as long as a large one's once it has
// many rows or long histories, and its streams would feel a prompt all the more.
double StepPace::EasySeconds() const noexcept {
  StepLoad few;
  few.rows = kFewRows;
  const double seconds = cost_.Predict(few);
  const double slow = (seconds - kQuickSeconds) / (kSlowSeconds - kQuickSeconds);
  return options_.easy_step_seconds * std::clamp(slow, 0.0, 1.0);
}

double StepPace::Bound(const StepLoad& load) const noexcept {
  if (load.rows <= 0 || !is_on()) return std::numeric_limits<double>::infinity();
  if (options_.max_step_seconds > 0) return options_.max_step_seconds;
  const double quiet = QuietSeconds();
  const double easy = EasySeconds();
  const double bound = std::max(options_.itl_factor * quiet, easy);
  if (num_usual_ >= kColdSteps) return bound;
  StepLoad present;
  present.rows = load.rows;
  present.context = load.context;
  const double cold = kColdFactor * std::max(quiet, cost_.Predict(present));
  return std::max(bound, easy > 0 ? std::min(cold, options_.easy_step_seconds) : cold);
}

std::uint32_t StepPace::PromptTokens(const StepLoad& load, std::uint32_t num_before,
                                     std::uint32_t most, bool shared) const noexcept {
  if (load.rows <= 0 || !is_on()) return most;
  if (load.prompt_tokens <= 0 && quiet_due_ == 0) return 0;
  double seconds = Bound(load);
  if (shared) {
    const double present = cost_.Predict(load);
    seconds = present + std::max(seconds - present, 0.0) / 2;
  }
  const std::uint32_t fits =
      std::min(cost_.PromptTokensWithin(load, num_before, seconds, most), trusted_tokens_);
  // The first prompt of a step goes on whatever it costs.
  if (load.prompt_tokens > 0) return fits;
  return std::max(fits, std::min(most, options_.min_prompt_tokens));
}

bool StepPace::MayJoin(const StepLoad& running, double length, const Wait& wait) noexcept {
  const double free_rows = std::max(options_.free_rows, 1u);
  if (!is_on() || running.rows < free_rows || num_usual_ < kColdSteps) return true;
  StepLoad joined = running;
  joined.AddRow(length);
  if (num_steps_ >= wait.steps && num_steps_ - wait.steps <= cold_end_) {
    usual_.rows = std::max(usual_.rows, joined.rows);
    usual_.context = std::max(usual_.context, joined.context);
    return true;
  }
  const double quiet = QuietSeconds();
  const double limit = options_.max_step_seconds > 0
                           ? options_.max_step_seconds * 0.8
                           : (quiet + std::max(options_.itl_factor * quiet, EasySeconds())) / 2;
  if (cost_.Predict(joined) <= limit) return true;
  if (wait.steps < kJoinWaitSteps && wait.seconds < kJoinWaitSeconds) return false;
  if (num_steps_ - last_joined_ < kJoinEverySteps) return false;
  last_joined_ = num_steps_;
  return true;
}

}  // namespace kvrm
