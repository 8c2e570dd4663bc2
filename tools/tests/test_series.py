# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/series --matrix: each version is tried with its own means, and what
was not tried is neither passed nor failed."""

import contextlib
import io
import os
import textwrap
import unittest

from support import LINES, QEMU, Project, Server, digest, tarball, tool

def patch(old, new):
    """A patch that changes one line of hw/arm/smmu.c."""
    lines = LINES.splitlines()
    at = lines.index(old)
    before, after = (["".join(f" {x}\n" for x in part) for part in
                     (lines[at - 3:at], lines[at + 1:at + 4])])
    return (f"why\n---\n--- a/hw/arm/smmu.c\n+++ b/hw/arm/smmu.c\n"
            f"@@ -{at - 2},7 +{at - 2},7 @@\n"
            f"{before}-{old}\n+{new}\n{after}")


# What Debian's packaging has: a patch, which the series follows.
DEBIAN = {"patches/series": "debian.patch",
          "patches/debian.patch": patch("line 20", "zwanzig")}

# Applies the queue without fuzz, as quilt does with --fuzz=0.
QUILT = textwrap.dedent("""\
    #!/bin/sh
    [ "$*" = "--quiltrc=- push -a --fuzz=0" ] || [ "$2" = next ] || exit 3
    [ "$2" = next ] && exec cat "$PWD/.next"
    while read -r name; do
        echo "$name" >.next
        git apply "$QUILT_PATCHES/$name" || exit 1
    done <"$QUILT_PATCHES/series"
    """)

# Nothing is built: what the build would see is looked at.
MATRIX = textwrap.dedent("""\
    import os, runpy, sys
    import qemu_build, qemu_tests
    from common import die
    from qemu_tests import Outcome

    def build(kind, folder, source):
        if "no build" in (source / "configure").read_text():
            die("no")
    def run(folder, source, *rest):
        queue = source / "debian/patches/series"
        if queue.exists():
            print("queue:", *queue.read_text().split(), file=sys.stderr)
        text = (source / "hw/arm/smmu.c").read_text()
        return [Outcome("three", "\\nthree\\n" in text, 0, "not ok"),
                Outcome("new", (source / "hw/arm/new.c").exists(), 0),
                Outcome("good", "bad" not in text, 0, "not ok")]
    qemu_build.build, qemu_tests.run = build, run
    tool = os.path.join(os.path.dirname(__file__), "series")
    sys.argv[:] = [tool, "--matrix"]
    runpy.run_path(tool, run_name="__main__")
    """)


class Matrix(Project):
    def setUp(self):
        super().setUp()
        self.pool = self.tmp / "mirror/debian/pool"
        self.pool.mkdir(parents=True)
        bin = self.tmp / "bin"
        bin.mkdir()
        (bin / "quilt").write_text(QUILT)
        (bin / "quilt").chmod(0o755)
        (self.root / "tools/matrix").write_text(MATRIX)
        self.run_tool("tree")

    def pins(self, *debian):
        """Have 11.1.1 and @debian's packaging on the mirror, 11.1.2 not."""
        gone = ("pool/qemu_11.1.2+ds.orig.tar.xz", digest(b""))
        pins = {"QEMU": [self.put("qemu_11.1.1+ds.orig.tar.xz", QEMU), gone],
                "QEMU_DEBIAN": [
                    *(self.put("qemu_11.1.1+ds-1.debian.tar.xz", d, "debian")
                      for d in debian),
                    ("pool/qemu_11.1.2+ds-3.debian.tar.xz", digest(b""))],
                "LINUX": []}
        (self.root / "tools/pins.py").write_text(
            "QEMU_SERIES = '11.1'\n" +
            "".join(f"{name} = {value!r}\n" for name, value in pins.items()))

    def put(self, name, files, top="qemu-11.1.1"):
        path = tarball(self.pool / name, files, top)
        return f"pool/{name}", digest(path.read_bytes())

    def matrix(self, status=0, own=None, dsc=None):
        """(the table's lines as words, the last line, messages)."""
        own = own and tarball(self.tmp / "own.tar.xz", {**QEMU, **own})
        with Server(self.tmp / "mirror") as server:
            out, err = self.run_tool(
                "matrix", status=status, DEBIAN_MIRROR=server.url,
                QEMU_SRC=own and str(own),
                QEMU_DEBIAN_SRC=dsc and str(dsc),
                PATH=f"{self.tmp}/bin:{os.environ['PATH']}")
        lines = out.replace(server.url, "MIRROR").splitlines()
        start = next(i for i, x in enumerate(lines) if x.startswith("version"))
        return [" ".join(x.split()) for x in lines[start + 1:-1]], lines[-1], \
            err

    def test_all_pass_but_what_cannot_be_had(self):
        self.pins(DEBIAN)
        rows, tally, err = self.matrix(own={"VERSION": "11.1.0\n"})
        self.assertEqual(rows, [
            "11.1.1 git am yes yes yes, 3 tests",
            "11.1.2 git am not to be had from MIRROR",
            "11.1.0 (own) git am yes yes yes, 3 tests",
            "11.1.1+ds-1 quilt yes yes yes, 3 tests",
            "11.1.2+ds-3 quilt not to be had from MIRROR"])
        self.assertEqual(tally, "3 passed, 0 failed")
        self.assertIn("queue: debian.patch "
                      "smmuv3-accel/0001-hw-arm-say-three.patch "
                      "smmuv3-accel/0002-hw-arm-build-the-new-file.patch\n",
                      err)

    def test_does_not_apply(self):
        self.pins({"patches/series": "debian.patch\n",
                   "patches/debian.patch": patch("line 4", "vier")})
        rows, tally, _ = self.matrix(1, own={
            "hw/arm/smmu.c": LINES.replace("line 3\n", "drei\n")})
        self.assertEqual(rows[2:4], [
            "11.1.1 (own) git am no: patch failed: hw/arm/smmu.c:1",
            "11.1.1+ds-1 quilt no: smmuv3-accel/0001-hw-arm-say-three.patch "
            "does not apply"])
        self.assertEqual(tally, "1 passed, 2 failed")

    def own_package(self, version, files=DEBIAN):
        """The .dsc of an own source package, which is on no mirror."""
        folder = self.tmp / "own"
        folder.mkdir()
        tars = [tarball(folder / f"qemu_{version}.orig.tar.xz", QEMU,
                        "qemu-11.1.4"),
                tarball(folder / f"qemu_{version}-7.debian.tar.xz", files,
                        "debian")]
        dsc = folder / f"qemu_{version}-7.dsc"
        dsc.write_text("Format: 3.0 (quilt)\nChecksums-Sha1:\n 00 1 no\n"
                       "Checksums-Sha256:\n" + "".join(
                           f" {digest(t.read_bytes())} 1 {t.name}\n"
                           for t in tars) + "Files:\n")
        return dsc

    def test_own_source_package(self):
        self.pins(DEBIAN)
        rows, tally, _ = self.matrix(dsc=self.own_package("11.1.4+ds"))
        self.assertEqual(rows[-1],
                         "11.1.4+ds-7 (own) quilt yes yes yes, 3 tests")
        self.assertEqual(tally, "3 passed, 0 failed")

    def test_own_source_package_is_checked(self):
        dsc = self.own_package("11.1.4+ds")
        packaging = dsc.with_suffix(".debian.tar.xz")

        def line():
            return self.refused("series", "--matrix", QEMU_SRC=None,
                                QEMU_DEBIAN_SRC=str(dsc))
        packaging.write_bytes(b"other")
        self.assertIn(f"{packaging} is not what {dsc} is about", line())
        dsc.write_text("Source: q\n")
        self.assertIn(f"{dsc} is no source package of QEMU with one tarball "
                      f"and Debian's packaging", line())
        dsc.unlink()
        self.assertIn(f"QEMU_DEBIAN_SRC={dsc} is not there", line())

    def test_does_not_build(self):
        self.pins()
        rows, tally, _ = self.matrix(1, own={"configure": "# no build\n"})
        self.assertEqual(rows[2], "11.1.1 (own) git am yes no, see above")
        self.assertEqual(tally, "1 passed, 1 failed")

    def test_test_fails(self):
        self.pins()
        rows, tally, _ = self.matrix(
            1, own={"hw/arm/smmu.c": LINES + "bad\n"})
        self.assertEqual(rows[2], "11.1.1 (own) git am yes yes 1 of 3 fail")
        self.assertEqual(tally, "1 passed, 1 failed")


class Commits(unittest.TestCase):
    def test_range(self):
        chosen = tool("series").chosen
        self.assertEqual(list(chosen("2-4", 9)), [2, 3, 4])
        self.assertEqual(list(chosen("9", 9)), [9])
        for words in ("0", "3-2", "9-10", "x", "1-", "-1"):
            with self.assertRaises(SystemExit, msg=words), \
                    contextlib.redirect_stderr(io.StringIO()):
                chosen(words, 9)


if __name__ == "__main__":
    unittest.main()
