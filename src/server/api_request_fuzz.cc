// SPDX-License-Identifier: Apache-2.0
// Any body on any route, through parsing and preparation with a model of bytes: what comes out is
// within the limits the engine was promised, and what is refused is refused with whole JSON.
//
// The first byte picks the route; the rest is the body.
#include <cstdint>
#include <string_view>
#include <variant>

#include "base/check.h"
#include "base/json.h"
#include "base/log.h"
#include "server/fakes_for_test.h"
#include "server/prepare.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kContext = 1000;
constexpr std::uint32_t kMaxRequests = 20;

void CheckPlan(const GenerationPlan& plan, const PrepareLimits& limits) {
  CHECK(!plan.prompts.empty() && plan.prompts.size() <= limits.api.max_prompts);
  CHECK(plan.prompts.size() * plan.prompts.front().request.num_samples <= kMaxRequests);
  CHECK(plan.text.stop.size() <= limits.api.max_stops);
  for (const std::string& stop : plan.text.stop)
    CHECK(!stop.empty() && stop.size() <= limits.api.max_stop_bytes);
  for (const PromptPlan& prompt : plan.prompts) {
    const Request& request = prompt.request;
    CHECK(!request.prompt.empty() && request.prompt.size() < kContext);
    CHECK(request.max_tokens >= 1 && request.prompt.size() + request.max_tokens <= kContext);
    CHECK(request.num_samples >= 1 && request.num_samples <= limits.api.max_samples);
    CHECK(request.cache_salt.size() <= kMaxClientSaltBytes);
    for (const std::int32_t id : request.prompt)
      CHECK(id >= 0 && static_cast<std::uint32_t>(id) < kFakeVocab);
    const SamplingParams& sampling = request.sampling;
    CHECK(sampling.temperature >= 0.0f && sampling.temperature <= 2.0f);
    CHECK(sampling.top_p >= 0.0f && sampling.top_p <= 1.0f);
    CHECK(sampling.min_p >= 0.0f && sampling.min_p <= 1.0f);
    CHECK(sampling.top_k >= 0);
  }
}

void FuzzOne(std::uint8_t route, std::string_view body) {
  static const ModelPort model = FakeModel();
  PrepareLimits limits;
  limits.max_context = kContext;
  limits.max_requests = kMaxRequests;
  Job job;
  job.kind = static_cast<JobKind>(route % kNumJobKinds);
  job.body = body;
  const Prepared prepared = Prepare(job, model, limits);
  if (const auto* plan = std::get_if<GenerationPlan>(&prepared.outcome)) {
    CheckPlan(*plan, limits);
  } else if (const auto* text = std::get_if<std::string>(&prepared.outcome)) {
    CHECK(ParseJson(*text, {.max_bytes = std::size_t{1} << 30}).has_value());
  } else {
    const ApiError& error = std::get<ApiError>(prepared.outcome);
    CHECK(error.status == 400 || error.status == 501);
    CHECK(ParseJson(ErrorBody(error)).has_value());
  }
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvrm::SetLogLevel(kvrm::LogLevel::kError);
  if (size == 0) return 0;
  kvrm::FuzzOne(data[0], {reinterpret_cast<const char*>(data + 1), size - 1});
  return 0;
}
