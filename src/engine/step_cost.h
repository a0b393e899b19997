// SPDX-License-Identifier: Apache-2.0
// StepCost: how long a step will take, learnt from the steps before it.
//
//   seconds = base + rows * r + context * c  +  prompt_tokens * p + attended * a
//             `------- what decoding costs -'   `-- what prompts in the step add --'
//
// The two groups are learnt apart: the first from steps that only decode, the second from what
// other steps took beyond it. A step of constant composition says nothing about the parts of a
// sum, so each group is a Kalman filter whose coefficients drift a little and whose uncertainty has
// a ceiling: what is not excited neither moves nor winds up.
//
// Where the first group turns out to be far too high, the second has been learnt from too little
// and begins anew.
//
// Guards: every coefficient stays above a share of its prior, so a prediction grows with each
// field of the load. One observation counts as at most half a prediction too long or too short, so
// a step that lost its core for a while moves a settled model by a few per cent. Costs that are
// convex in the number of prompt tokens (the first few ride along with the weights) are seen as the
// secant at the numbers that occur.
//
// Threading: one thread. Memory: none beyond its fields.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvrm {

// What a step computes.
struct StepLoad {
  double rows = 0;            // rows that decode, one token each
  double context = 0;         // tokens of history that these rows read
  double prompt_context = 0;  // and that prompts read, each once a step
  double prompt_tokens = 0;   // of all prompts in the step
  double attended = 0;        // positions that these tokens attend, summed

  // A chunk of `num_tokens` tokens behind `num_before` others.
  void AddPrompt(double num_before, double num_tokens) noexcept {
    prompt_context += num_before + num_tokens;
    prompt_tokens += num_tokens;
    attended += num_tokens * (num_before + num_tokens / 2);
  }
  void AddRow(double length) noexcept {
    rows += 1;
    context += length;
  }
};

class StepCost {
 public:
  StepCost() noexcept;

  // A step of this load took so long. Times of 0 and less say nothing and are dropped.
  void Observe(const StepLoad& load, double seconds) noexcept;
  // Before the first observation in a unit of its own: a step without rows takes 1.
  double Predict(const StepLoad& load) const noexcept;
  // The most tokens of a prompt, behind `num_before` others, that a step of `load` takes in within
  // `seconds`. Not above `most`; 0 when not one fits.
  std::uint32_t PromptTokensWithin(const StepLoad& load, double num_before, double seconds,
                                   std::uint32_t most) const noexcept;

 private:
  // Coefficients of one group, those that it has not being 0.
  static constexpr std::size_t kMaxTerms = 3;
  using Terms = std::array<double, kMaxTerms>;
  struct Group {
    Terms shape = {};  // the prior, but for its scale
    Terms theta = {};
    std::array<Terms, kMaxTerms> covariance = {};
    bool is_seeded = false;

    double Sum(const Terms& x) const noexcept;
    double ShapeSum(const Terms& x) const noexcept;
    void Seed(double unit) noexcept;
    // `error` in units of `total`, the prediction of the whole step.
    void Update(const Terms& x, double total, double error) noexcept;
    void Drift(double unit) noexcept;
  };

  static Terms DecodeTerms(const StepLoad& load) noexcept {
    return {1, load.rows, load.context + load.prompt_context};
  }
  static Terms PromptTerms(const StepLoad& load) noexcept {
    return {load.prompt_tokens, load.attended, 0};
  }

  Group decode_;
  Group prompt_;
};

}  // namespace kvrm
