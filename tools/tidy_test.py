#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each rule of tidy.py finds a planted violation and leaves a clean tree alone."""

import os
import shutil
import tempfile
import unittest

import tidy

SPDX = "// SPDX-License-Identifier: Apache-2.0\n"
FLOORS = """
floor 0  base
floor 1  step     base
floor 2  device   base step
floor 2  kernels  base step
floor 3  kv       base step device
floor 3  exec     base step device kernels
floor 4  engine   base step kv/kv_cache.h exec
library  boost/json  base/
library  boost/      server/
library  mutex       base/
library  cuda        device/cuda_device kernels/cuda/
"""
CMAKE = "# " + SPDX[3:] + "".join(
    f"kvrm_floor({name})\n" for name in ("base", "step", "device", "kernels", "kv", "exec", "engine"))
CLEAN = {
    "CMakeLists.txt": CMAKE,
    "tools/floors.txt": FLOORS,
    "README.md": "# A house\n\n[style](docs/style.md#the-words) and [web](https://example.org)\n",
    "docs/testing.md": "# Testing\n\n| number | what |\n| --- | --- |\n| D1, D2 | a |\n"
                       "| P1 to P3 | b |\n",
    "docs/style.md": "# Style\n\n## The words\n",
    "src/step/ids.h": SPDX + "// Ids.\n//\n//   D1  numbers rise\n#pragma once\n"
                             '#include "base/check.h"\n',
    "src/base/check.h": SPDX + "// Checks.\n#pragma once\n",
    "src/step/ids.cc": SPDX + '#include "step/ids.h"\n\nvoid F() {\n  CHECK(true);  // D1\n}\n',
}


class TidyTest(unittest.TestCase):
    def check(self, rule, changes):
        """The findings of one rule on the clean tree with some files added or replaced."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for path, text in {**CLEAN, **changes}.items():
            os.makedirs(os.path.join(folder, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(folder, path), "w", encoding="utf-8") as stream:
                stream.write(text)
        return [(finding.path, finding.line) for finding in rule(tidy.Tree(folder))]

    def assert_finds(self, rule, path, text, line):
        self.assertEqual(self.check(rule, {path: text}), [(path, line)])

    def assert_accepts(self, rule, path, text):
        self.assertEqual(self.check(rule, {path: text}), [])

    def test_clean_tree_has_no_findings(self):
        for rule in tidy.RULES:
            self.assertEqual(self.check(rule, {}), [], rule.__name__)

    def test_include_upwards(self):
        self.assert_finds(tidy.rule_floors, "src/step/x.cc", SPDX + '#include "kv/pager.h"\n', 2)

    def test_kv_and_exec_never_meet(self):
        self.assert_finds(tidy.rule_floors, "src/kv/x.cc", SPDX + '#include "exec/executor.h"\n', 2)
        self.assert_finds(tidy.rule_floors, "src/exec/x.cc", SPDX + '#include "kv/kv_cache.h"\n', 2)

    def test_siblings_do_not_include_each_other(self):
        self.assert_finds(tidy.rule_floors, "src/device/x.cc", SPDX + '#include "kernels/k.h"\n', 2)

    def test_engine_sees_one_kv_header(self):
        self.assert_accepts(tidy.rule_floors, "src/engine/x.cc", '#include "kv/kv_cache.h"\n')
        self.assert_finds(tidy.rule_floors, "src/engine/x.cc", '#include "kv/pager.h"\n', 1)

    def test_include_in_a_comment_is_no_include(self):
        self.assert_accepts(tidy.rule_floors, "src/kv/x.cc",
                            '// #include "exec/executor.h"\n/*\n#include "model/graph.h"\n*/\n')

    def test_library_outside_its_home(self):
        self.assert_finds(tidy.rule_floors, "src/kv/x.cc", "#include <mutex>\n", 1)
        self.assert_finds(tidy.rule_floors, "src/kv/x.cc", "#include <boost/json/value.hpp>\n", 1)
        self.assert_finds(tidy.rule_floors, "src/exec/x.cc", "#include <cuda_runtime.h>\n", 1)
        self.assert_accepts(tidy.rule_floors, "src/base/x.cc", "#include <boost/json/value.hpp>\n")

    def test_source_no_target_compiles(self):
        self.assert_finds(tidy.rule_every_source_is_built, "src/attic/x.cc", SPDX, 1)
        self.assert_finds(tidy.rule_every_source_is_built, "src/kv/deep/x.cc", SPDX, 1)
        self.assert_finds(tidy.rule_every_source_is_built, "src/kv/Pager.cc", SPDX, 1)

    def test_data_must_be_included(self):
        self.assert_finds(tidy.rule_every_source_is_built, "src/kv/table.inc", "1, 2\n", 1)
        self.assertEqual(self.check(tidy.rule_every_source_is_built, {
            "src/kv/table.inc": "1, 2\n", "src/kv/x.cc": '#include "kv/table.inc"\n'}), [])

    def test_own_header_first(self):
        self.assert_finds(tidy.rule_own_header_first, "src/step/ids.cc",
                          '#include "base/check.h"\n#include "step/ids.h"\n', 1)

    def test_isa_file_includes_only_its_own(self):
        self.assert_finds(tidy.rule_isa_includes, "src/kernels/avx2.cc",
                          "#include <immintrin.h>\n#include <vector>\n", 2)
        self.assert_accepts(tidy.rule_isa_includes, "src/kernels/avx2.cc",
                            '#include <immintrin.h>\n#include "kernels/cpu_kernels.h"\n')

    def test_isa_object_exports_one_symbol(self):
        listing = ("0000000000000000 R kvrm::kAvx2Kernels\n"
                   "0000000000000000 W void std::Sum<int>(int)\n"
                   "0000000000000000 t kvrm::(anonymous namespace)::Dot()\n")
        self.assertEqual(tidy.exported_symbols(listing),
                         ["kvrm::kAvx2Kernels", "void std::Sum<int>(int)"])

    def test_clock_outside_its_home(self):
        for call in ("std::chrono::steady_clock::now();", "time(nullptr);", "::time(&t);",
                     "gettimeofday(&now, nullptr);", "clock_gettime(CLOCK_MONOTONIC, &t);"):
            self.assert_finds(tidy.rule_banned_calls, "src/kv/x.cc", call + "\n", 1)
            self.assert_accepts(tidy.rule_banned_calls, "src/base/clock.h", call + "\n")
        self.assert_accepts(tidy.rule_banned_calls, "src/kv/x.cc", "clock.NowNs(); x.time();\n")

    def test_random_outside_its_home(self):
        for call in ("std::mt19937 g;", "rand();", "std::random_device d;"):
            self.assert_finds(tidy.rule_banned_calls, "src/kv/x.cc", call + "\n", 1)
        self.assert_accepts(tidy.rule_banned_calls, "src/kv/x.cc", "Operand(1); rng.rand();\n")

    def test_calls_banned_on_input(self):
        for call in ("std::stoi(s);", "strtoul(s, 0, 10);", "atoi(s);", "std::regex r;",
                     "sscanf(s, f);", "std::strtod(s, 0);"):
            self.assert_finds(tidy.rule_banned_calls, "src/kv/x.cc", call + "\n", 1)
            self.assert_accepts(tidy.rule_banned_calls, "src/kv/x_test.cc", call + "\n")

    def test_lock_assert_and_friends(self):
        for text in ("std::mutex m;", "assert(x);", "using namespace std;",
                     "std::shared_ptr<int> p;"):
            self.assert_finds(tidy.rule_banned_calls, "src/kv/x.cc", text + "\n", 1)
        self.assert_accepts(tidy.rule_banned_calls, "src/kv/x.cc", "static_assert(x);\n")

    def test_words_in_comments_and_literals_are_no_calls(self):
        self.assert_accepts(tidy.rule_banned_calls, "src/kv/x.cc",
                            '// rand() is banned\nconst char* s = "assert(x)";\n'
                            "/* time(nullptr) */\nauto r = R\"(atoi(s); \" rand())\";\n")

    def test_fourth_virtual_interface(self):
        self.assert_finds(tidy.rule_virtual, "src/kv/x.h", "virtual void F() = 0;\n", 1)

    def test_missing_spdx_and_pragma(self):
        self.assert_finds(tidy.rule_spdx, "src/kv/x.cc", "int x;\n", 1)
        self.assert_finds(tidy.rule_pragma_once, "src/kv/x.h", SPDX, 1)

    def test_leftovers(self):
        self.assert_finds(tidy.rule_leftovers, "src/kv/x.cc", "// FIX" "ME\n", 1)
        self.assert_finds(tidy.rule_leftovers, "src/kv/x.cc", "\n// TO" "DO: later\n", 2)
        self.assert_accepts(tidy.rule_leftovers, "src/kv/x.cc", "// TO" "DO(#12): later\n")

    def test_machine_words(self):
        self.assert_finds(tidy.rule_machine_words, "README.md", "# A\n\n`/ro" "ot/x`\n", 3)
        self.assert_accepts(tidy.rule_machine_words, "README.md", "# A\n\nbuild/wo" "rk/x\n")

    def test_invariant_without_check(self):
        self.assert_finds(tidy.rule_invariants, "src/kv/x.h", "//   P1  never negative\n", 1)

    def test_invariant_that_the_document_lacks(self):
        self.assertEqual(self.check(tidy.rule_invariants, {
            "src/kv/x.h": "//   P3  one\n//   P4  two\n",
            "src/kv/x.cc": "// P3 and P4 hold.\n"}), [("src/kv/x.h", 2)])

    def test_citation_without_invariant(self):
        self.assert_finds(tidy.rule_invariants, "src/step/x.cc", "CHECK(x);  // D9\n", 1)
        self.assert_accepts(tidy.rule_invariants, "src/step/x.cc", "// is 16-bit F16, not T5\n")

    def test_range_cites_all(self):
        self.assertEqual(self.check(tidy.rule_invariants, {
            "src/kv/x.h": "//   P1  one\n//   P2  two\n//   P3  three\n",
            "src/kv/x.cc": "// P1-P3 hold.\n"}), [])

    def test_dead_link_and_anchor(self):
        self.assert_finds(tidy.rule_documents, "a.md", "# A\n\n[x](nowhere.md)\n", 3)
        self.assert_finds(tidy.rule_documents, "a.md", "# A\n\n[x](docs/style.md#no)\n", 3)
        self.assert_accepts(tidy.rule_documents, "a.md", "# A\n\n`[x](no.md)`\n\n```\n# b\n```\n")

    def test_two_first_level_headings(self):
        self.assert_finds(tidy.rule_documents, "a.md", "# A\n\n# B\n", 1)

    def test_source_cites_a_missing_document(self):
        self.assert_finds(tidy.rule_cited_documents, "src/kv/x.h", "\n// docs/none.md\n", 2)
        self.assert_finds(tidy.rule_cited_documents, "src/kv/x.h", "// ADR 0042\n", 1)

    def test_report_names_long_functions(self):
        body = "void F(int x) {\n" + "  x += 1;\n" * 80 + "}\n"
        self.assertEqual(self.check(tidy.report, {"src/kv/x.cc": body}), [("src/kv/x.cc", 1)])


if __name__ == "__main__":
    unittest.main()
