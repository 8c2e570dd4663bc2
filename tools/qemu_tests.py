# SPDX-License-Identifier: GPL-2.0-or-later
"""Run QEMU's own tests through meson and tell each subtest's outcome."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from common import (LOGS, ROOT, Progress, die, lock, output, run_logged,
                    write_file)
from patchset import TREE, load
from qemu_build import BINARY, build, compiler_env

QTESTS = ["qtest-aarch64/iommu-smmuv3-test", "qtest-aarch64/arm-cpu-features",
          "qtest-aarch64/bios-tables-test"]


def series_qtests():
    """The qtests that the series adds."""
    return [f"qtest-aarch64/{Path(f).stem}" for p in load()[0] for f in p.own
            if re.match(r"tests/qtest/[^/]*-test\.c$", f)]


@dataclass
class Outcome:
    name: str
    passed: bool
    seconds: float
    reason: str = ""
    log: str = ""


def meson_tests(folder, names=(), optional=(), suites=()):
    """[(test's name, ninja targets that it needs)] of the tests @names, of
    those of @optional that are there, and of all in one of @suites."""
    info = folder / "meson-info"
    tests = json.loads((info / "intro-tests.json").read_text())
    files = {t["id"]: t["filename"] for t in
             json.loads((info / "intro-targets.json").read_text())}
    found = []
    for test in tests:
        if test["name"] in (*names, *optional) or \
                {s.split(":")[-1] for s in test["suite"]} & set(suites):
            found.append((test["name"],
                          [os.path.relpath(f, folder)
                           for d in test["depends"] for f in files[d]]))
    have = {name for name, _ in found}
    for name in names:
        if name not in have:
            die(f"{folder} has no test {name}")
    return found


def tap_outcomes(test, text, result, seconds, log):
    """The outcomes of the subtests in the TAP output @text.

    A skipped test counts as failed; so does each that the plan promised and
    that did not report.
    """
    outcomes, planned = [], 0
    for line in text.splitlines():
        if m := re.match(r"1\.\.(\d+)(?:\s*# SKIP\s*(.*))?", line, re.I):
            planned = int(m[1])
            if planned == 0:
                outcomes.append(Outcome(test, False, seconds,
                                        f"skipped: {m[2]}", log))
        elif m := re.match(r"(ok|not ok)\s*\d*\s*-?\s*([^#]*)(?:#\s*(.*))?$",
                           line):
            directive = m[3] or ""
            skipped = directive.upper().startswith("SKIP")
            outcomes.append(Outcome(
                f"{test} {m[2].strip()}", m[1] == "ok" and not skipped, 0,
                f"skipped: {directive[4:].strip()}" if skipped else
                "" if m[1] == "ok" else "not ok", log))
    missing = planned - len(outcomes)
    if missing > 0:
        outcomes += [Outcome(f"{test} (no report, {i + 1} of {missing})",
                             False, 0, f"the test ended early ({result})",
                             "" if i else log) for i in range(missing)]
    elif not outcomes or (result != "OK" and
                          all(o.passed for o in outcomes)):
        outcomes.append(Outcome(test, False, seconds, result, log))
    # g_test_init() of newer GLibs writes "TAP version", which has to be the
    # first line of all, before this; an older one hides that it would not be.
    before, seed, _ = text.partition("# random seed")
    if seed and before and not before.startswith("TAP version"):
        outcomes.append(Outcome(f"{test} (TAP)", False, 0,
                                "it writes before g_test_init()", log))
    for o in outcomes[:1]:
        o.seconds = seconds
    return outcomes


def run(folder, source, names, optional=(), log="qtest", report=None,
        kind="qemu", env=None, patience=1, binary=None):
    """Run the tests @names of the build in @folder, and those of @optional
    that are there; [Outcome].

    The build is one of @kind. The tests have @env in their environment and
    @patience times their time, and run @binary in place of the build's QEMU.
    """
    # meson sets the variable itself, before it runs a wrapper.
    wrapper = ["--wrapper", f"env QTEST_QEMU_BINARY={binary}"] if binary else []
    build(kind, folder, source)         # meson's lists are of this source now
    tests = meson_tests(folder, names, optional)
    targets = sorted({t for _, needs in tests for t in needs})
    build(kind, folder, source, targets)
    with lock(folder / ".tests.lock", f"results in {folder.name}"):
        return run_tests(folder, source, tests, log, report, env, patience,
                         wrapper)


def run_tests(folder, source, tests, log, report, env, patience, wrapper):
    """What run() does when all is built."""
    if any(n.endswith("/bios-tables-test") for n, _ in tests):
        acpi_expected(folder, source)
    outcomes = []
    for test, _ in tests:
        short = test.split("/")[-1]
        name = f"{log}-{short}"
        for old in (folder / "meson-logs").glob(f"{name}[.-]*"):
            old.unlink()
        show = Progress(short)
        run_logged(name, [folder / "pyvenv/bin/meson", "test", "--no-rebuild",
                          "--logbase", name, "--print-errorlogs",
                          "--timeout-multiplier", str(patience), *wrapper,
                          test],
                   cwd=folder, env=compiler_env() | (env or {}), what=short,
                   check=False, progress=None, quiet=True)
        # meson adds the wrapper's name.
        path = folder / "meson-logs" / (f"{name}-env.json" if wrapper else
                                        f"{name}.json")
        shown = str(LOGS / f"{name}.log")
        lines = path.read_text().splitlines() if path.exists() else []
        reply = json.loads(lines[-1]) if lines else {}
        with open(shown, "a") as f:
            f.write(reply.get("stdout", ""))
            f.write(reply.get("stderr", ""))
        some = tap_outcomes(name if wrapper else short, reply.get("stdout", ""),
                            reply.get("result", "did not run"),
                            reply.get("duration", show.elapsed()), shown)
        outcomes += some
        for o in some:
            report and report(o)
    return outcomes


# QEMUs that watch themselves: the environment in which they report to files
# PATH.PID, and how a report begins

FINDING = r"^.*(?:ERROR: \w+Sanitizer|runtime error):.*$"
RACE = r"^SUMMARY: ThreadSanitizer: .*$"


LSAN_OPTIONS = "print_suppressions=0:suppressions=" \
    f"{TREE / 'scripts/lsan_suppressions.txt'}"


def sanitizers(path):
    common = f"log_path={path}:halt_on_error=1:print_stacktrace=1"
    return {"ASAN_OPTIONS": f"{common}:detect_leaks=1:fast_unwind_on_malloc=0",
            "UBSAN_OPTIONS": common,
            "LSAN_OPTIONS": LSAN_OPTIONS}


def races(path):
    """What is found ends no process, so that a test finds all there is."""
    return {"TSAN_OPTIONS": f"log_path={path}:exitcode=0:history_size=7:"
                            "die_after_fork=0:report_signal_unsafe=0:"
                            "atexit_sleep_ms=0:suppressions="
                            f"{ROOT / 'tools/tsan-suppressions.txt'}"}


# bios-tables-test compares ACPI tables with files. Two of these tables hold
# addresses that the firmware chose, and Debian's chooses others than QEMU's.

def hest_addresses(table):
    """Where a HEST of GHESv2 sources has addresses: (offset, size)."""
    at, places = 40, []
    while at + 92 <= len(table):
        places += [(at + 24, 8), (at + 68, 8)]
        at += 92
    return places


def mema_addresses(table):
    """Where Name (MEMA, dword) has its value."""
    return [(m.end(), 4) for m in re.finditer(rb"\x08MEMA\x0c", table)]


FIRMWARE_CHOSEN = {     # file: (test, where the addresses are)
    "HEST": ("/aarch64/acpi/virt", hest_addresses),
    "SSDT.memhp": ("/aarch64/acpi/virt/memhp", mema_addresses),
}
CHECKSUM = (9, 1)


def without(table, places):
    data = bytearray(table)
    for at, size in [CHECKSUM, *places]:
        data[at:at + size] = bytes(size)
    return bytes(data)


def acpi_scratch(scratch, folder, source):
    """Make @scratch a place where bios-tables-test of the build in @folder can
    write tables."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source / "tests/data", scratch / "tests/data")
    (scratch / "pc-bios").symlink_to(folder / "pc-bios")


def test_data(folder, data):
    """Have the tests of the build in @folder expect @data, by a copy."""
    place = folder / "tests/data"
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(data, place)


def acpi_expected(folder, source):
    """Give @folder expected tables that fit the firmware: QEMU's, but where
    a table is QEMU's up to the firmware's addresses, the one that it is."""
    data, scratch = folder / "tests/data", folder / "acpi-actual"
    virt = "acpi/aarch64/virt"
    test_data(folder, source / "tests/data")
    acpi_scratch(scratch, folder, source)
    env = compiler_env() | {"QTEST_QEMU_BINARY": str(folder / BINARY),
                            "TEST_ACPI_REBUILD_AML": "1"}
    program = folder / "tests/qtest/bios-tables-test"
    every = output([program, "-l"], cwd=scratch, env=env).splitlines()
    for name, (test, places) in FIRMWARE_CHOSEN.items():
        # A path stands for all below it, too.
        below = [x for t in every if t.startswith(f"{test}/")
                 for x in ("-s", t)]
        run_logged(f"acpi-{name}", [program, "--tap", "-p", test, *below],
                   what=f"reading the firmware's addresses in {name}",
                   cwd=scratch, env=env, check=False, progress=None,
                   quiet=True)
        expected = (data / virt / name).read_bytes()
        actual = (scratch / "tests/data" / virt / name).read_bytes()
        where = places(expected)
        if where and where == places(actual) and \
                without(actual, where) == without(expected, where):
            write_file(data / virt / name, actual)
    shutil.rmtree(scratch)
