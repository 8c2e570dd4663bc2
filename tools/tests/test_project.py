# SPDX-License-Identifier: GPL-2.0-or-later
"""The project's own series, and how test output is counted."""

import re
import subprocess
import unittest

from support import TOOLS, tool

from patchset import ROOT, SERIES, TREE, Repo, from_commits, generate, load, \
    slug, unlisted
from qemu_tests import tap_outcomes


class OurSeries(unittest.TestCase):
    def test_each_own_file_is_listed_once(self):
        patches, _ = load()         # ends on a file listed twice
        self.assertEqual(unlisted(patches), [])

    def test_each_patch_is_listed(self):
        listed = {p.name for p in load()[0]}
        there = {p.name for p in SERIES.parent.glob("*.patch")}
        self.assertEqual(there, listed)

    def test_names_follow_from_subjects(self):
        for patch in load()[0]:
            self.assertEqual(patch.name, slug(patch.subject))

    def test_round_trip(self):
        """Patches to commits and back gives the same bytes."""
        repo = Repo(TREE)
        patches, _ = load()
        back = from_commits(repo, generate(repo, patches))
        self.assertEqual([(p.name, p.text(), p.own) for p in patches],
                         [(p.name, p.text(), p.own) for p in back])

    def test_messages(self):
        for patch in load()[0]:
            for line in patch.message.splitlines():
                self.assertLessEqual(len(line), 75, patch.name)
            self.assertIsNone(re.search(r"^(From|Date|Signed-off-by):",
                                        patch.message, re.M), patch.name)

    def test_cover_letter(self):
        """It names patches that there are, and is no wider than a mail."""
        subject, text = tool("series").cover_letter(load()[0])
        for line in (subject, *text.splitlines()):
            self.assertLessEqual(len(line), 72, line)
        self.assertNotRegex(text, "[{}]")


class Entry(unittest.TestCase):
    def test_make_lists_every_target(self):
        text = (ROOT / "Makefile").read_text()
        targets = set(re.findall(r"^\.PHONY: (\S+)$", text, re.M))
        out = subprocess.run(["make", "-s", "-C", ROOT], text=True, check=True,
                             stdout=subprocess.PIPE).stdout
        self.assertEqual(set(re.findall(r"^  make (\S+)  +\S", out, re.M)),
                         targets)
        self.assertGreaterEqual(targets, {
            "deps", "fetch", "tree", "build", "demo", "test", "lab",
            "lab-upstream", "upstream", "series", "series-check", "refresh",
            "clean"})

    def test_licence_lines(self):
        for file in [*TOOLS.iterdir(), *TOOLS.glob("tests/*.py"),
                     ROOT / "Makefile", ROOT / ".ci/run"]:
            if file.is_file():
                self.assertIn("SPDX-License-Identifier: GPL-2.0-or-later",
                              file.read_text(), file)


class Counting(unittest.TestCase):
    def count(self, text, result="OK"):
        return [(o.name, o.passed) for o in
                tap_outcomes("t", text, result, 1, "log")]

    def test_all_pass(self):
        self.assertEqual(self.count("1..2\nok 1 /a\n# x\nok 2 /b\n"),
                         [("t /a", True), ("t /b", True)])

    def test_failure(self):
        self.assertEqual(self.count("1..2\nok 1 - a\nnot ok 2 - b\n", "FAIL"),
                         [("t a", True), ("t b", False)])

    def test_skip_fails(self):
        out = tap_outcomes("t", "ok 1 /a # SKIP no kvm\n1..1\n", "OK", 1, "")
        self.assertEqual([(o.passed, o.reason) for o in out],
                         [(False, "skipped: no kvm")])

    def test_whole_file_skipped(self):
        out = tap_outcomes("t", "1..0 # SKIP no lab\n", "SKIP", 1, "")
        self.assertEqual([(o.passed, o.reason) for o in out],
                         [(False, "skipped: no lab")])

    def test_early_end(self):
        self.assertEqual([p for _, p in self.count("1..3\nok 1 a\n", "ERROR")],
                         [True, False, False])

    def test_no_output(self):
        self.assertEqual(self.count("", "TIMEOUT"), [("t", False)])

    def test_all_ok_but_bad_exit(self):
        self.assertEqual([p for _, p in self.count("1..1\nok 1 a\n", "ERROR")],
                         [True, False])

    def test_output_before_the_version(self):
        text = "# random seed: R0\n1..1\n# starting QEMU\nok 1 a\n"
        for before, passed in [("", [True]), ("TAP version 14\n", [True]),
                               ("# starting QEMU\n", [True, False])]:
            self.assertEqual([p for _, p in self.count(before + text)], passed)


if __name__ == "__main__":
    unittest.main()
