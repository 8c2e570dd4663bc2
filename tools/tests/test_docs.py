# SPDX-License-Identifier: GPL-2.0-or-later
"""How make docs compares a device's help with the manual page."""

import unittest

from support import tool

HELP = """\
arm-smmuv3 options:
  accel=<bool>           - Enable it. (default: off)
  memory=<link<memory-region>>
  smmu_per_bus=<bool>    - on/off (default: off)
  bus_num=<uint8>        -  (default: 0)
  oas=<OasMode>          - Size in bits. Defaults to auto. (default: auto)
"""
MANUAL = r"""
.B \fB\-device vfio\-pci,host=address\fP
.B \fBoas=val\fP (default: 7)
.UNINDENT
.B \fB\-device arm\-smmuv3,primary\-bus=id[,option=...]\fP
.B \fBprimary\-bus=id\fP
.B \fBaccel=on|off\fP (default: off)
.B \fBoas=val|auto\fP (supported values are 44 and 48. default: auto)
.UNINDENT
.B \fB\-device amd\-iommu[,option=...]\fP
.B \fBxtsup=on|off\fP (default: off)
"""


class Options(unittest.TestCase):
    AGREED = {"accel": "off", "oas": "auto"}

    def setUp(self):
        self.docs = tool("docs")

    def test_help(self):
        self.assertEqual(self.docs.in_help(HELP), self.AGREED)

    def test_manual(self):
        self.assertEqual(self.docs.in_manual(MANUAL), self.AGREED)

    def test_no_such_device(self):
        self.assertEqual(self.docs.in_manual(MANUAL, "e1000"), {})

    def test_differences(self):
        self.assertEqual(self.docs.differences(self.AGREED, self.AGREED), [])
        self.assertEqual(
            self.docs.differences({"accel": "off", "ril": "on"},
                                  {"accel": "on", "ats": "off"}),
            ["accel: default off in the help, on in the manual",
             "ats: default none in the help, off in the manual",
             "ril: default on in the help, none in the manual"])
