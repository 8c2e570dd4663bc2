# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/tree, tools/refresh and tools/series: the series as files and as
commits."""

import os
import subprocess
import unittest
from pathlib import Path

from support import PATCH, Project, QEMU, tarball


class Tree(Project):
    def make(self, **kw):
        return self.run_tool("tree", **kw)

    def test_series_becomes_commits(self):
        self.make()
        self.assertEqual(
            self.git("log", "--format=%s", "--reverse").splitlines(),
            ["QEMU 11.1.1", "hw/arm: say three", "hw/arm: build the new file"])
        self.assertEqual(self.git("diff", "--stat", "base", "HEAD~1", "--",
                                  "hw/arm/new.c"), "")
        self.assertIn("three\n", (self.tree / "hw/arm/smmu.c").read_text())
        self.assertTrue(os.access(self.tree / "tests/new.sh", os.X_OK))
        self.assertTrue((self.tree / "docs/note.patch").exists())
        self.assertEqual(self.git("status", "--porcelain"), "")
        base = self.root / "build/base"
        self.assertEqual((base / "hw/arm/smmu.c").read_text(),
                         QEMU["hw/arm/smmu.c"])

    def test_repeated_changes_nothing(self):
        self.make()
        before = (self.git("rev-parse", "HEAD"),
                  (self.tree / "hw/arm/smmu.c").stat().st_mtime_ns)
        self.make()
        self.assertEqual(before, (
            self.git("rev-parse", "HEAD"),
            (self.tree / "hw/arm/smmu.c").stat().st_mtime_ns))

    def test_same_files_same_commits_elsewhere(self):
        self.make()
        other = self.make_project("other")
        self.addCleanup(os.umask, os.umask(0o077))
        self.make(root=other)
        self.assertEqual(self.git("rev-parse", "HEAD"),
                         self.git("rev-parse", "HEAD",
                                  cwd=other / "build/tree"))

    def test_change_in_project_touches_only_its_file(self):
        self.make()
        smmu = self.tree / "hw/arm/smmu.c"
        before = smmu.stat().st_mtime_ns
        self.edit("hw/arm/new.c", "new", "newer", root=self.root)
        self.make()
        self.assertEqual((self.tree / "hw/arm/new.c").read_text(),
                         "int newer;\n")
        self.assertEqual(smmu.stat().st_mtime_ns, before)

    def test_foreign_git_configuration_has_no_say(self):
        hooks = self.tmp / "hooks"
        hooks.mkdir()
        (hooks / "pre-commit").write_text("#!/bin/sh\nexit 1\n")
        (hooks / "pre-commit").chmod(0o755)
        (self.tmp / "ignore").write_text("*.c\n")
        (self.tmp / ".gitconfig").write_text(
            f"[core]\nautocrlf = true\nexcludesFile = {self.tmp}/ignore\n"
            f"hooksPath = {hooks}\n[commit]\ngpgSign = true\n"
            f"[user]\nname = X\nemail = x@y\n")
        self.make()
        want = self.git("rev-parse", "HEAD")
        (self.tmp / ".gitconfig").unlink()
        other = self.make_project("other")
        self.make(root=other)
        self.assertEqual(want, self.git("rev-parse", "HEAD",
                                        cwd=other / "build/tree"))

    def test_own_work_is_kept(self):
        self.make()
        self.edit("hw/arm/smmu.c", "line 9", "nine")
        self.assertIn("make refresh", self.refused("tree"))
        self.run_tool("tree", "--keep")
        self.commit("hw/arm: say nine")
        self.assertIn("make refresh", self.refused("tree"))
        self.assertIn("nine", (self.tree / "hw/arm/smmu.c").read_text())
        self.make(FORCE="1")
        self.assertNotIn("nine", (self.tree / "hw/arm/smmu.c").read_text())

    def test_keep_refuses_when_both_changed(self):
        self.make()
        self.edit("hw/arm/smmu.c", "line 9", "nine")
        self.edit("hw/arm/new.c", "new", "newer", root=self.root)
        self.assertIn("make refresh", self.refused("tree", "--keep"))

    def test_other_source_makes_it_anew(self):
        self.make()
        files = {**QEMU, "VERSION": "11.1.2\n"}
        other = tarball(self.tmp / "other.tar.xz", files)
        self.make(QEMU_SRC=str(other))
        self.assertEqual((self.tree / "VERSION").read_text(), "11.1.2\n")
        self.assertEqual((self.root / "build/base/VERSION").read_text(),
                         "11.1.2\n")

    def test_git_checkout_as_source(self):
        checkout = self.tmp / "checkout"
        checkout.mkdir()
        subprocess.run(["tar", "-xf", self.source, "-C", checkout,
                        "--strip-components=1"], check=True)
        self.git("init", "-q", cwd=checkout)
        self.git("add", "-f", "-A", cwd=checkout)
        self.git("commit", "-q", "-m", "x", cwd=checkout)
        self.make(QEMU_SRC=str(checkout))
        self.assertIn("three\n", (self.tree / "hw/arm/smmu.c").read_text())

    def test_wrong_version(self):
        old = tarball(self.tmp / "old.tar.xz", {**QEMU, "VERSION": "10.2.0\n"})
        self.assertIn("QEMU 10.2.0", self.refused("tree", QEMU_SRC=str(old)))
        self.assertFalse(self.tree.exists())

    def test_source_that_is_not_there(self):
        _, err = self.run_tool("tree", status=1, QEMU_SRC="/nowhere")
        self.assertIn("error: QEMU_SRC=/nowhere is not there", err)

    def test_broken_tarball_leaves_nothing(self):
        data = self.source.read_bytes()
        self.source.write_bytes(data[:len(data) // 2])
        self.assertIn("cannot unpack", self.refused("tree"))
        self.assertEqual([p.name for p in (self.root / "build").iterdir()
                          if p.is_dir()], [])

    def test_killed_import_is_not_taken_for_whole(self):
        half = self.root / "build/.tree.tmp123"
        half.mkdir(parents=True)
        (half / "VERSION").write_text("11.1.1\n")
        self.make()
        self.assertFalse(half.exists())
        self.assertTrue((self.tree / "configure").exists())

    def test_full_disk(self):
        wrapper = self.root / "tools/full-disk"
        wrapper.write_text(
            "import collections, runpy, shutil, sys\n"
            "usage = collections.namedtuple('usage', 'total used free')\n"
            "shutil.disk_usage = lambda path: usage(1, 1, 5 << 20)\n"
            f"sys.path.insert(0, '{self.root}/tools')\n"
            f"runpy.run_path('{self.root}/tools/tree', run_name='__main__')\n")
        line = self.refused("full-disk")
        self.assertIn("MiB are needed", line)
        self.assertIn("5 MiB are free", line)
        self.assertFalse(self.tree.exists())

    def test_failing_hunk_is_named(self):
        patch = self.root / "patches/hw-arm-say-three.patch"
        patch.write_text(PATCH.replace("-line 3\n", "-line 33\n"))
        line = self.refused("tree")
        self.assertIn("patches/hw-arm-say-three.patch", line)
        self.assertIn("@@ -1,6 +1,6 @@", line)

    def test_bad_series(self):
        series = self.root / "patches/series"
        good = series.read_text()
        for old, new, word in (
                ("# end", "gone.patch", "patches/gone.patch is not there"),
                ("tests/new.sh", "hw/gone.c", "hw/gone.c is not there"),
                ("# end", "hw-arm-say-three.patch", "is also in line 2"),
                ("# new", "hw-arm-say-three.patch", "is also in line 2"),
                ("tests/new.sh", "hw/arm/new.c", "is also in line 5")):
            series.write_text(good.replace(old, new))
            self.assertIn(word, self.refused("tree"))

    def test_own_file_that_is_qemus(self):
        (self.root / "hw/arm/smmu.c").write_text("x\n")
        self.edit("patches/series", "hw/arm/new.c", "hw/arm/new.c hw/arm/smmu.c",
                  root=self.root)
        self.assertIn("is a file of QEMU", self.refused("tree"))

    def test_unlisted_file_is_named(self):
        (self.root / "hw/arm/extra.c").write_text("x\n")
        _, err = self.make()
        self.assertIn("hw/arm/extra.c is in no commit", err)

    def test_empty_series(self):
        (self.root / "patches/series").write_text("# nothing\n")
        self.make()
        self.assertEqual(self.git("rev-parse", "HEAD"),
                         self.git("rev-parse", "base"))
        before = self.snapshot()
        self.run_tool("refresh")
        self.assertEqual(self.snapshot(), before)


class Refresh(Project):
    def setUp(self):
        super().setUp()
        self.run_tool("tree")

    def patches(self):
        return sorted(p.name for p in (self.root / "patches").glob("*.patch"))

    def settled(self):
        """refresh and tree have nothing left to do."""
        before = self.snapshot()
        tip = self.git("rev-parse", "HEAD")
        self.run_tool("refresh")
        self.run_tool("tree")
        self.assertEqual(self.snapshot(), before)
        self.assertEqual(self.git("rev-parse", "HEAD"), tip)
        self.assertEqual(self.git("status", "--porcelain"), "")

    def test_no_edit_changes_nothing(self):
        self.settled()

    def test_commit_becomes_patch(self):
        self.edit("hw/arm/smmu.c", "line 30", "thirty")
        (self.tree / "hw/arm/more.c").write_text("int more;\n")
        self.commit("hw/arm: Say thirty, & more\n\nWhy not.\n\n"
                    "Signed-off-by: A User <u@localhost>")
        self.run_tool("refresh")
        name = "hw-arm-say-thirty-more.patch"
        text = (self.root / "patches" / name).read_text()
        self.assertTrue(text.startswith(
            "hw/arm: Say thirty, & more\n\nWhy not.\n---\ndiff --git "))
        self.assertIn("+thirty\n", text)
        for word in ("index ", "Signed-off-by", "From:", "more.c"):
            self.assertNotIn(word, text)
        self.assertEqual((self.root / "hw/arm/more.c").read_text(),
                         "int more;\n")
        series = (self.root / "patches/series").read_text()
        self.assertEqual(series.splitlines()[-2:],
                         [f"{name}  hw/arm/more.c", "# end"])
        self.assertTrue(series.startswith("# order\n"))
        self.settled()

    def test_amended_commit(self):
        self.edit("hw/arm/new.c", "new", "newer")
        self.git("commit", "-q", "-a", "--amend", "--no-edit")
        self.run_tool("refresh")
        self.assertEqual((self.root / "hw/arm/new.c").read_text(),
                         "int newer;\n")
        self.settled()

    def test_fixup_folds(self):
        first = self.git("rev-parse", "HEAD~1")
        smmu = self.tree / "hw/arm/smmu.c"
        self.edit("hw/arm/smmu.c", "line 20", "twenty")
        self.git("commit", "-q", "-a", f"--fixup={first}")
        before = smmu.stat().st_mtime_ns
        self.run_tool("refresh")
        text = (self.root / "patches/hw-arm-say-three.patch").read_text()
        self.assertIn("+twenty\n", text)
        self.assertEqual(len(self.patches()), 2)
        self.assertEqual(smmu.stat().st_mtime_ns, before)
        self.settled()

    def test_fixup_that_conflicts(self):
        self.edit("hw/arm/smmu.c", "line 20", "twenty")
        self.commit("hw/arm: say twenty")
        self.edit("hw/arm/smmu.c", "twenty", "twenty-one")
        self.git("commit", "-q", "-a", "--fixup=HEAD~2")
        before = self.snapshot()
        self.assertIn("does not fold in", self.refused("refresh"))
        self.assertEqual(self.snapshot(), before)
        self.assertIn("twenty-one", (self.tree / "hw/arm/smmu.c").read_text())

    def test_later_change_of_own_file_folds(self):
        self.edit("hw/arm/new.c", "new", "newer")
        self.commit("hw/arm: rename")
        self.run_tool("refresh")
        self.assertEqual(len(self.patches()), 2)
        self.assertEqual((self.root / "hw/arm/new.c").read_text(),
                         "int newer;\n")
        self.settled()

    def test_removed_own_file(self):
        self.git("rm", "-q", "tests/new.sh")
        self.git("commit", "-q", "--amend", "--no-edit")
        self.run_tool("refresh")
        self.assertFalse((self.root / "tests").exists())
        self.assertNotIn("new.sh", (self.root / "patches/series").read_text())
        self.settled()

    def test_dropped_and_renamed_commits(self):
        self.git("reset", "-q", "--hard", "HEAD~1")
        self.git("commit", "-q", "--amend", "-m", "hw/arm: say it")
        self.run_tool("refresh")
        self.assertEqual(self.patches(), ["hw-arm-say-it.patch"])
        self.assertFalse((self.root / "hw").exists())
        self.settled()

    def test_executable_and_binary_content(self):
        data = bytes(range(256)) * 4
        (self.tree / "tests/table").write_bytes(data)
        (self.tree / "tests/run").write_text("#!/bin/sh\n")
        (self.tree / "tests/run").chmod(0o755)
        (self.tree / "hw/arm/meson.build").write_bytes(data)
        self.commit("tests: a table")
        self.run_tool("refresh")
        self.assertEqual((self.root / "tests/table").read_bytes(), data)
        self.assertTrue(os.access(self.root / "tests/run", os.X_OK))
        self.settled()

    def test_uncommitted_edit(self):
        self.edit("hw/arm/smmu.c", "line 9", "nine")
        self.assertIn("uncommitted", self.refused("refresh"))

    def test_project_edit_is_not_lost(self):
        self.edit("hw/arm/new.c", "new", "newer", root=self.root)
        line = self.refused("refresh")
        self.assertIn("hw/arm/new.c", line)
        self.assertIn("make tree", line)
        self.run_tool("tree")
        self.settled()
        self.assertEqual((self.root / "hw/arm/new.c").read_text(),
                         "int newer;\n")

    def test_unlisted_project_file_is_not_lost(self):
        (self.root / "hw/arm/more.c").write_text("int mine;\n")
        (self.tree / "hw/arm/more.c").write_text("int more;\n")
        self.commit("hw/arm: more")
        self.assertIn("hw/arm/more.c", self.refused("refresh"))
        self.assertEqual((self.root / "hw/arm/more.c").read_text(),
                         "int mine;\n")

    def test_two_commits_of_one_name(self):
        self.edit("hw/arm/smmu.c", "line 9", "nine")
        self.commit("hw/arm: say three!")
        self.assertIn("change a subject", self.refused("refresh"))

    def test_file_where_the_project_has_its_own(self):
        (self.tree / "tools").mkdir()
        (self.tree / "tools/x").write_text("x\n")
        self.commit("tools: x")
        self.assertIn("tools/x cannot be kept", self.refused("refresh"))


class Mails(Project):
    def test_git_am_takes_them(self):
        self.run_tool("tree")
        self.run_tool("series")
        mails = sorted((self.root / "build/series").iterdir())
        self.assertEqual([m.name for m in mails],
                         ["0000-cover-letter.patch",
                          "0001-hw-arm-say-three.patch",
                          "0002-hw-arm-build-the-new-file.patch"])
        upstream = self.tmp / "upstream"
        upstream.mkdir()
        subprocess.run(["tar", "-xf", self.source, "-C", upstream,
                        "--strip-components=1"], check=True)
        self.git("init", "-q", cwd=upstream)
        self.git("add", "-f", "-A", cwd=upstream)
        self.git("commit", "-q", "-m", "v11.1.1", cwd=upstream)
        self.git("am", "-q", "--empty=drop", *map(str, mails), cwd=upstream)
        self.assertEqual(self.git("rev-parse", "HEAD^{tree}", cwd=upstream),
                         self.git("rev-parse", "HEAD^{tree}"))

    def test_sender_is_the_user(self):
        self.run_tool("tree")
        self.run_tool("series")
        mail = next(Path(self.root, "build/series").glob("0001*"))
        self.assertIn("From: QEMU series <series@localhost>",
                      mail.read_text())
        (self.tmp / ".gitconfig").write_text(
            "[user]\nname = Jörg User\nemail = j@localhost\n")
        self.run_tool("series")
        for mail in sorted(self.root.glob("build/series/*"))[:2]:
            self.assertIn("<j@localhost>", mail.read_text())

    def test_cover_letter(self):
        self.run_tool("tree")
        self.run_tool("series")
        text = (self.root / "build/series/0000-cover-letter.patch").read_text()
        self.assertIn("Subject: [PATCH 0/2] Say more\n\n"
                      "Patch 1 says it, 2 does it.\n\n", text)
        self.assertIn("  hw/arm: build the new file\n", text)
        self.assertIn(" 4 files changed, ", text)

    def test_cover_letter_names_a_patch_that_is_not_there(self):
        self.run_tool("tree")
        self.edit("patches/cover-letter", "say three", "say four",
                  root=self.root)
        self.assertIn("no patch is called \"hw/arm: say four\"",
                      self.refused("series"))


if __name__ == "__main__":
    unittest.main()
