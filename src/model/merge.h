// SPDX-License-Identifier: Apache-2.0
// Pair merging: the step common to both kinds of BPE. A word is a row of symbols; again and again
// the adjacent pair of the lowest rank, the leftmost among equals, becomes one symbol.
//
// O(n log n) in symbols: a linked list and a heap of candidates. Threading: the caller's, one
// MergeScratch per thread. Memory: about 50 bytes a symbol, kept in the scratch between words.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace kvrm {

constexpr std::uint32_t kNoRank = 0xFFFFFFFFu;
constexpr std::uint32_t kNoSymbol = 0xFFFFFFFFu;

// What a pair becomes. rank kNoRank: the pair does not merge.
struct PairMerge {
  std::uint32_t rank = kNoRank;
  std::int32_t id = -1;
};

// [begin, begin + size) are the symbol's bytes in the word.
struct MergeSymbol {
  std::int32_t id = -1;  // -1: no token of the vocabulary
  std::uint32_t begin = 0;
  std::uint32_t size = 0;
  std::uint32_t prev = kNoSymbol;
  std::uint32_t next = kNoSymbol;
  PairMerge merge;  // Of this symbol with the next one.
};

// Invariant: following `next` from symbol 0 visits the live symbols in text order. Symbol 0 is
// never absorbed, because a pair keeps its left place.
struct MergeScratch {
  std::vector<MergeSymbol> symbols;
  std::vector<std::uint64_t> heap;  // rank << 32 | symbol; smallest on top

  void Clear() {
    symbols.clear();
    heap.clear();
  }
  void Append(std::int32_t id, std::uint32_t begin, std::uint32_t size) {
    const std::uint32_t idx = static_cast<std::uint32_t>(symbols.size());
    if (idx > 0) symbols[idx - 1].next = idx;
    symbols.push_back({id, begin, size, idx > 0 ? idx - 1 : kNoSymbol, kNoSymbol, {}});
  }
};

// Merges scratch.symbols in place. `find(left, right)` gives the PairMerge of two symbols.
template <typename FindPair>
void MergeSymbols(MergeScratch& scratch, const FindPair& find) {
  std::vector<MergeSymbol>& symbols = scratch.symbols;
  std::vector<std::uint64_t>& heap = scratch.heap;
  const auto consider = [&](std::uint32_t idx) {
    MergeSymbol& left = symbols[idx];
    left.merge = left.next == kNoSymbol ? PairMerge{} : find(left, symbols[left.next]);
    return left.merge.rank != kNoRank;
  };
  const auto key = [&](std::uint32_t idx) {
    return std::uint64_t{symbols[idx].merge.rank} << 32 | idx;
  };
  for (std::uint32_t idx = 0; idx < symbols.size(); ++idx) {
    if (consider(idx)) heap.push_back(key(idx));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto offer = [&](std::uint32_t idx) {
    if (!consider(idx)) return;
    heap.push_back(key(idx));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const std::uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    const std::uint32_t idx = static_cast<std::uint32_t>(top);
    MergeSymbol& left = symbols[idx];
    // An entry whose pair has changed since, or whose symbol was absorbed, is stale.
    if (left.merge.rank != static_cast<std::uint32_t>(top >> 32)) continue;
    MergeSymbol& right = symbols[left.next];
    left.id = left.merge.id;
    left.size += right.size;
    left.next = right.next;
    right.merge = {};
    if (left.next != kNoSymbol) symbols[left.next].prev = idx;
    offer(idx);
    if (left.prev != kNoSymbol) offer(left.prev);
  }
}

}  // namespace kvrm
