#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/model/nfc_data.inc: the Unicode tables behind NFC, from Python's unicodedata."""
import sys
import unicodedata as u


def rows(values, per_line, form):
    lines = []
    for i in range(0, len(values), per_line):
        lines.append("    " + " ".join(form(v) + "," for v in values[i : i + per_line]))
    return "\n".join(lines)


def main():
    classes = []  # runs of equal combining class, not zero
    pairs = []
    for c in range(sys.maxunicode + 1):
        ch = chr(c)
        ccc = u.combining(ch)
        if ccc:
            if classes and classes[-1][1] == c - 1 and classes[-1][2] == ccc:
                classes[-1][1] = c
            else:
                classes.append([c, c, ccc])
        decomposition = u.decomposition(ch)
        if decomposition and not decomposition.startswith("<"):
            parts = [int(p, 16) for p in decomposition.split()]
            second = parts[1] if len(parts) == 2 else 0
            composes = second != 0 and u.normalize("NFC", u.normalize("NFD", ch)) == ch
            pairs.append((c, parts[0], second, composes))
    print("// SPDX-License-Identifier: Apache-2.0")
    print(f"// Written by tools/nfc_data.py from Unicode {u.unidata_version}.")
    print("// First and last code point, combining class.")
    print("constexpr CombiningRun kCombiningRuns[] = {")
    print(rows(classes, 5, lambda v: f"{{0x{v[0]:X}, 0x{v[1]:X}, {v[2]}}}"))
    print("};")
    print("// Code point, its canonical decomposition (second 0: a single one), whether it composes.")
    print("constexpr Decomposition kDecompositions[] = {")
    print(rows(pairs, 4, lambda v: f"{{0x{v[0]:X}, 0x{v[1]:X}, 0x{v[2]:X}, {int(v[3])}}}"))
    print("};")


main()
