# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages with the series, as a user has them: installed over
Debian's own in a clean root, run there, and run by libvirt."""

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from common import BUILD, LOGS, ROOT, die, run_logged, write_file
from debian_root import DEBS, apt_progress, clean_root, inside
from patchset import TREE
from qemu_build import BINARY
from qemu_tests import Outcome, run, series_qtests

LAB = BUILD / "lab"
EFI = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
SPACE_MIB = 2000
# In the clean root, from Debian; ours go over them.
DEBIANS = ["qemu-system-arm", "qemu-efi-aarch64", "qemu-utils",
           "qemu-block-extra", "qemu-system-gui", "qemu-system-modules-spice",
           "qemu-system-modules-opengl"]
# No host device is here to take these from.
ACCEL = "accel=on,ats=off,ril=on,ssidsize=0,oas=44"
BOOT_LIMIT = 300


class Failed(Exception):
    """What was seen instead."""


class Checks:
    """Runs checks, functions that raise Failed; an Outcome each."""

    def __init__(self, kind, report):
        self.kind, self.report, self.outcomes = kind, report, []

    def __call__(self, check, *args):
        start, reason = time.monotonic(), ""
        try:
            check(*args)
        except Failed as e:
            reason = str(e) or "no more is known"
        o = Outcome(f"{self.kind} {check.__doc__}", not reason,
                    time.monotonic() - start, reason)
        self.outcomes.append(o)
        self.report(o)
        return o.passed


def tell(root, *command, stdin="", binds=None):
    """The output of a command in @root, its errors too; Failed if it fails."""
    reply = subprocess.run(inside(root, command, binds), input=stdin,
                           text=True, errors="replace", timeout=600,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if reply.returncode:
        raise Failed(f"{command[0]}: {reply.stdout}")
    return reply.stdout


def expect(what, pattern, text):
    if not re.search(pattern, text, re.M):
        raise Failed(f"no {what} ({pattern}) in:\n{text}")


def packages():
    """{package: version} of what make deb has built."""
    fields = [subprocess.run(["dpkg-deb", "-f", deb, "Package", "Version"],
                             stdout=subprocess.PIPE, text=True, check=True)
              .stdout for deb in sorted(DEBS.glob("*.deb"))]
    if not fields:
        die(f"{DEBS} has no packages", "make deb")
    return dict(re.match(r"Package: (.*)\nVersion: (.*)", f).groups()
                for f in fields)


def install(root, label):
    """Our packages over Debian's, as a user does it."""
    run_logged(f"{label}-install", inside(
        root, ["sh", "-c", "apt-get update -q && apt-get install -y -q "
               "--no-install-recommends --allow-downgrades /debs/*.deb"],
        {DEBS: "/debs"}),
        what="installing our packages over Debian's", progress=apt_progress)


# A guest

def initrd():
    """An uncompressed archive, as the lab's kernel takes it."""
    with tempfile.TemporaryDirectory() as tmp:
        for name, source in {"init": ROOT / "lab/guest-init",
                             "bin/busybox": LAB / "busybox"}.items():
            file = Path(tmp, name)
            write_file(file, source.read_bytes())
            file.chmod(0o755)
        return subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=tmp,
            input=b".\ninit\nbin\nbin/busybox\n", stdout=subprocess.PIPE,
            check=True).stdout


def guest_files(folder):
    """Put into @folder kernel, initrd and disk; the disk's SHA-256."""
    if not (LAB / "Image").exists():
        die(f"{LAB}/Image is not there", "lab/artefacts")
    write_file(folder / "Image", (LAB / "Image").read_bytes())
    write_file(folder / "initrd", initrd())
    disk = os.urandom(4 << 20)
    write_file(folder / "disk", disk)
    return hashlib.sha256(disk).hexdigest()


def guest_lines(console):
    """What lab/guest-init has said."""
    return "".join(f"{x}\n" for x in re.findall(
        r"^guest: (.*?)\r*$", console, re.M))


def guest_is_well(console, digest):
    lines = guest_lines(console)
    if not lines:
        raise Failed("the guest did not come up:\n" +
                     "\n".join(console.splitlines()[-15:]))
    for n in (0, 1):
        expect(f"SMMU {n}",
               rf"^arm-smmu-v3 arm-smmu-v3\.{n}\.auto: oas 44-bit", lines)
    expect("NVMe that the SMMU translates", r" class 0x010802 group \d+ DMA",
           lines)
    expect("root port behind the accelerated SMMU",
           r"^0000:08:00\.0 class 0x060400 group \d+ ", lines)
    expect("right data of the NVMe", f"^nvme0n1 {digest}", lines)


# The packages

def deb(report):
    built = packages()
    checks = Checks("deb", report)
    with clean_root("deb-test", DEBIANS, SPACE_MIB) as root:
        before = tell(root, "dpkg-query", "-W")
        install(root, "deb-test")

        def installed():
            """all of ours are installed over Debian's"""
            text = tell(root, "dpkg-query", "-W", "-f",
                        "${Package} ${Version} ${db:Status-Status}\\n")
            for name, version in built.items():
                expect(name, f"^{re.escape(f'{name} {version} installed')}$",
                       text)
                if name in DEBIANS:
                    expect(f"Debian's {name} before", rf"^{name}(:\w+)?\t",
                           before)

        def clean():
            """dpkg and apt have nothing against what is installed"""
            text = (tell(root, "dpkg", "-V", *built) +
                    tell(root, "dpkg", "--audit"))
            if text:
                raise Failed(text)
            tell(root, "apt-get", "-q", "check")

        def told():
            """-version names the package, -device help has what it had"""
            expect("version", re.escape(built["qemu-system-arm"]),
                   tell(root, BINARY, "-version"))
            text = tell(root, BINARY, "-M", "virt", "-device",
                        "arm-smmuv3,help")
            expect("accel", "^  accel=<bool>", text)
            if "msi-gpa" in text:
                raise Failed(text)

        def query():
            """monitor and QMP tell of accelerated SMMUs"""
            text = tell(root, BINARY, "-M", "virt", "-S", "-display", "none",
                        "-qmp", "stdio", stdin="".join(
                            json.dumps({"execute": name, **args}) for
                            name, args in [
                                ("qmp_capabilities", {}),
                                ("query-arm-smmuv3-accel", {}),
                                ("human-monitor-command", {"arguments": {
                                    "command-line": "help info"}}),
                                ("quit", {})]))
            expect("list of devices", r'^\{"return": \[\]\}', text)
            expect("info smmuv3-accel", r"info smmuv3-accel ", text)

        def boots():
            """a Linux guest runs behind an SMMU, beside an accelerated one"""
            place = root.parent / "guest"
            digest = guest_files(place)
            run_logged("deb-guest", inside(root, [
                "timeout", BOOT_LIMIT, BINARY,
                "-M", "virt,gic-version=3", "-cpu", "neoverse-n1",
                "-smp", "2", "-m", "1G", "-nic", "none", "-display", "none",
                "-no-reboot", "-serial", "stdio", "-monitor", "none",
                "-bios", EFI, "-kernel", "/guest/Image",
                "-initrd", "/guest/initrd",
                "-append", "console=ttyAMA0 panic=-1",
                "-device", "arm-smmuv3,primary-bus=pcie.0,oas=44",
                "-drive", "file=/guest/disk,format=raw,if=none,id=disk",
                "-device", "nvme,serial=1,drive=disk",
                "-device", "pxb-pcie,bus=pcie.0,id=pcie.1,bus_nr=8",
                "-device", f"arm-smmuv3,primary-bus=pcie.1,{ACCEL}",
                "-device", "pcie-root-port,bus=pcie.1,id=rp,chassis=1"],
                {place: "/guest"}), what="running a Linux guest",
                progress=None, check=False, quiet=True)
            guest_is_well((LOGS / "deb-guest.log").read_text(
                errors="replace"), digest)

        for check in (installed, clean, told, query, boots):
            checks(check)
        return checks.outcomes + qtests(root, report)


# The series' own tests. The host's double is preloaded into QEMU only.
WRAPPER = """#!/bin/sh
preload=$LD_PRELOAD
unset LD_PRELOAD
exec unshare --mount {user} sh -c '
    preload=$1 root=$2
    shift 2
    mount --rbind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --rbind /tmp "$root/tmp"
    mount --bind {build} "$root{build}"
    exec chroot "$root" env PATH=/usr/bin \\
        ${{preload:+LD_PRELOAD="$preload"}} {binary} "$@"
' sh "$preload" {root} "$@"
"""


def qtests(root, report):
    """The outcomes of the series' qtests with the packaged QEMU."""
    tell(root, "mkdir", "-p", BUILD)
    wrapper = root.parent / BINARY      # qtests know machines by the name
    write_file(wrapper, WRAPPER.format(
        user="--user --map-root-user" if os.geteuid() else "", root=root,
        build=BUILD, binary=BINARY))
    wrapper.chmod(0o755)
    return run(BUILD / "qemu", TREE, series_qtests(), log="deb",
               report=report, patience=3, binary=wrapper)
