# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of behaviours is that of the tests that are there."""

import unittest

from support import tool

from behaviours import TABLE, in_source, in_table, programs, readable
from patchset import ROOT


class Table(unittest.TestCase):
    def test_has_each_test(self):
        """Each test is in the table of the developer documentation."""
        tests = {p: sorted(in_source(
                     (ROOT / f"tests/qtest/{p}.c").read_text()))
                 for p in programs()}
        rows = in_table((ROOT / TABLE).read_text())
        self.assertEqual({p: sorted(r) for p, r in rows.items()}, tests,
                         "run: make behaviour, commit what it wrote in "
                         "build/tree, and: make refresh")
        self.assertTrue(all(tests.values()), tests)

    def test_round_trip(self):
        rows = {"a-test": [("/aarch64/accel/msi/x-y", "ok", "")],
                "b-test": [("/aarch64/accel/mtree", "aborts",
                            "a == b " * 20)]}
        text = tool("behaviour").table(rows)
        self.assertEqual(in_table(text),
                         {"a-test": ["msi: x y"], "b-test": ["mtree"]})
        self.assertLess(max(map(len, text.splitlines())), 80)

    def test_readable(self):
        self.assertEqual(readable("/accel/msix/two-domains"),
                         readable("/aarch64/accel/msix/two-domains"))


class Outcomes(unittest.TestCase):
    def check(self, text):
        return tool("behaviour").outcome(
            -6, "**\nERROR:../base/tests/qtest/a.c:12:"
            f"{text}\nBail out! ERROR:x\n")

    def test_check_failed(self):
        for text, seen in [
            ("test_x: assertion failed (f(a) == DATA): (1 == 2)",
             "not ``f(a) == DATA``: 1 == 2"),
            ("test_x: 'f(a)' should be TRUE", "not ``f(a)``"),
            ("assert_delivered: assertion failed (take(m, p, D) == MSI_DATA): "
             "(0x00000000 == 0x1234abcd)", "the message does not arrive"),
            ("assert_dropped: assertion failed (arrived(t, T) == 0): "
             "(0x1234abcd == 0x00000000)", "the message arrives"),
            ("test_x: something else", "test_x: something else"),
        ]:
            self.assertEqual(self.check(text), ("fails", seen))

    def test_qemu_aborted(self):
        text = ("qemu-system-aarch64: ../base/hw/arm/smmu.c:9: f: Assertion "
                "`x' failed.\n../tests/qtest/libqtest.c:1: kill_qemu() "
                "detected QEMU death from signal 6 (Aborted)\n")
        state, seen = tool("behaviour").outcome(-6, text)
        self.assertEqual(state, "aborts")
        self.assertIn("Assertion `x' failed", seen)

    def test_hang(self):
        self.assertEqual(tool("behaviour").outcome(None, "")[0], "hangs")

    def test_pass(self):
        self.assertEqual(tool("behaviour").outcome(0, "ok 1 /x\n"), ("ok", ""))


if __name__ == "__main__":
    unittest.main()
