// SPDX-License-Identifier: Apache-2.0
// Read-only views of regular files, and whole-file reads and writes.
//
// MappedFile maps a regular file privately; its size is the one fstat gave at open (F9). A file
// that shrinks underneath raises SIGBUS on access: InstallMappedFileGuard() turns that into one
// line on stderr and exit code 74 instead of a core.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kvrm {

class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const std::byte* data, std::size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Reads a whole regular file of at most `max_bytes`.
Result<std::string> ReadFile(const std::string& path, std::uint64_t max_bytes);

// Writes through a temporary name beside the target and renames, so a reader never sees half.
// A device or a pipe is written to as it is, never replaced.
Status WriteFile(const std::string& path, std::string_view content);

void InstallMappedFileGuard();

}  // namespace kvrm
