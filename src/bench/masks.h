// SPDX-License-Identifier: Apache-2.0
// Masks of structured output as the engine's thread makes them: a vocabulary, a grammar, and random
// outputs that follow it, each token drawn evenly from those allowed.
//
// Two lines a grammar: `first`, with an empty cache of masks, whose worst case is the first string;
// and `again`, the same outputs once more.
#pragma once

#include "bench/bench.h"
#include "model/tokenizer.h"

namespace kvrm {

// Throws StartError.
void RunMaskBench(const Tokenizer& tokenizer, const BenchOptions& options, const BenchSink& sink);

}  // namespace kvrm
