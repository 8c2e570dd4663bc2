/*
 * QTest for what an emulated SMMUv3 makes of the guest's tables
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/generic-pcihost.h"
#include "hw/misc/iommu-testdev.h"
#include "smmuv3-cases.h"

#define SMMU_BASE       0x0c000000ull   /* the first on the platform bus */
#define RAM_BASE        0x40000000ull
#define TABLES          (RAM_BASE + 128 * MiB)
#define TABLES_SIZE     (64 * MiB)
#define TARGET          (RAM_BASE + 0xe810040)
#define TESTDEV_SID     PCI_DEVFN(2, 0)

typedef struct Machine {
    QTestState *qts;
    QGenericPCIBus gbus;
    QPCIDevice *pci;
    QPCIBar bar;
    QSMMUGuest smmu;
    SMMUv3Target target;
} Machine;

/* Have the device write a word, by what the SMMU makes of @giova. */
static bool access_testdev(SMMUv3Target *t, uint64_t giova)
{
    Machine *m = container_of(t, Machine, target);
    QPCIDevice *pci = m->pci;

    qsmmu_cfgi_ste(&m->smmu, t->sid);
    qsmmu_command(&m->smmu, SMMU_CMD_TLBI_NSNH_ALL, 0);
    qtest_writel(m->qts, t->pa, 0);
    qpci_io_writel(pci, m->bar, ITD_REG_DMA_GVA_LO, giova);
    qpci_io_writel(pci, m->bar, ITD_REG_DMA_GVA_HI, giova >> 32);
    qpci_io_writel(pci, m->bar, ITD_REG_DMA_GPA_LO, t->pa);
    qpci_io_writel(pci, m->bar, ITD_REG_DMA_GPA_HI, t->pa >> 32);
    qpci_io_writel(pci, m->bar, ITD_REG_DMA_LEN, 4);
    qpci_io_writel(pci, m->bar, ITD_REG_DMA_DBELL, ITD_DMA_DBELL_ARM);
    qpci_io_readl(pci, m->bar, ITD_REG_DMA_TRIGGERING);
    return qtest_readl(m->qts, t->pa) == ITD_DMA_WRITE_VAL;
}

static Machine *machine_start_with(const char *stage, unsigned megabytes)
{
    Machine *m = g_new0(Machine, 1);

    m->qts = qtest_initf("-machine virt,gic-version=3 "
                         "-device arm-smmuv3,primary-bus=pcie.0,stage=%s "
                         "-smp 1 -m %u -cpu max -net none "
                         "-device iommu-testdev,addr=2.0", stage, megabytes);
    qpci_init_generic(&m->gbus, m->qts, NULL, false);
    m->pci = qpci_device_find(&m->gbus.bus, TESTDEV_SID);
    g_assert_nonnull(m->pci);
    qpci_device_enable(m->pci);
    m->bar = qpci_iomap(m->pci, 0, NULL);
    qsmmu_guest_init(&m->smmu, m->qts, SMMU_BASE, TABLES, TABLES_SIZE);
    qsmmu_guest_enable(&m->smmu);
    m->target = (SMMUv3Target) {
        .g = &m->smmu,
        .sid = TESTDEV_SID,
        .pa = TARGET,
        .access = access_testdev,
    };
    return m;
}

static Machine *machine_start(const char *stage)
{
    return machine_start_with(stage, 512);
}

static void machine_stop(Machine *m)
{
    g_free(m->pci);
    qtest_quit(m->qts);
    g_free(m);
}

static void test_stage1(void)
{
    Machine *m = machine_start("1");

    smmuv3_test_stage1(&m->target);
    machine_stop(m);
}

static void test_stream_tables(void)
{
    Machine *m = machine_start("1");

    smmuv3_test_stream_tables(&m->target);
    machine_stop(m);
}

/* Bits of the third 64-bit word of an STE */
#define STE2_T0SZ(n)    ((uint64_t)(n) << 32)
#define STE2_SL0(n)     ((uint64_t)(n) << 38)
#define STE2_TG(n)      ((uint64_t)(n) << 46)
#define STE2_PS_44      (4ull << 48)
#define STE2_AA64       (1ull << 51)
#define STE2_ENDI       (1ull << 52)
#define STE2_AFFD       (1ull << 53)
#define STE2_S          (1ull << 57)
#define STE2_R          (1ull << 58)

#define STE2_TG_64KB    STE2_TG(1)
#define STE2_TG_16KB    STE2_TG(2)

#define STE2_VALID      (STE2_PS_44 | STE2_AA64 | STE2_AFFD | STE2_R)

/* AP of stage 2: readable and writable */
#define S2_PAGE         0x7c3ull
#define S2_BLOCK        0x7c1ull

static const struct {
    const char *name;
    unsigned granule;
    int start;              /* level of the first table */
    int leaf;
    uint64_t leaf_bits;
    uint64_t ste1, ste2;
    uint8_t outcome;
    uint64_t high;          /* bits of the address above that of the target */
} stage2_cases[] = {
    { "page of 4KB", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2), ARRIVES },
    { "first of two concatenated tables", 12, 1, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(24) | STE2_SL0(1), ARRIVES },
    { "second of two concatenated tables", 12, 1, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(24) | STE2_SL0(1), ARRIVES, 1ull << 39 },
    { "last of four concatenated tables", 16, 2, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(1) | STE2_TG_64KB, ARRIVES,
      3ull << 42 },
    { "block at level 1", 12, 0, 1, S2_BLOCK, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2), ARRIVES },
    { "block of 4KB granule at level 0", 12, 0, 0, S2_BLOCK, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2), QSMMU_F_TRANSLATION },
    { "block of 16KB granule at level 2", 14, 1, 2, S2_BLOCK, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2) | STE2_TG_16KB, ARRIVES },
    { "block of 16KB granule at level 1", 14, 1, 1, S2_BLOCK, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2) | STE2_TG_16KB,
      QSMMU_F_TRANSLATION },
    { "block of 64KB granule at level 1", 16, 1, 1, S2_BLOCK, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2) | STE2_TG_64KB,
      QSMMU_F_TRANSLATION },
    { "page beyond S2PS that is not writable", 12, 0, 3,
      (S2_PAGE & ~0x80ull) | 1ull << 45, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2), QSMMU_F_ADDR_SIZE },
    { "S1STALLD and S1CDMax are ignored", 12, 0, 3, S2_PAGE, 1ull << 27,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2), ARRIVES },
    { "AArch32 tables", 12, 0, 3, S2_PAGE, 0,
      (STE2_VALID & ~STE2_AA64) | STE2_T0SZ(20) | STE2_SL0(2),
      QSMMU_C_BAD_STE },
    { "start level above the input range", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(25) | STE2_SL0(2), QSMMU_C_BAD_STE },
    { "start level far above the input range", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(39) | STE2_SL0(2), QSMMU_C_BAD_STE },
    { "start level above the input range, 64KB", 16, 1, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(39) | STE2_SL0(2) | STE2_TG_64KB,
      QSMMU_C_BAD_STE },
    { "start level below the input range", 12, 2, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(0), QSMMU_C_BAD_STE },
    { "SL0 reserved", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(3), QSMMU_C_BAD_STE },
    { "TG reserved", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2) | STE2_TG(3),
      QSMMU_C_BAD_STE },
    { "big endian", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2) | STE2_ENDI,
      QSMMU_C_BAD_STE },
    { "stall", 12, 0, 3, S2_PAGE, 0,
      STE2_VALID | STE2_T0SZ(20) | STE2_SL0(2) | STE2_S, QSMMU_C_BAD_STE },
};

/* Stage 2 alone: an address below 2^39, so that it suits every block. */
static void test_stage2(void)
{
    Machine *m = machine_start("nested");
    QSMMUGuest *g = &m->smmu;
    SMMUv3Target *t = &m->target;

    for (int i = 0; i < ARRAY_SIZE(stage2_cases); i++) {
        unsigned granule = stage2_cases[i].granule, stride = granule - 3;
        unsigned leaf_shift = granule + (3 - stage2_cases[i].leaf) * stride;
        uint64_t ste = qsmmu_ste(g, t->sid), ttb, table;
        uint64_t ipa = t->pa | stage2_cases[i].high;
        unsigned events = qsmmu_events(g), start = stage2_cases[i].start;
        bool arrived;

        g_test_message("case: %s", stage2_cases[i].name);
        /* Up to 16 tables at the first level */
        ttb = table = qsmmu_guest_alloc(g, 16 << granule);
        for (int level = start; ; level++) {
            unsigned bits = stride + (level == start ? 4 : 0);
            uint64_t addr = table + 8 * extract64(ipa, granule + (3 - level) *
                                                  stride, bits);

            if (level == stage2_cases[i].leaf) {
                qtest_writeq(m->qts, addr, stage2_cases[i].leaf_bits |
                             (t->pa & ~MAKE_64BIT_MASK(0, leaf_shift)));
                break;
            }
            table = qsmmu_guest_alloc(g, 1 << granule);
            qtest_writeq(m->qts, addr, table | 3);
        }
        qtest_writeq(m->qts, ste + 16, stage2_cases[i].ste2);
        qtest_writeq(m->qts, ste + 24, ttb);
        qsmmu_set_ste(g, t->sid, 0xd | (stage2_cases[i].ste1 ? 1ull << 59 : 0),
                      stage2_cases[i].ste1);

        arrived = t->access(t, ipa);
        g_test_message("%s", arrived ? "arrived" : "did not arrive");
        if (qsmmu_events(g) != events) {
            uint64_t event[4];

            g_assert_cmpuint(qsmmu_events(g), ==, events + 1);
            qsmmu_event(g, events, event);
            g_assert_cmphex(QSMMU_EVT_TYPE(event), ==,
                            stage2_cases[i].outcome);
        }
        g_assert_cmpint(arrived, ==, stage2_cases[i].outcome == ARRIVES);
        g_assert_cmpint(arrived, ==, qsmmu_events(g) == events);
    }
    machine_stop(m);
}

/* CD.IPS limits the IPA of a table, and says nothing about where that is. */
static void test_nested_high_ttb(void)
{
    const uint64_t ipa = 3 * GiB, pa = 4 * GiB;     /* of a first table */
    Machine *m = machine_start_with("nested", 3 * KiB + 512);
    QSMMUGuest *g = &m->smmu;
    SMMUv3Target *t = &m->target;
    uint64_t ste = qsmmu_ste(g, t->sid), stage2 = qsmmu_guest_alloc(g, 4096);
    QSMMUDomain *domain = qsmmu_domain_new(g, 12, 1);

    qtest_writeq(m->qts, stage2 + 8, RAM_BASE | S2_BLOCK);
    qtest_writeq(m->qts, stage2 + 8 * (ipa / GiB), pa | S2_BLOCK);
    qtest_writeq(m->qts, ste + 16, STE2_VALID | STE2_T0SZ(25) | STE2_SL0(1));
    qtest_writeq(m->qts, ste + 24, stage2);

    qsmmu_map(domain, t->pa & ~0xfffull, t->pa & ~0xfffull);
    qtest_writeq(m->qts, pa, qtest_readq(m->qts, domain->ttb));
    qsmmu_set_ttb(domain, ipa);
    qsmmu_modify(g, domain->cd, 7ull << 32, 0 /* 32 bits */);
    qsmmu_set_ste(g, t->sid, 0xf | domain->cd, 0);

    g_assert_true(t->access(t, t->pa));
    g_assert_cmpuint(qsmmu_events(g), ==, 0);
    g_free(domain);
    machine_stop(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_machine("virt") || !qtest_has_device("arm-gicv3")) {
        /* A build with KVM only: qtest uses the TCG GICv3. */
        g_test_message("virt machine with TCG GICv3 not available");
        return 0;
    }
    qtest_add_func("/smmuv3/tables/stage1", test_stage1);
    qtest_add_func("/smmuv3/tables/stream-tables", test_stream_tables);
    qtest_add_func("/smmuv3/tables/stage2", test_stage2);
    qtest_add_func("/smmuv3/tables/nested-high-ttb", test_nested_high_ttb);
    return g_test_run();
}
