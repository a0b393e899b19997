// SPDX-License-Identifier: Apache-2.0
// The functions of the algorithm itself, which OpenSSL 3 calls deprecated in favour of EVP_*: a
// block's name is one digest of some 150 bytes, made while the caches hold an executor's weights,
// and what EVP_* reaches through (its context, its provider, their tables) cost more there than the
// digest: naming four blocks took 12 microseconds of a step of bench/step_share_bench, and takes 5.
#define OPENSSL_SUPPRESS_DEPRECATED  // NOLINT(cppcoreguidelines-macro-usage)
#include "base/sha256.h"

#include <openssl/sha.h>

#include "base/check.h"

namespace kvrm {
namespace {

SHA256_CTX* Of(Sha256::Context& context) noexcept {
  static_assert(sizeof(SHA256_CTX) == sizeof(context) &&
                alignof(SHA256_CTX) == alignof(std::uint32_t));
  return reinterpret_cast<SHA256_CTX*>(context.data());
}

}  // namespace

Sha256::Sha256() noexcept {
  CHECK(SHA256_Init(Of(context_)) == 1);
}

void Sha256::Add(std::span<const std::byte> bytes) noexcept {
  CHECK(SHA256_Update(Of(context_), bytes.data(), bytes.size()) == 1);
}

Sha256::Digest Sha256::Finish() noexcept {
  Digest digest;
  CHECK(SHA256_Final(digest.data(), Of(context_)) == 1);
  CHECK(SHA256_Init(Of(context_)) == 1);
  return digest;
}

}  // namespace kvrm
