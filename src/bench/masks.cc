// SPDX-License-Identifier: Apache-2.0
#include "bench/masks.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "grammar/grammar.h"
#include "grammar/mask_builder.h"
#include "grammar/matcher.h"
#include "grammar/token_trie.h"

namespace kvrm {
namespace {

constexpr std::size_t kCacheBytes = std::size_t{32} << 20;
constexpr std::uint32_t kOutputs = 8;
constexpr std::uint32_t kMaxTokens = 300;

struct Subject {
  const char* name;
  GrammarKind kind;
  const char* text;
};
constexpr Subject kSubjects[] = {
    {"json_object", GrammarKind::kJsonObject, ""},
    {"schema", GrammarKind::kJsonSchema,
     R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer",
         "minimum":0,"maximum":150},"email":{"type":"string","format":"email"},
         "tags":{"type":"array","items":{"type":"string","maxLength":40},"maxItems":8},
         "kind":{"enum":["red","green","blue"]},
         "address":{"type":"object","properties":{"street":{"type":"string"},
         "city":{"type":"string"},"zip":{"type":"string","pattern":"^[0-9]{5}$"}},
         "required":["street","city"],"additionalProperties":false}},
         "required":["name","age","kind"],"additionalProperties":false})"},
    {"gbnf", GrammarKind::kGbnf,
     "root ::= (line \"\\n\"){1,40}\nline ::= word (\" \" word)* [.!?]\n"
     "word ::= [a-zA-Z]+ | \"\\\"\" [^\"\\n]* \"\\\"\"\n"},
    {"regex", GrammarKind::kRegex, "(?:[A-Z][a-z]{2,20} ){3,40}[0-9]{4}-[0-9]{2}-[0-9]{2}"},
};

struct Times {
  std::vector<double> microseconds;

  double At(double share) {
    std::sort(microseconds.begin(), microseconds.end());
    const auto last = static_cast<double>(microseconds.size() - 1);
    return Rounded(microseconds[static_cast<std::size_t>(share * last)]);
  }
};

class MaskRun {
 public:
  MaskRun(const TokenTrie& trie, MaskBuilder& builder, SharedGrammar grammar, std::uint64_t seed)
      : trie_(trie),
        builder_(builder),
        grammar_(std::move(grammar)),
        rng_(seed, "masks"),
        mask_(trie.mask_words()) {}

  void Run(Times* masks, Times* accepts) {
    for (std::uint32_t i = 0; i < kOutputs; ++i)
      Output(masks, accepts);
  }

 private:
  void Output(Times* masks, Times* accepts) {
    const SystemClock clock;
    GrammarMatcher matcher(grammar_);
    for (std::uint32_t i = 0; i < kMaxTokens; ++i) {
      const std::int64_t begin = clock.NowNs();
      const MaskOutcome outcome = builder_.Build(matcher, mask_);
      masks->microseconds.push_back(static_cast<double>(clock.NowNs() - begin) * 1e-3);
      CHECK(outcome != MaskOutcome::kTooMuch);
      if (outcome == MaskOutcome::kNone || (matcher.IsComplete() && rng_.Below(3) == 0)) return;
      const std::int32_t token = Draw();
      const std::int64_t drawn = clock.NowNs();
      CHECK(matcher.Accept(trie_.Bytes(token)));
      accepts->microseconds.push_back(static_cast<double>(clock.NowNs() - drawn) * 1e-3);
    }
  }

  std::int32_t Draw() {
    allowed_.clear();
    for (std::uint32_t id = 0; id < trie_.vocab_size(); ++id)
      if (mask_[id / 32] >> id % 32 & 1u) allowed_.push_back(static_cast<std::int32_t>(id));
    return allowed_[rng_.Below(allowed_.size())];
  }

  const TokenTrie& trie_;
  MaskBuilder& builder_;
  const SharedGrammar grammar_;
  Rng rng_;
  std::vector<std::uint32_t> mask_;
  std::vector<std::int32_t> allowed_;
};

}  // namespace

void RunMaskBench(const Tokenizer& tokenizer, const BenchOptions& options, const BenchSink& sink) {
  const SystemClock clock;
  const std::int64_t begin = clock.NowNs();
  const TokenTrie trie(tokenizer.num_tokens(),
                       [&](std::int32_t id) { return tokenizer.TokenBytes(id); });
  const double trie_ms = static_cast<double>(clock.NowNs() - begin) * 1e-6;
  for (const Subject& subject : kSubjects) {
    const std::int64_t compile_begin = clock.NowNs();
    const SharedGrammar grammar =
        OrThrow(Grammar::Compile({.kind = subject.kind, .text = subject.text}));
    const double compile_ms = static_cast<double>(clock.NowNs() - compile_begin) * 1e-6;
    MaskBuilder builder(trie, kCacheBytes);
    for (const char* pass : {"first", "again"}) {
      Times masks;
      Times accepts;
      MaskRun(trie, builder, grammar, options.seed).Run(&masks, &accepts);
      sink({{"bench", "masks"},
            {"vocab", trie.vocab_size()},
            {"grammar", subject.name},
            {"cache", pass},
            {"masks", masks.microseconds.size()},
            {"p50_microseconds", masks.At(0.5)},
            {"p99_microseconds", masks.At(0.99)},
            {"max_microseconds", masks.At(1)},
            {"accept_p99_microseconds", accepts.At(0.99)},
            {"compile_ms", Rounded(compile_ms)},
            {"grammar_bytes", grammar->bytes()},
            {"trie_bytes", trie.reserved_bytes()},
            {"trie_ms", Rounded(trie_ms)}});
    }
  }
}

}  // namespace kvrm
