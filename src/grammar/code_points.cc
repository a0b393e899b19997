// SPDX-License-Identifier: Apache-2.0
#include "grammar/code_points.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/utf8.h"

namespace kvrm::grammar {
namespace {

constexpr char32_t kFirstSurrogate = 0xD800;
constexpr char32_t kLastSurrogate = 0xDFFF;

ByteSequence SequenceOf(char32_t first, char32_t last) {
  std::string low;
  std::string high;
  AppendUtf8(low, first);
  AppendUtf8(high, last);
  CHECK(low.size() == high.size());
  ByteSequence sequence;
  sequence.size = static_cast<std::uint8_t>(low.size());
  for (std::size_t i = 0; i < low.size(); ++i) {
    sequence.low[i] = static_cast<std::uint8_t>(low[i]);
    sequence.high[i] = static_cast<std::uint8_t>(high[i]);
  }
  return sequence;
}

}  // namespace

CodePointSet CodePointSet::All() {
  return Of(0, kLastCodePoint);
}

CodePointSet CodePointSet::Of(char32_t first, char32_t last) {
  CodePointSet set;
  set.Add(first, last);
  return set;
}

void CodePointSet::Add(char32_t first, char32_t last) {
  if (first < kFirstSurrogate && last >= kFirstSurrogate) {
    Add(first, kFirstSurrogate - 1);
    if (last > kLastSurrogate) Add(kLastSurrogate + 1, last);
    return;
  }
  if (first >= kFirstSurrogate && first <= kLastSurrogate) first = kLastSurrogate + 1;
  if (first > last) return;
  std::vector<CodePointRange> merged;
  merged.reserve(ranges_.size() + 1);
  for (const CodePointRange& range : ranges_) {
    if (range.last + 1 < first || last + 1 < range.first) {
      merged.push_back(range);
      continue;
    }
    first = std::min(first, range.first);
    last = std::max(last, range.last);
  }
  const auto at = std::find_if(merged.begin(), merged.end(),
                               [&](const CodePointRange& range) { return range.first > last; });
  merged.insert(at, {first, last});
  ranges_ = std::move(merged);
}

void CodePointSet::Add(const CodePointSet& other) {
  for (const CodePointRange& range : other.ranges_)
    Add(range.first, range.last);
}

void CodePointSet::Remove(char32_t first, char32_t last) {
  std::vector<CodePointRange> left;
  for (const CodePointRange& range : ranges_) {
    if (range.first < first)
      left.push_back({range.first, std::min<char32_t>(range.last, first - 1)});
    if (range.last > last) left.push_back({std::max<char32_t>(range.first, last + 1), range.last});
  }
  ranges_ = std::move(left);
}

CodePointSet CodePointSet::Negated() const {
  CodePointSet rest = All();
  for (const CodePointRange& range : ranges_)
    rest.Remove(range.first, range.last);
  return rest;
}

bool CodePointSet::Contains(char32_t c) const {
  return std::any_of(ranges_.begin(), ranges_.end(), [&](const CodePointRange& range) {
    return range.first <= c && c <= range.last;
  });
}

std::uint32_t CodePointSet::Count() const {
  std::uint32_t count = 0;
  for (const CodePointRange& range : ranges_)
    count += range.last - range.first + 1;
  return count;
}

// A range is cut where the number of bytes changes, and then until all bytes behind the first one
// in which its ends differ go from least to greatest.
void ForEachByteSequence(CodePointRange range,
                         const std::function<void(const ByteSequence&)>& use) {
  std::vector<CodePointRange> todo = {range};
  while (!todo.empty()) {
    const CodePointRange r = todo.back();
    todo.pop_back();
    const auto cut = [&](char32_t last_of_first) {
      todo.push_back({last_of_first + 1, r.last});
      todo.push_back({r.first, last_of_first});
    };
    bool whole = true;
    for (const char32_t end : {char32_t{0x7F}, char32_t{0x7FF}, char32_t{0xFFFF}}) {
      if (!whole || r.first > end || r.last <= end) continue;
      cut(end);
      whole = false;
    }
    for (unsigned bits = 6; whole && r.last >= 0x80 && bits <= 18; bits += 6) {
      const char32_t low = (char32_t{1} << bits) - 1;
      if ((r.first & ~low) == (r.last & ~low)) break;
      if ((r.first & low) != 0) {
        cut(r.first | low);
        whole = false;
      } else if ((r.last & low) != low) {
        cut((r.last & ~low) - 1);
        whole = false;
      }
    }
    if (whole) use(SequenceOf(r.first, r.last));
  }
}

}  // namespace kvrm::grammar
