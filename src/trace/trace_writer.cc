// SPDX-License-Identifier: Apache-2.0
#include "trace/trace_writer.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/result.h"
#include "trace/trace_file.h"

namespace kvrm {
namespace {

constexpr std::size_t kSaltBytes = 32;
constexpr int kIdBytes = 7;  // 56 bits, of which 53 stay: what every JSON reader keeps exactly

}  // namespace

std::string DrawSalt() {
  std::string salt(kSaltBytes, '\0');
  if (::getrandom(salt.data(), salt.size(), 0) != static_cast<ssize_t>(salt.size()))
    throw StartError("the system gives no randomness for the salt of a trace");
  return salt;
}

TraceWriter::TraceWriter(const std::string& path, std::string salt) : salt_(std::move(salt)) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
  if (fd_ < 0) throw StartError("cannot create the trace " + path + ": " + std::strerror(errno));
}

TraceWriter::~TraceWriter() {
  ::close(fd_);
}

std::vector<std::uint64_t> TraceWriter::HashIds(std::span<const std::int32_t> prompt) {
  std::vector<std::uint64_t> ids;
  Sha256::Digest digest = {};
  while (!prompt.empty()) {
    const auto block = prompt.first(std::min<std::size_t>(prompt.size(), kTraceBlockTokens));
    prompt = prompt.subspan(block.size());
    sha_.Add(std::as_bytes(std::span(salt_)));
    sha_.Add(std::as_bytes(std::span(digest)));
    sha_.Add(std::as_bytes(block));
    digest = sha_.Finish();
    std::uint64_t id = 0;
    for (int i = 0; i < kIdBytes; ++i)
      id = id << 8 | digest[static_cast<std::size_t>(i)];
    ids.push_back(id >> 3);
  }
  return ids;
}

void TraceWriter::Begin(std::uint64_t id, std::int64_t now_ns,
                        std::span<const std::int32_t> prompt) {
  if (first_ns_ < 0) first_ns_ = now_ns;
  Running& running = running_[id];
  running.arrival_ns = std::max<std::int64_t>(now_ns - first_ns_, 0);
  running.prompt_tokens = static_cast<std::uint32_t>(prompt.size());
  running.hash_ids = HashIds(prompt);
}

void TraceWriter::AddToken(std::uint64_t id) {
  const auto found = running_.find(id);
  if (found != running_.end()) ++found->second.output_tokens;
}

void TraceWriter::End(std::uint64_t id) {
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  Running& running = found->second;
  if (running.output_tokens > 0) {
    Workload workload;
    workload.hash_ids = std::move(running.hash_ids);
    const std::string line = MooncakeLine(
        workload, {.arrival_ns = running.arrival_ns,
                   .prompt_tokens = running.prompt_tokens,
                   .output_tokens = running.output_tokens,
                   .num_hashes = static_cast<std::uint32_t>(workload.hash_ids.size())});
    // One call a line: what is cut short by a full disk is one line.
    if (::write(fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) ++num_lost_;
  }
  running_.erase(found);
}

}  // namespace kvrm
