# SPDX-License-Identifier: GPL-2.0-or-later
"""Clean roots of a Debian suite, made by mmdebstrap, and commands in them."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import BUILD, die, need_space, run_logged
from sources import MIRROR, network_settings

SUITE = os.environ.get("SUITE") or "forky"
DEBS = BUILD / "deb" / SUITE
ROOTS = BUILD / "roots"
# Roots, namespaces and mounts are root's.
SUDO = [] if os.geteuid() == 0 else ["sudo"]

# Runs with the root as its first argument, in namespaces that end with it:
# nothing that it mounts or starts can be left behind. libvirt wants a root
# that is a mount, and is that of the namespace; most commands are no good as
# the namespace's first process.
ENTER = """
set -e
mount --bind "$1" "$1"
cd "$1"
shift
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
while [ "$1" != -- ]; do
    mkdir -p ".$2"
    mount --bind "$1" ".$2"
    shift 2
done
shift
pivot_root . mnt
exec chroot . sh -c 'umount -l /mnt && "$@"; exit $?' sh "$@"
"""


def inside(root, command, binds=None, **env):
    """The command line that runs @command in @root; @binds are folders of
    this machine and where they are there."""
    places = [str(p) for pair in (binds or {}).items() for p in pair]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
           "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
           "TERM": "dumb", **env}
    # unshare itself ignores SIGTERM.
    return [*SUDO, "timeout", "--kill-after=1", "0",
            "unshare", "--mount", "--pid", "--fork", "--kill-child",
            "sh", "-c", ENTER, "sh", root, *places, "--",
            "env", "-i", *(f"{k}={v}" for k, v in env.items()),
            *map(str, command)]


def apt_options():
    """The machine's own settings on proxies and the like; and a mirror that
    lags serves indexes past their date: still signed."""
    return "\n".join([network_settings(), 'Acquire::Check-Valid-Until "false";',
                      'Acquire::Retries "2";'])


def apt_progress(line):
    """Shows what mmdebstrap and apt do."""
    known = ("I: ", "Get:", "Unpacking ", "Setting up ")
    return (None, line[:60]) if line.startswith(known) else None


@contextlib.contextmanager
def clean_root(name, packages, mib, suite=SUITE):
    """A root of @suite with @packages, of @mib MiB in all; gone afterwards."""
    if SUDO and not shutil.which("sudo"):
        die("a clean root is made as root, and sudo is not there",
            "the same command as root")
    need_space(BUILD, mib)
    ROOTS.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=ROOTS))
    root.chmod(0o755)       # apt downloads as a user without rights
    with tempfile.NamedTemporaryFile("w", prefix="apt.") as options:
        options.write(apt_options() + "\n")
        options.flush()
        try:
            run_logged(f"{name}-root", [
                *SUDO, "mmdebstrap", "--variant=apt",
                f"--include={','.join(['mount', *packages])}",
                f"--aptopt={options.name}", suite, root / "root",
                f"{MIRROR}/debian"],
                what=f"making a clean root of Debian {suite}",
                progress=apt_progress)
            yield root / "root"
        finally:
            subprocess.run([*SUDO, "rm", "-rf", "--one-file-system", root],
                           check=True)
