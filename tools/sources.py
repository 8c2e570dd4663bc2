# SPDX-License-Identifier: GPL-2.0-or-later
"""Where packages come from; and sources of QEMU, tarballs and git checkouts, as
files and as a repository of one commit."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pins
from common import BUILD, ROOT, die, output, say, sha256
from patchset import GitError, Repo

MIRROR = (os.environ.get("DEBIAN_MIRROR") or
          "http://deb.debian.org").rstrip("/")
# QEMU builds these in; a git checkout has them only after a download.
SUBPROJECTS = ["keycodemapdb", "berkeley-softfloat-3", "berkeley-testfloat-3"]


def fetched(*args):
    """The lines that tools/fetch prints; ends if it fails."""
    reply = subprocess.run([sys.executable, ROOT / "tools/fetch", *args],
                           stdout=subprocess.PIPE, text=True)
    if reply.returncode:
        sys.exit(1)             # it said why
    return reply.stdout.splitlines()


def pinned(name):
    """The file of tools/pins.py with this name; None when the mirror does
    not have it."""
    try:
        return Path(output([sys.executable, ROOT / "tools/fetch", "pin",
                            name]))
    except subprocess.CalledProcessError as e:
        if e.returncode == 3:
            return None
        sys.exit(1)             # tools/fetch said why


def network_settings():
    """The machine's apt settings on proxies, time-outs and the like."""
    try:
        text = output(["apt-config", "dump", "--format", '%F "%v";%n',
                       "Acquire"])
    except FileNotFoundError:
        die("apt-get is not there: packages can be fetched on Debian only")
    return "\n".join(line for line in text.splitlines()
                     if not line.startswith("Acquire::IndexTargets"))


def identity(path):
    """What a source is known by: a commit or the digest of a tarball."""
    if path.is_dir():
        commit = Repo(path).get("rev-parse", "HEAD^{commit}")
        if not commit:
            die(f"QEMU_SRC={path} is neither a tarball nor a git checkout")
        if Repo(path).get("status", "--porcelain", "--untracked-files=no"):
            say(f"note: {path} has uncommitted changes; its last commit is "
                f"taken")
        return f"commit {commit}"
    return f"sha256 {sha256(path)}"


def fail(path, text):
    """End with what git or tar said of @path."""
    if "No space left on device" in text or "Disk quota exceeded" in text:
        die(f"disk full while unpacking {path}",
            f"df -h {BUILD} # and make room")
    lines = text.strip().splitlines() or ["it ended without a word"]
    die(f"cannot unpack {path}: {lines[0]}")


def unpack(path, folder, strip=1):
    """@path's files into @folder, without the first @strip parts of their
    names in a tarball."""
    say(f"unpacking {path.name}")
    if not path.is_dir():
        tar = subprocess.run(["tar", "-xf", path, f"--strip-components={strip}",
                              "--no-same-owner", "-C", folder],
                             capture_output=True, text=True)
        if tar.returncode:
            fail(path, tar.stderr)
        return
    archive = subprocess.Popen(["git", "-c", "safe.directory=*", "-C", path,
                                "archive", "HEAD"], stdout=subprocess.PIPE)
    tar = subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout)
    if archive.wait() or tar.returncode:
        die(f"cannot copy {path}")
    for name in SUBPROJECTS:
        have, want = path / "subprojects" / name, folder / "subprojects" / name
        if (folder / f"subprojects/{name}.wrap").exists() and not want.exists():
            if not have.is_dir():
                die(f"{path} lacks subprojects/{name}",
                    f"cd {path} && meson subprojects download "
                    f"{' '.join(SUBPROJECTS)}")
            shutil.copytree(have, want, symlinks=True,
                            ignore=shutil.ignore_patterns(".git"))


def check_version(folder, path):
    version = folder / "VERSION"
    text = version.read_text().strip() if version.exists() else "unknown"
    if not re.match(rf"{re.escape(pins.QEMU_SERIES)}\.\d+$", text):
        die(f"{path} is QEMU {text}; the series is for "
            f"{pins.QEMU_SERIES}.x")
    return text


def import_source(path, folder):
    """@path's files as a git repository in @folder; its commit is `base`."""
    unpack(path, folder)
    version = check_version(folder, path)
    say(f"importing QEMU {version}")
    repo = Repo(folder)
    try:
        repo("init", "-q", "--template=")
        repo("add", "-f", "-A", ".")
        repo("commit", "-q", "-m", f"QEMU {version}")
        repo("tag", "base")
    except GitError as e:
        fail(path, str(e))
    return repo
