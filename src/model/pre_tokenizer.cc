// SPDX-License-Identifier: Apache-2.0
#include "model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "base/utf8.h"
#include "model/quoted.h"

namespace kvrm {

namespace {

// 20 million steps for one match: a legitimate match takes a few steps a byte and texts are a few
// MiB, while an expression that explores exponentially is stopped within a fraction of a second.
constexpr std::uint32_t kMatchLimit = 20'000'000;
constexpr std::uint32_t kHeapLimitKib = 65'536;
constexpr std::size_t kMaxPatternBytes = 16 * 1024;

// Unicode's White_Space. HAZARD: PCRE2's own \s also takes U+180E, which the engines the
// vocabularies were trained with do not, so \s is always written out.
constexpr std::string_view kSpaceClass =
    "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"
    "\\x{3000}";

// The expressions below are facts of the published tokenizers.
constexpr std::string_view kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kLlama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kQwen2 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kQwen35 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kSeedCoder =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kBailingMoe =
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+";
// Words of many scripts: a run of upper-case letters, then of lower-case ones; letters without
// case and marks count as either.
constexpr std::string_view kTekken =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kGpt4o =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kDeepSeek3 =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
    "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kBloom =
    " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+";
constexpr std::string_view kLineBreak = "[\\r\\n]";
constexpr std::string_view kCjkOrHangul =
    "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+";
// White space at the very end. The look-behind changes nothing in what matches and keeps the
// search linear: without it a run that is not at the end is tried again from each of its spaces.
constexpr std::string_view kTrailingSpace = "(?<!\\s)\\s+$";
// Letters with case, as DeepSeek LLM lists them.
constexpr std::string_view kDeepSeekLetters =
    "\\s?[A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}"
    "\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}"
    "\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}"
    "\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}"
    "\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}"
    "\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}"
    "\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}"
    "\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}"
    "\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}"
    "\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}"
    "\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}"
    "\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}"
    "\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}"
    "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}"
    "\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}"
    "\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}]+";
constexpr std::string_view kDeepSeekSigns =
    "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+";
constexpr std::string_view kDigit = "\\p{N}";
constexpr std::string_view kThreeDigits = "[0-9][0-9][0-9]";

constexpr std::string_view kStagesGpt2[] = {kGpt2};
constexpr std::string_view kStagesLlama3[] = {kLlama3};
constexpr std::string_view kStagesQwen2[] = {kQwen2};
constexpr std::string_view kStagesQwen35[] = {kQwen35};
constexpr std::string_view kStagesSeedCoder[] = {kSeedCoder};
constexpr std::string_view kStagesBailingMoe[] = {kBailingMoe};
constexpr std::string_view kStagesTekken[] = {kTekken};
constexpr std::string_view kStagesGpt4o[] = {kGpt4o};
constexpr std::string_view kStagesStarcoder[] = {kDigit, kGpt2};
constexpr std::string_view kStagesDefault[] = {"[\\p{P}\\$\\+<=>\\^~\\|]+", kGpt2, "\\p{N}+",
                                               kThreeDigits};
constexpr std::string_view kStagesFalcon[] = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", kGpt2, kThreeDigits};
constexpr std::string_view kStagesDeepSeekLlm[] = {kLineBreak,     kDeepSeekLetters, kDeepSeekSigns,
                                                   kTrailingSpace, kCjkOrHangul,     "\\p{N}+"};
constexpr std::string_view kStagesDeepSeekCoder[] = {kLineBreak, "\\s?\\p{L}+", "\\s?\\p{P}+",
                                                     kCjkOrHangul, kDigit};
constexpr std::string_view kStagesDeepSeek3[] = {
    "\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+", kDeepSeek3};
constexpr std::string_view kStagesBloom[] = {kBloom};
constexpr std::string_view kStagesViking[] = {kBloom, kDigit};

struct NamedPreTokenizer {
  std::string_view name;
  std::span<const std::string_view> stages;
  PreTokenizerTraits traits = {};
};

constexpr PreTokenizerTraits kWholeWords = {.ignore_merges = true, .adds_bos = true};

constexpr NamedPreTokenizer kNamed[] = {
    {"default", kStagesDefault},
    {"llama3", kStagesLlama3, kWholeWords},
    {"llama-v3", kStagesLlama3, kWholeWords},
    {"llama-bpe", kStagesLlama3, kWholeWords},
    {"falcon3", kStagesLlama3, kWholeWords},
    {"falcon-h1", kStagesLlama3, kWholeWords},
    {"pixtral", kStagesLlama3, kWholeWords},
    {"midm-2.0", kStagesLlama3, kWholeWords},
    {"lfm2", kStagesLlama3, kWholeWords},
    {"dbrx", kStagesLlama3},
    {"smaug-bpe", kStagesLlama3},
    {"chatglm-bpe", kStagesLlama3},
    {"glm4", kStagesLlama3},
    {"deepseek-llm", kStagesDeepSeekLlm},
    {"deepseek-coder", kStagesDeepSeekCoder},
    {"deepseek-v3", kStagesDeepSeek3},
    {"hunyuan-dense", kStagesDeepSeek3},
    {"falcon", kStagesFalcon},
    {"starcoder", kStagesStarcoder},
    {"refact", kStagesStarcoder},
    {"command-r", kStagesStarcoder},
    {"smollm", kStagesStarcoder},
    {"codeshell", kStagesStarcoder},
    {"exaone", kStagesStarcoder},
    {"minerva-7b", kStagesStarcoder},
    {"gpt-2", kStagesGpt2},
    {"phi-2", kStagesGpt2},
    {"mpt", kStagesGpt2},
    {"olmo", kStagesGpt2},
    {"jais", kStagesGpt2},
    {"trillion", kStagesGpt2},
    {"granite-docling", kStagesGpt2},
    {"jina-es", kStagesGpt2},
    {"jina-de", kStagesGpt2},
    {"jina-v1-en", kStagesGpt2},
    {"jina-v2-es", kStagesGpt2},
    {"jina-v2-de", kStagesGpt2},
    {"jina-v2-code", kStagesGpt2},
    {"gigachat", kStagesGpt2},
    {"exaone4", kStagesGpt2},
    {"roberta-bpe", kStagesGpt2, {.ignore_merges = false, .adds_bos = true}},
    {"qwen2", kStagesQwen2},
    {"deepseek-r1-qwen", kStagesQwen2},
    {"megrez", kStagesQwen2},
    {"stablelm2", kStagesQwen2},
    {"hunyuan", kStagesQwen2},
    {"solar-open", kStagesQwen2},
    {"grok-2", kStagesQwen2},
    {"qwen35", kStagesQwen35},
    {"seed-coder", kStagesSeedCoder},
    {"bailingmoe", kStagesBailingMoe},
    {"llada-moe", kStagesBailingMoe},
    {"tekken", kStagesTekken, kWholeWords},
    {"mistral-bpe", kStagesTekken, kWholeWords},
    {"gpt-4o", kStagesGpt4o},
    {"llama4", kStagesGpt4o},
    {"bloom", kStagesBloom},
    {"gpt3-finnish", kStagesBloom},
    {"poro-chat", kStagesBloom},
    {"viking", kStagesViking},
};

const NamedPreTokenizer* FindNamed(std::string_view name) {
  for (const NamedPreTokenizer& named : kNamed) {
    if (named.name == name) return &named;
  }
  return nullptr;
}

// Writes \s and \S out as kSpaceClass. \S inside brackets cannot be and keeps PCRE2's meaning.
std::string WriteOutSpaces(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      if (c == '[' && !in_class) {
        in_class = true;
        // A bracket right after the opening one is itself a member.
        out += c;
        if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
        if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
        continue;
      }
      if (c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {
        const std::size_t end = std::min(pattern.find(":]", i + 2), pattern.size() - 1);
        out.append(pattern, i, end + 1 - i);  // A POSIX class, up to its colon.
        i = end;
        if (i + 1 < pattern.size()) out += pattern[++i];
        continue;
      }
      if (c == ']') in_class = false;
      out += c;
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's') {
      out.append(in_class ? "" : "[").append(kSpaceClass).append(in_class ? "" : "]");
    } else if (escaped == 'S' && !in_class) {
      out.append("[^").append(kSpaceClass).append("]");
    } else {
      out.append({c, escaped});
    }
  }
  return out;
}

template <typename T, void (*Free)(T*)>
struct PcreFree {
  void operator()(T* pointer) const { Free(pointer); }
};
using PcreCode = std::unique_ptr<pcre2_code, PcreFree<pcre2_code, pcre2_code_free>>;
using PcreMatchData =
    std::unique_ptr<pcre2_match_data, PcreFree<pcre2_match_data, pcre2_match_data_free>>;
using PcreMatchContext =
    std::unique_ptr<pcre2_match_context, PcreFree<pcre2_match_context, pcre2_match_context_free>>;
using PcreCompileContext =
    std::unique_ptr<pcre2_compile_context,
                    PcreFree<pcre2_compile_context, pcre2_compile_context_free>>;

// A copy of the same length in which every invalid byte is SUBSTITUTE, a control character.
std::string WithoutInvalidBytes(std::string_view text) {
  std::string clean(text);
  for (std::size_t pos = 0; pos < clean.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (c.state != Utf8State::kValid)
      std::fill_n(clean.begin() + static_cast<std::ptrdiff_t>(pos), c.size, '\x1A');
    pos += c.size;
  }
  return clean;
}

}  // namespace

struct PreTokenizer::Stage {
  PcreCode code;
  PcreMatchContext context;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool inverted = false;

  // Runs over one piece of `text`, appending the pieces it falls into.
  void SplitPiece(std::string_view text, TextSpan piece, pcre2_match_data* match_data,
                  std::vector<TextSpan>& pieces) const;
  bool NextMatch(std::string_view subject, std::size_t from, pcre2_match_data* match_data,
                 TextSpan& match) const;
};

namespace {

// Turns the alternation of matches and gaps of one piece into pieces, as SplitBehavior says.
class PieceJoiner {
 public:
  PieceJoiner(SplitBehavior behavior, std::vector<TextSpan>& pieces)
      : behavior_(behavior), pieces_(pieces), first_(pieces.size()) {}

  void Add(TextSpan span, bool is_match) {
    if (span.begin == span.end) return;
    const bool follows_match = last_was_match_;
    const bool has_last = pieces_.size() > first_;
    last_was_match_ = is_match;
    bool join = false;
    switch (behavior_) {
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kRemoved:
        if (is_match) return;
        break;
      case SplitBehavior::kMergedWithPrevious:
        join = is_match && !follows_match;
        break;
      // A match is followed by its gap in the same piece; two matches in a row are not joined.
      case SplitBehavior::kMergedWithNext:
        join = !is_match && follows_match;
        break;
      case SplitBehavior::kContiguous:
        join = is_match == follows_match;
        break;
    }
    if (join && has_last) {
      pieces_.back().end = span.end;
    } else {
      pieces_.push_back(span);
    }
  }

 private:
  SplitBehavior behavior_;
  std::vector<TextSpan>& pieces_;
  std::size_t first_;
  bool last_was_match_ = false;
};

}  // namespace

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

std::string_view PreTokenizer::Gpt2Pattern() {
  return kGpt2;
}

PreTokenizerTraits TraitsOfPreTokenizer(std::string_view name) {
  const NamedPreTokenizer* named = FindNamed(name);
  return named == nullptr ? PreTokenizerTraits{} : named->traits;
}

Result<PreTokenizer> PreTokenizer::FromName(std::string_view name) {
  const NamedPreTokenizer* named = FindNamed(name);
  if (named == nullptr) {
    return Error{ErrorCode::kUnsupported,
                 "tokenizer.ggml.pre: pre-tokenizer " + Quoted(name) + " is not supported"};
  }
  PreTokenizer result;
  for (const std::string_view pattern : named->stages) {
    const Status added =
        result.AddStage(pattern, SplitBehavior::kIsolated, false, "tokenizer.ggml.pre");
    if (!added) return added.error();
  }
  return result;
}

Status PreTokenizer::AddStage(std::string_view pattern, SplitBehavior behavior, bool inverted,
                              const std::string& field) {
  if (pattern.empty() || pattern.size() > kMaxPatternBytes) {
    return Error{ErrorCode::kInvalidArgument,
                 field + ": the expression must have 1 to 16384 bytes"};
  }
  // DeepSeek's trailing-space expression, in its linear form.
  if (pattern == "\\s+$") pattern = kTrailingSpace;
  const std::string written_out = WriteOutSpaces(pattern);
  const PcreCompileContext compile_context(pcre2_compile_context_create(nullptr));
  CHECK(compile_context != nullptr);
  pcre2_set_newline(compile_context.get(), PCRE2_NEWLINE_LF);
  auto stage = std::make_unique<Stage>();
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  stage->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(written_out.data()),
                                  written_out.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error,
                                  &error_offset, compile_context.get()));
  if (stage->code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    return Error{ErrorCode::kInvalidArgument,
                 field + ": the expression does not compile: " +
                     std::string(reinterpret_cast<const char*>(message.data()))};
  }
  // Without JIT (no executable memory) the interpreter gives the same matches, slower.
  pcre2_jit_compile(stage->code.get(), PCRE2_JIT_COMPLETE);
  stage->context.reset(pcre2_match_context_create(nullptr));
  CHECK(stage->context != nullptr);
  pcre2_set_match_limit(stage->context.get(), kMatchLimit);
  pcre2_set_heap_limit(stage->context.get(), kHeapLimitKib);
  stage->behavior = behavior;
  stage->inverted = inverted;
  stages_.push_back(std::move(stage));
  return Done{};
}

void PreTokenizer::Split(std::string_view text, std::vector<TextSpan>& pieces) const {
  pieces.clear();
  if (text.empty()) return;
  CHECK(text.size() < 0xFFFFFFFFu);
  pieces.push_back({0, static_cast<std::uint32_t>(text.size())});
  std::string clean;
  if (!stages_.empty() && !IsValidUtf8(text)) {
    clean = WithoutInvalidBytes(text);
    text = clean;
  }
  const PcreMatchData match_data(pcre2_match_data_create(1, nullptr));
  CHECK(match_data != nullptr);
  std::vector<TextSpan> before;
  for (const std::unique_ptr<const Stage>& stage : stages_) {
    before.swap(pieces);
    pieces.clear();
    for (const TextSpan piece : before) {
      stage->SplitPiece(text, piece, match_data.get(), pieces);
    }
  }
}

void PreTokenizer::Stage::SplitPiece(std::string_view text, TextSpan piece,
                                     pcre2_match_data* match_data,
                                     std::vector<TextSpan>& pieces) const {
  const std::string_view subject = text.substr(piece.begin, piece.end - piece.begin);
  PieceJoiner joiner(behavior, pieces);
  const auto add = [&](std::uint32_t begin, std::uint32_t end, bool is_match) {
    joiner.Add({piece.begin + begin, piece.begin + end}, is_match != inverted);
  };
  std::uint32_t done = 0;  // [0, done) has been handed on.
  std::size_t from = 0;
  TextSpan match;
  while (from < subject.size() && NextMatch(subject, from, match_data, match)) {
    if (match.begin < done || match.end < match.begin) break;  // \K and the like
    if (match.end == match.begin) {
      from = match.end >= subject.size() ? subject.size()
                                         : match.end + DecodeUtf8(subject, match.end).size;
      continue;
    }
    add(done, match.begin, false);
    add(match.begin, match.end, true);
    done = match.end;
    from = done;
  }
  add(done, static_cast<std::uint32_t>(subject.size()), false);
}

bool PreTokenizer::Stage::NextMatch(std::string_view subject, std::size_t from,
                                    pcre2_match_data* match_data, TextSpan& match) const {
  // HAZARD: without PCRE2_NO_UTF_CHECK every call validates the rest of the subject, which makes
  // the whole quadratic. Split has made it valid.
  const auto run = [&](std::uint32_t options) {
    return pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(),
                       from, options | PCRE2_NO_UTF_CHECK, match_data, context.get());
  };
  int rc = run(0);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = run(PCRE2_NO_JIT);
  if (rc < 0) return false;
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match_data);
  match = {static_cast<std::uint32_t>(bounds[0]), static_cast<std::uint32_t>(bounds[1])};
  return true;
}

}  // namespace kvrm
