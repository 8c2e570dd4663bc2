# SPDX-License-Identifier: GPL-2.0-or-later
"""The sources that are known to work, each with its SHA-256; the first that
is there is taken. Paths are those of a Debian mirror."""

QEMU_SERIES = "11.1"

# The patch series is tested on the first one.
QEMU = [
    ("pool/main/q/qemu/qemu_11.1.1+ds.orig.tar.xz",
     "0b1376e75dbe3e2fea4e408f8669f88a723f419f36a5b7d74cc6a4cfe07e4f5e"),
    ("pool/main/q/qemu/qemu_11.1.3+ds.orig.tar.xz",
     "502fe33503df3520b6a81176a94d77eef908eb252bacc675d7199f379ac26641"),
    ("pool/main/q/qemu/qemu_11.1.2+ds.orig.tar.xz",
     "4f41c3df35a86d2497f842a585b014fe5aef45ceec6450e61615f0164ca39761"),
]

# Debian's packaging of these, in the same order.
QEMU_DEBIAN = [
    ("pool/main/q/qemu/qemu_11.1.1+ds-1.debian.tar.xz",
     "870a1193f28ce522ac91f68100d75dce5527e08d8958344b389c9fa24b44968f"),
    ("pool/main/q/qemu/qemu_11.1.3+ds-1.debian.tar.xz",
     "e8d0970234e4dbad7c2590c1538bfed0689aa7fdf6bfbe06bf5982aba71cc15e"),
    ("pool/main/q/qemu/qemu_11.1.2+ds-3.debian.tar.xz",
     "479d1a6a44fe5778f084f900e52ac40bda439b9369bcf1c20e018085a6f2d53e"),
]

# Any kernel from 6.19 on has vIOMMU, vDEVICE and vEVENTQ, and attaches a nested
# HWPT that bypasses stage 1 without a vDEVICE.
LINUX = [
    ("pool/main/l/linux/linux-source-7.2_7.2.13-1_all.deb",
     "30a8c5fc63f9028a62e6d7b3f7f43bee67425dbce2a05fceba83f9b87c92083d"),
    ("pool/main/l/linux/linux-source-7.3_7.3.4-1~bpo13+1_all.deb",
     "703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3"),
    ("pool/main/l/linux/linux-source-7.2_7.2.12-1~bpo13+1_all.deb",
     "73ca6c22599ba411ab3179642d33501ca2c90174e13c3c8d86e996ea1cbf2a8f"),
]
