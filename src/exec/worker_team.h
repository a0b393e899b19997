// SPDX-License-Identifier: Apache-2.0
// WorkerTeam: persistent threads that run one function together, again and again.
//
// The calling thread is worker 0. Between runs and at barriers a worker spins briefly and then
// sleeps on a futex, so a busy neighbour on the core costs its share of time and no more.
//
// Threading: Start and Join from one thread. Barrier only from inside the running function, by all
// workers alike. Memory: nothing is allocated after construction.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace kvrm {

class WorkerTeam {
 public:
  // A plain function pointer, so that starting a run cannot allocate.
  using Work = void (*)(void* argument, std::uint32_t worker);

  // `num_workers` in all, the caller included. At least 1. Throws StartError when the system gives
  // fewer threads.
  explicit WorkerTeam(std::uint32_t num_workers);
  ~WorkerTeam();
  WorkerTeam(const WorkerTeam&) = delete;
  WorkerTeam& operator=(const WorkerTeam&) = delete;

  std::uint32_t num_workers() const noexcept { return num_workers_; }

  // Releases the other workers into `work`. Requires: no run in progress.
  void Start(Work work, void* argument) noexcept;
  // Runs worker 0's part, returns when all are done.
  void Join() noexcept;
  // All workers have arrived, and what they wrote is visible to all.
  void Barrier() noexcept;

 private:
  void Loop(std::uint32_t worker) noexcept;
  void Quit() noexcept;

  const std::uint32_t num_workers_;
  Work work_ = nullptr;
  void* argument_ = nullptr;
  bool quit_ = false;
  alignas(64) std::atomic<std::uint32_t> run_{0};      // Counts runs; workers wait for a new one.
  alignas(64) std::atomic<std::uint32_t> arrived_{0};  // Workers inside the current barrier.
  alignas(64) std::atomic<std::uint32_t> phase_{0};    // Counts barriers passed.
  std::vector<std::thread> threads_;
};

}  // namespace kvrm
