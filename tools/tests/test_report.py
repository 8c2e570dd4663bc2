# SPDX-License-Identifier: GPL-2.0-or-later
"""What make test prints of a test, and which tests TESTS= chooses."""

import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from support import tool


class Report(unittest.TestCase):
    def setUp(self):
        self.test = tool("test")

    def report(self, log, **args):
        out = io.StringIO()
        with tempfile.TemporaryDirectory() as tmp, \
                contextlib.redirect_stdout(out):
            path = Path(tmp, "log")
            path.write_text(log)
            self.test.report(self.test.Outcome("a", log=str(path), **args))
        return out.getvalue().splitlines()

    def test_passed(self):
        self.assertEqual(self.report("x", passed=True, seconds=0), ["pass  a"])

    def test_lists_do_not_hide_what_was_seen(self):
        lists = "".join(f"#   call {n}\n" for n in range(40))
        lines = self.report(f"# case: c\n# calls\n{lists}Bail out!\n",
                            passed=False, seconds=0, reason="it ended")
        self.assertEqual(lines[:-1], ["FAIL  a", "  | it ended", "  | # case: c",
                                      "  | # calls", "  | Bail out!"])

    def test_chosen(self):
        with mock.patch.object(self.test, "run",
                               side_effect=lambda *a, **_: a[2]), \
                mock.patch.object(self.test, "series_qtests",
                                  return_value=["q/walk-test", "q/irq-test"]), \
                contextlib.redirect_stdout(io.StringIO()):
            for wanted, expected in [("walk", ["q/walk-test"]),
                                     ("irq walk", ["q/walk-test",
                                                   "q/irq-test"])]:
                with mock.patch.dict(os.environ, TESTS=wanted):
                    self.assertEqual(self.test.qemu(), expected)
            with mock.patch.dict(os.environ, TESTS="none"):
                self.assertFalse(self.test.qemu()[0].passed)
