// SPDX-License-Identifier: Apache-2.0
// StepPace: how much a step may take in beside the rows that decode, so that their inter-token
// latency stays flat.
//
// The reference is the quiet step: a step that only decodes the load that streams are used to, at
// what such a step costs now. That load, rows and their history, begins as the most of the first
// kColdSteps steps with decoding rows and then follows slowly, by 1 / kMemorySteps of the
// difference a step. (Of loads, not of times: a machine that others slow down shifts both sides
// alike. And a history grows by what its own stream writes.)
//
//   PromptTokens   a step with decoding rows takes prompt tokens as far as its predicted time stays
//                  within itl_factor quiet steps; at least min_prompt_tokens, so prompts go on
//   MayJoin        a sequence is taken in as long as decoding it with all the others would stay
//                  within the half of that: (1 + itl_factor) / 2 quiet steps
//
// Where the model itself is slow, so that four rows without a history take 16 ms or more, a step
// may take easy_step_seconds if that is longer, and half of what that leaves for newcomers: a
// prompt of 128 tokens would otherwise wait for seconds, and a reader has 11 tokens a second. By
// the model and not by the quiet step, which a small model's long histories make as long.
//
// So streams that have run for a while slow down by at most itl_factor while their company grows,
// and what they are used to grows with it, by (itl_factor - 1) / 2 in kMemorySteps. Company is not
// rationed while there are few rows, for who came before the end of the first kColdSteps steps
// after nobody streamed (they make up what streams are used to), and for who has waited
// kJoinWaitSteps steps or kJoinWaitSeconds: one of these in kJoinEverySteps.
//
// What a quiet step takes cannot be learnt from steps with prompts: where every step has some, what
// is its own and what is theirs are one sum, and a prompt that is thought dear gets the minimum for
// ever. So after kQuietEverySteps of those prompts sit one step out; at the very start, and after
// kQuietSoonSteps where the last quiet step was predicted badly.
//
// Time is counted in steps, for that is what streams are made of: ten thousand tokens are three
// seconds of the demo model's and a quarter of an hour of a large one's.
//
// Neither decides what a token is, only when it comes.
// Threading: one thread. Memory: none beyond its fields.
#pragma once

#include <cstdint>

#include "engine/step_cost.h"

namespace kvrm {

struct StepPaceOptions {
  double itl_factor = 1.5;          // at least 1; 0: no limit but max_step_tokens
  double easy_step_seconds = 0.09;  // as above; 0: itl_factor alone counts
  double max_step_seconds = 0;      // not 0: instead of all that
  std::uint32_t free_rows = 4;      // so many may always run; one may in any case
  std::uint32_t min_prompt_tokens = 4;
};

class StepPace {
 public:
  static constexpr std::uint32_t kMemorySteps = 2000;
  static constexpr std::uint32_t kColdSteps = 64;
  static constexpr double kIdleSeconds = 2;  // without decoding, and what was usual is forgotten
  static constexpr std::uint64_t kJoinWaitSteps = 500;
  static constexpr double kJoinWaitSeconds = 10;
  static constexpr std::uint64_t kJoinEverySteps = 50;

  static constexpr std::uint32_t kQuietEverySteps = 64;
  static constexpr std::uint32_t kQuietSoonSteps = 8;

  // How long a sequence has waited.
  struct Wait {
    std::uint64_t steps = 0;
    double seconds = 0;
  };

  explicit StepPace(const StepPaceOptions& options) noexcept : options_(options) {}

  // A step has ended at `now_s`; it has taken `seconds`.
  void Observe(const StepLoad& load, double seconds, double now_s) noexcept;
  // Tokens of a prompt, `num_before` of whose are computed, for a step that has `load` already; of
  // `most`, and not more than half the step's room where another prompt waits (`shared`). 0 where
  // the step's room is used up, or the quiet step is to be measured.
  std::uint32_t PromptTokens(const StepLoad& load, std::uint32_t num_before, std::uint32_t most,
                             bool shared) const noexcept;
  // Whether one more sequence of `length` tokens may run beside those that do; `running` counts
  // them all as decoding. One that may for having waited counts as taken in.
  bool MayJoin(const StepLoad& running, double length, const Wait& wait) noexcept;
  // Steps observed. A wait is a difference of two of them.
  std::uint64_t num_steps() const noexcept { return num_steps_; }

  // Most seconds of a step with these rows; infinite without any.
  double Bound(const StepLoad& load) const noexcept;
  // Of the quiet step.
  double QuietSeconds() const noexcept;
  const StepCost& cost() const noexcept { return cost_; }

 private:
  double EasySeconds() const noexcept;  // 0: this model is not slow
  bool is_on() const noexcept { return options_.itl_factor > 0 || options_.max_step_seconds > 0; }

  const StepPaceOptions options_;
  StepCost cost_;
  StepLoad usual_;               // rows and context
  std::uint32_t num_usual_ = 0;  // steps with decoding rows, at most kColdSteps
  std::uint32_t quiet_due_ = 0;  // so many steps of both until one only decodes
  std::uint64_t cold_end_ = 0;   // step in which num_usual_ got there
  double last_decoded_s_ = 0;
  std::uint64_t num_steps_ = 0;
  std::uint64_t last_joined_ = 0;     // step in which one came in for having waited
  std::uint32_t trusted_tokens_ = 4;  // twice the most prompt tokens seen beside decoding rows
};

}  // namespace kvrm
