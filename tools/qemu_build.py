# SPDX-License-Identifier: GPL-2.0-or-later
"""How QEMU is configured and built."""

import bz2
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import (BUILD, CACHE, ROOT, cache_entry, cache_key, die, lock,
                    need_space, run_logged, say, sha256, write_file)
from patchset import BASE, TREE
from sources import fetched

NATIVE_ARM = platform.machine() == "aarch64"
NATIVE_X86 = platform.machine() == "x86_64"
CROSS = "aarch64-linux-gnu-"
BINARY = "qemu-system-aarch64"
SPACE_MIB = 1500

COMMON = [
    "--python=/usr/bin/python3", "--target-list=aarch64-softmmu",
    "--disable-download", "--enable-werror", "--disable-docs",
    "--disable-tools", "--disable-user", "--disable-guest-agent",
    "--without-default-features", "--enable-trace-backends=log",
    "--enable-fdt=system", "--disable-install-blobs", "--disable-debug-info",
]
# Lines in backtraces, for 20 % less time than all of the debug information.
HOST = ["--enable-tcg", "--enable-pixman", "--extra-cflags=-g1"]
# The main loop that distributions' QEMU has, where the kernel lets it
IO_URING = ("--enable-linux-io-uring",)
ARM64 = ["--enable-kvm"]
# What QEMU's own tests ask for.
REGRESS = ("--target-list=aarch64-softmmu,x86_64-softmmu", "--enable-kvm",
           "--enable-tools", "--enable-slirp", "--enable-vhost-user",
           "--enable-vhost-kernel", "--enable-vhost-net", "--enable-vhost-vdpa",
           "--enable-replication")
REGRESS_BINARIES = ("qemu-system-aarch64", "qemu-system-x86_64")
# For L1, which has no libraries.
ALONE = ("--static", "--disable-tcg")


def lean(**lists):
    """Options for no devices but those in lists in tools/, by target."""
    # QEMU looks for a list in its own tree; ours stay here.
    tools = os.path.relpath(ROOT / "tools",
                            TREE / "configs/devices/aarch64-softmmu")
    return ("--without-default-devices",
            *(f"--with-devices-{target}={tools}/{name}"
              for target, name in lists.items()))


@dataclass(frozen=True)
class Build:
    source: Path
    devices: tuple = ()     # options of what there is, all without them
    arm64: bool = False     # made for an Arm host, whatever this one is
    extra: tuple = ()       # options beside those that all have
    cc: str = "gcc"
    binaries: tuple = (BINARY,)


BUILDS = {
    "qemu": Build(TREE, extra=IO_URING),
    "qemu-arm64": Build(TREE, lean(aarch64="arm64-devices"), arm64=True,
                        extra=ALONE),
    # With KVM's code, which an x86 host compiles for no Arm machine, but not
    # used: qemu-user runs it.
    "qemu-arm64-user": Build(TREE, lean(aarch64="qtest-devices"), arm64=True,
                             extra=("--enable-tcg",)),
    # The sanitizers' runtimes come with gcc.
    "qemu-sanitize": Build(TREE, lean(aarch64="lab-devices"),
                           extra=("--enable-asan", "--enable-ubsan")),
    # TSan sees no longjmp() but the one that is not fortified.
    "qemu-tsan": Build(TREE, lean(aarch64="qtest-devices"),
                       extra=("--enable-tsan",
                              "--extra-cflags=-D_FORTIFY_SOURCE=0")),
    "qemu-coverage": Build(TREE, lean(aarch64="qtest-devices"),
                           extra=("--enable-gcov", "-Doptimization=0",
                                  "--disable-werror")),
    "upstream": Build(BASE, extra=IO_URING),
    "upstream-arm64": Build(BASE, lean(aarch64="arm64-devices"), arm64=True,
                            extra=ALONE),
    # Other ways to build it, which nobody runs. Hosts of 32 bits are none:
    # QEMU's configure refuses them.
    "qemu-no-kvm": Build(
        TREE, lean(aarch64="qtest-devices", x86_64="i386-devices"),
        extra=("--target-list=aarch64-softmmu,x86_64-softmmu",
               "--disable-kvm"),
        binaries=("qemu-system-aarch64", "qemu-system-x86_64")),
    "qemu-no-vfio": Build(TREE, lean(aarch64="no-vfio-devices")),
    "qemu-no-iommufd": Build(TREE, lean(aarch64="no-iommufd-devices")),
    # The same where there is KVM.
    "qemu-arm64-no-vfio": Build(TREE, lean(aarch64="no-vfio-devices"),
                                arm64=True),
    "qemu-arm64-no-iommufd": Build(TREE, lean(aarch64="no-iommufd-devices"),
                                   arm64=True),
    "qemu-32-bit": Build(
        TREE, lean(arm="qtest-devices", i386="i386-devices"),
        extra=("--target-list=arm-softmmu,i386-softmmu",
               *(["--enable-kvm"] if NATIVE_X86 else [])),
        binaries=("qemu-system-arm", "qemu-system-i386")),
    "qemu-debug": Build(TREE, lean(aarch64="qtest-devices"),
                        extra=("--enable-debug",)),
    # Sanitizers find only what is done wrong, so the fuzzer needs no speed of
    # code but that of the compiler.
    "qemu-fuzz": Build(TREE, lean(aarch64="arm64-devices"), cc="clang",
                       extra=("--enable-fuzzing", "--enable-asan",
                              "--enable-ubsan", "-Doptimization=1"),
                       binaries=("qemu-fuzz-aarch64",)),
    "qemu-clang": Build(
        TREE, lean(aarch64="qtest-devices", x86_64="i386-devices"), cc="clang",
        extra=("--target-list=aarch64-softmmu,x86_64-softmmu",
               *(["--enable-kvm"] if NATIVE_X86 else [])),
        binaries=("qemu-system-aarch64", "qemu-system-x86_64")),
    # Where it is, ccache takes it for `upstream`. It has the stubs of the
    # series for KVM, and not its code.
    "behaviour/upstream": Build(BUILD / "behaviour/base",
                                extra=("--disable-kvm",)),
    # What make regress compares; side by side for ccache, again.
    "qemu-regress": Build(TREE, extra=REGRESS, binaries=REGRESS_BINARIES),
    "regress/upstream": Build(BUILD / "regress/tree", extra=REGRESS,
                              binaries=REGRESS_BINARIES),
}

SYSROOT_PACKAGES = ["libglib2.0-dev", "libpcre2-dev", "zlib1g-dev",
                    "libfdt-dev"]


def compiler_env():
    """ccache by environment alone: paths are hashed relative to the project,
    so that a clone elsewhere finds what this one made."""
    env = {**os.environ, "CCACHE_DIR": str(CACHE / "ccache"),
           "CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1",
           "CCACHE_COMPILERCHECK": "content", "CCACHE_MAXSIZE": "5G",
           "LC_ALL": "C.UTF-8"}
    # ccache tells locales apart, also by the variables that LC_ALL overrides.
    for name in ("CCACHE_DISABLE", "CCACHE_PREFIX", "CCACHE_CONFIGPATH",
                 "PKG_CONFIG_PATH", "LANG", "LC_CTYPE", "LC_MESSAGES"):
        env.pop(name, None)
    return env


def ccache_counts(log):
    """(compilations, hits) of the run that wrote the ccache log @log."""
    text = log.read_text() if log.exists() else ""
    hits = len(re.findall(r"^(?:direct|preprocessed)_cache_hit$", text, re.M))
    return hits + len(re.findall(r"^cache_miss$", text, re.M)), hits


# The arm64 libraries, for a host that is no Arm

def sysroot():
    """Debian 12's arm64 libraries, taken out of their packages."""
    debs = fetched("debs", "arm64", *SYSROOT_PACKAGES)

    def unpack(folder):
        say(f"making the arm64 sysroot of {len(debs)} packages")
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)

    return cache_entry("sysroot-arm64",
                       cache_key("1", *(Path(d).name + sha256(d)
                                        for d in debs)),
                       unpack, "the arm64 sysroot")


def cross_options(env):
    """Compile for arm64 with the sysroot's libraries."""
    root = sysroot()
    lib = root / "usr/lib/aarch64-linux-gnu"
    env |= {"PKG_CONFIG_LIBDIR": f"{lib}/pkgconfig:{root}/usr/share/pkgconfig",
            "PKG_CONFIG_SYSROOT_DIR": str(root), "PKG_CONFIG": "pkg-config"}
    # libfdt is looked for without pkg-config, in the compiler's own folders;
    # -B adds to these.
    return [f"--cross-prefix={CROSS}", f"--cc=ccache {CROSS}gcc -B{lib}",
            f"--extra-cflags=-I{root}/usr/include",
            f"--extra-ldflags=-L{lib}"]


# Firmware: Debian's source has none

BOOT_ROM = "efi-virtio.rom"
# Of Debian 12, and later
BOOT_ROMS = [Path("/usr/lib/ipxe/qemu"), Path("/usr/share/qemu")]


def boot_roms(folder):
    """Network cards want one; QEMU looks here when it runs in @folder."""
    roms = [path for path in BOOT_ROMS if (path / BOOT_ROM).exists()]
    if not roms:
        die(f"ipxe's {BOOT_ROM} is not there", "make deps")
    place = folder / "qemu-bundle/usr/local/share/qemu-firmware"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(roms[0])


def firmware(source):
    """Put Debian's arm64 UEFI where QEMU has its own, for bios-tables-test.

    The names of other targets, which are not built, get an empty file:
    QEMU's build wants all or none.
    """
    text = (source / "pc-bios/meson.build").read_text()
    names = re.findall(r"'(edk2-[\w-]+\.fd)'", text)
    aavmf = {"edk2-aarch64-code.fd": "AAVMF_CODE.fd",
             "edk2-arm-vars.fd": "AAVMF_VARS.fd"}
    for name in names:
        path = source / "pc-bios" / f"{name}.bz2"
        if path.exists():
            continue
        data = b""
        if name in aavmf:
            image = Path("/usr/share/AAVMF", aavmf[name])
            if not image.exists():
                die(f"{image} is not there", "make deps")
            data = image.read_bytes()
        write_file(path, bz2.compress(data))


# Configure and build

def options(name, env):
    it = BUILDS[name]
    result = COMMON + (ARM64 if it.arm64 else HOST)
    result += it.devices
    if it.arm64 and not NATIVE_ARM:
        result += cross_options(env)
    else:
        result += [f"--cc=ccache {it.cc}"]
    if NATIVE_ARM and not it.arm64:
        result += ["--enable-kvm"]
    return result + [f"--host-cc=ccache {it.cc}", *it.extra]


def configure(name, label, folder, source, env):
    """Configure when that was not done, or otherwise."""
    command = [str(source / "configure"), *options(name, env)]
    stamp = folder / "series-configure"
    text = shlex.join(command) + "\n" + (source / "VERSION").read_text()
    if stamp.exists() and stamp.read_text() == text and \
            (folder / "build.ninja").exists():
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    run_logged(f"configure-{label}", command, what=f"configuring {label}",
               cwd=folder, env=env, progress=None)
    boot_roms(folder)
    write_file(stamp, text)


def objects(name, files):
    """The objects of a build, once configured, that are made from @files."""
    folder, source = BUILD / name, BUILDS[name].source
    commands = json.loads((folder / "compile_commands.json").read_text())
    return [c["output"] for c in commands
            if os.path.relpath(folder / c["file"], source) in files]


def build(name, folder=None, source=None, targets=None):
    """Make @targets only: QEMU's "all" has a third more, unused here."""
    folder = folder or BUILD / name
    targets = BUILDS[name].binaries if targets is None else targets
    source = source or BUILDS[name].source
    if not (source / "configure").exists():
        die(f"{source} is not there", "make tree")
    label = "-".join(folder.relative_to(BUILD).parts)
    with lock(BUILD / f".{label}.lock", label):
        if not (folder / "build.ninja").exists():
            need_space(BUILD, SPACE_MIB)
        env = compiler_env()
        firmware(source)
        configure(name, label, folder, source, env)
        stats = folder / "series-ccache"
        stats.unlink(missing_ok=True)
        if not targets:
            return
        run_logged(f"build-{label}", ["ninja", "-C", folder, *targets],
                   what=f"building {label}",
                   env=env | {"CCACHE_STATSLOG": str(stats)})
        compiled, hits = ccache_counts(stats)
        if compiled:
            say(f"  {compiled} compilations, {hits} from ccache")
