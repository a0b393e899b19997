// SPDX-License-Identifier: Apache-2.0
#include "bench/pinned_threads.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <string>
#include <system_error>

namespace kvrm {
namespace {

// In the order of their start.
std::vector<pid_t> ThreadsOfThisProcess() {
  std::vector<pid_t> threads;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    const std::string name = entry.path().filename().string();
    pid_t thread = 0;
    std::from_chars(name.data(), name.data() + name.size(), thread);
    if (thread > 0) threads.push_back(thread);
  }
  std::sort(threads.begin(), threads.end());
  return threads;
}

}  // namespace

PinnedThreads::PinnedThreads() {
  const std::vector<pid_t> threads = ThreadsOfThisProcess();
  if (sched_getaffinity(0, sizeof(allowed_), &allowed_) != 0) return;
  if (threads.size() > static_cast<std::size_t>(CPU_COUNT(&allowed_))) return;
  std::size_t cpu = 0;
  for (const pid_t thread : threads) {
    while (!CPU_ISSET(cpu, &allowed_))
      ++cpu;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu++, &one);
    // A wish only: a thread that may not be moved stays where it is.
    if (sched_setaffinity(thread, sizeof(one), &one) == 0) threads_.push_back(thread);
  }
}

PinnedThreads::~PinnedThreads() {
  for (const pid_t thread : threads_)
    static_cast<void>(sched_setaffinity(thread, sizeof(allowed_), &allowed_));
}

}  // namespace kvrm
