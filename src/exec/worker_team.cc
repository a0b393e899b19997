// SPDX-License-Identifier: Apache-2.0
#include "exec/worker_team.h"

#include <string>
#include <system_error>

#include "base/check.h"
#include "base/result.h"

namespace kvrm {
namespace {

// A barrier between two idle cores takes about 100 ns; 2,000 pauses are some 20 to 80 us, longer
// than the skew between workers of one operation and short against a scheduler's time slice.
constexpr int kSpins = 2000;

// Waits until `value` differs from `old`.
void Await(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    __builtin_ia32_pause();
  }
  while (value.load(std::memory_order_acquire) == old)
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

WorkerTeam::WorkerTeam(std::uint32_t num_workers) : num_workers_(num_workers) {
  CHECK(num_workers >= 1);
  threads_.reserve(num_workers - 1);
  try {
    for (std::uint32_t worker = 1; worker < num_workers; ++worker) {
      threads_.emplace_back([this, worker] { Loop(worker); });
    }
  } catch (const std::system_error& error) {
    const std::size_t num_started = threads_.size();
    Quit();
    throw StartError("only " + std::to_string(num_started + 1) + " of " +
                     std::to_string(num_workers) + " worker threads could start: " + error.what());
  }
}

WorkerTeam::~WorkerTeam() {
  Quit();
}

void WorkerTeam::Quit() noexcept {
  quit_ = true;
  run_.fetch_add(1, std::memory_order_release);
  run_.notify_all();
  for (std::thread& thread : threads_)
    thread.join();
}

void WorkerTeam::Start(Work work, void* argument) noexcept {
  CHECK(work_ == nullptr);
  work_ = work;
  argument_ = argument;
  if (num_workers_ == 1) return;
  run_.fetch_add(1, std::memory_order_release);
  run_.notify_all();
}

void WorkerTeam::Join() noexcept {
  CHECK(work_ != nullptr);
  work_(argument_, 0);
  Barrier();
  work_ = nullptr;
}

void WorkerTeam::Barrier() noexcept {
  if (num_workers_ == 1) return;
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_workers_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  } else {
    Await(phase_, phase);
  }
}

void WorkerTeam::Loop(std::uint32_t worker) noexcept {
  std::uint32_t seen = 0;
  for (;;) {
    Await(run_, seen);
    seen = run_.load(std::memory_order_acquire);
    if (quit_) return;
    work_(argument_, worker);
    Barrier();
  }
}

}  // namespace kvrm
