// SPDX-License-Identifier: Apache-2.0
#include "sim/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/check.h"
#include "base/result.h"

namespace kvrm {

Child::Child(const std::function<void()>& work) {
  int ends[2] = {};
  if (::pipe2(ends, O_CLOEXEC) != 0)
    throw StartError(std::string("cannot make a pipe: ") + std::strerror(errno));
  std::fflush(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) throw StartError(std::string("cannot make a process: ") + std::strerror(errno));
  if (pid_ == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    ::close(ends[0]);
    const rlimit none = {};
    ::setrlimit(RLIMIT_CORE, &none);
    work();
    ::_exit(0);
  }
  ::close(ends[1]);
  fd_ = ends[0];
}

Child::~Child() {
  if (pid_ > 0) {
    Kill();
    Wait();
  }
  ::close(fd_);
}

bool Child::Read(const std::function<void(const std::string&)>& line) {
  std::array<char, 4096> chunk;
  const ssize_t count = ::read(fd_, chunk.data(), chunk.size());
  if (count < 0 && errno == EINTR) return true;
  if (count <= 0) {
    if (!buffer_.empty()) line(buffer_);
    buffer_.clear();
    return false;
  }
  buffer_.append(chunk.data(), static_cast<std::size_t>(count));
  std::size_t begin = 0;
  for (std::size_t end; (end = buffer_.find('\n', begin)) != std::string::npos; begin = end + 1)
    line(buffer_.substr(begin, end - begin));
  buffer_.erase(0, begin);
  return true;
}

std::string Child::Wait() {
  CHECK(pid_ > 0);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (WIFSIGNALED(status)) return std::string("ended by ") + ::strsignal(WTERMSIG(status));
  return "ended with status " + std::to_string(WEXITSTATUS(status));
}

void Child::Kill() {
  if (pid_ > 0) ::kill(pid_, SIGKILL);
}

void SayToParent(const std::string& line) {
  const std::string text = line + '\n';
  const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
  CHECK(written == static_cast<ssize_t>(text.size()));
}

}  // namespace kvrm
