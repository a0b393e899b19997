// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace kvrm {
namespace {

Error OsError(const char* what, const std::string& path) {
  const int code = errno;
  return Error{code == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
               std::string(what) + " " + path + ": " + std::strerror(code)};
}

// Opens a regular file and tells its size.
Result<int> OpenRegular(const std::string& path, std::uint64_t* size) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return OsError("cannot open", path);
  struct stat status = {};
  if (::fstat(fd, &status) != 0) {
    Error error = OsError("cannot stat", path);
    ::close(fd);
    return error;
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd);
    return Error{ErrorCode::kInvalidArgument, path + " is not a regular file"};
  }
  *size = static_cast<std::uint64_t>(status.st_size);
  return fd;
}

void OnBusError(int) {
  static constexpr char kMessage[] =
      "kvrm: a mapped model file changed or shrank while in use; restart with an intact file\n";
  [[maybe_unused]] const ssize_t written = ::write(2, kMessage, sizeof(kMessage) - 1);
  ::_exit(74);
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  std::uint64_t size = 0;
  Result<int> fd = OpenRegular(path, &size);
  if (!fd) return fd.error();
  if (size == 0) {
    ::close(*fd);
    return Error{ErrorCode::kInvalidArgument, path + " is empty"};
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, *fd, 0);
  const int map_errno = errno;
  ::close(*fd);
  if (data == MAP_FAILED) {
    errno = map_errno;
    return OsError("cannot map", path);
  }
  return MappedFile(path, static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<std::string> ReadFile(const std::string& path, std::uint64_t max_bytes) {
  std::uint64_t size = 0;
  Result<int> fd = OpenRegular(path, &size);
  if (!fd) return fd.error();
  if (size > max_bytes) {
    ::close(*fd);
    return Error{ErrorCode::kTooLarge, path + " has " + std::to_string(size) +
                                           " bytes; the limit is " + std::to_string(max_bytes)};
  }
  std::string content(size, '\0');
  std::size_t filled = 0;
  while (filled < content.size()) {
    const ssize_t got = ::read(*fd, content.data() + filled, content.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      Error error = got < 0 ? OsError("cannot read", path)
                            : Error{ErrorCode::kIo, path + " shrank while it was read"};
      ::close(*fd);
      return error;
    }
    filled += static_cast<std::size_t>(got);
  }
  ::close(*fd);
  return content;
}

Status WriteFile(const std::string& path, std::string_view content) {
  struct stat status = {};
  const bool special = ::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
  const std::string partial = special ? path : path + ".partial";
  const int fd = special ? ::open(path.c_str(), O_WRONLY | O_CLOEXEC)
                         : ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return OsError(special ? "cannot open" : "cannot create", partial);
  while (!content.empty()) {
    const ssize_t put = ::write(fd, content.data(), content.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) {
      Error error = OsError("cannot write", partial);
      ::close(fd);
      if (!special) ::unlink(partial.c_str());
      return error;
    }
    content.remove_prefix(static_cast<std::size_t>(put));
  }
  if (special) {
    if (::close(fd) != 0) return OsError("cannot finish", path);
    return Done{};
  }
  if (::close(fd) != 0 || ::rename(partial.c_str(), path.c_str()) != 0) {
    Error error = OsError("cannot finish", path);
    ::unlink(partial.c_str());
    return error;
  }
  return Done{};
}

void InstallMappedFileGuard() {
  struct sigaction action = {};
  action.sa_handler = OnBusError;
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace kvrm
