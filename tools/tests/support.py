# SPDX-License-Identifier: GPL-2.0-or-later
"""A small project of its own for a test: the tools, a few patches, and a
QEMU of a handful of files."""

import functools
import hashlib
import http.server
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import unittest
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOOLS))

LINES = "".join(f"line {n}\n" for n in range(1, 41))
QEMU = {
    "VERSION": "11.1.1\n",
    ".gitignore": "*.patch\n/build/\n",
    "configure": "#!/bin/sh\n",
    "hw/arm/smmu.c": LINES,
    "hw/arm/meson.build": "files('smmu.c')\n",
    "docs/note.patch": "ignored by .gitignore, still QEMU's\n",
}
PATCH = textwrap.dedent("""\
    hw/arm: say three

    The third line said nothing.
    ---
    diff --git a/hw/arm/smmu.c b/hw/arm/smmu.c
    --- a/hw/arm/smmu.c
    +++ b/hw/arm/smmu.c
    @@ -1,6 +1,6 @@
     line 1
     line 2
    -line 3
    +three
     line 4
     line 5
     line 6
    """)
PATCH_2 = textwrap.dedent("""\
    hw/arm: build the new file
    ---
    diff --git a/hw/arm/meson.build b/hw/arm/meson.build
    --- a/hw/arm/meson.build
    +++ b/hw/arm/meson.build
    @@ -1 +1 @@
    -files('smmu.c')
    +files('smmu.c', 'new.c')
    """)
COVER_LETTER = textwrap.dedent("""\
    Say more

    Patch {hw/arm: say three} says it, {hw/arm:
    build the new file} does it.
    """)


def tool(name):
    """A tool as a module, made anew: its file has no suffix."""
    loader = importlib.machinery.SourceFileLoader(name, str(TOOLS / name))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def tarball(path, files=QEMU, name="qemu-11.1.1"):
    """A source tarball of @files in the folder @name."""
    with tempfile.TemporaryDirectory() as tmp:
        top = Path(tmp, "qemu")
        for file_name, text in files.items():
            file = top / file_name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        with tarfile.open(path, "w:xz", preset=0) as tar:
            tar.add(top, name)
    return path


class Project(unittest.TestCase):
    """Each test has a project with two patches and one own file."""

    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.tmp = Path(tmp.name).resolve()
        self.source = tarball(self.tmp / "qemu.tar.xz")
        self.root = self.make_project("project")
        self.tree = self.root / "build/tree"

    def make_project(self, name):
        root = self.tmp / name
        shutil.copytree(TOOLS, root / "tools",
                        ignore=shutil.ignore_patterns("__pycache__"))
        for path, text in {
            "patches/hw-arm-say-three.patch": PATCH,
            "patches/hw-arm-build-the-new-file.patch": PATCH_2,
            "patches/series": "# order\nhw-arm-say-three.patch\n\n# new\n"
                              "hw-arm-build-the-new-file.patch"
                              "  hw/arm/new.c tests/new.sh\n# end\n",
            "patches/cover-letter": COVER_LETTER,
            "hw/arm/new.c": "int new;\n",
            "tests/new.sh": "#!/bin/sh\n",
        }.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (root / "tests/new.sh").chmod(0o755)
        return root

    def run_tool(self, *command, status=0, root=None, **env):
        """(stdout, stderr) of a tool, which must end with @status."""
        root = root or self.root
        full = {k: v for k, v in os.environ.items() if k not in
                ("FORCE", "LINUX_SRC", "MAKEFLAGS")}
        full |= {"XDG_CACHE_HOME": str(self.tmp / "cache"),
                 "QEMU_SRC": str(self.source), "HOME": str(self.tmp),
                 "PYTHONDONTWRITEBYTECODE": "1", **env}
        reply = subprocess.run(
            [sys.executable, root / "tools" / command[0], *command[1:]],
            env={k: v for k, v in full.items() if v is not None},
            capture_output=True, text=True, cwd=self.tmp)
        self.assertEqual(reply.returncode, status,
                         f"{command}: {reply.stdout}{reply.stderr}")
        self.assertNotIn("Traceback", reply.stderr)
        return reply.stdout, reply.stderr

    def refused(self, *command, **kw):
        """The one line that a tool ends with."""
        _, err = self.run_tool(*command, status=1, **kw)
        lines = [x for x in err.splitlines() if x.startswith("error: ")]
        self.assertEqual(len(lines), 1, err)
        return lines[0]

    def git(self, *args, cwd=None):
        env = {k: v for k, v in os.environ.items()
               if not k.startswith("GIT_")}
        # None of the developer's settings, such as commit.gpgSign
        env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(
            ["git", "-c", "user.name=A User", "-c", "user.email=u@localhost",
             *args], cwd=cwd or self.tree, check=True, env=env,
            capture_output=True, text=True).stdout.strip()

    def edit(self, path, old, new, root=None):
        file = (root or self.tree) / path
        text = file.read_text()
        self.assertIn(old, text)
        file.write_text(text.replace(old, new))

    def commit(self, message):
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def snapshot(self, root=None):
        """Content, mode and time of all of the project's files."""
        root = root or self.root
        return {str(p.relative_to(root)):
                (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime_ns)
                for p in sorted(root.rglob("*")) if p.is_file()
                and "build" not in p.relative_to(root).parts
                and p.suffix != ".pyc"}


class Server:
    """A mirror on this machine; @broken paths end before their length."""

    def __init__(self, folder, broken=()):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def copyfile(self, source, out):
                data = source.read()
                half = any(self.path.endswith(b) for b in broken)
                out.write(data[:len(data) // 2] if half else data)

        self.http = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever,
                                       daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.http.shutdown()
        self.http.server_close()


def digest(data):
    return hashlib.sha256(data).hexdigest()
