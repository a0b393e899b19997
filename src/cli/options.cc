// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/result.h"

namespace kvrm {
namespace {

constexpr std::int64_t kProgressIntervalNs = 100'000'000;

}  // namespace

void AddModelFlag(CLI::App& command, std::string* path) {
  command.add_option("-m,--model", *path,
                     "GGUF file or Hugging Face folder; without it the built-in demo model");
}

Model LoadModel(const std::string& path) {
  return OrThrow(path.empty() ? Model::LoadDemo() : Model::Load(path));
}

bool IsTerminal(int fd) {
  return ::isatty(fd) == 1;
}

std::vector<std::int32_t> ParseTokenIds(std::string_view text) {
  std::vector<std::int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto is_separator = [](char c) {
    return c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t';
  };
  while (true) {
    while (at != end && is_separator(*at))
      ++at;
    if (at == end) return ids;
    std::int32_t id = 0;
    const std::from_chars_result result = std::from_chars(at, end, id);
    if (result.ec != std::errc() || id < 0 || (result.ptr != end && !is_separator(*result.ptr))) {
      const char* stop = at;
      while (stop != end && !is_separator(*stop) && stop - at < 20)
        ++stop;
      throw StartError("'" + std::string(at, stop) + "' is not a token id");
    }
    ids.push_back(id);
    at = result.ptr;
  }
}

std::function<void(std::uint64_t done, std::uint64_t total)> ShowLoading() {
  constexpr std::uint64_t kMiB = 1u << 20;
  return [progress = std::shared_ptr<Progress>()](std::uint64_t done, std::uint64_t total) mutable {
    if (!progress) progress = std::make_shared<Progress>("loading weights, MiB", total / kMiB);
    progress->Update(done / kMiB);
    if (done >= total) progress.reset();
  };
}

Progress::Progress(std::string label, std::uint64_t total)
    : label_(std::move(label)), total_(total), shown_(IsTerminal(2)) {}

Progress::~Progress() {
  if (last_ns_ != 0) std::fprintf(stderr, "\r\033[K");
}

void Progress::Update(std::uint64_t done) {
  if (!shown_) return;
  const std::int64_t now_ns = SystemClock().NowNs();
  if (now_ns - last_ns_ < kProgressIntervalNs) return;
  last_ns_ = now_ns;
  std::fprintf(stderr, "\r\033[K%s %llu of %llu", label_.c_str(),
               static_cast<unsigned long long>(done), static_cast<unsigned long long>(total_));
}

}  // namespace kvrm
