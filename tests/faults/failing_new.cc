// SPDX-License-Identifier: Apache-2.0
// operator new that fails now and then: linked into kvrm_faulty, which is kvrm and nothing else.
//
// From SIGUSR2 to the next one, an allocation of any thread but main's fails with a chance of one
// in KVRM_FAIL_ONE_IN (of the environment; without it none does). Which ones fail is a function of
// the number of allocations so far, so of the threads' schedule as well.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <new>
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

void* Allocate(std::size_t bytes, std::size_t alignment) {
  if (fails.load(std::memory_order_relaxed) && ::gettid() != ::getpid() &&
      Mix(num_allocations.fetch_add(1, std::memory_order_relaxed)) % one_in == 0) {
    throw std::bad_alloc();
  }
  void* const memory =
      alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__
          ? std::malloc(bytes == 0 ? 1 : bytes)
          : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return Allocate(bytes, 1);
}
void* operator new[](std::size_t bytes) {
  return Allocate(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
