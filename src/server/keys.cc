// SPDX-License-Identifier: Apache-2.0
#include "server/keys.h"

#include <sys/stat.h>

#include <algorithm>

#include "base/file.h"
#include "base/result.h"
#include "base/sha256.h"

namespace kvrm {
namespace {

constexpr std::size_t kMaxKeyBytes = 512;
constexpr std::uint64_t kMaxKeyFileBytes = 1u << 20;

Sha256::Digest DigestOf(std::string_view key) {
  Sha256 hash;
  hash.Add(std::as_bytes(std::span(key)));
  return hash.Finish();
}

void CheckKey(std::string_view key) {
  if (key.empty()) throw StartError("an API key is empty");
  if (key.size() > kMaxKeyBytes) {
    throw StartError("an API key has " + std::to_string(key.size()) + " bytes; the limit is " +
                     std::to_string(kMaxKeyBytes));
  }
  if (!std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; })) {
    throw StartError("an API key has a blank, a control character or a byte outside ASCII in it");
  }
}

}  // namespace

KeySet::KeySet(std::span<const std::string> keys) {
  for (const std::string& key : keys) {
    CheckKey(key);
    const Sha256::Digest digest = DigestOf(key);
    if (std::find(digests_.begin(), digests_.end(), digest) == digests_.end()) {
      digests_.push_back(digest);
    }
  }
}

std::optional<std::uint32_t> KeySet::Find(std::string_view presented) const {
  const Sha256::Digest digest = DigestOf(presented);
  // Every byte of every digest is looked at, whatever has been found (H4).
  std::uint32_t found = 0;
  for (std::uint32_t k = 0; k < digests_.size(); ++k) {
    unsigned difference = 0;
    for (std::size_t i = 0; i < digest.size(); ++i)
      difference |= static_cast<unsigned>(digest[i] ^ digests_[k][i]);
    const std::uint32_t equal = (difference - 1u) >> 31;
    found |= (k + 1) & (0u - equal);
  }
  if (found == 0) return std::nullopt;
  return found - 1;
}

std::vector<std::string> ReadKeyFile(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw StartError("cannot read the key file " + path);
  if ((status.st_mode & (S_IROTH | S_IWOTH | S_IXOTH | S_IWGRP)) != 0) {
    throw StartError("the key file " + path +
                     " is open to others: chmod 600 (owner) or 640 (owner and group)");
  }
  const std::string text = OrThrow(ReadFile(path, kMaxKeyFileBytes));
  std::vector<std::string> keys;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t'))
      line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    keys.emplace_back(line);
  }
  if (keys.empty()) throw StartError("the key file " + path + " holds no key");
  return keys;
}

std::string_view PresentedKey(std::string_view authorization, std::string_view x_api_key) {
  constexpr std::string_view kBearer = "Bearer ";
  if (authorization.starts_with(kBearer)) return authorization.substr(kBearer.size());
  return x_api_key;
}

}  // namespace kvrm
