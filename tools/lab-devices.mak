# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the series' qtests want of QEMU, and the lab's L0.

include qtest-devices.mak

CONFIG_NVME_PCI=y
CONFIG_E1000E_PCI_EXPRESS=y
CONFIG_IGB_PCI_EXPRESS=y
