// SPDX-License-Identifier: Apache-2.0
#include "replay/engine_target.h"

#include <time.h>

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "base/result.h"
#include "replay/engine_client.h"

namespace kvrm {
namespace {

constexpr std::int64_t kMaxSleepNs = 20'000'000;

}  // namespace

void SleepUntil(std::int64_t now_ns, std::int64_t until_ns) {
  const std::int64_t wait_ns = std::min(until_ns - now_ns, kMaxSleepNs);
  if (wait_ns <= 0) return;
  const timespec wait{.tv_sec = 0, .tv_nsec = wait_ns};
  ::nanosleep(&wait, nullptr);
}

EngineTarget::EngineTarget(Engine& engine, const StepProbe& probe, const Clock& clock,
                           const EngineTargetOptions& options)
    : engine_(engine), probe_(probe), clock_(clock), options_(options) {
  CHECK(options.wait != nullptr);
}

void EngineTarget::Run(ReplayRun& run) {
  EngineClient client(engine_, probe_, clock_, run,
                      {.vocab = options_.vocab, .bytes_scale = options_.bytes_scale});
  std::uint32_t patience = kPatience;
  while (!run.done()) {
    while (const std::optional<std::size_t> request = run.TakeDue(client.NowNs()))
      client.Submit(*request);
    if (run.ShouldCancel(client.NowNs())) client.CancelAll();
    const bool worked = client.Step();
    const bool heard = client.Poll();
    run.ShowProgress(client.NowNs());
    if (run.done()) return;
    const bool idle = client.num_running() == 0;
    patience = worked || heard || idle ? kPatience : patience - 1;
    if (patience == 0) throw StartError("the engine makes no progress with requests waiting");
    if (!worked && !heard && idle) options_.wait(client.NowNs(), run.NextDue());
  }
}

}  // namespace kvrm
