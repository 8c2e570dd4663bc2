/*
 * QTest for the address space of devices behind an accelerated SMMUv3
 *
 * A root port is enough of a device for that: its hot-plug interrupt is an
 * MSI-X message that QEMU sends. The doorbell of most tests is in guest RAM by
 * its number, and maps to another page of RAM, so that a message that goes
 * astray is seen as well as one that arrives.
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

/* The first device on the virt machine's platform bus */
#define SMMU_BASE       0x0c000000ull
#define UART_BASE       0x09000000ull

#define RAM_BASE        0x40000000ull
#define TABLES          (RAM_BASE + 128 * MiB)
#define TABLES_SIZE     (16 * MiB)
#define PORT_SID        PCI_DEVFN(1, 0)

#define DOORBELL        (RAM_BASE + 0xf001040)  /* a gIOVA */
#define TARGET          (RAM_BASE + 0xe800000)  /* pages that it may map to */
#define TARGET2         (RAM_BASE + 0xe900000)
#define MSI_DATA        0x1234abcd
#define MARKER          0x5a5a5a5a

typedef struct AccelTest {
    QTestState *qts;
    QGenericPCIBus gbus;
    QPCIDevice *port;
    uint64_t slot_ctl;  /* of the port, in its configuration space */
    QSMMUGuest smmu;
    QSMMUDomain *domain;
} AccelTest;

static char *accel_args(const char *machine, const char *properties)
{
    /* accel=on wants firmware, which a qtest does not run. */
    return g_strdup_printf(
        "-machine virt,%s -cpu max -smp 1 -m 512 -net none "
        "-bios /dev/null "
        "-device arm-smmuv3,primary-bus=pcie.0,accel=on,"
        "ril=on,ats=off,oas=44,%s "
        "-device pcie-root-port,id=rp1,addr=1.0,chassis=1",
        machine, properties);
}

static AccelTest *accel_start(const char *properties)
{
    AccelTest *t = g_new0(AccelTest, 1);
    g_autofree char *args = accel_args("gic-version=3", properties);
    uint8_t cap;

    t->qts = qtest_init(args);
    qpci_init_generic(&t->gbus, t->qts, NULL, false);
    t->port = qpci_device_find(&t->gbus.bus, PORT_SID);
    g_assert_nonnull(t->port);
    qpci_device_enable(t->port);
    cap = qpci_find_capability(t->port, PCI_CAP_ID_EXP, 0);
    t->slot_ctl = cap + PCI_EXP_SLTCTL;

    /* A hot-plug event that is pending until HPIE is set */
    qtest_qmp_device_add(t->qts, "pcie-pci-bridge", "br1", "{'bus': 'rp1'}");

    qsmmu_guest_init(&t->smmu, t->qts, SMMU_BASE, TABLES, TABLES_SIZE);
    t->domain = qsmmu_domain_new(&t->smmu, 12, 1);

    qtest_writel(t->qts, TARGET + (DOORBELL & 0xfff), 0);
    qtest_writel(t->qts, TARGET2 + (DOORBELL & 0xfff), 0);
    qtest_writel(t->qts, DOORBELL, MARKER);
    return t;
}

static void accel_stop(AccelTest *t)
{
    qtest_quit(t->qts);
    g_free(t->domain);
    g_free(t->port);
    g_free(t);
}

/* With a domain of the port's that maps nothing yet */
static void enable_smmu(AccelTest *t)
{
    qsmmu_guest_enable(&t->smmu);
    qsmmu_attach(&t->smmu, PORT_SID, t->domain);
}

static void write_vector(AccelTest *t, uint64_t address, bool masked)
{
    QPCIBar bar = t->port->msix_table_bar;
    uint64_t off = t->port->msix_table_off;

    qpci_io_writel(t->port, bar, off + PCI_MSIX_ENTRY_LOWER_ADDR, address);
    qpci_io_writel(t->port, bar, off + PCI_MSIX_ENTRY_UPPER_ADDR,
                   address >> 32);
    qpci_io_writel(t->port, bar, off + PCI_MSIX_ENTRY_DATA, MSI_DATA);
    qpci_io_writel(t->port, bar, off + PCI_MSIX_ENTRY_VECTOR_CTRL, masked);
}

static void set_doorbell(AccelTest *t, uint64_t giova)
{
    qpci_msix_enable(t->port);
    write_vector(t, giova, false);
}

/* Each change of HPIE while an event is pending makes QEMU send a message. */
static void fire(AccelTest *t)
{
    uint16_t ctl = qpci_config_readw(t->port, t->slot_ctl);

    qpci_config_writew(t->port, t->slot_ctl,
                       (ctl ^ PCI_EXP_SLTCTL_HPIE) | PCI_EXP_SLTCTL_PDCE |
                       PCI_EXP_SLTCTL_ABPE);
}

static uint32_t arrived(AccelTest *t, uint64_t page)
{
    return qtest_readl(t->qts, page + (DOORBELL & 0xfff));
}

static void assert_one_event(AccelTest *t, uint8_t type)
{
    uint64_t event[4];

    g_assert_cmpuint(qsmmu_events(&t->smmu), ==, 1);
    qsmmu_event(&t->smmu, 0, event);
    g_assert_cmphex(QSMMU_EVT_TYPE(event), ==, type);
    g_assert_cmphex(QSMMU_EVT_SID(event), ==, PORT_SID);
}

/* Nothing arrived anywhere, and RAM at the doorbell's number is untouched. */
static void assert_dropped(AccelTest *t)
{
    g_assert_cmphex(arrived(t, TARGET), ==, 0);
    g_assert_cmphex(qtest_readl(t->qts, DOORBELL), ==, MARKER);
}

static void assert_delivered(AccelTest *t, uint64_t page)
{
    g_assert_cmphex(arrived(t, page), ==, MSI_DATA);
    g_assert_cmphex(qtest_readl(t->qts, DOORBELL), ==, MARKER);
    g_assert_cmpuint(qsmmu_events(&t->smmu), ==, 0);
}

/* What QEMU says that does not start, with @before first of all arguments */
static char *refused(const char *before, const char *machine)
{
    g_autofree char *args = accel_args(machine, "ssidsize=0");
    /* A device that there is not ends QEMU in any case. */
    g_autofree char *command = g_strdup_printf(
        "%s %s -accel qtest -display none %s -device no-such-device",
        getenv("QTEST_QEMU_BINARY"), before, args);
    g_autoptr(GError) error = NULL;
    char *err = NULL;
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, &err, &status,
                                            &error));
    g_test_message("%s", err);
    g_assert_cmpint(status, !=, 0);
    return err;
}

static void test_no_msi_controller(void)
{
    g_autofree char *err = refused("-nodefaults", "gic-version=3,msi=off");

    g_assert_nonnull(strstr(err, "accel=on needs an MSI controller"));
    g_assert_nonnull(strstr(err, "-machine msi=its"));
}

/* What else is wrong is not told as well: a second error is an assertion. */
static void test_two_errors(void)
{
    g_autofree char *err = refused("-nodefaults",
                                   "gic-version=3,iommu=smmuv3,msi=off");

    g_assert_nonnull(strstr(err, "virt machine already has iommu=smmuv3"));
    g_assert_null(strstr(err, "Assertion"));
}

/* One that the machine makes on its own, or that comes first in the command */
static void test_device_before_smmu(void)
{
    static const struct {
        const char *device, *before, *name;
    } cases[] = {
        { "virtio-net-pci", "-nodefaults -nic hubport,hubid=0",
          "PCIE device 0000:00:01.0 (virtio-net-pci)" },
        { "edu", "-nodefaults -device edu,id=first", "first (edu)" },
        { "edu", "-nodefaults -device pcie-root-port,id=rp,chassis=9 "
                 "-device edu,id=below,bus=rp", "below (edu)" },
    };
    unsigned tried = 0;

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *err = NULL;

        if (!qtest_has_device(cases[i].device)) {
            continue;
        }
        tried++;
        err = refused(cases[i].before, "gic-version=3");
        g_assert_nonnull(strstr(err, cases[i].name));
        g_assert_nonnull(strstr(err, "was there before the SMMU"));
        g_assert_nonnull(strstr(err, "-nic none"));
    }
    if (!tried) {
        g_test_skip("no emulated device to try it with");
    }
}

static void test_mtree(void)
{
    AccelTest *t = accel_start("ssidsize=0");
    g_autofree char *mtree = qtest_hmp(t->qts, "info mtree");
    const char *as = strstr(mtree, "smmuv3-accel-pcie.0-01.0\r\n");

    g_assert_nonnull(as);
    g_assert_nonnull(strstr(as, "(prio 1, i/o): smmuv3-accel-pcie.0-01.0-msi"));
    g_assert_nonnull(strstr(as, "alias smmuv3-accel-pcie.0-01.0-sysmem "
                                "@system"));
    accel_stop(t);
}

static void test_smmu_disabled(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    set_doorbell(t, TARGET + (DOORBELL & 0xfff));
    fire(t);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

static void test_gbpa_abort(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    qtest_writel(t->qts, SMMU_BASE + A_GBPA,
                 R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_dropped(t);
    accel_stop(t);
}

static void test_translated(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

static void test_high_doorbell(void)
{
    AccelTest *t = accel_start("ssidsize=0");
    uint64_t giova = 0xfffff0000000ull | (DOORBELL & 0xfff);

    enable_smmu(t);
    qsmmu_map(t->domain, giova, TARGET);
    set_doorbell(t, giova);
    fire(t);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

static void test_unmapped(void)
{
    AccelTest *t = accel_start("ssidsize=0");
    uint64_t event[4];

    enable_smmu(t);
    set_doorbell(t, DOORBELL);
    g_assert_cmpuint(qsmmu_events(&t->smmu), ==, 0);
    fire(t);
    assert_dropped(t);
    assert_one_event(t, QSMMU_F_TRANSLATION);
    qsmmu_event(&t->smmu, 0, event);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==, DOORBELL);
    accel_stop(t);
}

static void test_mapped_late(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    set_doorbell(t, DOORBELL);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    fire(t);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

/* No invalidation: with a virtual command queue QEMU would not see it. */
static void test_remapped(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_delivered(t, TARGET);
    g_assert_cmphex(arrived(t, TARGET2), ==, 0);

    qtest_writel(t->qts, TARGET + (DOORBELL & 0xfff), MARKER);
    qsmmu_map(t->domain, DOORBELL, TARGET2);
    fire(t);
    assert_delivered(t, TARGET2);
    g_assert_cmphex(arrived(t, TARGET), ==, MARKER);
    accel_stop(t);
}

static void test_doorbell_moved(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    qsmmu_map(t->domain, DOORBELL + 0x1000, TARGET2);
    set_doorbell(t, DOORBELL);
    write_vector(t, DOORBELL + 0x1000, false);
    fire(t);
    assert_delivered(t, TARGET2);
    g_assert_cmphex(arrived(t, TARGET), ==, 0);
    accel_stop(t);
}

static void test_pending_while_masked(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    qpci_msix_enable(t->port);
    write_vector(t, DOORBELL, true);
    fire(t);
    assert_dropped(t);
    g_assert_true(qpci_msix_pending(t->port, 0));

    write_vector(t, DOORBELL, false);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

static void test_bad_ste(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qsmmu_attach(&t->smmu, PORT_SID, NULL);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_dropped(t);
    assert_one_event(t, QSMMU_C_BAD_STE);
    accel_stop(t);
}

static void test_reserved_ips(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    set_doorbell(t, DOORBELL);
    for (uint64_t ips = 6; ips <= 7; ips++) {
        qsmmu_modify(&t->smmu, t->domain->cd, 7ull << 32, ips << 32);
        fire(t);
        assert_delivered(t, TARGET);
        qtest_writel(t->qts, TARGET + (DOORBELL & 0xfff), 0);
    }
    accel_stop(t);
}

/* A stream table on a device's registers ends in a fault, not in a read. */
static void test_tables_in_memory_only(void)
{
    AccelTest *t = accel_start("ssidsize=0");

    enable_smmu(t);
    qtest_writeq(t->qts, SMMU_BASE + A_STRTAB_BASE, UART_BASE);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_dropped(t);
    assert_one_event(t, QSMMU_F_STE_FETCH);
    accel_stop(t);
}

/* The port's CD becomes the first of two, and is for messages as S1DSS says. */
static void set_substreams(AccelTest *t, uint32_t s1dss)
{
    qsmmu_set_ste(&t->smmu, PORT_SID, qsmmu_cd_table(t->domain, 0, 1), s1dss);
}

static void test_s1dss_bypass(void)
{
    AccelTest *t = accel_start("ssidsize=4");

    enable_smmu(t);
    set_substreams(t, STE_S1DSS_BYPASS);
    qtest_writel(t->qts, t->domain->cd, 0); /* not valid, as Linux has it */
    set_doorbell(t, TARGET + (DOORBELL & 0xfff));
    fire(t);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

static void test_s1dss_ssid0(void)
{
    AccelTest *t = accel_start("ssidsize=4");

    enable_smmu(t);
    set_substreams(t, STE_S1DSS_SSID0);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_delivered(t, TARGET);
    accel_stop(t);
}

static void test_s1dss_terminate(void)
{
    AccelTest *t = accel_start("ssidsize=4");

    enable_smmu(t);
    set_substreams(t, 0 /* terminate */);
    qsmmu_map(t->domain, DOORBELL, TARGET);
    set_doorbell(t, DOORBELL);
    fire(t);
    assert_dropped(t);
    assert_one_event(t, QSMMU_F_STREAM_DISABLED);
    accel_stop(t);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *path;
        void (*fn)(void);
    } tests[] = {
        { "/accel/no-msi-controller", test_no_msi_controller },
        { "/accel/two-errors", test_two_errors },
        { "/accel/device-before-smmu", test_device_before_smmu },
        { "/accel/mtree", test_mtree },
        { "/accel/msi/smmu-disabled", test_smmu_disabled },
        { "/accel/msi/gbpa-abort", test_gbpa_abort },
        { "/accel/msi/translated", test_translated },
        { "/accel/msi/high-doorbell", test_high_doorbell },
        { "/accel/msi/unmapped", test_unmapped },
        { "/accel/msi/mapped-late", test_mapped_late },
        { "/accel/msi/remapped", test_remapped },
        { "/accel/msi/doorbell-moved", test_doorbell_moved },
        { "/accel/msi/pending-while-masked", test_pending_while_masked },
        { "/accel/msi/bad-ste", test_bad_ste },
        { "/accel/walk/reserved-ips", test_reserved_ips },
        { "/accel/walk/tables-in-memory-only", test_tables_in_memory_only },
        { "/accel/walk/s1dss-bypass", test_s1dss_bypass },
        { "/accel/walk/s1dss-ssid0", test_s1dss_ssid0 },
        { "/accel/walk/s1dss-terminate", test_s1dss_terminate },
    };

    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_machine("virt") || !qtest_has_device("arm-gicv3")) {
        /* A build with KVM only: qtest uses the TCG GICv3. */
        g_test_message("virt machine with TCG GICv3 not available");
        return 0;
    }
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        qtest_add_func(tests[i].path, tests[i].fn);
    }
    return g_test_run();
}
