# SPDX-License-Identifier: GPL-2.0-or-later
#
# As qtest-devices.mak, with VFIO but without iommufd.

include no-vfio-devices.mak

CONFIG_VFIO_PCI=y
CONFIG_IOMMUFD=n
