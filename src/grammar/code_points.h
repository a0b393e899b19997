// SPDX-License-Identifier: Apache-2.0
// CodePointSet: which characters a class of a grammar stands for.
//
// Ranges are sorted, disjoint and do not touch; surrogates are in no set, since no text has them.
// Plain data.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace kvrm::grammar {

constexpr char32_t kLastCodePoint = 0x10FFFF;

struct CodePointRange {
  char32_t first = 0;
  char32_t last = 0;  // inclusive
};

class CodePointSet {
 public:
  CodePointSet() = default;
  static CodePointSet All();
  static CodePointSet Of(char32_t first, char32_t last);

  // Linear in the number of ranges.
  void Add(char32_t first, char32_t last);
  void Add(const CodePointSet& other);
  void Remove(char32_t first, char32_t last);
  CodePointSet Negated() const;
  bool Contains(char32_t c) const;
  std::uint32_t Count() const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<CodePointRange>& ranges() const { return ranges_; }

 private:
  std::vector<CodePointRange> ranges_;
};

// One way to spell part of a range in UTF-8: `size` bytes, each within its own bounds.
struct ByteSequence {
  std::uint8_t size = 0;
  std::uint8_t low[4] = {};
  std::uint8_t high[4] = {};
};

// The sequences that together spell exactly `range`. Requires: no surrogates in it.
void ForEachByteSequence(CodePointRange range, const std::function<void(const ByteSequence&)>& use);

}  // namespace kvrm::grammar
