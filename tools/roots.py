# SPDX-License-Identifier: GPL-2.0-or-later
"""Clean Debian systems to try things in: made by mmdebstrap, in name spaces
of their own, without a service running."""

import os
import shutil
import subprocess
from pathlib import Path

from common import die, need_space, run_logged

MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org").rstrip("/")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a machine has that a folder has not.
MOUNTS = """
mount -t sysfs -o ro sysfs /sys
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
exec "$@"
"""


def sources(suite):
    lines = [f"deb {MIRROR}/debian {suite} main"]
    if suite not in ("sid", "unstable"):
        lines += [f"deb {MIRROR}/debian {suite}-updates main",
                  f"deb {MIRROR}/debian-security {suite}-security main"]
    return lines


def remove(root):
    shutil.rmtree(root, ignore_errors=True)


def make(root, suite, packages=(), mib=1000):
    """Make @root anew: Debian's base of @suite and @packages."""
    if os.getuid():
        die("a clean Debian root needs root", "sudo make ...")
    need_space(root.parent, mib)
    remove(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    run_logged(f"root-{suite}",
               ["mmdebstrap", "--variant=minbase", "--mode=root",
                *([f"--include={','.join(packages)}"] if packages else []),
                suite, root, *sources(suite)],
               what=f"making a clean Debian {suite}", progress=None)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")


def inside(root, command, cwd="/root", env=None):
    """The command line that runs @command in @root. What it starts ends with
    it, and its mounts are seen by no one else."""
    env = {"HOME": "/root", "PATH": PATH, "LC_ALL": "C.UTF-8",
           "DEBIAN_FRONTEND": "noninteractive",
           **{k: v for k, v in os.environ.items()
              if k.lower().endswith("_proxy")}, **(env or {})}
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child",
            f"--root={root}", f"--wd={cwd}", "--mount-proc",
            "env", "-i", *(f"{k}={v}" for k, v in env.items()),
            "sh", "-ec", MOUNTS, "sh", *map(str, command)]


def installed(root):
    """package: KiB, of what is installed there."""
    text = subprocess.run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W",
         "-f=${db:Status-Status} ${Package} ${Installed-Size}\n"],
        check=True, capture_output=True, text=True).stdout
    return {p: int(kib or 0) for status, p, kib in
            (line.split(" ") for line in text.splitlines())
            if status == "installed"}


def size_mib(path):
    """What there is on disk below @path."""
    if not Path(path).exists():
        return 0
    return int(subprocess.run(["du", "-sm", path], check=True, text=True,
                              capture_output=True).stdout.split()[0])
