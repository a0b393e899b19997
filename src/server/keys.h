// SPDX-License-Identifier: Apache-2.0
// KeySet: the API keys of a server, as digests, and who presents one of them.
//
// A key's place in the set is its owner's identity (H5). The time of Find depends on the length of
// what is presented and on the number of keys, never on where keys differ (H4).
// Threading: immutable.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvrm {

class KeySet {
 public:
  // Equal keys count once. Throws StartError for a key that no header can carry: empty, longer than
  // 512 bytes, or with blanks, controls or bytes outside ASCII in it.
  explicit KeySet(std::span<const std::string> keys);

  bool empty() const { return digests_.empty(); }
  std::size_t size() const { return digests_.size(); }
  // The place of the presented key, in the order given.
  std::optional<std::uint32_t> Find(std::string_view presented) const;

 private:
  std::vector<std::array<std::uint8_t, 32>> digests_;
};

// One key a line; blank lines and lines that begin with '#' are skipped. Throws StartError, also
// when others than the owner and the group may read the file, or anybody but the owner write it.
std::vector<std::string> ReadKeyFile(const std::string& path);

// The key a request presents, from "Bearer KEY" or X-Api-Key.
std::string_view PresentedKey(std::string_view authorization, std::string_view x_api_key);

}  // namespace kvrm
