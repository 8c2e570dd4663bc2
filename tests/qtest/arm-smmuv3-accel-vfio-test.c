/*
 * QTest for VFIO devices behind an accelerated SMMUv3
 *
 * The host is a double, see host-double.h: its devices send interrupts when
 * the test says so, and it tells what QEMU did to it. The doorbell of most
 * tests is in guest RAM by its number, and maps to another page of RAM, so
 * that a message that goes astray is seen as well as one that arrives.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/pci.h"
#include "libqos/generic-pcihost.h"
#include "libqos/smmuv3-guest.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "host-double.h"

/* Devices on the virt machine's platform bus, in the order they are made */
#define SMMU_BASE(n)    (0x0c000000ull + (n) * 0x20000)

#define RAM_BASE        0x40000000ull
#define RAM_SIZE        (512 * MiB)
#define TABLES_SIZE     (32 * MiB)
#define TABLES(n)       (RAM_BASE + 128 * MiB + (n) * TABLES_SIZE)

#define DOORBELL        (RAM_BASE + 0xf001040)  /* a gIOVA */
#define TARGET(n)       (RAM_BASE + 0xe800000 + (n) * 0x10000)
#define MSI_DATA        0x1234abcd
#define MARKER          0x5a5a5a5a

#define GICD_BASE       0x08000000ull
#define GICD_ISPENDR    0x200
#define GICD_ICPENDR    0x280
#define GICD_ICFGR      0xc00
#define ITS_BASE        0x08080000ull
#define ITS_TRANSLATER  (ITS_BASE + 0x10040)
#define GICR_BASE       0x080a0000ull
#define ITS_TABLES      (RAM_BASE + 64 * MiB)
#define V2M_BASE        0x08020000ull
#define V2M_SETSPI_NS   0x40
#define V2M_FIRST_SPI   80

/* The machine that a test has, built up until it is started */
typedef struct Machine {
    HostDouble *hd;
    GString *args;
    char *bios;
    QTestState *qts;
    QGenericPCIBus gbus;
    QSMMUGuest smmu[2];
} Machine;

static char *make_bios(void)
{
    static const char zeroes[4096];
    char *path;
    int fd = g_file_open_tmp("arm-smmuv3-accel-XXXXXX", &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(write(fd, zeroes, sizeof(zeroes)), ==, sizeof(zeroes));
    close(fd);
    return path;
}

/* Without any device behind its SMMU, which has @properties */
static Machine *machine_new(const char *gic, const char *properties)
{
    Machine *m = g_new0(Machine, 1);

    m->hd = host_double_new();
    m->bios = make_bios(); /* accel=on wants firmware, a qtest runs none */
    m->args = g_string_new(NULL);
    g_string_printf(m->args,
                    "-machine virt,%s -cpu max -smp 1 -m 512 -net none "
                    "-bios %s -object iommufd,id=iommufd0,fd=%d "
                    "-device arm-smmuv3,primary-bus=pcie.0,accel=on,ril=on,"
                    "ats=off,ssidsize=0,oas=44%s ",
                    gic, m->bios, m->hd->iommufd[0], properties);
    return m;
}

static Machine *machine_new_default(void)
{
    return machine_new("gic-version=3", "");
}

/* Have a device of physical SMMU @smmu at @where on the command line. */
static HDDevice *add_vfio(Machine *m, int smmu, const char *where)
{
    HDDevice *dev = host_double_add_device(m->hd, smmu);

    g_string_append_printf(m->args, "-device vfio-pci,id=vfio%u,fd=%d,"
                           "iommufd=iommufd0,rombar=0,%s ",
                           m->hd->num_devices - 1, dev->fd, where);
    return dev;
}

static void machine_start(Machine *m)
{
    m->qts = host_double_qtest_init(m->hd, m->args->str);
    unlink(m->bios);
    qpci_init_generic(&m->gbus, m->qts, NULL, false);
    for (int i = 0; i < ARRAY_SIZE(m->smmu); i++) {
        qsmmu_guest_init(&m->smmu[i], m->qts, SMMU_BASE(i), TABLES(i),
                         TABLES_SIZE);
    }
    qtest_writel(m->qts, DOORBELL, MARKER);
}

static void machine_stop(Machine *m)
{
    qtest_quit(m->qts);
    g_free(m->bios);
    g_string_free(m->args, true);
    host_double_free(m->hd);
    g_free(m);
}

/* The device at @devfn, with @bus in bits 15:8, enabled */
static QPCIDevice *find_pci(Machine *m, int bdf)
{
    QPCIDevice *pci = qpci_device_find(&m->gbus.bus, bdf);

    g_assert_nonnull(pci);
    qpci_device_enable(pci);
    return pci;
}

static uint64_t msix_entry(QPCIDevice *pci, unsigned vector)
{
    return pci->msix_table_off + vector * PCI_MSIX_ENTRY_SIZE;
}

static void mask_vector(QPCIDevice *pci, unsigned vector, bool masked)
{
    qpci_io_writel(pci, pci->msix_table_bar,
                   msix_entry(pci, vector) + PCI_MSIX_ENTRY_VECTOR_CTRL,
                   masked);
}

static void write_message(QPCIDevice *pci, unsigned vector, uint64_t address,
                          uint32_t data)
{
    uint64_t entry = msix_entry(pci, vector);
    QPCIBar bar = pci->msix_table_bar;

    qpci_io_writel(pci, bar, entry + PCI_MSIX_ENTRY_LOWER_ADDR, address);
    qpci_io_writel(pci, bar, entry + PCI_MSIX_ENTRY_UPPER_ADDR, address >> 32);
    qpci_io_writel(pci, bar, entry + PCI_MSIX_ENTRY_DATA, data);
}

/* As a driver does: MSI-X is enabled, then the vector is set up. */
static void set_vector(QPCIDevice *pci, unsigned vector, uint64_t address,
                       uint32_t data)
{
    if (!pci->msix_enabled) {
        qpci_msix_enable(pci);
    }
    write_message(pci, vector, address, data);
    mask_vector(pci, vector, false);
}

/*
 * Fire and wait until QEMU has taken the interrupt. QEMU handles it at once
 * then, before the next command of this test.
 */
static void fire_irq(Machine *m, HDDevice *dev, unsigned index,
                     unsigned vector)
{
    g_assert_true(host_double_fire(m->hd, dev, index, vector));
    g_assert_true(host_double_wait(m->hd, dev, index, vector));
}

static void fire(Machine *m, HDDevice *dev, unsigned vector)
{
    fire_irq(m, dev, VFIO_PCI_MSIX_IRQ_INDEX, vector);
}

/* The word that a message to @giova on page @page leaves, and set it to 0 */
static uint32_t take(Machine *m, uint64_t page, uint64_t giova)
{
    uint64_t addr = page + (giova & 0xfff);
    uint32_t data = qtest_readl(m->qts, addr);

    qtest_writel(m->qts, addr, 0);
    return data;
}

static void assert_ram_intact(Machine *m)
{
    g_assert_cmphex(qtest_readl(m->qts, DOORBELL), ==, MARKER);
}

static void assert_delivered(Machine *m, uint64_t page)
{
    g_assert_cmphex(take(m, page, DOORBELL), ==, MSI_DATA);
    assert_ram_intact(m);
    g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
}

static void assert_dropped(Machine *m)
{
    g_assert_cmphex(take(m, TARGET(0), DOORBELL), ==, 0);
    assert_ram_intact(m);
}

static void assert_one_event(Machine *m, uint8_t type, uint32_t sid)
{
    uint64_t event[4];

    g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 1);
    qsmmu_event(&m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_TYPE(event), ==, type);
    g_assert_cmphex(QSMMU_EVT_SID(event), ==, sid);
}

/* The only object of a kind, or 0 */
static uint32_t only_object(Machine *m, HDType type)
{
    uint32_t found = 0;

    for (int id = 1; id < HD_MAX_OBJECTS; id++) {
        if (m->hd->shm->objects[id].type == type) {
            g_assert_cmpuint(found, ==, 0);
            found = id;
        }
    }
    return found;
}

/* All of guest RAM is mapped one to one, writable, and from one block. */
static void assert_ram_mapped(Machine *m, uint32_t ioas)
{
    uint64_t iova = RAM_BASE, va = 0;

    while (iova < RAM_BASE + RAM_SIZE) {
        HDMap *found = NULL;

        for (int i = 0; i < HD_MAX_MAPS; i++) {
            HDMap *map = &m->hd->shm->maps[i];

            if (map->ioas == ioas && map->iova <= iova &&
                iova - map->iova < map->length) {
                found = map;
            }
        }
        g_assert_nonnull(found);
        g_assert_true(found->flags & IOMMU_IOAS_MAP_WRITEABLE);
        if (!va) {
            va = found->start - found->iova;
        }
        g_assert_cmphex(found->start - found->iova, ==, va);
        iova = found->iova + found->length;
    }
}

static unsigned count_maps(Machine *m, uint32_t ioas)
{
    unsigned n = 0;

    for (int i = 0; i < HD_MAX_MAPS; i++) {
        n += m->hd->shm->maps[i].ioas == ioas;
    }
    return n;
}

/* A machine with one device at 02.0, which has a domain that maps nothing */
typedef struct OneDevice {
    Machine *m;
    HDDevice *dev;
    QPCIDevice *pci;
    QSMMUDomain *domain;
} OneDevice;

#define ONE_SID PCI_DEVFN(2, 0)

static OneDevice one_device_start(Machine *m)
{
    OneDevice t = { .m = m };

    t.dev = add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    machine_start(m);
    t.pci = find_pci(m, ONE_SID);
    qsmmu_guest_enable(&m->smmu[0]);
    t.domain = qsmmu_domain_new(&m->smmu[0], 12, 1);
    qsmmu_attach(&m->smmu[0], ONE_SID, t.domain);
    return t;
}

static void one_device_stop(OneDevice *t)
{
    g_free(t->domain);
    g_free(t->pci);
    machine_stop(t->m);
}

static void test_own_address_space(void)
{
    Machine *m = machine_new_default();
    g_autofree char *mtree = NULL;

    add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    add_vfio(m, 0, "bus=pcie.0,addr=3.0");
    machine_start(m);
    mtree = qtest_hmp(m->qts, "info mtree");
    for (int slot = 2; slot <= 3; slot++) {
        g_autofree char *as =
            g_strdup_printf("address-space: smmuv3-accel-pcie.0-%02d.0\r\n",
                            slot);

        g_assert_nonnull(strstr(mtree, as));
    }
    machine_stop(m);
}

static void test_one_ioas(void)
{
    Machine *m = machine_new_default();
    const unsigned n = 4;
    HDDevice *dev[4];
    uint32_t ioas;

    for (unsigned i = 0; i < n; i++) {
        g_autofree char *where = g_strdup_printf("bus=pcie.0,addr=%u.0", i + 2);

        dev[i] = add_vfio(m, 0, where);
    }
    machine_start(m);

    ioas = only_object(m, HD_IOAS);
    g_assert_cmpuint(ioas, !=, 0);
    g_assert_cmpuint(only_object(m, HD_HWPT_PAGING), !=, 0);
    g_assert_cmpuint(only_object(m, HD_VIOMMU), !=, 0);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(dev[i]->hwpt, !=, 0);
    }
    assert_ram_mapped(m, ioas);
    machine_stop(m);
}

/* Two SMMUs of the guest and of the host: one IOAS, a nesting parent each */
static void start_two_smmus(Machine *m, HDDevice *dev[2], int second_host_smmu)
{
    g_string_append(m->args,
                    "-device pxb-pcie,id=pxb,bus=pcie.0,addr=4.0,bus_nr=8 "
                    "-device arm-smmuv3,primary-bus=pxb,accel=on,ril=on,"
                    "ats=off,ssidsize=0,oas=44 "
                    "-device pcie-root-port,id=rp,bus=pxb,chassis=1 ");
    dev[0] = add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    dev[1] = add_vfio(m, second_host_smmu, "bus=rp");
    machine_start(m);
}

static void test_one_ioas_two_vsmmus(void)
{
    for (int host_smmu = 0; host_smmu < 2; host_smmu++) {
        Machine *m = machine_new_default();
        HDDevice *dev[2];
        uint32_t ioas;

        start_two_smmus(m, dev, host_smmu);
        ioas = only_object(m, HD_IOAS);
        g_assert_cmpuint(host_double_objects(m->hd, HD_HWPT_PAGING), ==,
                         host_smmu + 1);
        g_assert_cmpuint(host_double_objects(m->hd, HD_VIOMMU), ==, 2);
        g_assert_cmpuint(dev[0]->hwpt, !=, dev[1]->hwpt);
        assert_ram_mapped(m, ioas);
        machine_stop(m);
    }
}

static void test_no_sharing_with_bypassed(void)
{
    Machine *m = machine_new_default();
    HDDevice *dev[2];

    g_string_append(m->args, "-device pxb-pcie,id=pxb,bus=pcie.0,addr=4.0,"
                             "bus_nr=8,bypass_iommu=on "
                             "-device pcie-root-port,id=rp,bus=pxb,chassis=1 ");
    dev[1] = add_vfio(m, 0, "bus=rp");
    dev[0] = add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    machine_start(m);
    g_assert_cmpuint(host_double_objects(m->hd, HD_IOAS), ==, 2);
    g_assert_cmpuint(m->hd->shm->objects[dev[0]->hwpt].type, ==,
                     HD_HWPT_NESTED);
    g_assert_cmpuint(m->hd->shm->objects[dev[1]->hwpt].type, ==,
                     HD_HWPT_PAGING);
    g_assert_false(m->hd->shm->objects[dev[1]->hwpt].flags &
                   IOMMU_HWPT_ALLOC_NEST_PARENT);
    machine_stop(m);
}

static void test_doorbell_leaves_stage2(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint32_t ioas = only_object(t.m, HD_IOAS);
    unsigned maps, mapped, unmapped;

    /* The BAR with the table is mapped now as well. */
    qpci_msix_enable(t.pci);
    maps = count_maps(t.m, ioas);
    mapped = host_double_calls(t.m->hd, IOMMU_IOAS_MAP);
    unmapped = host_double_calls(t.m->hd, IOMMU_IOAS_UNMAP);

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    set_vector(t.pci, 1, DOORBELL + 0x1000, MSI_DATA);
    write_message(t.pci, 1, DOORBELL + 0x2000, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    qpci_msix_disable(t.pci);

    g_assert_cmpuint(count_maps(t.m, ioas), ==, maps);
    g_assert_cmpuint(host_double_calls(t.m->hd, IOMMU_IOAS_MAP), ==, mapped);
    g_assert_cmpuint(host_double_calls(t.m->hd, IOMMU_IOAS_UNMAP), ==,
                     unmapped);
    assert_ram_mapped(t.m, ioas);
    one_device_stop(&t);
}

static void test_translated(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

static void test_unmapped(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint64_t event[4];

    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    qsmmu_event(&t.m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==, DOORBELL);
    one_device_stop(&t);
}

static void test_pending_while_masked(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    mask_vector(t.pci, 0, true);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    g_assert_true(qpci_msix_pending(t.pci, 0));

    mask_vector(t.pci, 0, false);
    assert_delivered(t.m, TARGET(0));
    g_assert_false(qpci_msix_pending(t.pci, 0));
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

static void test_several_pages(void)
{
    OneDevice t = one_device_start(machine_new_default());
    const unsigned n = 4;

    for (unsigned i = 0; i < n; i++) {
        qsmmu_map(t.domain, DOORBELL + i * 0x1000, TARGET(i));
        set_vector(t.pci, i, DOORBELL + i * 0x1000, MSI_DATA + i);
    }
    for (unsigned i = 0; i < n; i++) {
        fire(t.m, t.dev, i);
        for (unsigned j = 0; j < n; j++) {
            g_assert_cmphex(take(t.m, TARGET(j), DOORBELL), ==,
                            i == j ? MSI_DATA + i : 0);
        }
    }
    assert_ram_intact(t.m);
    one_device_stop(&t);
}

static void test_two_domains(void)
{
    Machine *m = machine_new_default();
    HDDevice *dev[2];
    QPCIDevice *pci[2];
    QSMMUDomain *domain[2];

    for (int i = 0; i < 2; i++) {
        g_autofree char *where = g_strdup_printf("bus=pcie.0,addr=%d.0", i + 2);

        dev[i] = add_vfio(m, 0, where);
    }
    machine_start(m);
    qsmmu_guest_enable(&m->smmu[0]);
    for (int i = 0; i < 2; i++) {
        uint32_t sid = PCI_DEVFN(i + 2, 0);

        pci[i] = find_pci(m, sid);
        domain[i] = qsmmu_domain_new(&m->smmu[0], 12, i + 1);
        qsmmu_map(domain[i], DOORBELL, TARGET(i));
        qsmmu_attach(&m->smmu[0], sid, domain[i]);
        set_vector(pci[i], 0, DOORBELL, MSI_DATA);
    }
    for (int i = 0; i < 2; i++) {
        fire(m, dev[i], 0);
        g_assert_cmphex(take(m, TARGET(!i), DOORBELL), ==, 0);
        assert_delivered(m, TARGET(i));
    }
    for (int i = 0; i < 2; i++) {
        g_free(pci[i]);
        g_free(domain[i]);
    }
    machine_stop(m);
}

static void test_no_bus_master(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint16_t cmd = qpci_config_readw(t.pci, PCI_COMMAND);

    qpci_config_writew(t.pci, PCI_COMMAND, cmd & ~PCI_COMMAND_MASTER);
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    qpci_config_writew(t.pci, PCI_COMMAND, cmd);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

/* Through the doorbell of a GICv2m, on a page as Linux would have it */
static void test_gicv2m(void)
{
    const unsigned spi = V2M_FIRST_SPI + 5;
    const uint64_t ispendr = GICD_BASE + GICD_ISPENDR + spi / 32 * 4;
    OneDevice t = one_device_start(machine_new("gic-version=2", ""));

    /* Edge triggered, so that the pulse stays pending */
    qtest_writel(t.m->qts, GICD_BASE + GICD_ICFGR + spi / 16 * 4,
                 2u << (spi % 16 * 2));
    qsmmu_map(t.domain, 0xfffff000, V2M_BASE);
    set_vector(t.pci, 0, 0xfffff000 + V2M_SETSPI_NS, spi);
    g_assert_cmphex(qtest_readl(t.m->qts, ispendr), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(qtest_readl(t.m->qts, ispendr), ==, 1u << (spi % 32));
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/*
 * An ITS that takes events 0 to 15 of device @devid to LPIs 8192 to 8207.
 * These are not enabled, so they stay in the pending table.
 */
#define LPI_PENDING     (ITS_TABLES + 0x50000)
#define FIRST_LPI       8192

static void its_command(Machine *m, unsigned index, uint64_t word0,
                        uint64_t word1, uint64_t word2)
{
    uint64_t addr = ITS_TABLES + index * 32;

    qtest_writeq(m->qts, addr, word0);
    qtest_writeq(m->qts, addr + 8, word1);
    qtest_writeq(m->qts, addr + 16, word2);
    qtest_writeq(m->qts, addr + 24, 0);
    qtest_writeq(m->qts, ITS_BASE + 0x88 /* CWRITER */, (index + 1) * 32);
    g_assert_cmphex(qtest_readq(m->qts, ITS_BASE + 0x90 /* CREADR */), ==,
                    (index + 1) * 32);
}

static void its_start(Machine *m, uint32_t devid)
{
    const uint64_t valid = 1ull << 63, dev = (uint64_t)devid << 32;
    unsigned n = 0;

    qtest_memset(m->qts, ITS_TABLES, 0, 0x80000);
    qtest_writeq(m->qts, GICR_BASE + 0x70 /* PROPBASER */,
                 (ITS_TABLES + 0x40000) | 15);
    qtest_writeq(m->qts, GICR_BASE + 0x78 /* PENDBASER */, LPI_PENDING);
    qtest_writel(m->qts, GICR_BASE, 1 /* EnableLPIs */);

    qtest_writeq(m->qts, ITS_BASE + 0x80 /* CBASER */, valid | ITS_TABLES);
    qtest_writeq(m->qts, ITS_BASE + 0x100 /* BASER: devices */,
                 valid | (ITS_TABLES + 0x10000) | 15);
    qtest_writeq(m->qts, ITS_BASE + 0x108 /* BASER: collections */,
                 valid | (ITS_TABLES + 0x20000));
    qtest_writel(m->qts, ITS_BASE, 1 /* enabled */);
    its_command(m, n++, 0x09 /* MAPC */, 0, valid);
    its_command(m, n++, 0x08 /* MAPD */ | dev, 3,
                valid | (ITS_TABLES + 0x30000));
    for (uint64_t event = 0; event < 16; event++) {
        its_command(m, n++, 0x0a /* MAPTI */ | dev,
                    event | (FIRST_LPI + event) << 32, 0);
    }
}

/* Did this event arrive since the last time? */
static bool take_lpi(Machine *m, unsigned event)
{
    uint64_t addr = LPI_PENDING + (FIRST_LPI + event) / 8;
    uint8_t bit = 1 << event % 8;
    uint8_t pending = qtest_readb(m->qts, addr);

    qtest_writeb(m->qts, addr, pending & ~bit);
    return pending & bit;
}

/* The ITS knows the device by the ID that comes with the message. */
static void test_its(void)
{
    OneDevice t = one_device_start(machine_new_default());

    its_start(t.m, ONE_SID);
    qsmmu_map(t.domain, 0xfffff000, ITS_TRANSLATER & ~0xfffull);
    for (unsigned i = 0; i < 4; i++) {
        set_vector(t.pci, i, 0xfffff040, i + 3);
        fire(t.m, t.dev, i);
        g_assert_true(take_lpi(t.m, i + 3));
    }
    g_assert_false(take_lpi(t.m, 0));
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* A guest may choose any address for its doorbell. */
static void test_any_doorbell(void)
{
    static const uint64_t doorbells[] = {
        0x40,                       /* the first page */
        HD_RESERVED_BASE + 0x40,    /* what the host has for its own MSIs */
        V2M_BASE + V2M_SETSPI_NS,
        0x09000000,                 /* a device's registers */
        0xfffff040,
        0x100000040,
        TARGET(0) + 0x40,           /* identity */
        0xfffffffff040,
    };
    OneDevice t = one_device_start(machine_new_default());

    for (unsigned i = 0; i < ARRAY_SIZE(doorbells); i++) {
        g_test_message("doorbell 0x%" PRIx64, doorbells[i]);
        qsmmu_map(t.domain, doorbells[i] & ~0xfffull, TARGET(0));
        set_vector(t.pci, 0, doorbells[i], MSI_DATA + i);
        fire(t.m, t.dev, 0);
        g_assert_cmphex(take(t.m, TARGET(0), doorbells[i]), ==, MSI_DATA + i);
    }
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* All granules, at all levels that may have a block */
static void test_granules(void)
{
    static const struct {
        unsigned granule;
        int level;
        unsigned shift;     /* of what one descriptor maps */
    } cases[] = {
        { 12, 3, 12 }, { 12, 2, 21 }, { 12, 1, 30 },
        { 14, 3, 14 }, { 14, 2, 25 },
        { 16, 3, 16 }, { 16, 2, 29 },
    };
    OneDevice t = one_device_start(machine_new_default());

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        QSMMUDomain *d = qsmmu_domain_new(&t.m->smmu[0], cases[i].granule,
                                          i + 2);
        uint64_t mask = MAKE_64BIT_MASK(0, cases[i].shift);
        uint64_t giova = (0x7abcdef12000 & ~mask) | (TARGET(1) & mask) | 0x40;
        uint64_t pte = (TARGET(1) & ~mask) | QSMMU_PTE_RW;

        g_test_message("granule 2^%u, level %d", cases[i].granule,
                       cases[i].level);
        if (cases[i].level < 3) {
            pte &= ~2ull; /* a block */
        }
        qsmmu_domain_set_pte(d, giova, cases[i].level, pte);
        qsmmu_attach(&t.m->smmu[0], ONE_SID, d);
        set_vector(t.pci, 0, giova, MSI_DATA);
        fire(t.m, t.dev, 0);
        g_assert_cmphex(take(t.m, TARGET(1), giova), ==, MSI_DATA);
        g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
        g_free(d);
    }
    one_device_stop(&t);
}

/* With and without an invalidation: no cache is consulted */
static void test_remapped(void)
{
    OneDevice t = one_device_start(machine_new_default());

    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    for (int i = 0; i < 4; i++) {
        qsmmu_map(t.domain, DOORBELL & ~0xfffull, TARGET(i));
        if (i == 3) {
            qsmmu_tlbi_va(t.domain, DOORBELL);
        }
        fire(t.m, t.dev, 0);
        assert_delivered(t.m, TARGET(i));
    }
    one_device_stop(&t);
}

static void test_domain_switched(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUDomain *other = qsmmu_domain_new(&t.m->smmu[0], 12, 2);

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    qsmmu_map(other, DOORBELL, TARGET(1));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    qsmmu_attach(&t.m->smmu[0], ONE_SID, other);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(0), DOORBELL), ==, 0);
    assert_delivered(t.m, TARGET(1));

    qsmmu_attach(&t.m->smmu[0], ONE_SID, t.domain);
    qsmmu_set_ttb(t.domain, other->ttb);
    qsmmu_cfgi_cd(&t.m->smmu[0], ONE_SID);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(0), DOORBELL), ==, 0);
    assert_delivered(t.m, TARGET(1));
    g_free(other);
    one_device_stop(&t);
}

static void test_stream_states(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);

    /* Abort is silent. */
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_ABORT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    g_assert_cmpuint(qsmmu_events(g), ==, 0);

    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    set_vector(t.pci, 0, TARGET(1) | 0x40, MSI_DATA);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(1), 0x40), ==, MSI_DATA);

    qsmmu_attach(g, ONE_SID, NULL);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(1), 0x40), ==, 0);
    assert_one_event(t.m, QSMMU_C_BAD_STE, ONE_SID);

    qsmmu_guest_disable(g);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(1), 0x40), ==, MSI_DATA);
    qtest_writel(t.m->qts, g->base + A_GBPA,
                 R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(1), 0x40), ==, 0);
    g_assert_cmpuint(qsmmu_events(g), ==, 1);
    one_device_stop(&t);
}

/* CD.R decides whether a translation fault is recorded. */
static void test_fault_not_recorded(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint32_t word = qtest_readl(t.m->qts, t.domain->cd + A_CD_1);

    qtest_writel(t.m->qts, t.domain->cd + A_CD_1, word & ~R_CD_1_R_MASK);
    qsmmu_cfgi_cd(&t.m->smmu[0], ONE_SID);
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* A doorbell that maps to what is no doorbell harms nobody. */
static void test_wrong_target(void)
{
    static const uint64_t targets[] = {
        0x08080000,     /* the ITS's control frame */
        0x0b000000,     /* nothing */
        SMMU_BASE(0),   /* the SMMU itself */
    };
    OneDevice t = one_device_start(machine_new_default());

    set_vector(t.pci, 0, DOORBELL & ~0xfffull, MSI_DATA);
    for (unsigned i = 0; i < ARRAY_SIZE(targets); i++) {
        qsmmu_map(t.domain, DOORBELL, targets[i]);
        fire(t.m, t.dev, 0);
        assert_ram_intact(t.m);
        g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    }
    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(0), 0), ==, MSI_DATA);
    one_device_stop(&t);
}

static void test_reset(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));

    qtest_system_reset(t.m->qts);
    g_assert_cmpuint(t.dev->resets, >, 1);
    g_assert_cmpint(host_double_eventfd(t.m->hd, t.dev,
                                        VFIO_PCI_MSIX_IRQ_INDEX, 0), ==,
                    HD_NONE);

    /* The SMMU is disabled now. */
    g_free(t.pci);
    t.pci = find_pci(t.m, ONE_SID);
    set_vector(t.pci, 0, TARGET(1) | 0x40, MSI_DATA);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(1), 0x40), ==, MSI_DATA);
    qsmmu_guest_enable(&t.m->smmu[0]);
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

/* Give a root port a bus and all of PCI's memory. */
static QPCIDevice *enable_port(Machine *m, int bdf)
{
    QPCIDevice *port = find_pci(m, bdf);

    g_assert_cmpint(qpci_secondary_buses_init(&m->gbus.bus), ==, 1);
    qpci_config_writew(port, PCI_MEMORY_BASE, 0x1000);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, 0x3ef0);
    return port;
}

static void set_slot_power(QPCIDevice *port, bool on)
{
    uint8_t cap = qpci_find_capability(port, PCI_CAP_ID_EXP, 0);

    qpci_config_writew(port, cap + PCI_EXP_SLTCTL,
                       on ? PCI_EXP_SLTCTL_PWR_IND_ON
                          : PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PWR_IND_OFF);
}

static void plug(Machine *m, HDDevice *dev, QPCIDevice *port)
{
    int fd = dev->fd;

    qtest_qmp_fds_assert_success(m->qts, &fd, 1, "{ 'execute': 'getfd', "
                                 "'arguments': { 'fdname': 'hotplug' } }");
    qtest_qmp_device_add(m->qts, "vfio-pci", "hot",
                         "{ 'fd': 'hotplug', 'iommufd': 'iommufd0', "
                         "'rombar': 0, 'bus': 'rp' }");
    set_slot_power(port, true);
}

/* With the guest's consent. The last reference goes with an RCU callback. */
static void unplug(Machine *m, HDDevice *dev, QPCIDevice *port)
{
    gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;

    qtest_qmp_device_del_send(m->qts, "hot");
    set_slot_power(port, false);
    qtest_qmp_eventwait(m->qts, "DEVICE_DELETED");
    while (qatomic_read(&dev->bound_fd) != HD_NONE) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/*
 * The host follows the guest. What is attached to the device is a nested HWPT
 * with the guest's STE, or one that aborts or bypasses stage 1.
 */

static uint64_t attached_ste(OneDevice *t)
{
    HDObject *hwpt = &t->m->hd->shm->objects[t->dev->hwpt];

    g_assert_cmpuint(hwpt->type, ==, HD_HWPT_NESTED);
    return hwpt->data[0];
}

static void test_host_follows_ste(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_S1 | t.domain->cd);
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_BYPASS);
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_ABORT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    qsmmu_attach(g, ONE_SID, t.domain);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_S1 | t.domain->cd);
    qsmmu_attach(g, ONE_SID, NULL);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

static void test_host_follows_smmuen(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_guest_disable(&t.m->smmu[0]);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_BYPASS);
    one_device_stop(&t);
}

static void test_host_follows_gbpa(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint64_t gbpa = t.m->smmu[0].base + A_GBPA;

    /* It has no effect while the SMMU is enabled. */
    qtest_writel(t.m->qts, gbpa, R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_S1 | t.domain->cd);
    one_device_stop(&t);
}

static void test_host_follows_missing_ste(void)
{
    OneDevice t = one_device_start(machine_new_default());

    /* The stream table ends before the device's STE. */
    qtest_writel(t.m->qts, t.m->smmu[0].base + A_STRTAB_BASE_CFG, 2);
    qsmmu_cfgi_ste(&t.m->smmu[0], ONE_SID);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

/* An error of the host must not leave the old translation in place. */
static void test_host_follows_after_failure(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUDomain *other = qsmmu_domain_new(&t.m->smmu[0], 12, 2);

    host_double_fail(t.m->hd, IOMMU_HWPT_ALLOC, 1, ENOMEM);
    qsmmu_set_ste(&t.m->smmu[0], ONE_SID, QSMMU_STE_S1 | other->cd, 0);
    qsmmu_issue(&t.m->smmu[0], SMMU_CMD_CFGI_STE | (uint64_t)ONE_SID << 32, 1);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    g_free(other);
    one_device_stop(&t);
}

/* A device that comes second gets what its SMMU does, too. */
static void test_host_follows_second_device(void)
{
    Machine *m = machine_new_default();
    HDDevice *second = host_double_add_device(m->hd, 0);
    HDObject *hwpt;
    QPCIDevice *port;
    OneDevice t;

    g_string_append(m->args,
                    "-device pcie-root-port,id=rp,bus=pcie.0,addr=1.0,"
                    "chassis=1 ");
    t = one_device_start(m);
    port = enable_port(m, PCI_DEVFN(1, 0));
    qsmmu_guest_disable(&m->smmu[0]);
    qtest_writel(m->qts, m->smmu[0].base + A_GBPA,
                 R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    plug(m, second, port);
    hwpt = &m->hd->shm->objects[second->hwpt];
    g_assert_cmpuint(hwpt->type, ==, HD_HWPT_NESTED);
    g_assert_cmphex(hwpt->data[0], ==, QSMMU_STE_ABORT);
    g_free(port);
    one_device_stop(&t);
}

static void test_host_event(void)
{
    static const uint64_t fault[4] = {
        QSMMU_F_TRANSLATION, 0, 0x12345000, 0,
    };
    OneDevice t = one_device_start(machine_new_default());
    gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;
    uint64_t event[4];

    g_assert_true(host_double_post_event(t.m->hd, t.dev, fault));
    while (!qsmmu_events(&t.m->smmu[0])) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    qsmmu_event(&t.m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==, 0x12345000);
    one_device_stop(&t);
}

static void test_host_invalidation(void)
{
    OneDevice t = one_device_start(machine_new_default());
    unsigned calls = host_double_calls(t.m->hd, IOMMU_HWPT_INVALIDATE);
    HDShared *shm = t.m->hd->shm;
    HDCall *last;

    qsmmu_tlbi_va(t.domain, DOORBELL);
    g_assert_cmpuint(host_double_calls(t.m->hd, IOMMU_HWPT_INVALIDATE), ==,
                     calls + 1);
    last = &shm->calls[shm->num_calls - 1];
    g_assert_cmpint(last->result, ==, 0);
    g_assert_cmphex(last->arg[1], ==,
                    SMMU_CMD_TLBI_NH_VA | (uint64_t)t.domain->asid << 48);
    g_assert_cmphex(last->arg[2], ==, DOORBELL & ~0xfffull);
    one_device_stop(&t);
}

/*
 * Routes. The irqchip is the accelerator's; interrupts that it injects as
 * well as those that QEMU sends end as an SPI of the GICv2m.
 */

#define V2M_DOORBELL    (0xfffff000 + V2M_SETSPI_NS)  /* as Linux has it */
#define SPI             (V2M_FIRST_SPI + 5)

static Machine *machine_new_irqchip(void)
{
    Machine *m = machine_new("gic-version=2", "");

    g_string_append(m->args, "-accel qtest,irqchip=on ");
    return m;
}

static OneDevice irqchip_start(Machine *m)
{
    OneDevice t = one_device_start(m);

    /* All of the frame's SPIs, edge triggered: a pulse stays pending. */
    for (int spi = V2M_FIRST_SPI; spi < V2M_FIRST_SPI + 64; spi += 16) {
        qtest_writel(t.m->qts, GICD_BASE + GICD_ICFGR + spi / 16 * 4,
                     0xaaaaaaaa);
    }
    return t;
}

static void map_v2m(OneDevice *t)
{
    qsmmu_map(t->domain, V2M_DOORBELL & ~0xfffull, V2M_BASE);
}

/* Was this SPI raised since the last time? */
static bool take_spi(Machine *m, unsigned spi)
{
    uint64_t reg = spi / 32 * 4;
    uint32_t bit = 1u << (spi % 32);
    bool pending = qtest_readl(m->qts, GICD_BASE + GICD_ISPENDR + reg) & bit;

    qtest_writel(m->qts, GICD_BASE + GICD_ICPENDR + reg, bit);
    return pending;
}

/* Routes in use; none may have an irqfd without. */
static unsigned count_routes(Machine *m)
{
    QTestIrqRoute routes[16];
    unsigned n = qtest_irqchip_routes(m->qts, routes, ARRAY_SIZE(routes));
    unsigned used = 0;

    g_assert_cmpuint(n, <=, ARRAY_SIZE(routes));
    for (unsigned i = 0; i < n; i++) {
        used += routes[i].used;
        g_assert_true(routes[i].used || routes[i].fd < 0);
    }
    return used;
}

/* The route of a vector that the irqchip injects, in @route */
static bool find_route(OneDevice *t, unsigned index, unsigned vector,
                       QTestIrqRoute *route)
{
    int fd = host_double_eventfd(t->m->hd, t->dev, index, vector);
    QTestIrqRoute routes[16];
    unsigned n = qtest_irqchip_routes(t->m->qts, routes, ARRAY_SIZE(routes));

    g_assert_cmpuint(n, <=, ARRAY_SIZE(routes));
    g_assert_cmpint(fd, !=, HD_NONE); /* else the interrupt is lost */
    for (unsigned i = 0; i < n; i++) {
        if (routes[i].fd == fd) {
            *route = routes[i];
            return true;
        }
    }
    return false;
}

static void assert_routed_index(OneDevice *t, unsigned index, unsigned vector,
                                uint64_t address, uint32_t data)
{
    QTestIrqRoute route;

    g_assert_true(find_route(t, index, vector, &route));
    g_assert_true(route.used);
    g_assert_true(route.committed);
    g_assert_cmphex(route.address, ==, address);
    g_assert_cmphex(route.data, ==, data);
    g_assert_cmphex(route.devid, ==, ONE_SID);
}

static void assert_routed(OneDevice *t, unsigned vector, uint64_t address,
                          uint32_t data)
{
    assert_routed_index(t, VFIO_PCI_MSIX_IRQ_INDEX, vector, address, data);
}

static void assert_not_routed(OneDevice *t, unsigned vector)
{
    QTestIrqRoute route;

    g_assert_false(find_route(t, VFIO_PCI_MSIX_IRQ_INDEX, vector, &route));
}

/* How many messages the irqchip has injected */
static uint64_t injected(OneDevice *t)
{
    QTestIrqRoute routes[16];
    unsigned n = qtest_irqchip_routes(t->m->qts, routes, ARRAY_SIZE(routes));
    uint64_t sum = 0;

    g_assert_cmpuint(n, <=, ARRAY_SIZE(routes));
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(routes[i].lost, ==, 0);
        sum += routes[i].sent;
    }
    return sum;
}

static void test_route(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(count_routes(t.m), ==, 1);
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);

    g_assert_false(take_spi(t.m, SPI));
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    g_assert_cmpuint(injected(&t), ==, 1);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* To decide on a route is no access: there is no event. */
static void test_route_unmapped(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);

    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);

    /* QEMU has it, and translates it as it fires. */
    map_v2m(&t);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));

    mask_vector(t.pci, 0, true);
    mask_vector(t.pci, 0, false);
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 1);
    one_device_stop(&t);
}

static void test_route_masked(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    mask_vector(t.pci, 0, true);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));
    g_assert_true(qpci_msix_pending(t.pci, 0));

    mask_vector(t.pci, 0, false);
    g_assert_true(take_spi(t.m, SPI));
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);
    g_assert_cmpuint(injected(&t), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    g_assert_cmpuint(injected(&t), ==, 1);
    one_device_stop(&t);
}

static void test_route_function_masked(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint8_t cap = qpci_find_capability(t.pci, PCI_CAP_ID_MSIX, 0);
    uint16_t flags;

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    flags = qpci_config_readw(t.pci, cap + PCI_MSIX_FLAGS);
    qpci_config_writew(t.pci, cap + PCI_MSIX_FLAGS,
                       flags | PCI_MSIX_FLAGS_MASKALL);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));

    qpci_config_writew(t.pci, cap + PCI_MSIX_FLAGS, flags);
    g_assert_true(take_spi(t.m, SPI));
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);
    one_device_stop(&t);
}

/* What changed while the vector was masked counts when it is unmasked. */
static void test_route_updated_on_unmask(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    mask_vector(t.pci, 0, true);
    qsmmu_map(t.domain, 0xffffe000, V2M_BASE);
    write_message(t.pci, 0, 0xffffe000 + V2M_SETSPI_NS, SPI + 1);
    mask_vector(t.pci, 0, false);
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI + 1);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));
    g_assert_true(take_spi(t.m, SPI + 1));

    mask_vector(t.pci, 0, true);
    qsmmu_unmap(t.domain, 0xffffe000);
    mask_vector(t.pci, 0, false);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI + 1));
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    one_device_stop(&t);
}

static void test_route_its(void)
{
    Machine *m = machine_new_default();
    OneDevice t;

    g_string_append(m->args, "-accel qtest,irqchip=on ");
    t = one_device_start(m);
    its_start(t.m, ONE_SID);
    qsmmu_map(t.domain, 0xfffff000, ITS_TRANSLATER & ~0xfffull);
    set_vector(t.pci, 0, 0xfffff040, 7);
    assert_routed(&t, 0, ITS_TRANSLATER, 7);
    fire(t.m, t.dev, 0);
    g_assert_true(take_lpi(t.m, 7));
    g_assert_cmpuint(injected(&t), ==, 1);
    one_device_stop(&t);
}

/* A vector that the irqchip does not take is QEMU's. */
static void test_route_failures(void)
{
    static const char *const calls[] = { "add", "attach", "update" };
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    qpci_msix_enable(t.pci);
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        if (!strcmp(calls[i], "update")) {
            set_vector(t.pci, i, V2M_DOORBELL, SPI + i);
            mask_vector(t.pci, i, true);
        }
        qtest_irqchip_fail(t.m->qts, calls[i], 1, EINVAL);
        set_vector(t.pci, i, V2M_DOORBELL, SPI + i);
        g_assert_cmpuint(count_routes(t.m), ==, 0);
        fire(t.m, t.dev, i);
        g_assert_true(take_spi(t.m, SPI + i));
        g_assert_cmpuint(injected(&t), ==, 0);
    }
    one_device_stop(&t);
}

static void test_route_batch(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    const unsigned n = 8;
    uint64_t commits;

    map_v2m(&t);
    qpci_msix_enable(t.pci);
    for (unsigned i = 0; i < n; i++) {
        set_vector(t.pci, i, V2M_DOORBELL, SPI + i);
    }
    qpci_msix_disable(t.pci);
    g_assert_cmpuint(count_routes(t.m), ==, 0);

    /* The vectors are unmasked when MSI-X is enabled. */
    commits = qtest_irqchip_calls(t.m->qts, "commit");
    qpci_msix_enable(t.pci);
    g_assert_cmpuint(qtest_irqchip_calls(t.m->qts, "commit"), ==, commits + 1);
    g_assert_cmpuint(count_routes(t.m), ==, n);
    for (unsigned i = 0; i < n; i++) {
        assert_routed(&t, i, V2M_BASE + V2M_SETSPI_NS, SPI + i);
        fire(t.m, t.dev, i);
        g_assert_true(take_spi(t.m, SPI + i));
    }
    g_assert_cmpuint(injected(&t), ==, n);
    one_device_stop(&t);
}

static void test_route_option(void)
{
    Machine *m = machine_new_irqchip();
    OneDevice t;

    g_string_append(m->args, "-global vfio-pci.x-no-kvm-msix=on ");
    t = irqchip_start(m);
    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    one_device_stop(&t);
}

/*
 * A route is checked again when what it was made from may have changed, and
 * then either leads to the same interrupt as QEMU's own message would or is
 * removed.
 */

static OneDevice routed_start(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);
    return t;
}

static void test_recheck_message(void)
{
    OneDevice t = routed_start();

    write_message(t.pci, 0, V2M_DOORBELL, SPI + 1);
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI + 1);
    one_device_stop(&t);
}

static void test_recheck_tlbi(void)
{
    OneDevice t = routed_start();

    qsmmu_unmap(t.domain, V2M_DOORBELL);
    qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
    assert_not_routed(&t, 0);
    one_device_stop(&t);
}

static void test_recheck_cfgi_cd(void)
{
    OneDevice t = routed_start();
    QSMMUDomain *other = qsmmu_domain_new(&t.m->smmu[0], 12, 2);

    qsmmu_set_ttb(t.domain, other->ttb);
    qsmmu_cfgi_cd(&t.m->smmu[0], ONE_SID);
    assert_not_routed(&t, 0);
    g_free(other);
    one_device_stop(&t);
}

static void test_recheck_cfgi_ste(void)
{
    OneDevice t = routed_start();
    QSMMUDomain *other = qsmmu_domain_new(&t.m->smmu[0], 12, 2);

    qsmmu_attach(&t.m->smmu[0], ONE_SID, other);
    assert_not_routed(&t, 0);
    g_free(other);
    one_device_stop(&t);
}

static void test_recheck_smmuen(void)
{
    OneDevice t = routed_start();

    qsmmu_guest_disable(&t.m->smmu[0]);
    assert_not_routed(&t, 0);
    one_device_stop(&t);
}

static void test_recheck_delivered(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_not_routed(&t, 0);
    map_v2m(&t);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);
    one_device_stop(&t);
}

static void test_recheck_unchanged(void)
{
    OneDevice t = routed_start();
    uint64_t updates = qtest_irqchip_calls(t.m->qts, "update");
    uint64_t commits = qtest_irqchip_calls(t.m->qts, "commit");

    mask_vector(t.pci, 0, true);
    mask_vector(t.pci, 0, false);
    assert_routed(&t, 0, V2M_BASE + V2M_SETSPI_NS, SPI);
    g_assert_cmpuint(qtest_irqchip_calls(t.m->qts, "update"), ==, updates);
    g_assert_cmpuint(qtest_irqchip_calls(t.m->qts, "commit"), ==, commits);
    one_device_stop(&t);
}

/* No irqchip can write to RAM; QEMU does, as the device would. */
static void test_route_to_ram(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

/* Enable 2^@log_vectors MSI vectors. */
static void enable_msi(QPCIDevice *pci, uint64_t address, uint16_t data,
                       unsigned log_vectors)
{
    uint8_t cap = qpci_find_capability(pci, PCI_CAP_ID_MSI, 0);
    uint16_t flags = qpci_config_readw(pci, cap + PCI_MSI_FLAGS);

    flags = (flags & ~PCI_MSI_FLAGS_QSIZE) | log_vectors << 4;
    qpci_config_writel(pci, cap + PCI_MSI_ADDRESS_LO, address);
    qpci_config_writel(pci, cap + PCI_MSI_ADDRESS_HI, address >> 32);
    qpci_config_writew(pci, cap + PCI_MSI_DATA_64, data);
    qpci_config_writew(pci, cap + PCI_MSI_FLAGS, flags | PCI_MSI_FLAGS_ENABLE);
}

static void test_route_msi(void)
{
    const unsigned msi = VFIO_PCI_MSI_IRQ_INDEX;
    const unsigned first = V2M_FIRST_SPI + 8;
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    enable_msi(t.pci, V2M_DOORBELL, first, 2);
    g_assert_cmpuint(count_routes(t.m), ==, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_routed_index(&t, msi, i, V2M_BASE + V2M_SETSPI_NS, first + i);
        fire_irq(t.m, t.dev, msi, i);
        g_assert_true(take_spi(t.m, first + i));
    }
    g_assert_cmpuint(injected(&t), ==, 4);
    one_device_stop(&t);
}

static void test_msi(void)
{
    const unsigned first = V2M_FIRST_SPI + 8;
    OneDevice t = irqchip_start(machine_new("gic-version=2", ""));

    map_v2m(&t);
    enable_msi(t.pci, V2M_DOORBELL, first, 3);
    for (unsigned i = 0; i < 8; i++) {
        fire_irq(t.m, t.dev, VFIO_PCI_MSI_IRQ_INDEX, i);
        g_assert_true(take_spi(t.m, first + i));
    }
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

static void test_hotplug(void)
{
    const uint32_t sid = PCI_BUILD_BDF(1, 0);
    Machine *m = machine_new_default();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QSMMUDomain *domain;
    QPCIDevice *port;

    g_string_append(m->args,
                    "-device pcie-root-port,id=rp,bus=pcie.0,addr=1.0,"
                    "chassis=1 ");
    machine_start(m);
    port = enable_port(m, PCI_DEVFN(1, 0));
    qsmmu_guest_enable(&m->smmu[0]);
    domain = qsmmu_domain_new(&m->smmu[0], 12, 1);
    qsmmu_map(domain, DOORBELL, TARGET(0));

    for (int i = 0; i < 3; i++) {
        QPCIDevice *pci;

        plug(m, dev, port);
        pci = find_pci(m, sid);
        qsmmu_attach(&m->smmu[0], sid, domain);
        assert_ram_mapped(m, only_object(m, HD_IOAS));
        g_assert_cmpuint(m->hd->shm->objects[dev->hwpt].type, ==,
                         HD_HWPT_NESTED);
        set_vector(pci, 0, DOORBELL, MSI_DATA);
        fire(m, dev, 0);
        assert_delivered(m, TARGET(0));

        /* A guest may take the stream's domain away first, or not. */
        if (i == 1) {
            qsmmu_attach(&m->smmu[0], sid, NULL);
        }
        unplug(m, dev, port);
        for (HDType type = HD_DEVICE; type <= HD_VEVENTQ; type++) {
            g_assert_cmpuint(host_double_objects(m->hd, type), ==, 0);
        }
        g_free(pci);
    }
    g_free(domain);
    g_free(port);
    machine_stop(m);
}

typedef struct Test {
    const char *path;
    void (*fn)(void);
    const char *todo;   /* why it is expected to fail, or NULL */
} Test;

/*
 * A test that is expected to fail runs in a process of its own, whose failure
 * is the success of this one. When it passes, @todo has to go.
 */
static void run_test(gconstpointer opaque)
{
    const Test *test = opaque;

    if (!test->todo || g_test_subprocess()) {
        test->fn();
        return;
    }
    g_test_message("expected to fail: %s", test->todo);
    g_test_trap_subprocess(NULL, 60 * G_USEC_PER_SEC, 0);
    if (g_test_trap_has_passed()) {
        g_test_message("it passes, but was expected to fail");
        g_test_fail();
    } else {
        /* By a check of the test, not by something else */
        g_test_trap_assert_stderr("*ERROR:" __FILE__ ":*");
    }
}

int main(int argc, char **argv)
{
    static const char no_recheck[] =
        "a route is made or updated only when the vector is unmasked";
    static const char host_lags[] =
        "only CFGI_STE and GBPA make QEMU attach another HWPT";
    static const Test tests[] = {
        { "/accel/attach/own-address-space", test_own_address_space },
        { "/accel/attach/one-ioas", test_one_ioas },
        { "/accel/attach/one-ioas-two-vsmmus", test_one_ioas_two_vsmmus },
        { "/accel/attach/no-sharing-with-bypassed",
          test_no_sharing_with_bypassed },
        { "/accel/attach/doorbell-leaves-stage2",
          test_doorbell_leaves_stage2 },
        { "/accel/msix/translated", test_translated },
        { "/accel/msix/unmapped", test_unmapped },
        { "/accel/msix/pending-while-masked", test_pending_while_masked },
        { "/accel/msix/several-pages", test_several_pages },
        { "/accel/msix/two-domains", test_two_domains },
        { "/accel/msix/no-bus-master", test_no_bus_master },
        { "/accel/msix/gicv2m", test_gicv2m },
        { "/accel/msix/its", test_its },
        { "/accel/msix/any-doorbell", test_any_doorbell },
        { "/accel/msix/granules", test_granules },
        { "/accel/msix/remapped", test_remapped },
        { "/accel/msix/domain-switched", test_domain_switched },
        { "/accel/msix/stream-states", test_stream_states },
        { "/accel/msix/fault-not-recorded", test_fault_not_recorded },
        { "/accel/msix/wrong-target", test_wrong_target },
        { "/accel/msix/reset", test_reset },
        { "/accel/host/ste", test_host_follows_ste },
        { "/accel/host/smmuen", test_host_follows_smmuen, host_lags },
        { "/accel/host/gbpa", test_host_follows_gbpa,
          "GBPA is attached even while the SMMU is enabled" },
        { "/accel/host/missing-ste", test_host_follows_missing_ste,
          "an STE that is not found leaves the device as it is" },
        { "/accel/host/failure", test_host_follows_after_failure,
          "a host error leaves the device as it is" },
        { "/accel/host/second-device", test_host_follows_second_device,
          "only the first device of an SMMU is attached by it" },
        { "/accel/host/event", test_host_event },
        { "/accel/host/invalidation", test_host_invalidation },
        { "/accel/msi/gicv2m", test_msi },
        { "/accel/route/routed", test_route },
        { "/accel/route/its", test_route_its },
        { "/accel/route/unmapped", test_route_unmapped },
        { "/accel/route/masked", test_route_masked },
        { "/accel/route/function-masked", test_route_function_masked },
        { "/accel/route/updated-on-unmask", test_route_updated_on_unmask },
        { "/accel/route/failures", test_route_failures },
        { "/accel/route/batch", test_route_batch },
        { "/accel/route/option", test_route_option },
        { "/accel/route/msi", test_route_msi },
        { "/accel/route/to-ram", test_route_to_ram,
          "a message that translates is routed wherever it leads" },
        { "/accel/recheck/message", test_recheck_message, no_recheck },
        { "/accel/recheck/tlbi", test_recheck_tlbi, no_recheck },
        { "/accel/recheck/cfgi-cd", test_recheck_cfgi_cd, no_recheck },
        { "/accel/recheck/cfgi-ste", test_recheck_cfgi_ste, no_recheck },
        { "/accel/recheck/smmuen", test_recheck_smmuen, no_recheck },
        { "/accel/recheck/delivered", test_recheck_delivered, no_recheck },
        { "/accel/recheck/unchanged", test_recheck_unchanged,
          "each unmask updates and commits" },
        { "/accel/hotplug", test_hotplug },
    };

    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_machine("virt") || !qtest_has_device("arm-gicv3")) {
        /* A build with KVM only: qtest uses the TCG GICv3. */
        g_test_message("virt machine with TCG GICv3 not available");
        return 0;
    }
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        qtest_add_data_func(tests[i].path, &tests[i], run_test);
    }
    return g_test_run();
}
