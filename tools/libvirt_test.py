# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's libvirt with the packaged QEMU, in a clean root."""

import json
import re
import shlex
import subprocess
import time

from common import LOGS, ROOT, run_logged, write_file
from deb_test import (BOOT_LIMIT, Checks, Failed, expect, guest_files,
                      guest_is_well, packages)
from debian_root import DEBS, apt_progress, clean_root, inside

LIBVIRT = ["libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"]
SPACE_MIB = 1500
DOMAIN = ROOT / "tools/libvirt-domain.xml"
HOSTDEV = """    <hostdev mode='subsystem' type='pci' managed='no'>
      <driver name='vfio' iommufd='yes'/>
      <source><address bus='1' slot='0' function='0'/></source>
      <address type='pci' bus='2' slot='0'/>
    </hostdev>
"""

# What libvirt looks at before it has a device passed through; no machine has
# to have that. To start QEMU with it, it would need the real thing.
HOST = """
set -e
mount -t tmpfs groups /sys/kernel/iommu_groups
mount -t tmpfs pci /sys/bus/pci
device=/sys/bus/pci/devices/0000:01:00.0
mkdir -p $device/vfio-dev/vfio0 /sys/bus/pci/drivers/vfio-pci \
    /sys/kernel/iommu_groups/7/devices
ln -s ../../drivers/vfio-pci $device/driver
ln -s /sys/kernel/iommu_groups/7 $device/iommu_group
ln -s $device /sys/kernel/iommu_groups/7/devices/
head -c 4096 /dev/zero >$device/config
echo 0x1b36 >$device/vendor
echo 0x0010 >$device/device
echo 0x010802 >$device/class
echo -1 >$device/numa_node
mkdir /tmp/dev
mount -t tmpfs dev /tmp/dev
mkdir -p /tmp/dev/vfio/devices /tmp/dev/pts /tmp/dev/shm
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty \
    /dev/fd /dev/std* /tmp/dev
for node in iommu vfio/vfio vfio/7 vfio/devices/vfio0; do
    cp -a /dev/null /tmp/dev/$node
done
mount --rbind /tmp/dev /dev
"""


class Session:
    """A shell in a root, and what its commands start; all ends with it."""

    def __init__(self, root, binds):
        self.root = root
        self.shell = subprocess.Popen(
            inside(root, ["sh"], binds), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.shell.stdin.close()
        self.shell.terminate()
        self.shell.wait()
        self.shell.stdout.close()

    def __call__(self, command):
        """The command's output, errors too; Failed if it fails."""
        self.shell.stdin.write(
            f"( {command}\n) >/tmp/output 2>&1 </dev/null; echo $?\n")
        status = self.shell.stdout.readline().strip()
        text = (self.root / "tmp/output").read_text(errors="replace")
        if status != "0":
            raise Failed(f"{command.strip().splitlines()[0]} ...: {text}")
        return text


def native_qemu(folder):
    """A package that only says it were a QEMU for this machine, without which
    Debian's libvirt is not installed; one of Debian's would not go with ours.
    (With SYSTEMS="arm x86" there is a real one of the same version.)"""
    write_file(folder / "qemu-none/DEBIAN/control", """\
Package: qemu-none
Version: 1
Architecture: all
Maintainer: nobody <nobody@localhost>
Provides: qemu-kvm
Description: no QEMU for this machine
""")
    subprocess.run(["dpkg-deb", "-b", folder / "qemu-none", folder],
                   check=True, stdout=subprocess.DEVNULL)


def install(root, place):
    """Our packages and libvirt."""
    provides = "".join(subprocess.run(
        ["dpkg-deb", "-f", deb, "Provides"], stdout=subprocess.PIPE,
        text=True, check=True).stdout for deb in DEBS.glob("*.deb"))
    if not re.search(r"\bqemu-kvm\b", provides):
        native_qemu(place)
    run_logged("libvirt-install", inside(
        root, ["sh", "-c", "apt-get update -q && apt-get install -y -q "
               "--no-install-recommends /debs/qemu-system-arm_*.deb "
               "/debs/qemu-system-common_*.deb $(ls /guest/*.deb) "
               "qemu-efi-aarch64 " + " ".join(LIBVIRT)],
        {DEBS: "/debs", place: "/guest"}),
        what="installing libvirt and our packages", progress=apt_progress)


def domain(name, hostdev=""):
    return DOMAIN.read_text().replace(
        "NAME", name).replace("    HOSTDEV\n", hostdev)


def devices(argv):
    """The devices and objects of a QEMU command line, in order."""
    return [json.loads(x) for x in shlex.split(argv)
            if x.startswith('{"driver"') or x.startswith('{"qom-type"')]


def has(found, **wanted):
    """Where in @found is the one that has @wanted."""
    for n, device in enumerate(found):
        if wanted.items() <= device.items():
            return n
    raise Failed(f"no {wanted} in:\n" + "\n".join(map(str, found)))


ACCELERATED = {"driver": "arm-smmuv3", "primary-bus": "pci.1", "accel": True,
               "ats": "off", "ril": "on", "ssidsize": "0", "oas": "44"}


def libvirt(report):
    built = packages()
    checks = Checks("libvirt", report)
    with clean_root("libvirt-test", [], SPACE_MIB) as root:
        place = root.parent / "guest"
        digest = guest_files(place)
        install(root, place)
        for name, hostdev in ("guest", ""), ("hostdev", HOSTDEV):
            write_file(place / f"{name}.xml", domain(name, hostdev))
        with Session(root, {place: "/guest"}) as run:

            def daemons():
                """the daemon starts"""
                run("virtlogd -d && libvirtd -d")
                run("for n in $(seq 30); do virsh list && exit; sleep 1; "
                    "done; exit 1")

            def probes():
                """libvirt learns what our binary can do"""
                text = run("virsh capabilities")
                expect("emulator", "<emulator>/usr/bin/qemu-system-aarch64<",
                       text)
                text = run("virsh domcapabilities --arch aarch64 --machine "
                           "virt --virttype qemu --emulatorbin "
                           "/usr/bin/qemu-system-aarch64")
                expect("virt", r"<machine>virt-11\.1</machine>", text)
                text = run("cat /var/cache/libvirt/qemu/capabilities/*.xml")
                expect("our version", re.escape(built["qemu-system-arm"]),
                       text)
                for flag in ("iommufd", "arm-smmuv3",
                             "arm-smmuv3.smmu_per_bus", "arm-smmuv3.accel"):
                    expect(flag, f"<flag name='{re.escape(flag)}'/>", text)

            def arguments():
                """an accelerated SMMUv3 becomes the documented arguments"""
                run("virsh define --validate /guest/guest.xml")
                found = devices(run(
                    "virsh domxml-to-native qemu-argv --domain guest"))
                has(found, driver="pxb-pcie", id="pci.1", bus="pcie.0")
                has(found, driver="arm-smmuv3", **{"primary-bus": "pcie.0"})
                has(found, **ACCELERATED)

            def starts():
                """a domain with one starts, its guest runs and powers off"""
                run("virsh start guest")
                text = run("virsh qemu-monitor-command guest "
                           "'{\"execute\": \"query-arm-smmuv3-accel\"}'")
                expect("list of devices", r'"return":\[\]', text)
                run("virsh qemu-monitor-command guest --hmp "
                    "'info smmuv3-accel'")
                end = time.monotonic() + BOOT_LIMIT
                while "running" in (state := run(
                        "virsh domstate guest --reason")):
                    if time.monotonic() > end:
                        break
                    time.sleep(1)
                console = (place / "console").read_text(errors="replace")
                log = run("cat /var/log/libvirt/qemu/guest.log")
                write_file(LOGS / "libvirt-guest.log", console + log)
                expect("orderly end", r"^shut off \(shutdown\)", state)
                guest_is_well(console, digest)

            def again():
                """it starts again, and libvirt ends it"""
                run("virsh start guest && virsh destroy guest --graceful")
                expect("end", r"^shut off \(destroyed\)",
                       run("virsh domstate guest --reason"))

            def passes():
                """a hostdev with iommufd goes behind it"""
                run(HOST)
                run("virsh define --validate /guest/hostdev.xml")
                found = devices(run(
                    "virsh domxml-to-native qemu-argv --domain hostdev"))
                has(found, **{"qom-type": "iommufd", "id": "iommufd0"})
                port = has(found, driver="pcie-root-port", id="pci.2",
                           bus="pci.1")
                device = has(found, driver="vfio-pci", bus="pci.2",
                             iommufd="iommufd0")
                if not port < has(found, **ACCELERATED) < device:
                    raise Failed("the SMMU does not come before the device:\n"
                                 + "\n".join(map(str, found)))

            for check in (daemons, probes, arguments, starts, again, passes):
                if not checks(check) and check is daemons:
                    break
    return checks.outcomes
