// SPDX-License-Identifier: Apache-2.0
#include "model/nfc.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "base/utf8.h"

namespace kvrm {

namespace {

struct CombiningRun {
  char32_t first, last;
  std::uint8_t combining_class;
};

struct Decomposition {
  char32_t composed, first, second;
  bool composes;
};

#include "model/nfc_data.inc"

// Hangul syllables compose by arithmetic (Unicode 3.12).
constexpr char32_t kHangulBase = 0xAC00;
constexpr char32_t kLeadBase = 0x1100;
constexpr char32_t kVowelBase = 0x1161;
constexpr char32_t kTailBase = 0x11A7;
constexpr char32_t kNumLeads = 19;
constexpr char32_t kNumVowels = 21;
constexpr char32_t kNumTails = 28;
constexpr char32_t kNumSyllables = kNumLeads * kNumVowels * kNumTails;

// The first code point that has a combining class or ends a composition.
constexpr char32_t kFirstActive = 0x300;

struct Mark {
  char32_t code_point;
  std::uint8_t combining_class;
};

std::uint8_t CombiningClass(char32_t c) {
  if (c < kFirstActive) return 0;
  const CombiningRun* run =
      std::lower_bound(std::begin(kCombiningRuns), std::end(kCombiningRuns), c,
                       [](const CombiningRun& r, char32_t value) { return r.last < value; });
  return run != std::end(kCombiningRuns) && run->first <= c ? run->combining_class
                                                            : std::uint8_t{0};
}

void Decompose(char32_t c, std::vector<Mark>& out) {
  if (c >= kHangulBase && c < kHangulBase + kNumSyllables) {
    const char32_t syllable = c - kHangulBase;
    out.push_back({kLeadBase + syllable / (kNumVowels * kNumTails), 0});
    out.push_back({kVowelBase + syllable % (kNumVowels * kNumTails) / kNumTails, 0});
    if (syllable % kNumTails != 0) out.push_back({kTailBase + syllable % kNumTails, 0});
    return;
  }
  const Decomposition* found =
      std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), c,
                       [](const Decomposition& d, char32_t value) { return d.composed < value; });
  if (c < 0xC0 || found == std::end(kDecompositions) || found->composed != c) {
    out.push_back({c, CombiningClass(c)});
    return;
  }
  Decompose(found->first, out);  // Four levels at most in Unicode.
  if (found->second != 0) Decompose(found->second, out);
}

// Pairs that compose, by first and second.
const std::vector<Decomposition>& Compositions() {
  static const std::vector<Decomposition> compositions = [] {
    std::vector<Decomposition> result;
    for (const Decomposition& d : kDecompositions) {
      if (d.composes) result.push_back(d);
    }
    std::sort(result.begin(), result.end(), [](const Decomposition& a, const Decomposition& b) {
      return a.first != b.first ? a.first < b.first : a.second < b.second;
    });
    return result;
  }();
  return compositions;
}

// What the two compose to, or 0.
char32_t Compose(char32_t first, char32_t second) {
  if (first >= kLeadBase && first < kLeadBase + kNumLeads && second >= kVowelBase &&
      second < kVowelBase + kNumVowels) {
    return kHangulBase + ((first - kLeadBase) * kNumVowels + (second - kVowelBase)) * kNumTails;
  }
  if (first >= kHangulBase && first < kHangulBase + kNumSyllables &&
      (first - kHangulBase) % kNumTails == 0 && second > kTailBase &&
      second < kTailBase + kNumTails) {
    return first + (second - kTailBase);
  }
  const std::vector<Decomposition>& all = Compositions();
  const auto found =
      std::lower_bound(all.begin(), all.end(), Decomposition{0, first, second, true},
                       [](const Decomposition& a, const Decomposition& b) {
                         return a.first != b.first ? a.first < b.first : a.second < b.second;
                       });
  return found != all.end() && found->first == first && found->second == second ? found->composed
                                                                                : 0;
}

// Canonical order: marks between starters by combining class, equals as they came.
void Reorder(std::vector<Mark>& marks) {
  for (std::size_t begin = 0; begin < marks.size();) {
    std::size_t end = begin + 1;
    if (marks[begin].combining_class != 0) {
      while (end < marks.size() && marks[end].combining_class != 0) {
        ++end;
      }
      std::stable_sort(
          marks.begin() + static_cast<std::ptrdiff_t>(begin),
          marks.begin() + static_cast<std::ptrdiff_t>(end),
          [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; });
    }
    begin = end;
  }
}

// Composes each mark with the last starter unless one that stays lies between and blocks it.
void Recompose(std::vector<Mark>& marks) {
  std::size_t kept = 0;  // [0, kept) is composed.
  std::size_t starter = marks.size();
  for (std::size_t i = 0; i < marks.size(); ++i) {
    const Mark mark = marks[i];
    if (starter < kept) {
      const Mark& before = marks[kept - 1];
      const bool adjacent = starter == kept - 1;
      const bool blocked = !adjacent && (before.combining_class == 0 ||
                                         before.combining_class >= mark.combining_class);
      const char32_t composed = blocked ? 0 : Compose(marks[starter].code_point, mark.code_point);
      if (composed != 0) {
        marks[starter].code_point = composed;
        continue;
      }
    }
    if (mark.combining_class == 0) starter = kept;
    marks[kept++] = mark;
  }
  marks.resize(kept);
}

// Composes [begin, end), which is valid UTF-8.
void AppendComposed(std::string& out, std::string_view text) {
  std::vector<Mark> marks;
  marks.reserve(text.size());
  for (std::size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    Decompose(c.code_point, marks);
    pos += c.size;
  }
  Reorder(marks);
  Recompose(marks);
  for (const Mark& mark : marks) {
    AppendUtf8(out, mark.code_point);
  }
}

}  // namespace

std::string ComposeNfc(std::string_view text) {
  std::string out;
  std::size_t begin = 0;  // [begin, pos) is valid and waits.
  std::size_t pos = 0;
  bool active = false;
  const auto flush = [&] {
    const std::string_view waiting = text.substr(begin, pos - begin);
    if (active) {
      AppendComposed(out, waiting);
    } else {
      out += waiting;
    }
  };
  while (pos < text.size()) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (c.state != Utf8State::kValid) {
      flush();
      out += text.substr(pos, c.size);
      begin = pos + c.size;
      active = false;
    } else if (c.code_point >= kFirstActive) {
      active = true;
    }
    pos += c.size;
  }
  flush();
  return out;
}

}  // namespace kvrm
