# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz devices behind an accelerated SMMUv3: first the inputs of the
repository, then new ones made from these."""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections import defaultdict

from common import BUILD, LOGS, ROOT, Progress, lock, output, write_file
from patchset import TREE
from qemu_build import build
from qemu_tests import LSAN_OPTIONS, Outcome

NAME = "qemu-fuzz"
TARGET = "arm-smmuv3-accel"
INPUTS = TREE / "tests/qtest/fuzz/arm-smmuv3-accel-corpus.txt"
WORK = BUILD / "fuzz"
SEEDS = WORK / "seeds"      # the inputs of the repository
CORPUS = WORK / "corpus"    # what was found, kept for the next time
CRASHES = WORK / "crashes"
MAX_LEN = 512

# Whose coverage is told
OURS = re.compile(r"hw/(arm/smmu|vfio/(pci|iommufd)|pci/msix?\.c)")


def parse_inputs(text):
    """{input: what it is for, maybe nothing} of lines "hex digits  # what"."""
    inputs = {}
    for line in text.splitlines():
        digits, _, what = line.partition("#")
        if digits.strip():
            inputs[bytes.fromhex(digits)] = what.strip()
    return inputs


def format_inputs(comment, inputs):
    """The text that parse_inputs() takes, named inputs first."""
    lines = [f"{data.hex()}  # {what}" if what else data.hex()
             for data, what in sorted(inputs.items(), key=lambda i:
                                      (not i[1], i[1], len(i[0]), i[0]))]
    return "\n".join([*comment, *lines]) + "\n"


def make_seeds():
    shutil.rmtree(SEEDS, ignore_errors=True)
    SEEDS.mkdir(parents=True)
    for n, data in enumerate(parse_inputs(INPUTS.read_text())):
        (SEEDS / f"{n:04}").write_bytes(data)


def environment():
    return {**os.environ,
            "ASAN_OPTIONS": "detect_leaks=1",
            "LSAN_OPTIONS": LSAN_OPTIONS,
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


def command(*args):
    # Leaks are looked for at the end. libFuzzer would do that after each input,
    # for which there are a quarter as many.
    return [str(BUILD / NAME / "qemu-fuzz-aarch64"),
            f"--fuzz-target={TARGET}", f"-max_len={MAX_LEN}", "-detect_leaks=0",
            f"-artifact_prefix={CRASHES}/", *map(str, args)]


def replay_command(path):
    env = environment()
    return shlex.join([*(f"{k}={env[k]}" for k in
                         ("ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS")),
                       *command(path)])


def status(lines):
    """The last (executions, covered edges, executions a second) in the output
    of libFuzzer."""
    found = (0, 0, 0)
    for line in lines:
        if m := re.match(r"#(\d+)\s.*cov: (\d+) .*exec/s: (\d+)", line):
            found = tuple(map(int, m.groups()))
    return found


def crash_files(text):
    return re.findall(r"Test unit written to (\S+)", text)


def telling(text):
    """The lines of libFuzzer's output that say what was found"""
    return [x for x in text.splitlines()
            if re.search(r"aarch64: |ERROR|runtime error|SUMMARY|"
                         r"#\d+ .* in .*/tree/", x)][:12]


def failure(name, seconds, log, crashes):
    """What a crash says is told by its repetition: QEMU's own words are muted
    while it is fuzzed. A leak is no input's alone."""
    text = log.read_text(errors="replace")
    leak = text.find("ERROR: LeakSanitizer")
    reason = "\n".join(telling(text[leak:])) if leak >= 0 else "it ended early"
    for path in crashes:
        # One that hangs is ended, and told of, by libFuzzer.
        again = subprocess.run(command("-timeout=60", path), env=environment(),
                               text=True, errors="replace",
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, check=False)
        reason = "\n".join([*telling(again.stdout),
                            f"again: {replay_command(path)}"])
    return Outcome(name, False, seconds, reason, str(log))


def corpus():
    """Run each input of the repository once."""
    start, log = time.monotonic(), LOGS / "fuzz-corpus.log"
    with open(log, "w") as out:
        done = subprocess.run(command("-runs=0", SEEDS), env=environment(),
                              stdout=out, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, check=False)
    seconds = time.monotonic() - start
    name = f"fuzz corpus of {len(list(SEEDS.iterdir()))} inputs"
    if done.returncode == 0:
        return Outcome(name, True, seconds)
    return failure(name, seconds, log,
                   crash_files(log.read_text(errors="replace")))


def explore(seconds):
    """Make new inputs on all processors, which share what they find."""
    logs = [LOGS / f"fuzz-{n}.log" for n in range(os.cpu_count())]
    outs = [open(log, "w") for log in logs]
    runs = [subprocess.Popen(
        command(f"-max_total_time={seconds}", "-reload=5", "-close_fd_mask=3",
                CORPUS, SEEDS), env=environment(), stdout=out,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) for out in outs]
    show = Progress("fuzzing")
    try:
        while all(r.poll() is None for r in runs):
            time.sleep(1)
            now = [status(log.read_text(errors="replace").splitlines())
                   for log in logs]
            show.update(min(show.elapsed() / max(seconds, 1), 0.99),
                        f"{sum(n[0] for n in now)} inputs, "
                        f"{sum(n[2] for n in now)} a second, "
                        f"{max(n[1] for n in now)} edges")
        if all(r.poll() in (None, 0) for r in runs):
            for r in runs:
                r.wait()
    finally:
        show.clear()
        for r in runs:
            if r.poll() is None:
                r.terminate()
                r.wait()
        for out in outs:
            out.close()
    texts = [log.read_text(errors="replace") for log in logs]
    total = sum(status(t.splitlines())[0] for t in texts)
    name = f"fuzz {total} new inputs"
    failed = [(text, log) for run, text, log in zip(runs, texts, logs)
              if run.returncode and (crash_files(text) or run.returncode > 0)]
    if failed:
        # What was ended because of another one has no error.
        text, log = max(failed, key=lambda f: "ERROR: " in f[0])
        return failure(name, show.elapsed(), log, crash_files(text))
    return Outcome(name, True, show.elapsed())


def run(seconds, report=None):
    """Fuzz for @seconds; [Outcome]."""
    build(NAME)
    LOGS.mkdir(parents=True, exist_ok=True)
    for folder in (CORPUS, CRASHES):
        folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with lock(WORK / ".lock", "inputs for the fuzzer"):
        make_seeds()
        for step in (corpus, lambda: explore(seconds)):
            outcomes.append(step())
            report and report(outcomes[-1])
            if not outcomes[-1].passed:
                break
    return outcomes


def merge():
    """Make the repository's inputs the smallest set that covers what they and
    the found ones do."""
    new = WORK / "merged"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    make_seeds()
    output(command("-merge=1", new, SEEDS, CORPUS), env=environment(),
           stderr=subprocess.DEVNULL)
    text = INPUTS.read_text()
    old = parse_inputs(text)
    # What has a name stays: it says what must be reached.
    inputs = {data: what for data, what in old.items() if what}
    for path in new.iterdir():
        inputs.setdefault(path.read_bytes(), "")
    comment = [x for x in text.splitlines() if x.startswith("#")]
    write_file(INPUTS, format_inputs(comment, inputs))
    return len(inputs)


def coverage_of(text):
    """A table of the edges in -print_coverage=1's @text, by file of ours."""
    counts = defaultdict(lambda: [0, 0])
    for covered, total, path in re.findall(
            r"COVERED_FUNC: hits: \d+ edges: (\d+)/(\d+) \S+ "  # UN-, too
            r"\S*?/tree/(\S+?):\d+", text):
        if OURS.match(path):
            counts[path][0] += int(covered)
            counts[path][1] += int(total)
    return [f"{path:36} {c:5} of {n:5} {100 * c // n:3} %"
            for path, (c, n) in sorted(counts.items())]


def coverage():
    """What all inputs together reach; None if they fail."""
    done = subprocess.run(command("-runs=0", "-print_coverage=1", SEEDS,
                                  CORPUS), env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    text = done.stdout.decode(errors="replace")
    write_file(LOGS / "fuzz-coverage.log", text)
    return None if done.returncode else coverage_of(text)


def where():
    return CRASHES.relative_to(ROOT)
