#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Expected renderings of chat templates, made with Jinja2 under the settings they are written for.

    template_goldens.py own                 testdata/templates/*.jinja -> *.expected.json
    template_goldens.py corpus DIRECTORY    DIRECTORY/*.jinja -> testdata/templates/corpus_hashes.json
    template_goldens.py show FILE CASE      one rendering, to look at

The corpus is not part of the repository (licences differ), so only a hash and a length of each
rendering are kept. The conversations are testdata/templates/cases.json; both sides read that file.
Needs Debian's python3-jinja2.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "testdata" / "templates"


class GenerationTag(jinja2.ext.Extension):
    """{% generation %}: marks what the model wrote; here it only renders its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def make_environment(now):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime.fromtimestamp(now, datetime.timezone.utc).strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def render(source, case, common):
    """The text, or None where Jinja2 refuses."""
    try:
        template = make_environment(common["now"]).from_string(source)
        return template.render(
            messages=case["messages"], tools=case.get("tools"), documents=None,
            add_generation_prompt=case.get("add_generation_prompt", True),
            bos_token=common["bos_token"], eos_token=common["eos_token"], **case.get("kwargs", {}))
    except Exception as error:  # Jinja2 lets Python's own errors through.
        if "-v" in sys.argv:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return None


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main():
    common = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
    cases = common["cases"]
    if sys.argv[1:2] == ["own"]:
        for path in sorted(FOLDER.glob("*.jinja")):
            source = path.read_text(encoding="utf-8")
            expected = {name: render(source, case, common) for name, case in cases.items()}
            distinct = set(expected.values())
            # Most constructs do not look at the conversation: one expectation then says it all.
            if len(distinct) == 1:
                expected = {"*": distinct.pop()}
            write(path.with_suffix(".expected.json"), expected)
    elif sys.argv[1:2] == ["corpus"]:
        rows = []
        for path in sorted(pathlib.Path(sys.argv[2]).glob("*.jinja")):
            source = path.read_text(encoding="utf-8")
            for name, case in cases.items():
                text = render(source, case, common)
                data = None if text is None else text.encode("utf-8")
                rows.append([path.name, name, None if data is None else f"{fnv1a(data):016x}",
                             0 if data is None else len(data)])
        lines = ",\n".join(json.dumps(row) for row in rows)
        (FOLDER / "corpus_hashes.json").write_text("[\n" + lines + "\n]\n", encoding="utf-8")
    elif sys.argv[1:2] == ["show"]:
        source = pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
        text = render(source, cases[sys.argv[3]], common)
        sys.stdout.write("(refused)\n" if text is None else text)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
