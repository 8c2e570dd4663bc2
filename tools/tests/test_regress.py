# SPDX-License-Identifier: GPL-2.0-or-later
"""What make regress calls worse."""

import contextlib
import io
import unittest
from unittest import mock

from support import tool


class Difference(unittest.TestCase):
    def judge(self, before, after, cover=False):
        """(passed, failed), and what was printed of test "a b"."""
        out, states = io.StringIO(), ({"a b": before}, {"a b": after})
        with contextlib.redirect_stdout(out):
            counts = tool("regress").judge(states, some=not cover)
        heads = out.getvalue().splitlines()
        return *counts, [heads[n - 1].split(":")[0] for n, x in
                         enumerate(heads) if x.startswith("  a")]

    def test_judge(self):
        for before, after, expected in [
            (["pass"], ["pass"], (1, 0, [])),
            (["skip"], ["skip"], (0, 0, ["skipped in both"])),
            (["fail"], ["fail"], (0, 0, ["the same in both, not passed"])),
            (["pass"] * 3, ["fail"] * 3, (0, 1, ["worse with the series"])),
            (["pass"] * 3, ["skip"] * 3, (0, 1, ["worse with the series"])),
            (["pass"] * 3, ["missing"] * 3,
             (0, 1, ["worse with the series"])),
            (["skip"] * 3, ["fail"] * 3, (0, 1, ["worse with the series"])),
            (["pass"] * 3, ["fail", "pass", "fail"],
             (0, 0, ["different, and not worse each time"])),
            (["pass", "fail", "pass"], ["fail", "pass", "fail"],
             (0, 0, ["the same in both, not passed"])),
            (["fail"], ["pass"],
             (1, 0, ["different, and not worse each time"])),
            (["missing"], ["pass"], (0, 0, ["only with the series"])),
            (["missing"], ["fail"], (0, 1, ["worse with the series"])),
        ]:
            with self.subTest(before=before, after=after):
                self.assertEqual(self.judge(before, after), expected)

    def test_chosen(self):
        chosen = tool("regress").chosen
        for names, expected in [([], True), (["x-test"], True),
                                (["q/x-test"], True), (["x"], False),
                                (["-x-test"], False), (["-y-test"], True),
                                (["y-test", "-z"], False)]:
            with self.subTest(names=names):
                self.assertEqual(chosen("q/x-test", names), expected)

    def test_tests_that_must_run(self):
        """All of COVER, of which the test "a b" is none."""
        self.assertEqual(self.judge(["pass"], ["pass"], cover=True)[:2],
                         (1, len(tool("regress").COVER)))

    def test_repeats_what_got_worse_alone(self):
        regress = tool("regress")
        states = ({"a x": ["pass"], "a y": ["pass"], "b": ["pass"]},
                  {"a x": ["fail"], "a y": ["pass"], "b": ["pass"]})
        with mock.patch.object(regress, "run", side_effect=[
                {"a x": "pass", "a y": "pass"}, {"a x": "fail", "a y": "pass"},
                {"a x": "pass", "a y": "pass"}, {"a y": "pass"}]) as run:
            regress.repeat(states)
        self.assertEqual([c.args[1] for c in run.call_args_list], [["a"]] * 4)
        self.assertEqual(states[1], {"a x": ["fail", "fail", "missing"],
                                     "a y": ["pass"] * 3, "b": ["pass"]})

    def test_progress(self):
        self.assertEqual(
            tool("regress").meson_progress(
                " 3/12 qemu:unit / test-x        OK  0.1s"),
            (0.25, "qemu:unit / test-x"))


if __name__ == "__main__":
    unittest.main()
