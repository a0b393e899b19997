// SPDX-License-Identifier: Apache-2.0
#include "step/prefix_key.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "base/sha256.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kPrefixKeyVersion = 1;

// Feeds fields, each behind its length. They are put together first: what a block's name takes is
// in good part the calls that feed it.
class Fields {
 public:
  void Add(std::span<const std::byte> field) noexcept {
    const std::uint64_t length = field.size();
    Feed(std::as_bytes(std::span(&length, 1)));
    Feed(field);
  }
  void Add(std::string_view field) noexcept { Add(std::as_bytes(std::span(field))); }
  void Add(std::uint32_t field) noexcept { Add(std::as_bytes(std::span(&field, 1))); }
  PrefixKey Finish() noexcept {
    Flush();
    return {sha_.Finish()};
  }

 private:
  void Feed(std::span<const std::byte> bytes) noexcept {
    if (bytes.size() > buffer_.size() - num_buffered_) Flush();
    if (bytes.size() > buffer_.size()) return sha_.Add(bytes);
    std::ranges::copy(bytes, buffer_.begin() + static_cast<std::ptrdiff_t>(num_buffered_));
    num_buffered_ += bytes.size();
  }
  void Flush() noexcept {
    sha_.Add(std::span(buffer_).first(num_buffered_));
    num_buffered_ = 0;
  }

  Sha256 sha_;
  // All of a block of 32 tokens.
  std::array<std::byte, 256> buffer_;
  std::size_t num_buffered_ = 0;
};

}  // namespace

PrefixKey PrefixRoot(std::string_view model_digest, const KvLayout& layout, std::string_view salt) {
  Fields fields;
  fields.Add("kvrm root");
  fields.Add(kPrefixKeyVersion);
  fields.Add(model_digest);
  for (const std::uint32_t number : {layout.num_layers, layout.num_kv_heads, layout.head_dim,
                                     layout.block_tokens, std::uint32_t(layout.dtype)})
    fields.Add(number);
  fields.Add(salt);
  return fields.Finish();
}

PrefixKey NextPrefixKey(const PrefixKey& parent, std::span<const std::int32_t> tokens) noexcept {
  Fields fields;
  fields.Add("kvrm block");
  fields.Add(kPrefixKeyVersion);
  fields.Add(std::as_bytes(std::span(parent.bytes)));
  fields.Add(std::as_bytes(tokens));
  return fields.Finish();
}

}  // namespace kvrm
