// SPDX-License-Identifier: Apache-2.0
// Random grammars against a recogniser that is obvious and slow: for every node and place in the
// text, the set of places where a match can end.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "base/rng.h"
#include "grammar/grammar_for_test.h"

namespace kvrm {
namespace {

struct Tree {
  enum class Kind { kLiteral, kClass, kConcat, kAlternate, kRepeat, kCall };
  Kind kind = Kind::kLiteral;
  std::string text;  // of a literal, or the members of a class
  bool negated = false;
  int min = 0;
  int max = 0;  // -1: any number
  std::size_t rule = 0;
  std::vector<Tree> kids;
};

constexpr const char* kAlphabet = "abcd";

class RandomGrammar {
 public:
  explicit RandomGrammar(Rng& rng) : rng_(rng) {
    rules_.resize(rng.Between(1, 4));
    for (std::size_t i = 0; i < rules_.size(); ++i) {
      at_ = i;
      rules_[i] = Make(3);
    }
  }

  const std::vector<Tree>& rules() const { return rules_; }

  std::string Gbnf() const {
    std::string text;
    for (std::size_t i = 0; i < rules_.size(); ++i)
      text += Name(i) + " ::= " + Spell(rules_[i]) + "\n";
    return text;
  }

 private:
  static std::string Name(std::size_t rule) {
    return rule == 0 ? "root" : "r" + std::to_string(rule);
  }

  Tree Leaf() {
    Tree leaf;
    if (rng_.Below(3) == 0) {
      leaf.kind = Tree::Kind::kClass;
      leaf.negated = rng_.Below(4) == 0;
      for (std::uint64_t i = rng_.Between(1, 2); i > 0; --i)
        leaf.text += kAlphabet[rng_.Below(4)];
      return leaf;
    }
    for (std::uint64_t i = rng_.Between(1, 3); i > 0; --i)
      leaf.text += kAlphabet[rng_.Below(4)];
    return leaf;
  }

  // A call of a rule that comes later is never left recursion; one of this or an earlier rule is
  // put behind a literal.
  Tree Call() {
    Tree call;
    call.kind = Tree::Kind::kCall;
    call.rule = rng_.Below(rules_.size());
    if (call.rule > at_) return call;
    Tree guarded;
    guarded.kind = Tree::Kind::kConcat;
    guarded.kids = {Leaf(), call};
    return guarded;
  }

  Tree Make(int depth) {
    const std::uint64_t pick = rng_.Below(depth > 0 ? 8 : 2);
    if (pick < 2) return Leaf();
    if (pick == 2) return Call();
    Tree tree;
    if (pick == 3 || pick == 4) {
      tree.kind = Tree::Kind::kRepeat;
      constexpr std::pair<int, int> kBounds[] = {{0, 1}, {0, -1}, {1, -1}, {2, 3}, {0, 4}, {2, -1}};
      std::tie(tree.min, tree.max) = kBounds[rng_.Below(6)];
      tree.kids = {Make(depth - 1)};
      return tree;
    }
    tree.kind = pick < 7 ? Tree::Kind::kConcat : Tree::Kind::kAlternate;
    for (std::uint64_t i = rng_.Between(2, 3); i > 0; --i)
      tree.kids.push_back(Make(depth - 1));
    return tree;
  }

  std::string Spell(const Tree& tree) const {
    switch (tree.kind) {
      case Tree::Kind::kLiteral:
        return "\"" + tree.text + "\"";
      case Tree::Kind::kClass:
        return std::string("[") + (tree.negated ? "^" : "") + tree.text + "]";
      case Tree::Kind::kCall:
        return Name(tree.rule);
      case Tree::Kind::kRepeat: {
        const std::string most = tree.max < 0 ? "" : std::to_string(tree.max);
        return "(" + Spell(tree.kids[0]) + "){" + std::to_string(tree.min) + "," + most + "}";
      }
      default:
        break;
    }
    std::string text = "(";
    for (std::size_t i = 0; i < tree.kids.size(); ++i) {
      if (i > 0) text += tree.kind == Tree::Kind::kAlternate ? " | " : " ";
      text += Spell(tree.kids[i]);
    }
    return text + ")";
  }

  Rng& rng_;
  std::vector<Tree> rules_;
  std::size_t at_ = 0;
};

class Recogniser {
 public:
  Recogniser(const std::vector<Tree>& rules, std::string text)
      : rules_(rules), text_(std::move(text)) {}

  bool Matches() { return Ends(rules_[0], 0).contains(text_.size()); }

 private:
  using Places = std::set<std::size_t>;

  // Left recursion is never generated, but a call can come back to itself at the same place through
  // a rule that matches nothing: what it would add is what is being found.
  Places Ends(const Tree& tree, std::size_t from) {
    const auto key = std::make_pair(&tree, from);
    const auto [slot, is_new] = known_.try_emplace(key);
    if (!is_new) return slot->second;
    Places ends = Find(tree, from);
    known_[key] = ends;
    return ends;
  }

  Places Each(const Tree& tree, const Places& from) {
    Places ends;
    for (const std::size_t place : from)
      ends.merge(Ends(tree, place));
    return ends;
  }

  Places Find(const Tree& tree, std::size_t from) {
    switch (tree.kind) {
      case Tree::Kind::kLiteral:
        if (text_.compare(from, tree.text.size(), tree.text) != 0) return {};
        return {from + tree.text.size()};
      case Tree::Kind::kClass: {
        if (from == text_.size()) return {};
        const bool is_member = tree.text.find(text_[from]) != std::string::npos;
        return is_member != tree.negated ? Places{from + 1} : Places{};
      }
      case Tree::Kind::kCall:
        return Ends(rules_[tree.rule], from);
      case Tree::Kind::kAlternate: {
        Places ends;
        for (const Tree& kid : tree.kids)
          ends.merge(Ends(kid, from));
        return ends;
      }
      case Tree::Kind::kConcat: {
        Places at = {from};
        for (const Tree& kid : tree.kids)
          at = Each(kid, at);
        return at;
      }
      case Tree::Kind::kRepeat:
        break;
    }
    Places at = {from};
    for (int i = 0; i < tree.min; ++i)
      at = Each(tree.kids[0], at);
    Places ends = at;
    for (int i = tree.min; (tree.max < 0 || i < tree.max) && !at.empty(); ++i) {
      Places next;
      for (const std::size_t place : Each(tree.kids[0], at))
        if (!ends.contains(place)) next.insert(place);
      ends.insert(next.begin(), next.end());
      at = next;
    }
    return ends;
  }

  const std::vector<Tree>& rules_;
  const std::string text_;
  std::map<std::pair<const Tree*, std::size_t>, Places> known_;
};

std::vector<std::string> ShortTexts() {
  std::vector<std::string> texts = {""};
  for (std::size_t i = 0; i < texts.size() && texts[i].size() < 4; ++i)
    for (const char* c = kAlphabet; *c != '\0'; ++c)
      texts.push_back(texts[i] + *c);
  return texts;
}

// A text that the matcher takes, if a random way finds one.
std::string RandomWalk(const SharedGrammar& grammar, Rng& rng) {
  GrammarMatcher matcher(grammar);
  std::string text;
  for (int tries = 0; tries < 200 && text.size() < 24; ++tries) {
    if (matcher.IsComplete() && rng.Below(4) == 0) return text;
    const std::string next(1, kAlphabet[rng.Below(4)]);
    if (matcher.Accept(next)) text += next;
  }
  return text;
}

TEST(Reference, RandomGrammarsMatchTheSameTexts) {
  const std::vector<std::string> texts = ShortTexts();
  int num_compiled = 0;
  int num_matches = 0;
  int num_long = 0;
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    Rng rng(seed, "reference");
    const RandomGrammar random(rng);
    const std::string gbnf = random.Gbnf();
    SCOPED_TRACE("seed " + std::to_string(seed) + "\n" + gbnf);
    const Result<SharedGrammar> grammar =
        Grammar::Compile({.kind = GrammarKind::kGbnf, .text = gbnf});
    if (!grammar) {
      // Recursion without an end; left recursion past a rule that may be empty.
      const std::string& message = grammar.error().message;
      ASSERT_TRUE(message.find("cannot end") != std::string::npos ||
                  message.find("left recursion") != std::string::npos)
          << message;
      continue;
    }
    ++num_compiled;
    for (int i = 0; i < 60; ++i) {
      const std::string text =
          i < 40 ? texts[rng.Below(texts.size())] : RandomWalk(grammar.value(), rng);
      const bool expected = Recogniser(random.rules(), text).Matches();
      ASSERT_EQ(Matches(grammar.value(), text), expected) << "'" << text << "'";
      num_matches += expected;
      num_long += expected && text.size() > 6;
    }
  }
  EXPECT_GT(num_compiled, 600);
  EXPECT_GT(num_matches, 5000);
  EXPECT_GT(num_long, 1000);
}

}  // namespace
}  // namespace kvrm
