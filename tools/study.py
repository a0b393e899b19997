#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The study of docs/study: runs `kvrm compare` over workloads and devices and answers the questions.

    study.py KVRM [--full] [--only NAME,..] [--traces FOLDER] [-o FOLDER]

An experiment is one `kvrm compare`; its folder keeps every record, so that each number can be
derived again. What was run with the same flags is not run again: after a change of the program, remove
the folder. Questions and what would refute them are in docs/study/README.md; the rules below say the
same in code. Every interval comes from `kvrm compare`. Standard library only.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

ALL = "extents,paged,staged,staged-layers,mapped,static,static-padded,static-bucket"
DENSE = "staged,staged-layers,static,static-padded,static-bucket"
NO_PACE = ["--itl-factor", "0", "-b", "512"]
SIZES = ["-p", "256", "-c", "12288", "--kv-memory", "131072"]
LONG = ["-p", "64", "-c", "131072", "--max-prompt", "126976", "--kv-memory", "524304"]
CLAIMED = ["mixed", "long-tail", "eos-heavy"]
FAMILIES = ["uniform", "mixed", "long-tail", "eos-heavy", "bursty", "shared-prefix", "multi-turn", "fork",
            "fragmentation"]
TRACES = {"azure-conv": ("AzureLLMInferenceTrace_conv.csv", SIZES),
          "azure-code": ("AzureLLMInferenceTrace_code.csv", SIZES),
          "mooncake": ("mooncake_conversation_trace.jsonl", LONG)}
LOAD = 0.8  # of a capacity, where arrivals are open
BLOCK_BYTES = 16 * 131072  # of the simulated devices


@dataclass
class Experiment:
    name: str
    flags: list
    views: str = ALL
    requests: tuple = (400, 2000)  # small form, full form
    trace: str = ""
    # Arrivals are open, at LOAD of what this view serves of the same requests at most.
    load_of: str = ""
    section: str = "Simulated A100, closed loop of 128 clients, no pace"
    real: bool = False
    full_only: bool = False


def read(path):
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def simulated(profile):
    return ["--target", "sim", "--profile", profile]


def experiments():
    a100 = simulated("a100")
    found = []
    for family in FAMILIES:
        found.append(Experiment(family, [*a100, "--workload", family, "--clients", "128", *SIZES, *NO_PACE]))
    found.append(Experiment("long-context", [*a100, "--workload", "long-context", "--clients", "64", *LONG,
                                             *NO_PACE], requests=(60, 300)))
    section = "Simulated A100, open arrivals at 80 % of a view's capacity, no pace"
    for family in ["mixed", "bursty"]:
        for view in ["static-bucket", "extents"]:
            found.append(Experiment(f"{family}-load-{view}", [*a100, "--workload", family, *SIZES, *NO_PACE],
                                    load_of=view, section=section))
    for trace, (_, sizes) in TRACES.items():
        found.append(Experiment(f"{trace}-load-extents", [*a100, *sizes, *NO_PACE], trace=trace, load_of="extents",
                                section=section, requests=(300, 1500)))
    section = "Simulated A100, the default pace"
    for family in [*CLAIMED, "bursty"]:
        found.append(Experiment(f"{family}-paced", [*a100, "--workload", family, "--clients", "128", *SIZES],
                                section=section))
    for family in ["bursty"]:
        found.append(Experiment(f"{family}-paced-load-extents", [*a100, "--workload", family, *SIZES],
                                load_of="extents", section=section))
    for trace in ["azure-conv", "azure-code"]:
        found.append(Experiment(f"{trace}-paced-load-extents", [*a100, *SIZES], trace=trace, load_of="extents",
                                section=section, requests=(300, 1500)))
    section = "Simulated A100, small prompt chunks (H4)"
    for chunk in ["512", "16"]:
        found.append(Experiment(f"mixed-chunk-{chunk}", [*a100, "--workload", "mixed", "--clients", "128", *SIZES,
                                                         "--itl-factor", "0", "-b", chunk],
                                views="extents,static,static-bucket", section=section))
    for profile, views in [("h200", ALL), ("gh200", ALL), ("npu", DENSE)]:
        for family in CLAIMED:
            found.append(Experiment(f"{family}-{profile}",
                                    [*simulated(profile), "--workload", family, "--clients", "128", *SIZES, *NO_PACE],
                                    views=views, section=f"Simulated {profile.upper()}, closed loop, no pace"))
    section = "Real kernels, one process, closed loop"
    demo = ["--target", "engine", "--clients", "32", "-p", "64", "-c", "2048", "--max-prompt", "1024",
            "--max-output", "512", "--kv-memory", "16400", "--itl-factor", "0"]
    for family in CLAIMED:
        found.append(Experiment(f"{family}-demo", [*demo, "--workload", family], section=section,
                                requests=(96, 300), real=True))
    shape = ["--target", "engine", "--dummy", "135M", "--clients", "16", "-p", "16", "-c", "2048", "--max-prompt",
             "512", "--max-output", "128", "--kv-memory", "8208", "--itl-factor", "0"]
    found.append(Experiment("mixed-135M", [*shape, "--workload", "mixed"], section=section, requests=(32, 96),
                            real=True))
    found.append(Experiment("mixed-0.6B", ["0.6B" if flag == "135M" else flag for flag in shape] +
                            ["--workload", "mixed"], section=section, requests=(16, 48), real=True, full_only=True))
    return found


@dataclass
class Study:
    kvrm: str
    folder: str
    traces: str
    full: bool
    repeat: int = 5
    results: dict = field(default_factory=dict)  # name -> compare.json
    lacking: dict = field(default_factory=dict)  # name -> why there is none

    def flags_of(self, experiment):
        flags = list(experiment.flags)
        if experiment.trace:
            path = os.path.join(self.traces or "", TRACES[experiment.trace][0])
            if not self.traces or not os.path.exists(path):
                raise LookupError(f"{TRACES[experiment.trace][0]} is not there (--traces FOLDER)")
            flags += ["--trace", path]
        requests = experiment.requests[1 if self.full else 0]
        # Else most of the run is the last of its outputs, with few rows.
        requests = str(4 * requests if "long-tail" in flags else requests)
        # A repetition takes the next part of a trace, or its own seed.
        return flags + (["--max-requests", requests] if experiment.trace else ["--requests", requests])

    def rate(self, experiment, flags):
        """LOAD times the requests a second that a view serves when there is always one more."""
        folder = os.path.join(self.folder, experiment.name, "capacity")
        # A trace has arrivals of its own: all at once.
        always = ["--rate", "1000"] if experiment.trace else ["--clients", "128"]
        closed = [*flags, *always, "--repeat", "2", "--kv-view", experiment.load_of, "-o", folder]
        result = self.compare(closed, folder)
        served = []
        for record in result["configs"][0].get("records", []):
            report = subprocess.run([self.kvrm, "report", "--json", record], capture_output=True, text=True, check=True)
            served.append(json.loads(report.stdout)[0]["request_throughput"])
        if not served:
            raise LookupError(result["configs"][0]["refused"])
        return LOAD * sum(served) / len(served)

    def compare(self, flags, folder):
        path, asked = (os.path.join(folder, name) for name in ("compare.json", "flags.txt"))
        text = " ".join(flags) + "\n"
        if not (os.path.exists(path) and os.path.exists(asked) and read(asked) == text):
            os.makedirs(folder, exist_ok=True)
            command = [self.kvrm, "compare", *flags]
            print("$ " + " ".join(command), file=sys.stderr, flush=True)
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            with open(asked, "w", encoding="utf-8") as stream:
                stream.write(text)
        return json.loads(read(path))

    def run(self, experiment):
        folder = os.path.join(self.folder, experiment.name)
        try:
            flags = self.flags_of(experiment)
            if experiment.load_of:
                flags += ["--rate", f"{self.rate(experiment, flags):.4g}"]
            flags += ["--repeat", str(self.repeat), "--kv-view", experiment.views, "-o", folder]
            self.results[experiment.name] = self.compare(flags, folder)
        except LookupError as error:
            self.lacking[experiment.name] = str(error)

    def config(self, name, view):
        for config in self.results.get(name, {}).get("configs", []):
            if config["name"] == view and config["runs"]:
                return config
        return None

    def mean(self, name, view, measure):
        config = self.config(name, view)
        return config["measures"][measure] if config else None

    def ratio(self, name, view, over, measure="output_throughput"):
        config = self.config(name, view)
        found = config["ratios"].get(over, {}).get(measure) if config else None
        return found if found and found["count"] > 0 else None


def interval(estimate):
    if estimate is None:
        return "-"
    return f"{estimate['mean']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def verdict(confirmed, refuted):
    return "refuted" if refuted else "confirmed" if confirmed else "not decided"


def question_ratio(study, names, view, over, measure="output_throughput", below=False):
    """Confirmed where every interval lies beyond 1, refuted where one lies on the other side."""
    ratios = {name: study.ratio(name, view, over, measure) for name in names}
    known = {name: ratio for name, ratio in ratios.items() if ratio}
    if not known:
        return "not run", "-"
    good = [r["high"] < 1 if below else r["low"] > 1 for r in known.values()]
    bad = [r["low"] > 1 if below else r["high"] < 1 for r in known.values()]
    text = "; ".join(f"{name} {interval(ratio)}" for name, ratio in ratios.items())
    return verdict(all(good) and len(known) == len(names), any(bad)), f"{view} / {over}: {text}"


def question_goal(study, view, over, goal):
    """Reached where the mean of every one is at least the goal."""
    ratios = {name: study.ratio(name, view, over) for name in CLAIMED}
    if not all(ratios.values()):
        return "not run", "-"
    reached = all(ratio["mean"] >= goal for ratio in ratios.values())
    return "reached" if reached else "missed", \
        f"{view} / {over}: " + "; ".join(f"{name} {interval(ratio)}" for name, ratio in ratios.items())


def question_c2b(study):
    return question_ratio(study, ["mixed-load-static-bucket", "bursty-load-static-bucket"], "extents", "static-bucket",
                          "itl_p99_ms", below=True)


def question_c3(study):
    lines, good = [], []
    for family in [*FAMILIES, "long-context"]:
        ratio = study.ratio(family, "extents", "static", "bound_over_live")
        if ratio:
            good.append(ratio["high"] < 1)
            lines.append(f"{family} {interval(ratio)}")
    return (verdict(all(good), not all(good)) if good else "not run",
            "bound / live bytes, extents over static: " + "; ".join(lines))


def question_c4(study, names):
    lines, good = [], []
    for name in names:
        ratio, spikes = (study.mean(name, "extents", m) for m in ("itl_p99_over_p50", "moved_spikes"))
        if ratio is None:
            continue
        good.append(ratio["mean"] <= 1.3 and spikes["mean"] == 0)
        lines.append(f"{name} p99 / p50 {interval(ratio)}, spikes that moved KV {spikes['mean']:.3g} a run")
    return verdict(all(good), not all(good)) if good else "not run", "; ".join(lines)


def question_c5(study):
    lines, good = [], []
    for family in FAMILIES:
        moved, groups = (study.mean(family, "staged", m) for m in ("moved_mib_per_step", "groups_per_step"))
        if moved is None or groups["mean"] == 0:
            continue
        blocks = moved["mean"] * 1024 * 1024 / groups["mean"] / BLOCK_BYTES
        good.append(blocks > 4)
        lines.append(f"{family} {blocks:.3g}")
    return (verdict(all(good), not all(good)) if good else "not run",
            "staged, blocks moved over groups: " + "; ".join(lines))


def question_h1(study):
    lines, good = [], []
    for family in CLAIMED:
        bucket = study.ratio(family, "static-bucket", "static-padded")
        extents = study.ratio(family, "extents", "static-padded")
        if bucket is None or extents is None:
            continue
        good.append(bucket["low"] > 1 and bucket["mean"] - 1 >= 0.5 * (extents["mean"] - 1))
        lines.append(f"{family} {interval(bucket)}, extents {interval(extents)}")
    return (verdict(all(good), not all(good)) if good else "not run",
            "over static-padded: static-bucket in " + "; ".join(lines))


def question_h3(study):
    short = study.ratio("uniform", "staged-layers", "extents")
    long = study.ratio("long-context", "staged-layers", "extents")
    if short is None or long is None:
        return "not run", "-"
    confirmed = long["mean"] < 0.9 * short["mean"]
    return verdict(confirmed, not confirmed), \
        f"staged-layers / extents: uniform {interval(short)}, long-context {interval(long)}"


def question_h4(study):
    lines, vanish = [], []
    for view in ["static", "static-bucket", "extents"]:
        large, small = (study.mean(f"mixed-chunk-{chunk}", view, "spike_area_percent") for chunk in ("512", "16"))
        if large is None or small is None:
            return "not run", "-"
        vanish.append(small["mean"] < 0.1)
        lines.append(f"{view} {interval(large)} % with 512, {interval(small)} % with 16")
    return verdict(vanish[0] and vanish[1], vanish[2] and not (vanish[0] and vanish[1])), \
        "spike area by prompt tokens a step: " + "; ".join(lines)


def question_h6(study):
    lines, confirmed, refuted = [], [], []
    for name in [f"{family}-demo" for family in CLAIMED] + ["mixed-135M", "mixed-0.6B"]:
        ratio = study.ratio(name, "extents", "paged")
        if ratio is None:
            continue
        confirmed.append(ratio["low"] >= 0.97 and ratio["high"] <= 1.03)
        refuted.append(ratio["low"] > 1.03 or ratio["high"] < 0.97)
        lines.append(f"{name} {interval(ratio)}")
    return (verdict(all(confirmed), any(refuted)) if lines else "not run",
            "extents / paged: " + ("; ".join(lines) or "-"))


def question_p1(study):
    lines, confirmed, refuted = [], [], []
    for family in CLAIMED:
        paced, free = (study.mean(f"{family}{suffix}", "extents", "output_throughput") for suffix in ("-paced", ""))
        itl = [study.mean(f"{family}{suffix}", "extents", "itl_p99_ms") for suffix in ("-paced", "")]
        if paced is None or free is None:
            continue
        confirmed.append(paced["high"] < free["low"])
        refuted.append(paced["low"] > free["high"])
        lines.append(f"{family} {interval(paced)} against {interval(free)} tokens/s, p99 ITL {itl[0]['mean']:.3g} "
                     f"against {itl[1]['mean']:.3g} ms")
    return verdict(all(confirmed), any(refuted)) if lines else "not run", "; ".join(lines)


def questions(study):
    load = [name + "-load-extents" for name in ("bursty", "azure-conv", "azure-code")]
    paced = [name + "-paced-load-extents" for name in ("bursty", "azure-conv", "azure-code")]
    return [("C1", question_ratio(study, CLAIMED, "extents", "static-bucket")),
            ("Goal: 2 × static", question_goal(study, "extents", "static", 2.0)),
            ("Goal: 1 × paged", question_goal(study, "extents", "paged", 1.0)),
            ("C1 on H200", question_ratio(study, [f + "-h200" for f in CLAIMED], "extents", "static-bucket")),
            ("C1 on GH200", question_ratio(study, [f + "-gh200" for f in CLAIMED], "extents", "static-bucket")),
            ("C1 on the NPU, staged", question_ratio(study, [f + "-npu" for f in CLAIMED], "staged", "static-bucket")),
            ("C1 on the NPU, layers",
             question_ratio(study, [f + "-npu" for f in CLAIMED], "staged-layers", "static-bucket")),
            ("C1 with real kernels", question_ratio(study, [f + "-demo" for f in CLAIMED], "extents", "static-bucket")),
            ("C2", question_ratio(study, FAMILIES, "extents", "static-bucket", "itl_p99_ms", below=True)),
            ("C2b", question_c2b(study)),
            ("C3", question_c3(study)),
            ("C4", question_c4(study, load)),
            ("C4 with the default pace", question_c4(study, paced)),
            ("C5", question_c5(study)),
            ("H1", question_h1(study)),
            ("H2", question_ratio(study, CLAIMED, "staged", "extents", below=True)),
            ("H3", question_h3(study)),
            ("H4", question_h4(study)),
            ("H5", ("not run", "there are no summaries yet")),
            ("H6", question_h6(study)),
            ("P1", question_p1(study))]


def experiment_table(study, experiment):
    result = study.results.get(experiment.name)
    lines = [f"### {experiment.name}", ""]
    if result is None:
        return lines + [f"Not run: {study.lacking.get(experiment.name, 'not chosen')}.", ""]
    lines += ["| view | rows | tokens/s | / static | / static-bucket | / paged | ITL p50, p99 ms | p99/p50 | TTFT p50 ms "
              "| spikes % | reserved MiB | bound / live | moved MiB/step |",
              "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for config in result["configs"]:
        if not config["runs"]:
            lines.append(f"| {config['name']} | not run: {config['refused']} |" + " |" * 11)
            continue
        view, m = config["name"], {key: value["mean"] for key, value in config["measures"].items()}
        over = [interval(study.ratio(experiment.name, view, base)) for base in ("static", "static-bucket", "paged")]
        half = config["measures"]["output_throughput"]["high"] - m["output_throughput"]
        failed = f", {m['failed']:.3g} failed" if m["failed"] else ""
        lines.append(f"| {view} | {m['mean_rows']:.3g} of {config['rows']}{failed} | {m['output_throughput']:.4g} ± "
                     f"{half:.2g} | {' | '.join(over)} | {m['itl_p50_ms']:.3g}, {m['itl_p99_ms']:.3g} | "
                     f"{m['itl_p99_over_p50']:.3g} | {m['ttft_p50_ms']:.3g} | {m['spike_area_percent']:.2g} | "
                     f"{m['reserved_mib']:.4g} | {m['bound_over_live']:.3g} | {m['moved_mib_per_step']:.3g} |")
    # The command, without the folders of this machine.
    words = result["command"].split(" ")
    for i, word in enumerate(words):
        if "/" in word:
            words[i] = os.path.basename(word)
    return lines + ["", "`" + " ".join(words) + "`", ""]


def document(study, chosen):
    form = "full" if study.full else "small"
    lines = ["# The study: results", "",
             f"Written by `./dev study` ({form} form, {study.repeat} repetitions); questions, rules and what the "
             "simulator cannot say are in [README](README.md). Intervals of 95 %. Where `paged` or `static` is "
             "compared with itself there is a dash.", "", "## Answers", "", "| question | answer | numbers |",
             "| --- | --- | --- |"]
    for name, (answer, numbers) in questions(study):
        lines.append(f"| {name} | {answer} | {numbers} |")
    section = ""
    for experiment in chosen:
        if experiment.section != section:
            section = experiment.section
            lines += ["", f"## {section}", ""]
        lines += experiment_table(study, experiment)
    return "\n".join(lines).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("kvrm")
    parser.add_argument("--full", action="store_true", help="more requests and the larger shapes")
    parser.add_argument("--only", default="", help="names of experiments, by commas")
    parser.add_argument("--traces", default="", help="folder of the public traces")
    parser.add_argument("-o", "--output", default="build/study", help="folder of records and results.md")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    study = Study(args.kvrm, os.path.join(args.output, "full" if args.full else "small"), args.traces, args.full,
                  args.repeat)
    chosen = [e for e in experiments() if args.full or not e.full_only]
    only = [name for name in args.only.split(",") if name]
    unknown = set(only) - {e.name for e in chosen}
    if unknown:
        parser.error(f"--only: no experiment {', '.join(sorted(unknown))}")
    chosen = [e for e in chosen if not only or e.name in only]
    for experiment in chosen:
        study.run(experiment)
    path = os.path.join(study.folder, "results.md")
    os.makedirs(study.folder, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(document(study, chosen))
    print(path)


if __name__ == "__main__":
    main()
