# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the series' qtests want of QEMU beside what the lab's L1 has.

include arm64-devices.mak

CONFIG_ARM_GICV3=y
CONFIG_EDU=y
CONFIG_PCIE_PCI_BRIDGE=y
CONFIG_PCI_BRIDGE=y
CONFIG_XIO3130=y
CONFIG_IOMMU_TESTDEV=y
