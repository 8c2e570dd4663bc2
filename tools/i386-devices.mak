# SPDX-License-Identifier: GPL-2.0-or-later
#
# What has a part in the series of a PC: IOMMUs, VFIO, KVM's irqchip.

CONFIG_Q35=y
CONFIG_VTD=y
CONFIG_AMD_IOMMU=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_IOMMU=y
CONFIG_VFIO_PCI=y
CONFIG_IOMMUFD=y
