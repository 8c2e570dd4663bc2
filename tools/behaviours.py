# SPDX-License-Identifier: GPL-2.0-or-later
"""The series' tests as behaviours, and the table that lists them."""

import re
from pathlib import Path

from patchset import load

TABLE = "docs/devel/arm-smmuv3-accel-behaviour.rst.inc"


def programs():
    """The tests of devices behind an accelerated SMMUv3, by name.

    But for those whose tests are no behaviours: the random one, the one that
    fails each call of the host and the one of threads; and for that of the
    monitor command, which QEMU without the series does not have.
    """
    return [Path(f).stem for p in load()[0] for f in p.own
            if re.fullmatch(r"tests/qtest/arm-smmuv3-accel.*-test\.c", f)
            and not re.search("-(model|fault|threads|query)-", f)]


def readable(path):
    """A test's path, with or without the target's name, in words."""
    area, *rest = re.sub(r"^/(aarch64/)?(accel/)?", "", path).split("/")
    return ": ".join([area, *rest]).replace("-", " ")


def in_source(text):
    """The behaviours that a test program's source names."""
    return [readable(p) for p in re.findall(r'[{(]\s*"(/[\w/-]+)"', text)]


def in_table(text):
    """Program: behaviours, of the table's text."""
    found = {}
    for line in text.splitlines():
        if m := re.match(r"\.\. list-table:: (\S+)", line):
            rows = found.setdefault(m[1], [])
        elif (m := re.match(r"   \* - (.+)", line)) and m[1] != "behaviour":
            rows.append(m[1])
    return found
