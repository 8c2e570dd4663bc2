# SPDX-License-Identifier: GPL-2.0-or-later
"""What make coverage says of lines that no test runs."""

import tempfile
import unittest
from pathlib import Path
from unittest import mock

from support import tool


class Uncovered(unittest.TestCase):
    LINES = {"a.c": {1, 2, 3, 4}, "b.c": {7}}
    COUNTS = {("a.c", 1): [2, {("f", 0): 1, ("f", 1): 0}, "f"],
              ("a.c", 2): [0, {}, "f"], ("a.c", 4): [0, {}, "g"]}

    def report(self, why):
        coverage = tool("coverage")
        with tempfile.TemporaryDirectory() as tmp, \
                mock.patch.object(coverage, "TREE", Path(tmp)):
            Path(tmp, "a.c").write_text("one;\ntwo;\nthree;\nfour;\n")
            return coverage.text_of(self.LINES, self.COUNTS,
                                    coverage.reasons(why)).splitlines()

    def test_lines_and_branches(self):
        text = self.report("")
        self.assertRegex(text[1], r"^a\.c +1/3 +33 % +1/2 +50 %$")
        self.assertRegex(text[2], r"^b\.c +not compiled: no reason")

    def test_each_function_has_its_reason(self):
        text = self.report("# comment\na.c f cannot fail\nb.c * for Arm\n")
        self.assertRegex(text[2], "not compiled: for Arm")
        self.assertEqual(text[-5:], ["a.c: f: cannot fail", "  2: two;",
                                     "a.c: g: NO REASON", "  4: four;",
                                     "1 lines without a reason"])

    def test_first_pattern_that_fits(self):
        text = self.report("a.c g one\n[ab].c * all\n")
        self.assertRegex(text[2], "not compiled: all")
        self.assertEqual([x for x in text if x.startswith("a.c: ")],
                         ["a.c: f: all", "a.c: g: one"])
        self.assertEqual(text[-1], "0 lines without a reason")

    def test_reason_for_what_runs(self):
        text = self.report("a.c * x\nb.c * y\na.c h z\n")
        self.assertEqual(text[-2:], [
            "a.c h: all of it runs, or it is gone: strike it from "
            "uncovered.txt", "0 lines without a reason"])


if __name__ == "__main__":
    unittest.main()
