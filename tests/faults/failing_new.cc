// SPDX-License-Identifier: Apache-2.0
// operator new that fails now and then: linked into kvrm_faulty, which is kvrm and nothing else.
//
// From SIGUSR2 to the next one, an allocation of any thread but main's fails with a chance of one
// in KVRM_FAIL_ONE_IN (of the environment; without it none does). Which ones fail is a function of
// the number of allocations so far, so of the threads' schedule as well.
#include "failing_new.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace {

std::atomic<bool> fails{false};
std::atomic<std::uint64_t> num_allocations{0};
std::uint64_t one_in = 0;  // written before main

void Toggle(int) {
  fails = !fails;
}

// SplitMix64's mixer.
std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

[[gnu::constructor]] void Install() {
  const char* const text = std::getenv("KVRM_FAIL_ONE_IN");
  if (text == nullptr) return;
  const std::string_view word(text);
  std::from_chars(word.data(), word.data() + word.size(), one_in);
  struct sigaction action = {};
  action.sa_handler = Toggle;
  action.sa_flags = SA_RESTART;
  if (one_in != 0) ::sigaction(SIGUSR2, &action, nullptr);
}

bool FailsNow() {
  return fails.load(std::memory_order_relaxed) && ::gettid() != ::getpid() &&
         Mix(num_allocations.fetch_add(1, std::memory_order_relaxed)) % one_in == 0;
}

}  // namespace
