// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as a GGUF header. What is accepted must keep its promises.
#include <cstdint>

#include "base/check.h"
#include "model/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kvrm::GgufFile;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const kvrm::Result<GgufFile> file = GgufFile::Parse(bytes, "fuzz");
  if (!file) {
    CHECK(!file.error().message.empty());
    CHECK(file.error().message.find('\n') == std::string::npos);
    return 0;
  }
  const std::byte* end = bytes.data() + bytes.size();
  for (const kvrm::GgufTensor& tensor : file->tensors()) {
    CHECK(tensor.data.data() >= bytes.data() && tensor.data.data() + tensor.data.size() <= end);
    CHECK(!tensor.data.empty());
    CHECK(file->FindTensor(tensor.name) == &tensor);
  }
  for (const auto& [key, value] : file->metadata()) {
    CHECK(value.bytes.empty() || value.bytes.data() + value.bytes.size() <= end);
    CHECK(file->Has(key));
    // Each look-up gives a value or an error, whatever the type.
    const bool found = file->GetUint(key).has_value() || file->GetFloat(key).has_value() ||
                       file->GetBool(key).has_value() || file->GetString(key).has_value() ||
                       file->GetStrings(key).has_value() || file->GetFloats(key).has_value() ||
                       file->GetInts(key).has_value();
    static_cast<void>(found);
  }
  return 0;
}
