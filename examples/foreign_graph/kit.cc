// SPDX-License-Identifier: Apache-2.0
#include "kit.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>

#include "random.h"

namespace foreign {
namespace {

using kvrm::KvView;
using kvrm::PlacementPolicy;

// A check is a way of serving and the proof that what it is about did happen.
struct Check {
  const char* name;
  SessionOptions options;
  // Empty, or which figure says that the check checked nothing.
  std::string (*proof)(const SessionFigures&);
};

std::string Unless(bool happened, const char* what) {
  return happened ? "" : std::string(what) + ": the check has checked nothing";
}

std::vector<Check> AllChecks() {
  return {
      {"static",
       {.view = KvView::kStatic, .depth = 2, .sit_out_percent = 30},
       [](const SessionFigures& f) {
         return Unless(f.kv.num_groups == 0, "the static view has copied");
       }},
      {"windows",
       {.sit_out_percent = 30},
       [](const SessionFigures& f) {
         return Unless(f.kv.num_staged_bytes == 0, "steady state has copied");
       }},
      {"prefix",
       {.prefix_cache = true},
       [](const SessionFigures& f) {
         return Unless(f.kv.num_prefix_hits > 0 && f.kv.num_staged_bytes > 0, "no prefix was hit");
       }},
      {"fork",
       {.fork_percent = 40},
       [](const SessionFigures& f) {
         return Unless(f.num_forks > 0 && f.kv.num_cow_blocks > 0, "no fork has copied on write");
       }},
      {"rejected",
       {.num_drafts = 4},
       [](const SessionFigures& f) { return Unless(f.num_rejected > 0, "no draft was rejected"); }},
      {"preempted",
       {.pool_percent = 30, .prefix_cache = true},
       [](const SessionFigures& f) {
         return Unless(f.num_preemptions > 0, "nothing was preempted");
       }},
      {"parked",
       {.pool_percent = 30, .host_percent = 200, .depth = 2, .fork_percent = 10},
       [](const SessionFigures& f) {
         return Unless(f.kv.num_parked_blocks > 0 && f.kv.num_resumed_blocks > 0,
                       "nothing was parked and came back");
       }},
      {"gathered",
       {.view = KvView::kStagedLayers,
        .placement = PlacementPolicy::kScattered,
        .pool_percent = 75,
        .max_runs = 3,
        .prefix_cache = true,
        .sit_out_percent = 10},
       [](const SessionFigures& f) {
         return Unless(f.kv.num_moved_blocks > 0, "no history was moved together");
       }},
      {"everything",
       {.placement = PlacementPolicy::kScattered,
        .pool_percent = 35,
        .max_move_blocks = 2,
        .prefix_cache = true,
        .depth = 2,
        .sit_out_percent = 20,
        .num_drafts = 3,
        .fork_percent = 20,
        .abandon_percent = 5},
       [](const SessionFigures& f) {
         return Unless(f.kv.num_waits > 0 && f.num_preemptions > 0 && f.num_forks > 0,
                       "no row waited, was preempted or forked");
       }},
      {"mapped",
       {.view = KvView::kMapped,
        .placement = PlacementPolicy::kScattered,
        .pool_percent = 75,
        .prefix_cache = true,
        .sit_out_percent = 20,
        .num_drafts = 3,
        .fork_percent = 20},
       [](const SessionFigures& f) { return Unless(f.kv.num_maps > 0, "nothing was mapped"); }},
  };
}

// Prompts of two families with a common beginning, and some of their own.
std::vector<Request> MakeRequests(const Shape& shape, std::uint32_t count, std::uint64_t seed) {
  Random random(seed);
  const auto token = [&] { return static_cast<std::int32_t>(1 + random.Below(shape.vocab - 1)); };
  std::vector<std::int32_t> families[2];
  for (std::vector<std::int32_t>& family : families) {
    for (std::uint32_t i = 0; i < shape.window_tokens / 2; ++i)
      family.push_back(token());
  }
  std::vector<Request> requests;
  std::uint32_t arrival = 0;
  for (std::uint32_t id = 0; id < count; ++id) {
    Request request = {.id = id, .arrival = arrival, .prompt = {}, .max_new = 0, .seed = 0};
    const std::uint32_t kind = random.Below(3);
    if (kind < 2) {
      const std::uint32_t shared = random.Below(shape.window_tokens / 2);
      request.prompt.assign(families[kind].begin(), families[kind].begin() + shared);
    }
    for (std::uint32_t i = 1 + random.Below(shape.window_tokens / 8); i > 0; --i)
      request.prompt.push_back(token());
    const auto room = shape.window_tokens - static_cast<std::uint32_t>(request.prompt.size());
    request.max_new = 1 + random.Below(std::min(room, 48u));
    request.seed = random.Next();
    requests.push_back(std::move(request));
    arrival += random.Below(6);
  }
  return requests;
}

bool SameTrace(const Trace& a, const Trace& b) {
  if (a.tokens != b.tokens || a.logits.size() != b.logits.size()) return false;
  for (std::size_t i = 0; i < a.logits.size(); ++i) {
    const std::size_t bytes = a.logits[i].size() * sizeof(float);
    if (std::memcmp(a.logits[i].data(), b.logits[i].data(), bytes) != 0) return false;
  }
  return true;
}

// What the program must be before anything lies beneath it: contract a of Program::Run.
std::string CheckAlone(Program& program, const KitOptions& options, std::uint64_t seed) {
  const Shape shape = program.shape();
  Reference reference(program);
  for (const Request& request : MakeRequests(shape, options.num_requests / 4 + 1, seed)) {
    const Trace trace = reference.Run(request);
    const std::string who = "request " + std::to_string(request.id) + ": ";
    if (!SameTrace(trace, reference.Run(request))) return who + "two equal runs differ";
    const struct {
      const char* what;
      Feeding feeding;
    } ways[] = {{"another lane", {.lane = shape.lanes - 1}},
                {"the prompt in chunks, on the larger graph", {.chunk = shape.step_tokens}},
                {"chunks of 3", {.chunk = 3}},
                {"busy lanes beside it", {.company = true}},
                {"busy lanes beside it and chunks", {.chunk = shape.step_tokens, .company = true}}};
    for (const auto& way : ways) {
      if (!SameTrace(trace, reference.Run(request, way.feeding)))
        return who + "the result differs with " + way.what;
    }
  }
  return "";
}

std::string CheckShape(const Shape& shape) {
  if (shape.lanes < 2 || shape.step_tokens < 4 || shape.vocab < 2)
    return "the kit needs 2 lanes, 4 tokens a step and 2 words at least";
  if (shape.window_tokens % 16 != 0 || shape.window_tokens < 64)
    return "window_tokens must be a multiple of 16, 64 at least";
  if (shape.record_bytes == 0 || shape.record_bytes % 8 != 0)
    return "record_bytes must be a multiple of 8";
  return "";
}

// What the proofs and the table look at, over all rounds.
void AddFigures(const SessionFigures& round, SessionFigures* sum) {
  sum->num_steps += round.num_steps;
  sum->num_tokens += round.num_tokens;
  sum->num_compared += round.num_compared;
  sum->num_forks += round.num_forks;
  sum->num_rejected += round.num_rejected;
  sum->num_preemptions += round.num_preemptions;
  sum->kv.num_groups += round.kv.num_groups;
  sum->kv.num_moved_blocks += round.kv.num_moved_blocks;
  sum->kv.num_staged_bytes += round.kv.num_staged_bytes;
  sum->kv.num_cow_blocks += round.kv.num_cow_blocks;
  sum->kv.num_prefix_hits += round.kv.num_prefix_hits;
  sum->kv.num_waits += round.kv.num_waits;
  sum->kv.num_maps += round.kv.num_maps;
  sum->kv.num_parked_blocks += round.kv.num_parked_blocks;
  sum->kv.num_resumed_blocks += round.kv.num_resumed_blocks;
}

void RunOnce(const MakeProgram& make, const KitOptions& options, const Check* check,
             std::uint64_t seed, CheckResult* result) {
  const std::unique_ptr<Program> program = make();
  result->what = CheckShape(program->shape());
  if (!result->what.empty()) return;
  if (check == nullptr) {
    result->what = CheckAlone(*program, options, seed);
    return;
  }
  SessionOptions session_options = check->options;
  session_options.seed = seed;
  Session session(*program, session_options);
  result->what = session.Serve(MakeRequests(program->shape(), options.num_requests, seed));
  AddFigures(session.figures(), &result->figures);
}

// `check` null: the program without KV-RM.
CheckResult RunRounds(const MakeProgram& make, const KitOptions& options, const Check* check) {
  CheckResult result;
  result.name = check == nullptr ? "alone" : check->name;
  if (check != nullptr && check->options.view == KvView::kMapped && !make()->offers_mapping()) {
    result.outcome = Outcome::kSkipped;
    result.what = "the device offers no mapping";
    return result;
  }
  for (std::uint32_t round = 0; round < options.num_rounds; ++round) {
    const std::uint64_t seed = options.seed + round;
    try {
      RunOnce(make, options, check, seed, &result);
    } catch (const std::exception& error) {
      result.what = error.what();
    }
    if (result.what.empty()) continue;
    result.outcome = Outcome::kFailed;
    result.what += " (--seed " + std::to_string(seed) + ")";
    return result;
  }
  if (check == nullptr) return result;
  result.what = check->proof(result.figures);
  if (!result.what.empty()) result.outcome = Outcome::kFailed;
  return result;
}

}  // namespace

std::vector<CheckResult> RunConformance(const MakeProgram& make, const KitOptions& options) {
  std::vector<CheckResult> results;
  if (options.only.empty() || options.only == "alone")
    results.push_back(RunRounds(make, options, nullptr));
  for (const Check& check : AllChecks()) {
    if (options.only.empty() || options.only == check.name)
      results.push_back(RunRounds(make, options, &check));
  }
  return results;
}

std::vector<std::string> CheckNames() {
  std::vector<std::string> names = {"alone"};
  for (const Check& check : AllChecks())
    names.push_back(check.name);
  return names;
}

}  // namespace foreign
