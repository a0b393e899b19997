// SPDX-License-Identifier: Apache-2.0
// Child: a forked process whose standard error comes back as lines.
// Threading: call from a process with one thread. Errors: throws StartError.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

namespace kvrm {

class Child {
 public:
  // Runs `work` in a child process, which then ends well. It leaves no core file.
  explicit Child(const std::function<void()>& work);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  int fd() const { return fd_; }  // readable: Read will not block
  // Takes what is there and calls `line` for each whole line. False at the end.
  bool Read(const std::function<void(const std::string&)>& line);
  // Waits for the end. Empty: it ended well; else how it ended.
  std::string Wait();
  // Ends it now.
  void Kill();

 private:
  pid_t pid_ = -1;
  int fd_ = -1;
  std::string buffer_;
};

// In a child: a line to the parent.
void SayToParent(const std::string& line);

}  // namespace kvrm
