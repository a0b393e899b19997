// SPDX-License-Identifier: Apache-2.0
// Sha256: the digest of what is fed to it. OpenSSL's, behind one file.
//
// Threading: one thread an object. Memory: the constructor allocates, nothing else does.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace kvrm {

class Sha256 {
 public:
  using Digest = std::array<std::uint8_t, 32>;
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(std::span<const std::byte> bytes) noexcept;
  // The digest of all since the last Finish; begins anew.
  Digest Finish() noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
