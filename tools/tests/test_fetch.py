# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/fetch, tools/deps and the cache: what goes wrong is one line and
leaves nothing that could be taken for whole."""

import errno
import os
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from support import Project, Server, digest

import common

PAYLOAD = os.urandom(1 << 20)


class Fetch(Project):
    def setUp(self):
        super().setUp()
        self.mirror = self.tmp / "mirror"
        pool = self.mirror / "debian/pool"
        pool.mkdir(parents=True)
        (pool / "new.tar.xz").write_bytes(PAYLOAD)
        self.pin(("pool/gone.tar.xz", digest(b"")),
                 ("pool/new.tar.xz", digest(PAYLOAD)))
        self.downloads = self.tmp / "cache/qemu-smmuv3-accel/downloads"

    def pin(self, *pins):
        (self.root / "tools/pins.py").write_text(
            "QEMU_SERIES = '11.1'\n"
            f"QEMU = QEMU_DEBIAN = LINUX = {list(pins)!r}\n")

    def fetch(self, server, **kw):
        return self.run_tool("fetch", "qemu", QEMU_SRC=None,
                             DEBIAN_MIRROR=server.url, **kw)

    def refused_by(self, url, **kw):
        line = self.refused("fetch", "qemu", QEMU_SRC=None,
                            DEBIAN_MIRROR=url, **kw)
        left = [p.name for p in self.downloads.iterdir()
                if not p.name.endswith(".lock")]
        self.assertEqual(left, [])
        return line

    def test_first_that_is_there(self):
        with Server(self.mirror) as server:
            out, err = self.fetch(server)
        self.assertEqual(out, f"{self.downloads}/new.tar.xz\n")
        self.assertIn("gone.tar.xz is no longer there", err)
        self.assertEqual(Path(out.strip()).read_bytes(), PAYLOAD)

    def test_second_time_needs_no_network(self):
        with Server(self.mirror) as server:
            out, _ = self.fetch(server)
        self.assertEqual(self.fetch(server)[0], out)

    def test_broken_download_is_made_anew(self):
        with Server(self.mirror) as server:
            out, _ = self.fetch(server)
            Path(out.strip()).write_bytes(PAYLOAD[:-1])
            _, err = self.fetch(server)
        self.assertIn("is broken, downloading it anew", err)
        self.assertEqual(Path(out.strip()).read_bytes(), PAYLOAD)

    def test_none_is_there(self):
        self.pin(("pool/gone.tar.xz", digest(b"")))
        with Server(self.mirror) as server:
            self.assertIn("QEMU_SRC=", self.refused_by(server.url))

    def test_no_network(self):
        self.assertIn("no network", self.refused_by("http://127.0.0.1:9"))
        self.assertIn("no network",
                      self.refused_by("http://no-such-host.invalid"))

    def test_wrong_checksum(self):
        self.pin(("pool/new.tar.xz", digest(b"other")))
        with Server(self.mirror) as server:
            self.assertIn("wrong checksum", self.refused_by(server.url))

    def test_connection_that_breaks_off(self):
        with Server(self.mirror, broken=["new.tar.xz"]) as server:
            self.assertIn("broke off", self.refused_by(server.url))

    def test_disk_fills_up(self):
        (self.root / "tools/full-disk").write_text(
            "import builtins, errno, io, runpy, sys\n"
            "real = builtins.open\n"
            "class Full(io.FileIO):\n"
            "    def write(self, data):\n"
            "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
            "builtins.open = lambda f, *a, **k: (Full(f, 'w')\n"
            "    if str(f).endswith('.part') and 'wb' in a\n"
            "    else real(f, *a, **k))\n"
            f"sys.path.insert(0, '{self.root}/tools')\n"
            "sys.argv[1:] = ['qemu']\n"
            f"runpy.run_path('{self.root}/tools/fetch',\n"
            "               run_name='__main__')\n")
        with Server(self.mirror) as server:
            line = self.refused("full-disk", QEMU_SRC=None,
                                DEBIAN_MIRROR=server.url)
        self.assertIn("disk full", line)
        self.assertEqual([p.name for p in self.downloads.iterdir()
                          if not p.name.endswith(".lock")], [])

    def test_no_package_lists(self):
        line = self.refused("fetch", "debs", "arm64", "busybox-static",
                            DEBIAN_MIRROR="http://127.0.0.1:9")
        self.assertIn("no network", line)

    def test_folder_is_no_kernel_tarball(self):
        line = self.refused("fetch", "linux", LINUX_SRC=str(self.tmp))
        self.assertIn("git -C", line)

    def test_own_source(self):
        self.assertEqual(self.run_tool("fetch", "qemu")[0],
                         f"{self.source}\n")


class Deps(Project):
    def test_other_distribution(self):
        """Names what is missing; nothing is installed."""
        release = self.tmp / "os-release"
        release.write_text("ID=other\n")
        bin = self.tmp / "bin"
        bin.mkdir()
        for tool in ("sh", "dirname", "sed", "uname", "cat"):
            (bin / tool).symlink_to(f"/bin/{tool}")
        reply = subprocess.run(
            ["/bin/sh", self.root / "tools/deps"], capture_output=True,
            text=True, env={"OS_RELEASE": str(release), "PATH": str(bin)})
        self.assertEqual(reply.returncode, 1)
        line = reply.stderr.strip().splitlines()[-1]
        self.assertTrue(line.startswith("error: this is not Debian"), line)
        for package in ("gcc", "ninja-build", "libglib2.0-dev", "meson"):
            self.assertIn(f" {package}", line)

    def test_sudo_without_password(self):
        """Where "sudo -v" asks for one nevertheless, as with NOPASSWD for a
        user and a group without it, packages are installed."""
        release = self.tmp / "os-release"
        release.write_text("ID=debian\n")
        bin = self.tmp / "bin"
        bin.mkdir()
        for tool, script in {
                "id": "echo 1000",
                "dpkg-query": "exit 1",
                "apt-cache": "echo '  Candidate: 99'",
                "apt-get": f'echo "$*" >>{self.tmp}/installed',
                "sudo": '[ "$1" = -v ] && exit 1; [ "$1" = -n ] && shift; "$@"',
        }.items():
            (bin / tool).write_text(f"#!/bin/sh\n{script}\n")
            (bin / tool).chmod(0o755)
        reply = subprocess.run(
            ["/bin/sh", self.root / "tools/deps"], capture_output=True,
            text=True, stdin=subprocess.DEVNULL,
            env={**os.environ, "OS_RELEASE": str(release),
                 "PATH": f"{bin}:{os.environ['PATH']}"})
        self.assertEqual(reply.returncode, 0, reply.stderr)
        self.assertRegex((self.tmp / "installed").read_text(),
                         "(?m)install .* ninja-build.*\n.* install .* meson")


class Cache(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        for target, value in (("CACHE", Path(tmp.name)), ("say", self.hear)):
            patch = mock.patch.object(common, target, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.made, self.heard = 0, []

    def hear(self, text):
        self.heard.append(text)

    def make(self, folder):
        self.made += 1
        (folder / "lib").mkdir()
        (folder / "lib/a").write_text("a\n")
        (folder / "lib/link").symlink_to("a")

    def entry(self):
        return common.cache_entry("kind", "key", self.make)

    def test_folder_of_root(self):
        """The cure is named of what a run as root has left."""
        for path, cure in ((f"{common.BUILD}/x", "; run: sudo chown -R "),
                           ("/elsewhere", "Permission denied: /elsewhere")):
            def refused(_):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            with self.assertRaises(SystemExit), mock.patch("signal.signal"):
                common.main(refused)
            self.assertIn(cure, self.heard[-1])
        self.assertNotIn("chown", self.heard[-1])

    def test_made_once(self):
        self.assertEqual(self.entry(), self.entry())
        self.assertEqual(self.made, 1)
        self.assertEqual(self.heard, [])

    def test_broken_entry_is_made_anew(self):
        for number, spoil in enumerate((
                lambda e: (e / "lib/a").write_text("b\n"),
                lambda e: (e / "lib/a").unlink(),
                lambda e: (e / "lib/more").write_text("x"),
                lambda e: ((e / "lib/link").unlink(),
                           (e / "lib/link").symlink_to("b")),
                lambda e: (e / "SHA256SUMS").unlink()), 2):
            spoil(self.entry())
            self.assertEqual((self.entry() / "lib/a").read_text(), "a\n")
            self.assertEqual(self.made, number)
            self.assertIn("is broken, making it anew", self.heard[-1])

    def test_failure_leaves_nothing(self):
        def fail(folder):
            (folder / "half").write_text("x")
            raise SystemExit(1)
        with self.assertRaises(SystemExit):
            common.cache_entry("kind", "key", fail)
        self.assertEqual([p.name for p in (common.CACHE / "kind").iterdir()],
                         [".key.lock"])

    def test_left_over_of_a_killed_run_goes(self):
        half = common.CACHE / "kind/.key.tmpx"
        half.mkdir(parents=True)
        self.entry()
        self.assertFalse(half.exists())

    def test_key_tells_inputs_apart(self):
        self.assertNotEqual(common.cache_key("ab", "c"),
                            common.cache_key("a", "bc"))


if __name__ == "__main__":
    unittest.main()
