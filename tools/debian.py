# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's source of QEMU, with the series at the end of its patch queue.

QEMU_DEBIAN_SRC= names the .dsc of an own one.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pins
import sources
from common import die, run_logged, sha256

PLACE = "smmuv3-accel"          # our patches' folder in debian/patches
PATCHES = "debian/patches"


def version(packaging):
    """11.1.1+ds-1, from the name of a packaging."""
    return re.search(r"qemu_(.*)\.debian\.tar\.\w+$", packaging)[1]


def fetch(packaging):
    """(QEMU's tarball, Debian's packaging) as files; None when the mirror
    has not both."""
    upstream = version(packaging).rsplit("-", 1)[0]
    files = (sources.pinned(f"qemu_{upstream}.orig.tar.xz"),
             sources.pinned(packaging.rsplit("/", 1)[-1]))
    return files if all(files) else None


def own():
    """The same two of QEMU_DEBIAN_SRC=; None when that is not set."""
    name = os.environ.get("QEMU_DEBIAN_SRC")
    if not name:
        return None
    dsc = Path(name).absolute()
    if not dsc.exists():
        die(f"QEMU_DEBIAN_SRC={name} is not there")
    part = re.search(r"^Checksums-Sha256:\n((?: .*\n)+)",
                     dsc.read_text(errors="replace"), re.M)
    listed = re.findall(r"^ (\w+) \d+ (\S+)$", part[1], re.M) if part else []
    files = []
    for kind in "orig", "debian":
        found = [(dsc.parent / file, digest) for digest, file in listed
                 if re.match(rf"qemu_[^_]*\.{kind}\.tar\.\w+$", file)]
        if len(found) != 1:
            die(f"{name} is no source package of QEMU with one tarball and "
                f"Debian's packaging")
        path, digest = found[0]
        if not path.exists() or sha256(path) != digest:
            die(f"{path} is not what {name} is about")
        files.append(path)
    return tuple(files)


def source():
    """QEMU_DEBIAN_SRC='s files, or the first pinned ones that can be had."""
    if files := own():
        return files
    for path, _ in pins.QEMU_DEBIAN:
        if files := fetch(path):
            return files
    die(f"none of the pinned source packages is on {sources.MIRROR}; take an "
        f"own one with QEMU_DEBIAN_SRC=")


def unpack(files, folder):
    """Debian's source in @folder, which is empty; no patch is applied."""
    for file, strip in zip(files, (1, 0)):
        sources.unpack(file, folder, strip)


def enqueue(folder, mails):
    """Put the series' @mails behind Debian's own patches, in order."""
    place = folder / PATCHES / PLACE
    place.mkdir()
    for mail in mails:
        shutil.copy(mail, place)
    series = folder / PATCHES / "series"
    lines = [*series.read_text().splitlines(),
             *(f"{PLACE}/{mail.name}" for mail in mails)]
    series.write_text("".join(f"{line}\n" for line in lines))


def push(folder, name):
    """Have quilt apply all patches; None, or what it has against one.

    No patch may need fuzz: dpkg-source takes none.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUILT")}
    env |= {"QUILT_PATCHES": PATCHES, "LC_ALL": "C"}
    quilt = ["quilt", "--quiltrc=-"]
    if not run_logged(name, [*quilt, "push", "-a", "--fuzz=0"],
                      what="quilt push -a", cwd=folder, env=env,
                      progress=None, check=False):
        return None
    reply = subprocess.run([*quilt, "next"], cwd=folder, env=env,
                           capture_output=True, text=True)
    return f"{reply.stdout.strip()} does not apply"
