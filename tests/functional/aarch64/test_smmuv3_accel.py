#!/usr/bin/env python3
#
# A Linux guest whose passed-through NVMe sits behind an accelerated SMMUv3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
L0 is the QEMU under test, under TCG, with an emulated nested SMMUv3 and an
NVMe. L1 is Linux with KVM and iommufd. It runs L2 in an arm64 build of the
same QEMU, with the NVMe behind an accelerated SMMUv3.

  QEMU_TEST_SMMUV3_LAB         folder with Image (arm64 Linux with KVM,
                               iommufd, VFIO and NVMe), QEMU_EFI.fd, busybox,
                               l1-init and l2-init, and kexec/, this command
                               with its libraries
  QEMU_TEST_SMMUV3_ARM64_QEMU  the static arm64 QEMU that L1 runs
  QEMU_TEST_SMMUV3_BLOCK       how many KiB L2 reads in one command, if not 128
  QEMU_TEST_SMMUV3_PATIENCE    by how much all time limits are multiplied
  QEMU_TEST_SMMUV3_EXPECT      "upstream": the two QEMUs do not translate
                               the MSIs that they send, so expect what that
                               does to the guest

Each scenario leaves its logs and result.json in its own log folder.
"""

import hashlib
import json
import logging
import os
import random
import re
import shlex
import struct
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

from qemu.machine.qtest import QEMUQtestMachine
from qemu_test import QemuSystemTest

MIB = 1 << 20
DISK_MIB = 16
COPY_TO = 12                    # the MiB that L2 overwrites with MiB 0

# In L1 and, as stream ID, in L2
NVME, NVME_SID = '0000:01:00.0', 0x100
SECOND, SECOND_SID = '0000:02:00.0', 0x900
E1000E, IGBVF = '0000:02:00.0', '0000:03:10.0'
DEVICE = f'vfio-pci,host={NVME},bus=rp,iommufd=iommufd0,romfile=,id=nvme'
# In L2
GITS_TRANSLATER = 0x8090040
V2M_SETSPI_NS = 0x8020040
MARKER = 0x600dcafe

PATIENCE = int(os.environ.get('QEMU_TEST_SMMUV3_PATIENCE', 1))
L2_LIMIT = 150 * PATIENCE       # seconds; L1 then ends L2 and saves the logs
L1_LIMIT = 90 * PATIENCE        # seconds for all the rest

TRACE_EVENTS = '''
kvm_arm_fixup_msi_route
kvm_irqchip_add_msi_route
kvm_irqchip_update_msi_route
smmuv3_accel_*
smmuv3_*_event*
vfio_msi*
'''


class Scenario(NamedTuple):
    """What L2 is given, and what must come of it."""
    params: str = ''            # on L2's kernel command line
    domain: str = 'DMA'         # of the NVMe, as L2's kernel calls it
    outcome: str = 'translated'  # of the doorbell
    irqfd: bool = True          # or QEMU delivers each interrupt
    job: str = 'io'             # of l2-init
    mem: int = 1                # GiB
    upstream: str = ''          # lost by unpatched QEMU: 'all' or 'masked'
    machine: str = 'gic-version=3,its=on'
    doorbell: int = GITS_TRANSLATER
    # Beside the one NVMe
    l0: str = ''                # arguments of L0
    l1: str = ''                # what L1 does before L2
    l2: str = ''                # arguments of L2


TWO_SMMUS = {
    'l0': '-device pcie-root-port,bus=pcie.0,addr=3,chassis=2,id=rp2 '
          '-device nvme,bus=rp2,serial=second,drive=second',
    'l2': '-device pxb-pcie,bus=pcie.0,bus_nr=8,id=pxb '
          '-device arm-smmuv3,primary-bus=pxb,accel=on,id=smmu2 '
          '-device pcie-root-port,bus=pxb,chassis=2,io-reserve=0,id=rp2 '
          f'-device vfio-pci,host={SECOND},bus=rp2,iommufd=iommufd0,romfile='}

# L2's e1000e is wired to L1's igb, of which L2 has a virtual function too
NETWORK = {
    'l0': '-device pcie-root-port,bus=pcie.0,addr=3,chassis=2,id=rp2 '
          '-device pcie-root-port,bus=pcie.0,addr=4,chassis=3,id=rp3 '
          '-netdev hubport,hubid=0,id=net2 -netdev hubport,hubid=0,id=net3 '
          '-device e1000e,bus=rp2,netdev=net2,romfile= '
          '-device igb,bus=rp3,netdev=net3,romfile=',
    'l1': 'ifconfig eth0 10.0.1.1 netmask 255.255.255.0 up\n'
          'ip addr add 10.0.2.1/24 dev eth0\n'
          'echo 1 >/sys/class/net/eth0/device/sriov_numvfs\n'
          'httpd -h /',
    'l2': '-device pcie-root-port,bus=pcie.0,addr=2,chassis=2,io-reserve=0,'
          'id=rp2 '
          '-device pcie-root-port,bus=pcie.0,addr=3,chassis=3,io-reserve=0,'
          'id=rp3 '
          f'-device vfio-pci,host={E1000E},bus=rp2,iommufd=iommufd0,romfile= '
          f'-device vfio-pci,host={IGBVF},bus=rp3,iommufd=iommufd0,romfile='}


SCENARIOS = {
    'dma_strict': Scenario(),
    'dma_lazy': Scenario('iommu.strict=0', 'DMA-FQ'),
    'passthrough': Scenario('iommu.passthrough=1', 'identity', 'bypass'),
    'dma_qemu': Scenario(irqfd=False, upstream='all'),
    'passthrough_qemu': Scenario('iommu.passthrough=1', 'identity', 'bypass',
                                 irqfd=False),
    'masked': Scenario(job='masked', upstream='masked'),
    # 0xfffff040 is RAM, and the kernel does not use it
    'marker': Scenario('mem=3000M', irqfd=False, job='marker', mem=4,
                       upstream='all'),
    'smmu_off': Scenario('initcall_blacklist=arm_smmu_driver_init', 'none',
                         'disabled'),
    'rebind': Scenario(job='rebind'),
    'reset': Scenario(job='reset', upstream='masked'),
    'two_smmus': Scenario(job='two', **TWO_SMMUS),
    # IntMode=1: MSI
    'network': Scenario('e1000e.IntMode=1', job='network', **NETWORK),
    'network_qemu': Scenario('e1000e.IntMode=1', irqfd=False, job='network',
                             upstream='all', **NETWORK),
    'hotplug': Scenario('pcie_ports=native', job='hotplug'),
    'kexec': Scenario(job='second_kernel'),
    'l2_vfio': Scenario(job='l2_vfio'),
    'gicv2m': Scenario(machine='gic-version=3,msi=gicv2m',
                       doorbell=V2M_SETSPI_NS),
    'user_gic': Scenario(machine='gic-version=2,kernel-irqchip=off',
                         doorbell=V2M_SETSPI_NS, irqfd=False),
}


def plain(console):
    """Console text without firmware's escape sequences."""
    return re.sub('\x1b\\[[0-9;=]*[A-Za-z]|\r', '', console)


def tail(lines):
    """The last lines, for a failure's message."""
    return '\n'.join(f'  | {line}' for line in lines[-20:])


def cpio(files):
    """A newc archive of @files, a dict of names and contents (bytes)."""
    names = {str(p): None for name in files for p in Path(name).parents}
    del names['.']
    archive = b''
    for ino, (name, data) in enumerate({**names, **files,
                                        'TRAILER!!!': b''}.items(), 1):
        mode = 0o40755 if data is None else 0o100755
        fields = (ino, mode, 0, 0, 1, 0, len(data or b''), 0, 0, 0, 0,
                  len(name) + 1, 0)
        archive += b'070701' + b''.join(b'%08X' % f for f in fields)
        archive += name.encode() + b'\0'
        archive += bytes(-len(archive) % 4) + (data or b'')
        archive += bytes(-len(archive) % 4)
    return archive


def canwbs_iort(iort):
    """
    The IORT with CANWBS set in every root complex node: the kernel makes no
    vIOMMU without it, and the emulated SMMU has no S2FWB instead.
    """
    iort = bytearray(iort)
    count, node = struct.unpack_from('<II', iort, 36)
    for _ in range(count):
        kind, size = struct.unpack_from('<BH', iort, node)
        if kind == 2:
            iort[node + 16 + 7] |= 1 << 2       # memory access flags
        node += size
    # Linux takes only a newer revision as an upgrade
    oem_revision, = struct.unpack_from('<I', iort, 24)
    struct.pack_into('<I', iort, 24, oem_revision + 1)
    iort[9] = (iort[9] - sum(iort)) % 256
    return bytes(iort)


class SmmuV3Accel(QemuSystemTest):
    """Each scenario is one row of SCENARIOS and the test of that name."""

    def setUp(self):
        super().setUp()
        lab = os.environ.get('QEMU_TEST_SMMUV3_LAB')
        if not lab:
            self.skipTest('set QEMU_TEST_SMMUV3_LAB to a folder with the '
                          'guests\' kernel, firmware and init scripts')
        self.arm64_qemu = os.environ.get('QEMU_TEST_SMMUV3_ARM64_QEMU')
        if not self.arm64_qemu:
            self.skipTest('set QEMU_TEST_SMMUV3_ARM64_QEMU to a static arm64 '
                          'qemu-system-aarch64')
        self.require_accelerator('tcg')
        self.lab = Path(lab)
        self.name = self.id().rsplit('.test_', 1)[1]
        self.row = SCENARIOS[self.name]
        upstream = os.environ.get('QEMU_TEST_SMMUV3_EXPECT') == 'upstream'
        self.lost = self.row.upstream if upstream else ''
        self.upstream = upstream
        self.disk = random.Random(1).randbytes(DISK_MIB * MIB)

    # L0 and L1

    def l0_args(self):
        """L0's machine, apart from accelerator and CPU model."""
        disks = [(name, self.scratch_file(name))
                 for name in ('nvme', 'second', 'results')]
        args = ['-M', 'virt,virtualization=on,gic-version=3,iommu=smmuv3',
                '-smp', '2', '-nic', 'none',
                '-m', f'{self.row.mem + 2}G',
                '-bios', str(self.lab / 'QEMU_EFI.fd')]
        for name, path in disks:
            args += ['-drive', f'if=none,id={name},file={path},format=raw']
        # A root port gives the NVMe an IOMMU group of its own
        return args + [
            '-device', 'virtio-blk-pci,bus=pcie.0,addr=1,drive=results',
            '-device', 'pcie-root-port,bus=pcie.0,addr=2,chassis=1,id=rp',
            '-device', 'nvme,bus=rp,serial=lab,drive=nvme',
            *self.row.l0.split()]

    def read_iort(self):
        """
        L1's IORT, as the firmware will get it from fw_cfg. That takes a
        moment under qtest, and needs no guest to dump it.
        """
        fw_cfg, ram, ecam = 0x9020000, 0x40000000, 0x4010000000
        root_port_buses = 0x18

        args = [*self.l0_args(), '-cpu', 'max']
        with QEMUQtestMachine(self.qemu_bin, args, name='iort',
                              base_temp_dir=self.workdir) as probe:

            def dma_read(key, size):
                command = struct.pack('>IIQ', key << 16 | 0xa, size,
                                      ram + 16)
                probe.qtest(f'write {ram} 16 0x{command.hex()}')
                # Writing the low half of the register starts it
                value = int.from_bytes(struct.pack('>I', ram), 'little')
                probe.qtest(f'writel {fw_cfg + 20} {value}')
                reply = probe.qtest(f'read {ram + 16} {size}')
                return bytes.fromhex(reply.split()[1].removeprefix('0x'))

            probe.launch()
            # The IORT maps the buses that firmware has numbered
            for bus in range(1, 1 + ' '.join(args).count('pcie-root-port')):
                config = ecam + ((bus + 1) << 15)
                probe.qtest(f'writel {config + root_port_buses} '
                            f'{bus << 16 | bus << 8}')
            count, = struct.unpack('>I', dma_read(0x19, 4))
            files = dma_read(0x19, 4 + 64 * count)[4:]
            for size, key, _, name in struct.iter_unpack('>IHH56s', files):
                if name.rstrip(b'\0') == b'etc/acpi/tables':
                    tables = dma_read(key, size)
        start = tables.index(b'IORT')
        size, = struct.unpack_from('<I', tables, start + 4)
        return tables[start:start + size]

    def l2_script(self):
        """The shell script by which L1 starts L2."""
        timeout = {'all': 1, 'masked': 5}.get(self.lost, 10) * PATIENCE
        block = (1024 if self.lost == 'all'
                 else os.environ.get('QEMU_TEST_SMMUV3_BLOCK', 128))
        params = ('console=ttyAMA0 loglevel=5 panic=-1 '
                  f'nvme_core.io_timeout={timeout} '
                  f'nvme_core.admin_timeout={timeout} '
                  f'job={self.row.job} read_mib={self.read_mib()} '
                  f'block={block} '
                  f'device={DEVICE} {self.row.params}')
        irqfd = []
        if not self.row.irqfd and 'kernel-irqchip' not in self.row.machine:
            irqfd = ['-global', 'vfio-pci.x-no-kvm-msix=on',
                     '-global', 'vfio-pci.x-no-kvm-msi=on']
        return f'#!/bin/sh\nset -e\n{self.row.l1}\nexec ' + shlex.join([
            '/qemu', '-M', f'virt,{self.row.machine}', '-accel', 'kvm',
            '-cpu', 'host', '-m', f'{self.row.mem}G', '-nodefaults',
            '-display', 'none', '-serial', 'stdio', '-no-reboot',
            '-bios', '/QEMU_EFI.fd', '-kernel', '/Image',
            '-initrd', '/l2-initrd', '-append', params,
            '-object', 'iommufd,id=iommufd0',
            '-device', 'arm-smmuv3,primary-bus=pcie.0,accel=on,id=smmu',
            '-device', 'pcie-root-port,bus=pcie.0,addr=1,chassis=1,'
                       'io-reserve=0,id=rp',
            '-device', DEVICE, *self.row.l2.split(), *irqfd,
            '-qmp', 'pipe:/qmp', '-D', '/results/qemu.log',
            '-d', 'guest_errors,unimp', '--trace', 'events=/events']) + '\n'

    def l1_initrd(self):
        """L1's initrd: the mended IORT, L2's QEMU and all that it needs."""
        def part(name):
            return (self.lab / name).read_bytes()

        l2_files = {'bin/busybox': part('busybox'), 'init': part('l2-init')}
        if self.row.job == 'l2_vfio':
            l2_files['qemu'] = Path(self.arm64_qemu).read_bytes()
        if self.row.job == 'second_kernel':
            root = self.lab / 'kexec'
            l2_files |= {str(f.relative_to(root)): f.read_bytes()
                         for f in root.glob('*/*')}
            l2_files['Image'] = part('Image')
        return cpio({
            'kernel/firmware/acpi/iort.aml': canwbs_iort(self.read_iort()),
            'bin/busybox': part('busybox'), 'init': part('l1-init'),
            'qemu': Path(self.arm64_qemu).read_bytes(),
            'QEMU_EFI.fd': part('QEMU_EFI.fd'), 'Image': part('Image'),
            'l2-initrd': cpio(l2_files),
            'l2': self.l2_script().encode(), 'events': TRACE_EVENTS.encode()})

    def follow_console(self, success):
        """Read L1's console, where L2's is seen too, until @success."""
        console = self.vm.console_socket
        console.settimeout(1)
        deadline = time.monotonic() + L1_LIMIT + L2_LIMIT
        lines, rest = [], ''
        while success not in rest:
            try:
                data = console.recv(4096).decode(errors='replace')
                why = None if data else 'QEMU has ended'
            except TimeoutError:
                data, why = '', None
            *whole, rest = (rest + data).split('\n')
            for line in map(plain, whole):
                logging.getLogger('console').debug(line)
                lines.append(line)
                if success in line:
                    return
            if time.monotonic() > deadline:
                why = f'no end after {L1_LIMIT + L2_LIMIT} s'
            if why:
                self.fail(f'{why}, waiting for "{success}" on the console:\n'
                          + tail(lines + [plain(rest)]))

    def run_guests(self):
        """Boot L1, which runs L2, and unpack what L1 has saved."""
        for name in ('nvme', 'second'):
            Path(self.scratch_file(name)).write_bytes(self.disk)
        Path(self.scratch_file('results')).touch()
        os.truncate(self.scratch_file('results'), 64 * MIB)
        Path(self.scratch_file('initrd')).write_bytes(self.l1_initrd())

        self.vm.set_console()
        self.vm.add_args(
            *self.l0_args(), '-accel', 'tcg,thread=multi,tb-size=512',
            '-cpu', 'neoverse-n1',
            '-no-reboot', '-kernel', str(self.lab / 'Image'),
            '-initrd', self.scratch_file('initrd'),
            '-append', 'console=ttyAMA0 loglevel=5 panic=-1 '
            'initcall_blacklist=nvme_init,e1000_init_module,igbvf_init_module '
            'vfio-pci.ids=1b36:0010,8086:10d3,8086:10ca '
            f'l2_limit={L2_LIMIT} stop_at_loss={0 if self.lost else 1}')
        self.vm.launch()
        self.follow_console('L1: L2 has ended')
        self.vm.wait()
        with tarfile.open(self.scratch_file('results'), 'r:') as tar:
            for member in tar.getmembers():
                if member.isfile():
                    Path(self.log_file(os.path.basename(member.name))) \
                        .write_bytes(tar.extractfile(member).read())

    # Results

    def read_mib(self):
        """How much L2 reads; each lost interrupt takes a second or two."""
        return 1 if self.lost == 'all' else 8

    def log_text(self, name):
        """A log that L1 has saved."""
        return Path(self.log_file(name)).read_text(errors='replace')

    def collect(self):
        """What the logs say, in one dict."""
        console = plain(self.log_text('l2-console.log'))
        if not re.search('^lab: done$', console, re.M):
            why = ('panicked' if 'Kernel panic' in console else
                   'lost an interrupt' if 'completion polled' in console else
                   f'had not ended after {L2_LIMIT} s'
                   if 'terminating on signal' in console else
                   f'ended, status {self.log_text("l2-status").strip()}')
            self.fail(f'L2 {why}; its console:\n'
                      + tail(console.splitlines()))

        trace = self.log_text('qemu.log')
        res = {'scenario': self.name, 'upstream': self.upstream,
               'read_mib': self.read_mib(), **self.row._asdict()}
        for name, value in re.findall(r'^lab: (\w+)=(.*)$', console, re.M):
            try:
                value = int(value, 0)
            except ValueError:
                pass
            res['seen_' + name] = value
        # The firmware looks for a variable store that is not there
        res['errors'] = [
            line for line in trace.splitlines()
            if re.match('smmuv3_[a-z]+_event ', line)
            or not re.match('(kvm|smmuv3|vfio)_|pflash_write: ', line)]
        res['errors'] += re.findall(
            '.*arm-smmu-v3.* event.*', console + self.log_text('l1-dmesg.log'))

        trace = self.since_enabled(NVME, trace)
        res['translations'] = self.translations(NVME_SID, trace)
        route = (r'^kvm_arm_fixup_msi_route MSI iova = (\w+) is translated '
                 r'into (\w+)$' if self.upstream else
                 rf'^vfio_msi_route  \({NVME}\) .* gIOVA (\w+) -> GPA (\w+)')
        res['kvm_routes'] = [[int(n, 16) for n in pair] for pair in
                             re.findall(route, trace, re.M)]
        sent = self.sent(NVME, trace)
        res['by_qemu'] = [sent.count('0'), sent.count('1')]
        res['query'] = self.answers()[-1].get('return')
        return res

    @staticmethod
    def since_enabled(host, trace):
        """
        What came after a device's MSI or MSI-X was last enabled: drivers try
        it with one vector, and L2 counts anew.
        """
        return re.split(rf'^vfio_msix?_enable  \({host}\)', trace,
                        flags=re.M)[-1]

    @staticmethod
    def translations(sid, trace):
        """The uses of a doorbell by one device."""
        return [(how, int(giova, 16), int(gpa, 16), outcome)
                for how, giova, gpa, outcome in re.findall(
                    rf'^smmuv3_accel_msi_translate sid=0x{sid:x} (\w+) '
                    r'gIOVA (\w+) -> GPA (\w+): (.+)$', trace, re.M)]

    @staticmethod
    def looked_up(giova, gpa, outcome):
        """How the decision on a vector's route shows up."""
        return ('route', giova, gpa, outcome)

    @staticmethod
    def sent(host, trace):
        """The vector numbers of what QEMU sent itself for one device."""
        return re.findall(rf'^vfio_msi_interrupt  \({host}\) vector (\d+) ',
                          trace, re.M)

    def answers(self):
        """What L2's QEMU answered to QMP commands."""
        lines = map(json.loads, self.log_text('qmp.log').splitlines())
        return [reply for reply in lines if {'return', 'error'} & set(reply)]

    def digest(self, mib):
        """The checksum of the first @mib MiB of the disk."""
        return hashlib.sha256(self.disk[:mib * MIB]).hexdigest()

    def run_scenario(self):
        """Run the guests and check all that any scenario must show."""
        start = time.monotonic()
        self.run_guests()
        res = self.collect()
        res['seconds'] = round(time.monotonic() - start, 1)

        res['checksums_right'] = (
            (res['seen_read'], res['seen_written'])
            == (self.digest(self.read_mib()), self.digest(1)))
        Path(self.log_file('result.json')).write_text(
            json.dumps(res, indent=1), encoding='utf-8')

        self.assertEqual(res['seen_domain'], self.row.domain)
        self.assertTrue(res['checksums_right'], 'L2 read wrong data')
        self.check_disk('nvme')
        if self.lost:
            self.check_loss(res)
        else:
            self.check_interrupts(res)
            self.assertEqual(res['errors'], [])
            self.assertEqual(res['seen_events'] or 0, 0)
            if not self.upstream:
                self.check_translations(res)
                self.check_query(res, NVME_SID, 'seen_')
        return res

    def check_disk(self, name):
        """Exactly the MiB that L2 wrote differs in the image."""
        before, after = self.disk, Path(self.scratch_file(name)).read_bytes()
        start, end = COPY_TO * MIB, (COPY_TO + 1) * MIB
        self.assertTrue(after == before[:start] + before[:MIB] + before[end:],
                        'the disk is not what L2 should have left')

    def check_interrupts(self, res):
        """No interrupt was lost, and the right one delivered each."""
        self.assertEqual(res['seen_polled'], 0)
        self.assertGreater(res['seen_q0'], 0)
        self.assertGreater(res['seen_q1'], 0)
        self.assertEqual(res['seen_q1'], res['seen_requests'])
        if not self.row.irqfd:
            # At power-off two commands delete the I/O queue
            self.assertEqual(res['by_qemu'],
                             [res['seen_q0'] + 2, res['seen_q1']])
        elif self.row.upstream != 'masked':
            self.assertEqual(res['by_qemu'], [0, 0])

    def check_translations(self, res):
        """The device's own region translated the doorbell, as it should."""
        good = [res['seen_doorbell'], self.row.doorbell, self.row.outcome]
        sent = [t for how, *t in res['translations'] if how == 'deliver']
        self.assertEqual(sent, [good] * sum(res['by_qemu']))
        if self.row.irqfd:
            self.assertIn(self.looked_up(*good), res['translations'])
            self.assertIn(good[:2], res['kvm_routes'])
        if self.row.outcome != 'translated':
            self.assertEqual(res['seen_doorbell'], self.row.doorbell)

    def check_query(self, res, sid, seen):
        """What QEMU says of the NVMe with this stream ID, at the end."""
        device, = [d for d in res['query'] if d['stream-id'] == sid]
        self.assertEqual(
            (device['attached'], device['host']),
            ('nested' if self.row.outcome == 'translated' else 'bypass',
             'follows'))
        self.assertEqual(device['doorbells'], [
            {'giova': res[f'{seen}doorbell'] & ~0xfff,
             'gpa': self.row.doorbell & ~0xfff, 'outcome': self.row.outcome}])
        used = [v for v in device['vectors'] if not v['masked']]
        self.assertIn((1, res[f'{seen}doorbell'], res[f'{seen}data']),
                      [(v['vector'], v['address'], v['data']) for v in used])
        reason = ('routed' if self.row.irqfd else
                  'no-irqchip' if 'kernel-irqchip' in self.row.machine else
                  'chosen')
        self.assertEqual({(v['delivery'], v['reason']) for v in used},
                         {('irqchip' if self.row.irqfd else 'qemu', reason)})

    def check_loss(self, res):
        """Unpatched QEMU: what it sent itself never became an interrupt."""
        self.assertGreater(res['seen_polled'], 0)
        self.assertGreater(sum(res['by_qemu']), 0)
        if self.lost == 'all':
            self.assertEqual((res['seen_q0'], res['seen_q1']), (0, 0))

    def test_dma_strict(self):
        """Linux's default domain, interrupts by KVM"""
        self.run_scenario()

    def test_dma_lazy(self):
        """The same with deferred invalidations"""
        self.run_scenario()

    def test_passthrough(self):
        """Stage 1 bypassed for the device"""
        self.run_scenario()

    def test_dma_qemu(self):
        """The default domain, each interrupt delivered by QEMU"""
        self.run_scenario()

    def test_passthrough_qemu(self):
        """Stage 1 bypassed, each interrupt delivered by QEMU"""
        self.run_scenario()

    def test_smmu_off(self):
        """No SMMU driver in L2"""
        self.run_scenario()

    def test_masked(self):
        """A vector under irqfd fires while masked, then is unmasked"""
        res = self.run_scenario()
        self.assertEqual(res.get('seen_pending'), 1)
        self.assertEqual(res['seen_while_masked'], 0)
        self.assertEqual(res['by_qemu'], [0, 1])
        if self.lost:
            self.assertEqual(res['seen_after_unmask'], 0)
            self.assertGreater(res['seen_unmask_ms'], 2000)
        else:
            # At once: far from the time-out, after which a command is lost
            self.assertEqual(res['seen_after_unmask'], 1)
            self.assertLess(res['seen_unmask_ms'], 2000)

    def test_marker(self):
        """Guest RAM at the doorbell's gIOVA stays as it is"""
        res = self.run_scenario()
        self.assertEqual(res['seen_marker_set'], MARKER)
        self.assertLess(res['seen_doorbell'], (1 + self.row.mem) << 30)
        self.assertEqual(res['seen_marker_now'],
                         res['seen_data'] if self.lost else MARKER)

    def check_io(self, res, prefix):
        """Right data, and an interrupt for each command."""
        seen = {name: res[f'seen_{prefix}_{name}']
                for name in ('read', 'written', 'q1', 'requests')}
        self.assertEqual((seen['read'], seen['written']),
                         (self.digest(self.read_mib()), self.digest(1)))
        self.assertGreater(seen['q1'], 0)
        self.assertEqual(seen['q1'], seen['requests'])

    def test_rebind(self):
        """The driver leaves under I/O and returns to any type of domain"""
        res = self.run_scenario()
        for n, domain in enumerate(('DMA', 'identity', 'DMA-FQ', 'DMA'), 1):
            self.assertEqual(res[f'seen_round{n}_domain'], domain)
            self.check_io(res, f'round{n}')

    def test_reset(self):
        """Controller resets, FLRs and masking under I/O"""
        res = self.run_scenario()
        # Reads wait for their interrupt, so each mask holds at most one
        self.assertGreater(res['by_qemu'][1], 0)
        self.assertLessEqual(res['by_qemu'][1], res['seen_masks'])
        if self.lost:
            self.assertEqual(res['seen_requests'] - res['seen_q1'],
                             res['by_qemu'][1])

    def test_two_smmus(self):
        """Two NVMe behind two vSMMUs, at work at once"""
        res = self.run_scenario()
        self.check_io(res, 'second')
        self.check_disk('second')
        trace = self.log_text('qemu.log')
        self.assertEqual(self.sent(SECOND, trace), [])
        if not self.upstream:
            self.assertIn(self.looked_up(res['seen_second_doorbell'],
                                         self.row.doorbell, 'translated'),
                          self.translations(SECOND_SID, trace))
            self.check_query(res, SECOND_SID, 'seen_second_')

    def check_network(self):
        """Traffic of an e1000e with MSI and of an igb's virtual function"""
        res = self.run_scenario()
        trace = self.log_text('qemu.log')
        firmware = (self.lab / 'QEMU_EFI.fd').read_bytes()
        for name, host in ('e1000e', E1000E), ('igbvf', IGBVF):
            sent = len(self.sent(host, self.since_enabled(host, trace)))
            if self.lost:
                self.assertGreater(sent, 0)
                self.assertEqual(res[f'seen_{name}_interrupts'], 0)
                continue
            self.assertEqual(res[f'seen_{name}_replies'], 20)
            # Each reply takes an interrupt, and it comes alone
            self.assertGreaterEqual(res[f'seen_{name}_pings_interrupts'], 20)
            self.assertEqual(res[f'seen_{name}_file'],
                             hashlib.sha256(firmware).hexdigest())
            # A message merges with one that is still pending
            if self.row.irqfd:
                self.assertEqual(sent, 0)
            else:
                self.assertLessEqual(res[f'seen_{name}_interrupts'], sent)
        # Then the driver takes INTx
        self.assertEqual(res['seen_msi_failed'], 1 if self.lost else 0)

    def test_network(self):
        """Network cards, MSI and MSI-X, interrupts by KVM"""
        self.check_network()

    def test_network_qemu(self):
        """The same, each interrupt delivered by QEMU"""
        self.check_network()

    def test_hotplug(self):
        """The NVMe is unplugged under I/O and plugged in again"""
        res = self.run_scenario()
        self.check_io(res, 'before')

    def test_kexec(self):
        """A second kernel takes over SMMU, ITS and NVMe"""
        res = self.run_scenario()
        self.check_io(res, 'before')

    def test_gicv2m(self):
        """The doorbell of a GICv2m, interrupts by KVM"""
        self.run_scenario()

    def test_user_gic(self):
        """KVM without an interrupt controller: QEMU has the GIC"""
        if self.upstream:
            self.run_guests()
            self.assertIn('accel=on requires KVM with kernel-irqchip=on',
                          self.log_text('l2-console.log'))
        else:
            self.run_scenario()

    def test_l2_vfio(self):
        """L2's own vfio cannot have the NVMe: its RMR wants a 1:1 map"""
        res = self.run_scenario()
        self.assertEqual(res['seen_direct'], 1)
        self.assertIn('to iommufd', res['seen_vfio'])
        self.assertIn('Invalid argument', res['seen_vfio'])
        self.assertEqual(res['seen_rejected'], 1)


if __name__ == '__main__':
    QemuSystemTest.main()
