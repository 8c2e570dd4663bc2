# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the QEMU that runs inside the lab's L1 has: the virt machine with PCIe,
# an accelerated SMMUv3 and VFIO, and little else.

CONFIG_ARM_VIRT=y
CONFIG_ARM_SMMUV3=y
CONFIG_IOMMUFD=y
CONFIG_VFIO_PCI=y
CONFIG_PCIE_PORT=y
CONFIG_PXB=y
CONFIG_CXL=y
CONFIG_CXL_MEM_DEVICE=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
