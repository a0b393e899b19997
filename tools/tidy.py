#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what no compiler checks: floors, banned calls, invariants, documents.

A rule is a function from a Tree to findings. Each has a test in tidy_test.py that plants a
violation. `--report` also lists what is long: a reason to look, not a failure.
"""

import os
import re
import subprocess
import sys
from typing import NamedTuple


class Finding(NamedTuple):
    path: str
    line: int
    rule: str
    message: str


SOURCE = (".h", ".c", ".cc", ".cu", ".S")
# Everything a person reads or edits; binary files are left alone.
TEXT = SOURCE + (".md", ".txt", ".py", ".json", ".cmake", ".js", ".mjs", ".ts", ".sh", ".yml", "")


def blank(match):
    """Replaces what was matched by spaces, keeping the line count."""
    return re.sub(r"[^\n]", " ", match.group(0))


COMMENT = r"//[^\n]*|/\*.*?\*/"
STRING = r'R"([^(\s]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\''
TOKENS = re.compile(f"(?P<comment>{COMMENT})|(?P<string>{STRING})".replace(r"\1", r"\3"), re.S)


class Tree:
    """The files of a checkout, read once."""

    def __init__(self, root):
        self.root = root
        self.files = sorted(path for path in self._list() if os.path.isfile(self._full(path)))
        self._texts = {}
        self._codes = {}

    def _full(self, path):
        return os.path.join(self.root, path)

    def _list(self):
        if os.path.exists(self._full(".git")):
            return subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                                  cwd=self.root, capture_output=True, text=True,
                                  check=True).stdout.splitlines()
        return [os.path.relpath(os.path.join(folder, name), self.root)
                for folder, _, names in os.walk(self.root) for name in names]

    def text(self, path):
        if path not in self._texts:
            with open(self._full(path), encoding="utf-8", errors="replace") as stream:
                self._texts[path] = stream.read()
        return self._texts[path]

    def code(self, path):
        """The text with comments and literals blanked out."""
        if path not in self._codes:
            self._codes[path] = TOKENS.sub(blank, self.text(path))
        return self._codes[path]

    def uncommented(self, path):
        """The text with comments blanked out and literals kept."""
        return TOKENS.sub(lambda m: blank(m) if m.group("comment") else m.group(0),
                          self.text(path))

    def sources(self, folder="src/", ends=SOURCE):
        return [path for path in self.files if path.startswith(folder) and path.endswith(ends)]

    def texts(self):
        return [path for path in self.files if os.path.splitext(path)[1] in TEXT
                and "\0" not in self.text(path)]


def is_test(path):
    return re.search(r"_(test|fuzz|bench)\.cc$", path) or "/testing/" in path


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def search(tree, path, pattern, rule, message, raw=False):
    text = tree.text(path) if raw else tree.code(path)
    for match in re.finditer(pattern, text, re.M):
        yield Finding(path, line_of(text, match.start()), rule, message.format(match.group(0)))


# Floors.


class Floors:
    """tools/floors.txt."""

    def __init__(self, tree):
        self.allowed, self.libraries = {}, []
        for line in tree.text("tools/floors.txt").splitlines():
            words = line.split("#")[0].split()
            if words and words[0] == "floor":
                self.allowed[words[2]] = words[3:]
            elif words and words[0] == "library":
                self.libraries.append((words[1], [w for w in words[2:] if w != "-"]))

    def may_include(self, folder, header):
        return any(header == entry or header.startswith(entry + "/")
                   for entry in [folder, *self.allowed.get(folder, [])])

    def library_home(self, header):
        """Where a library header may be included; None: anywhere. First match decides."""
        for prefix, where in self.libraries:
            exact = not prefix.endswith("/") and header.startswith(prefix) and (
                len(header) == len(prefix) or header[len(prefix)] in "./_" or prefix == "cuda")
            if header == prefix or (prefix.endswith("/") and header.startswith(prefix)) or exact:
                return where
        return None


def includes(tree, path):
    """Yields (line, header, quoted) of every #include."""
    text = tree.uncommented(path)
    for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', text, re.M):
        yield line_of(text, match.start()), match.group(1) or match.group(2), bool(match.group(1))


def rule_floors(tree):
    floors = Floors(tree)
    for path in tree.sources():
        folder = path.split("/")[1]
        for line, header, quoted in includes(tree, path):
            if quoted and not floors.may_include(folder, header):
                yield Finding(path, line, "floors", f"{folder} may not include {header}")
            if quoted:
                continue
            home = floors.library_home(header)
            inside = path[len("src/"):]
            if home is not None and not any(inside.startswith(prefix) for prefix in home):
                yield Finding(path, line, "libraries",
                              f"<{header}> belongs in {' '.join(home) or 'no file'}")


def rule_every_source_is_built(tree):
    """A source must lie where the globs of CMakeLists.txt find it; data (.inc) must be included."""
    floors = Floors(tree)
    included = {header for path in tree.sources() for _, header, _ in includes(tree, path)}
    cmake = tree.text("CMakeLists.txt")
    for path in tree.files:
        if not path.startswith("src/"):
            continue
        parts = path.split("/")
        known = parts[1] in floors.allowed and (
            f"kvrm_floor({parts[1]}" in cmake or f"src/{parts[1]}/*.cc" in cmake)
        if path.endswith(".inc") and "/".join(parts[1:]) in included:
            continue
        if not known or len(parts) != 3 or not path.endswith(SOURCE):
            yield Finding(path, 1, "built", "no target of CMakeLists.txt compiles this file")
        elif not re.fullmatch(r"[a-z0-9_]+\.[a-zS]+", parts[2]):
            yield Finding(path, 1, "built", "file names are snake_case")


def rule_own_header_first(tree):
    for path in tree.sources(ends=(".cc",)):
        own = path[len("src/"):-len(".cc")] + ".h"
        if "src/" + own not in tree.files:
            continue
        first = next((header for _, header, _ in includes(tree, path)), None)
        if first != own:
            yield Finding(path, 1, "own-header", f'include "{own}" first: it must stand alone')


# Instruction sets.

ISA_INCLUDES = {"immintrin.h", "stdint.h", "stddef.h", "kernels/cpu_kernels.h", "step/dtype.h"}


def isa_header(header):
    """Headers that ISA files share, among themselves or with the scalar table: under the same rule."""
    return re.fullmatch(r"kernels/(avx\w*|q8_scale)\.h", header)


def rule_isa_includes(tree):
    for path in tree.sources("src/kernels/"):
        if not path.startswith("src/kernels/avx") and not isa_header(path[len("src/"):]):
            continue
        for line, header, _ in includes(tree, path):
            if header not in ISA_INCLUDES and not isa_header(header):
                yield Finding(path, line, "isa", f"an ISA file may not include {header} (ADR 0008)")


def exported_symbols(listing):
    """The defined symbols of `nm` output that another object could be merged with or call."""
    symbols = []
    for line in listing.splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[1] in "TDBRVWuGS" and not words[2].startswith("DW.ref."):
            symbols.append(words[2])
    return symbols


def rule_isa_symbols(tree):
    """Where the release build exists: one exported symbol for each ISA object, the table."""
    folder = os.path.join(tree.root, "build/release/CMakeFiles/kvrm_kernels.dir/src/kernels")
    for path in tree.sources("src/kernels/avx", ends=(".cc",)):
        target = os.path.join(folder, os.path.basename(path) + ".o")
        source = os.path.join(tree.root, path)
        if not os.path.exists(target) or os.path.getmtime(target) < os.path.getmtime(source):
            continue
        listing = subprocess.run(["nm", "-C", "--defined-only", target], capture_output=True,
                                 text=True, check=True).stdout
        symbols = exported_symbols(listing)
        if len(symbols) != 1:
            yield Finding(path, 1, "isa", f"exports {symbols}; only the table may be visible")


# Calls with one home.

BANNED = [
    # pattern, files where it stands, message
    (r"\b(?:steady|system|high_resolution|utc|file)_clock\s*::\s*now\b", ("src/base/clock.h",),
     "{}: ask a Clock (base/clock.h)"),
    (r"(?<![\w.>:])(?:std::|::)?(?:time|gettimeofday|clock_gettime|clock)\s*\(\s*(?:\)|nullptr|NULL"
     r"|0\s*\)|&|CLOCK_)", ("src/base/clock.h", "src/base/thread_cpu.h"),
     "{}: ask a Clock (base/clock.h)"),
    (r"\bstd::(?:mt19937\w*|minstd_rand\w*|random_device|default_random_engine)\b"
     r"|(?<![\w.>:])(?:std::|::)?s?rand\s*\(|\b(?:drand48|lrand48|arc4random\w*)\s*\(",
     ("src/base/rng.h",), "{}: draw from Rng (base/rng.h)"),
    (r"\bstd::(?:recursive_|shared_|timed_)?mutex\b|\bstd::condition_variable\w*|\bpthread_mutex_",
     ("src/base/",), "{}: a lock lives in base/ only"),
    (r"\bshared_ptr\b|\bmake_shared\b", ("src/server/", "src/base/log", "src/cli/", "src/grammar/grammar.h"),
     "{}: owners are members or unique_ptr"),
    (r"\busing\s+namespace\b", (), "{}"),
    (r"(?<![\w.>])assert\s*\(", (), "{}: CHECK survives NDEBUG (F8)"),
]

INPUT_BANNED = (r"\bstd::regex\b|\b(?:std::)?(?:stoi|stol|stoll|stoul|stoull|stof|stod|stold)\s*\("
                r"|(?<![\w.>])(?:std::|::)?(?:strtou?ll?|strtof|strtod|strtold|atoi|atol|atoll|atof"
                r"|v?sscanf)\s*\(")


def rule_banned_calls(tree):
    for path in tree.sources():
        for pattern, homes, message in BANNED:
            if not path.startswith(homes or ("\0",)):
                yield from search(tree, path, pattern, "banned", message)
        if not is_test(path):
            yield from search(tree, path, INPUT_BANNED, "banned", "{}: std::from_chars (F5)")


# Three virtual interfaces, each of them a seam the simulator replaces.
SEAMS = ("src/base/clock.h", "src/device/device.h", "src/exec/executor.h")


def rule_virtual(tree):
    for path in tree.sources():
        if path not in SEAMS and not is_test(path):
            yield from search(tree, path, r"\bvirtual\b", "virtual",
                              "a virtual interface beside Clock, Device, Executor needs an ADR")


# Text.


def rule_spdx(tree):
    for path in tree.files:
        name = os.path.basename(path)
        if not (path.endswith(SOURCE + (".py", ".mjs", ".js")) or name in ("CMakeLists.txt", "dev")):
            continue
        if not any("SPDX-License-Identifier: Apache-2.0" in line
                   for line in tree.text(path).splitlines()[:3]):
            yield Finding(path, 1, "spdx", "begin with the SPDX line")


def rule_pragma_once(tree):
    for path in tree.sources(ends=(".h",)):
        if not re.search(r"^#pragma once$", tree.text(path), re.M):
            yield Finding(path, 1, "pragma", "a header has #pragma once")


LATER = "|".join(("FIX" + "ME", "XX" + "X"))


def rule_leftovers(tree):
    for path in tree.texts():
        if path.endswith(".md"):
            continue
        yield from search(tree, path, rf"\b(?:{LATER})\b", "leftover", "{}", raw=True)
        yield from search(tree, path, r"\bTO" + r"DO\b(?!\(#\d+\))", "leftover",
                          "{}: name an issue, like (#12)", raw=True)


# Built from halves, so that this file does not find itself.
MACHINE = (r"(?<![\w./-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "fa" + "rm")) + r")/[\w.]"
           r"|registry\.npm" + r"js|deb\.deb" + r"ian\.org")


def rule_machine_words(tree):
    for path in tree.texts():
        yield from search(tree, path, MACHINE, "machine",
                          "{}: the project knows no machine and no registry", raw=True)


# Invariants: numbered in a header, cited where they are checked.

INVARIANT_FOLDERS = ("src/base/", "src/step/", "src/kv/", "src/server/")


def catalogued(tree):
    """The invariants that the tables of docs/testing.md list."""
    names = set()
    text = tree.text("docs/testing.md") if "docs/testing.md" in tree.files else ""
    for cell in re.findall(r"^\s*\|\s*([A-Z]\d{1,2}\b[^|]*)\|", text, re.M):
        names.update(re.findall(r"\b[A-Z]\d{1,2}\b", cell))
        for letter, first, last in re.findall(r"\b([A-Z])(\d{1,2}) to \1(\d{1,2})\b", cell):
            names.update(f"{letter}{i}" for i in range(int(first), int(last)))
    return names


def rule_invariants(tree):
    """In these folders what is numbered is cited, what is cited is numbered; docs/testing.md has all.

    A definition is a header comment line `//   P1  text` (two spaces after the number). A citation
    is the number as a word in a comment of a source, or in a comment of a header elsewhere. In the
    document a row of a table begins with the number, or with several: `| P1, P2 |`, `| Q1 to Q3 |`.
    """
    defined, cited = {}, {}
    for path in tree.files:
        if not path.startswith("src/") or not path.endswith((".h", ".cc")):
            continue
        inside = path.startswith(INVARIANT_FOLDERS)
        for number, line in enumerate(tree.text(path).splitlines(), 1):
            match = re.match(r"^\s*//\s+([A-Z]\d{1,2})\s\s+\S", line)
            if match and path.endswith(".h"):
                if inside:
                    defined.setdefault(match.group(1), (path, number))
                continue
            if path.endswith(".h") and re.match(r"^\s*//", line) and not inside:
                continue
            comment = line[line.find("//"):] if "//" in line else ""
            for name in re.findall(r"\b([A-Z]\d{1,2})\b", comment):
                cited.setdefault(name, (path, number))
            for letter, first, last in re.findall(r"\b([A-Z])(\d{1,2})(?:-| to )\1(\d{1,2})\b",
                                                  comment):
                for i in range(int(first), int(last)):
                    cited.setdefault(f"{letter}{i}", (path, number))
    for name, (path, number) in defined.items():
        if name not in cited:
            yield Finding(path, number, "invariants", f"{name} is cited nowhere")
    letters = {name[0] for name in defined}
    catalogue = catalogued(tree)
    for name, (path, number) in defined.items():
        if name not in catalogue:
            yield Finding(path, number, "invariants", f"{name} is not in docs/testing.md")
    for name, (path, number) in cited.items():
        if (name[0] in letters and path.startswith(INVARIANT_FOLDERS)
                and name not in defined and name not in catalogue):
            yield Finding(path, number, "invariants", f"{name} has no definition")


# Documents.


def slug(heading):
    """The anchor a heading gets: lower case, punctuation dropped, spaces to hyphens."""
    heading = re.sub(r"[`*]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def prose(text):
    """A document without its fenced blocks and code spans."""
    text = re.sub(r"^(```|~~~).*?^\1[ \t]*$", blank, text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", blank, text)


def headings(text):
    fenced = re.sub(r"^(```|~~~).*?^\1[ \t]*$", blank, text, flags=re.S | re.M)
    return [(line_of(fenced, m.start()), len(m.group(1)), m.group(2))
            for m in re.finditer(r"^(#{1,6})\s+(.+?)\s*#*$", fenced, re.M)]


def rule_documents(tree):
    for path in [path for path in tree.files if path.endswith(".md")]:
        text = tree.text(path)
        tops = [line for line, level, _ in headings(text) if level == 1]
        if len(tops) != 1:
            yield Finding(path, 1, "documents", f"has {len(tops)} first-level headings, not one")
        body = prose(text)
        for match in re.finditer(r"\[[^\]]*\]\(([^)\s]+)\)", body):
            target = match.group(1)
            line = line_of(body, match.start())
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            full = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
            folder = any(file.startswith(full + "/") for file in tree.files)
            if full not in tree.files and not folder:
                yield Finding(path, line, "documents", f"dead link {target}")
            elif anchor and full.endswith(".md") and anchor not in [
                    slug(title) for _, _, title in headings(tree.text(full))]:
                yield Finding(path, line, "documents", f"no heading for {target}")


def rule_cited_documents(tree):
    """docs/x.md and docs/decisions/NNNN named in a source must exist."""
    for path in tree.sources():
        text = tree.text(path)
        for match in re.finditer(r"\bdocs/(?:decisions/\d{4}|[\w/]+\.md)", text):
            if not any(file.startswith(match.group(0)) for file in tree.files):
                yield Finding(path, line_of(text, match.start()), "documents",
                              f"{match.group(0)} does not exist")
        for match in re.finditer(r"\bADR (\d{4})\b", text):
            if not any(file.startswith(f"docs/decisions/{match.group(1)}") for file in tree.files):
                yield Finding(path, line_of(text, match.start()), "documents",
                              f"{match.group(0)} does not exist")


RULES = [value for name, value in sorted(globals().items()) if name.startswith("rule_")]


# What is only reported.

FILE_LINES, HEADER_LINES, FUNCTION_LINES = 700, 250, 70
WEAK_NAMES = r"\b(?:class|struct)\s+\w*(?:Manager|Helper|Util|Wrapper|Handler|Common|Impl)\b(?=[^;]*\{)"


def functions(code):
    """Yields (line, number of lines) of what looks like a function body at namespace level."""
    for match in re.finditer(r"^(?!namespace|extern|enum|class|struct|union|#|\}|\s)[^;{}]*\)[^;{}]*"
                             r"(?::[^;{}]*(?:\{[^{}]*\}[^;{}]*)*)?\{\n", code, re.M):
        end = code.find("\n}", match.end() - 1)
        if end > 0:
            yield line_of(code, match.start()), code.count("\n", match.start(), end) + 2


def report(tree):
    for path in tree.sources():
        lines = tree.text(path).count("\n")
        limit = HEADER_LINES if path.endswith(".h") else FILE_LINES
        if lines > limit:
            yield Finding(path, 1, "long", f"{lines} lines; the limit to think again is {limit}")
        for line, length in functions(tree.code(path)):
            if length > FUNCTION_LINES:
                yield Finding(path, line, "long", f"a function of {length} lines")
        yield from search(tree, path, WEAK_NAMES, "names", "{}: say what it is")


def show(findings):
    for finding in sorted(set(findings)):
        print(f"{finding.path}:{finding.line}: {finding.rule}: {finding.message}")


def main(arguments):
    tree = Tree(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    findings = [finding for rule in RULES for finding in rule(tree)]
    show(findings)
    if "--report" in arguments:
        print("reported, not failed:")
        show(report(tree))
    print(f"tidy: {len(tree.files)} files, {len(RULES)} rules, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
