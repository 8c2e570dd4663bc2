# SPDX-License-Identifier: GPL-2.0-or-later
"""What make deb-test and make libvirt-test take for well."""

import os
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path
from unittest import mock

import support      # has tools/ in the path

import deb_test
import debian
import debian_root
from deb_test import Checks, Failed, guest_is_well
from libvirt_test import HOSTDEV, devices, domain, has

CONSOLE = """\
UEFI firmware\r
[    1.0] arm-smmu-v3 arm-smmu-v3.0.auto: oas 44-bit (features 0x8305)\r
guest: arm-smmu-v3 arm-smmu-v3.0.auto: oas 44-bit (features 0x8305)\r
guest: arm-smmu-v3 arm-smmu-v3.1.auto: oas 44-bit (features 0x8305)\r
guest: 0000:00:03.0 class 0x010802 group 1 DMA\r
guest: 0000:08:00.0 class 0x060400 group 2 DMA\r
guest: nvme0n1 12ab  -\r
[    2.0] reboot: Power down\r
"""


class Guest(unittest.TestCase):
    def test_well(self):
        guest_is_well(CONSOLE, "12ab")

    def test_not_well(self):
        for what, console, digest in [
            ("no guest", "UEFI firmware\r\n", "12ab"),
            ("no second SMMU", CONSOLE.replace("3.1.auto", "3.2.auto"),
             "12ab"),
            ("no translation", CONSOLE.replace("1 DMA", "1 identity"), "12ab"),
            ("no root port", CONSOLE.replace("08:00.0", "09:00.0"), "12ab"),
            ("no group", CONSOLE.replace("group 2", "group"), "12ab"),
            ("wrong data", CONSOLE, "34cd"),
        ]:
            with self.subTest(what), self.assertRaises(Failed):
                guest_is_well(console, digest)

    def test_initrd(self):
        """The kernel wants folders before what is in them."""
        with tempfile.TemporaryDirectory() as tmp, \
                mock.patch.object(deb_test, "LAB", Path(tmp)):
            Path(tmp, "busybox").write_bytes(b"busy")
            names = subprocess.run(
                ["cpio", "-t", "--quiet"], input=deb_test.initrd(),
                stdout=subprocess.PIPE, check=True).stdout.decode().split()
        self.assertEqual(names, [".", "init", "bin", "bin/busybox"])


class Source(unittest.TestCase):
    def test_first_that_can_be_had(self):
        """And no other one is fetched then."""
        found = [None, ("a", "b")]
        with mock.patch.object(debian, "fetch", side_effect=found), \
                mock.patch.dict(os.environ, QEMU_DEBIAN_SRC=""):
            self.assertEqual(debian.source(), ("a", "b"))


class Domain(unittest.TestCase):
    def test_domain(self):
        """Well-formed, with a device of the host's only if one is given."""
        for hostdev, count in ("", 0), (HOSTDEV, 1):
            root = xml.etree.ElementTree.fromstring(domain("x", hostdev))
            self.assertEqual(root.findtext("name"), "x")
            self.assertEqual(len(root.findall("devices/hostdev")), count)
            self.assertNotIn("HOSTDEV", "".join(root.itertext()))

    def test_arguments(self):
        found = devices("LC_ALL=C qemu -S -object '{\"qom-type\":\"iommufd\"}'"
                        " -netdev '{\"type\":\"user\"}' -device "
                        "'{\"driver\":\"vfio-pci\",\"bus\":\"pci.2\"}'")
        self.assertEqual(found, [{"qom-type": "iommufd"},
                                 {"driver": "vfio-pci", "bus": "pci.2"}])
        self.assertEqual(has(found, driver="vfio-pci"), 1)
        for wanted in {"driver": "arm-smmuv3"}, {"driver": "vfio-pci",
                                                 "iommufd": "iommufd0"}:
            with self.assertRaises(Failed):
                has(found, **wanted)


class Outcomes(unittest.TestCase):
    def test_checks(self):
        def well():
            """is well"""

        def ill():
            """is ill"""
            raise Failed("as seen")

        seen = []
        checks = Checks("deb", seen.append)
        self.assertTrue(checks(well))
        self.assertFalse(checks(ill))
        self.assertEqual([(o.name, o.passed, o.reason) for o in seen],
                         [("deb is well", True, ""),
                          ("deb is ill", False, "as seen")])
        self.assertEqual(checks.outcomes, seen)


class Inside(unittest.TestCase):
    def test_only_what_is_given(self):
        """A root sees the folders that it is given and no variable else."""
        with mock.patch.object(debian_root, "SUDO", []), \
                mock.patch.dict(os.environ, {"SECRET": "1"}):
            command = debian_root.inside("/r", ["true", "a b"],
                                         {Path("/x y"): "/y"}, SUITE="sid")
        split = command.index("--")
        self.assertEqual(command[command.index("sh"):split][3:],
                         ["sh", "/r", "/x y", "/y"])
        self.assertEqual(command[split + 1:split + 3], ["env", "-i"])
        self.assertEqual(command[-3:], ["SUITE=sid", "true", "a b"])
        self.assertFalse([x for x in command if "SECRET" in str(x)])


if __name__ == "__main__":
    unittest.main()
