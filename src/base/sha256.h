// SPDX-License-Identifier: Apache-2.0
// Sha256: the digest of what is fed to it. OpenSSL's, behind one file.
//
// Threading: one thread an object. Memory: none but the object's own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvrm {

class Sha256 {
 public:
  using Digest = std::array<std::uint8_t, 32>;
  // OpenSSL's SHA256_CTX, whose header stays out of this one; sha256.cc checks the size.
  using Context = std::array<std::uint32_t, 28>;
  Sha256() noexcept;
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(std::span<const std::byte> bytes) noexcept;
  // The digest of all since the last Finish; begins anew.
  Digest Finish() noexcept;

 private:
  Context context_;
};

}  // namespace kvrm
