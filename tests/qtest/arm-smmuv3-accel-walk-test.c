/*
 * QTest for what an accelerated SMMUv3 makes of the guest's tables
 *
 * Each case programs tables, fires a vector, and looks where the message went
 * and what the event queue says.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"
#include "smmuv3-cases.h"

typedef struct WalkTarget {
    SMMUv3Target target;
    OneDevice *device;
} WalkTarget;

/* Did a message arrive in RAM? */
static bool access_ram(SMMUv3Target *t, uint64_t giova)
{
    OneDevice *d = container_of(t, WalkTarget, target)->device;

    set_vector(d->pci, 0, giova, MSI_DATA);
    fire(d->m, d->dev, 0);
    mask_vector(d->pci, 0, true);
    return take(d->m, t->pa & ~0xfffull, giova) == MSI_DATA;
}

/*
 * Did a message arrive at the GICv2m? When the vector is unmasked, QEMU looks
 * where its messages would go, to make a route; that must leave no event.
 */
static bool access_v2m(SMMUv3Target *t, uint64_t giova)
{
    OneDevice *d = container_of(t, WalkTarget, target)->device;
    unsigned events = qsmmu_events(t->g);

    set_vector(d->pci, 0, giova, SPI);
    g_assert_cmpuint(qsmmu_events(t->g), ==, events);
    fire(d->m, d->dev, 0);
    mask_vector(d->pci, 0, true);
    return take_spi(d->m, SPI);
}

static void run_with_ram(Machine *m, void (*fn)(SMMUv3Target *t))
{
    OneDevice d = one_device_start(m);
    WalkTarget t = {
        .target = {
            .g = &m->smmu[0],
            .sid = ONE_SID,
            .pa = TARGET(1) | 0x40,
            .access = access_ram,
        },
        .device = &d,
    };

    fn(&t.target);
    one_device_stop(&d);
}

static void run_with_v2m(Machine *m, void (*fn)(SMMUv3Target *t))
{
    OneDevice d = irqchip_start(m);
    WalkTarget t = {
        .target = {
            .g = &m->smmu[0],
            .sid = ONE_SID,
            .pa = V2M_BASE | V2M_SETSPI_NS,
            .access = access_v2m,
        },
        .device = &d,
    };

    fn(&t.target);
    one_device_stop(&d);
}

static void test_stage1(void)
{
    run_with_ram(machine_new_default(), smmuv3_test_stage1);
}

static void test_stage1_silently(void)
{
    run_with_v2m(machine_new_irqchip(), smmuv3_test_stage1);
}

static void test_stream_tables(void)
{
    run_with_ram(machine_new_default(), smmuv3_test_stream_tables);
}

static void test_stream_tables_silently(void)
{
    run_with_v2m(machine_new_irqchip(), smmuv3_test_stream_tables);
}

/* What only an accelerated SMMU does */
static void run_accel_cases(SMMUv3Target *t)
{
    static const uint64_t addr = MAKE_64BIT_MASK(6, 46);
    static const SMMUv3Case cases[] = {
        /* A device's access is unprivileged. */
        { "page for privileged accesses",
          .change = { { IN_PTE, 3, 1 << 6, 0 } },
          .outcome = QSMMU_F_PERMISSION },
        { "table for privileged accesses",
          .change = { { IN_PTE, 1, 0, 1ull << 61 } },
          .outcome = QSMMU_F_PERMISSION },
        { "table for privileged accesses, with HAD0",
          .change = { { IN_PTE, 1, 0, 1ull << 61 }, { IN_CD, 1, 0, 2 } } },

        /* Tables are read from memory only. */
        { "CD in a device",
          .change = { { IN_STE, 0, addr, GICD_BASE } },
          .outcome = QSMMU_F_CD_FETCH, .fetch = GICD_BASE },
        { "L1CD in a device", .s1fmt = 1, .s1cdmax = 8,
          .change = { { IN_STE, 0, addr, GICD_BASE }, { IN_STE, 1, 0, 2 } },
          .outcome = QSMMU_F_CD_FETCH, .fetch = GICD_BASE },
        { "page table in a device",
          .change = { { IN_PTE, 2, addr, GICD_BASE } },
          .outcome = QSMMU_F_WALK_EABT, .fetch = GICD_BASE },

        { "bypass beyond OAS", .change = { { IN_STE, 0, 0xe, 0x8 } },
          .outcome = QSMMU_F_ADDR_SIZE },

        /* Substreams: this access has none. */
        { "S1DSS terminates", .s1cdmax = 4,
          .outcome = QSMMU_F_STREAM_DISABLED },
        { "S1DSS reserved", .s1cdmax = 4, .change = { { IN_STE, 1, 0, 3 } },
          .outcome = QSMMU_F_STREAM_DISABLED },
        { "S1DSS bypasses", .s1cdmax = 4, .identity = true,
          .change = { { IN_STE, 1, 0, 1 }, { IN_CD, 0, 1ull << 31, 0 } } },
        { "S1DSS bypasses, beyond OAS", .s1cdmax = 4,
          .change = { { IN_STE, 1, 0, 1 }, { IN_CD, 0, 1ull << 31, 0 } },
          .outcome = QSMMU_F_ADDR_SIZE },
        { "linear", .s1cdmax = 4, .change = { { IN_STE, 1, 0, 2 } } },
        { "as many substreams as there are", .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 } } },
        { "more substreams than there are", .s1cdmax = 9,
          .change = { { IN_STE, 1, 0, 2 } }, .outcome = QSMMU_C_BAD_STE },
        { "linear, CD.V = 0", .s1cdmax = 4,
          .change = { { IN_STE, 1, 0, 2 }, { IN_CD, 0, 1ull << 31, 0 } },
          .outcome = QSMMU_C_BAD_CD },
        { "two levels of 4KB", .s1fmt = 1, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 } } },
        { "two levels of 4KB, one L1CD", .s1fmt = 1, .s1cdmax = 2,
          .change = { { IN_STE, 1, 0, 2 } } },
        { "two levels of 64KB", .s1fmt = 2, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 } } },
        { "S1Fmt reserved is linear", .s1fmt = 3, .s1cdmax = 4,
          .change = { { IN_STE, 1, 0, 2 } } },
        { "two levels, terminated before the L1CD", .s1fmt = 1, .s1cdmax = 8,
          .change = { { IN_L1CD, 0, 1, 0 } },
          .outcome = QSMMU_F_STREAM_DISABLED },
        { "L1CD.V = 0", .s1fmt = 1, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 }, { IN_L1CD, 0, 1, 0 } },
          .outcome = QSMMU_C_BAD_SUBSTREAMID },
        { "L1CD.L2Ptr beyond OAS", .s1fmt = 1, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 }, { IN_L1CD, 0, 0, 1ull << 44 } },
          .outcome = QSMMU_C_BAD_SUBSTREAMID },
        { "L1CD in a hole", .s1fmt = 2, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 }, { IN_STE, 0, addr, HOLE } },
          .outcome = QSMMU_F_CD_FETCH, .fetch = HOLE },
        { "CD in a hole", .s1fmt = 2, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 }, { IN_L1CD, 0, addr, HOLE } },
          .outcome = QSMMU_F_CD_FETCH, .fetch = HOLE },
    };

    unsigned events;

    smmuv3_run_cases(t, cases, ARRAY_SIZE(cases));

    /* Without translation the address is limited as well, and silently. */
    events = qsmmu_events(t->g);
    qsmmu_guest_disable(t->g);
    g_assert_true(t->access(t, t->pa));
    g_assert_false(t->access(t, t->pa | 1ull << 44));
    g_assert_cmpuint(qsmmu_events(t->g), ==, events);
}

static void test_accel_cases(void)
{
    run_with_ram(machine_new("gic-version=3", ",ssidsize=8"), run_accel_cases);
}

static void test_accel_cases_silently(void)
{
    Machine *m = machine_new("gic-version=2", ",ssidsize=8");

    g_string_append(m->args, "-accel qtest,irqchip=on ");
    run_with_v2m(m, run_accel_cases);
}

/*
 * A BAR that VFIO maps into the guest counts as RAM nearly everywhere, but it
 * is registers: no table can be there, though a good CD is.
 */
static void run_cd_in_bar(SMMUv3Target *t)
{
    OneDevice *d = container_of(t, WalkTarget, target)->device;
    QPCIBar bar = qpci_iomap(d->pci, HD_BAR_DATA, NULL);
    SMMUv3Case c = {
        "CD in a BAR",
        .change = { { IN_STE, 0, MAKE_64BIT_MASK(6, 46), bar.addr } },
        .outcome = QSMMU_F_CD_FETCH, .fetch = bar.addr,
    };
    QSMMUDomain *domain = d->domain;

    for (int i = 0; i < sizeof(CD); i += 4) {
        qpci_io_writel(d->pci, bar, i, qtest_readl(t->g->qts, domain->cd + i));
    }
    qsmmu_map(domain, 5ull << 42 | (t->pa & MAKE_64BIT_MASK(12, 30)),
              t->pa & ~0xfffull);
    smmuv3_run_cases(t, &c, 1);

    /* In RAM it does. */
    c = (SMMUv3Case) {
        "CD in RAM",
        .change = { { IN_STE, 0, MAKE_64BIT_MASK(6, 46), domain->cd } },
    };
    smmuv3_run_cases(t, &c, 1);
}

static void test_cd_in_bar(void)
{
    run_with_ram(machine_new_default(), run_cd_in_bar);
}

/* Addresses of 52 bits: those above RAM lead nowhere, without an event. */
static void run_52bit_cases(SMMUv3Target *t)
{
    static const uint64_t ips = 7ull << 32, ips48 = 5ull << 32;
    static const uint64_t ips52 = 6ull << 32, addr = MAKE_64BIT_MASK(6, 46);
    static const SMMUv3Case cases[] = {
        { "64KB block at level 1", .granule = 16, .up = 2 },
        { "16KB block at level 1", .granule = 14, .up = 2,
          .outcome = QSMMU_F_TRANSLATION },
        { "64KB page", .granule = 16, .change = { { IN_CD, 0, ips, ips52 } } },
        { "64KB page above 2^48", .granule = 16,
          .change = { { IN_CD, 0, ips, ips52 }, { IN_PTE, 3, 0, 0x1000 } },
          .outcome = DROPPED },
        { "64KB block above 2^48", .granule = 16, .up = 1,
          .change = { { IN_CD, 0, ips, 7ull << 32 },
                      { IN_PTE, 2, 0, 0x8000 } },
          .outcome = DROPPED },
        { "64KB page above IPS", .granule = 16,
          .change = { { IN_CD, 0, ips, ips48 }, { IN_PTE, 3, 0, 0x1000 } },
          .outcome = QSMMU_F_ADDR_SIZE },
        { "64KB table above IPS", .granule = 16,
          .change = { { IN_CD, 0, ips, ips48 }, { IN_PTE, 2, 0, 0x1000 } },
          .outcome = QSMMU_F_ADDR_SIZE },
        { "64KB TTB0 above 2^48", .granule = 16,
          .change = { { IN_CD, 0, ips, ips52 },
                      { IN_CD, 1, addr, HOLE | 1ull << 48 } },
          .outcome = QSMMU_F_WALK_EABT, .fetch = HOLE | 1ull << 48 },
        { "64KB page above 2^48, with 4KB pages in TTB0", .granule = 16,
          .high = 0xffffull << 48,
          .change = { { IN_CD, 0, ips | 3 << 6, ips52 },
                      { IN_PTE, 3, 0, 0x1000 } },
          .outcome = DROPPED },
        { "4KB TTB0 above 2^48",
          .change = { { IN_CD, 0, ips, ips52 }, { IN_CD, 1, 0, 1ull << 48 } },
          .outcome = QSMMU_C_BAD_CD },
    };

    smmuv3_run_cases(t, cases, ARRAY_SIZE(cases));
}

static void test_52bit_cases(void)
{
    Machine *m = machine_new("gic-version=3", ",oas=auto");

    m->hd->shm->smmu[0].idr[5] = FIELD_DP32(m->hd->shm->smmu[0].idr[5],
                                            IDR5, OAS, 6);
    run_with_ram(m, run_52bit_cases);
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

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/walk/stage1", test_stage1 },
        { "/accel/walk/stage1-silently", test_stage1_silently },
        { "/accel/walk/stream-tables", test_stream_tables },
        { "/accel/walk/stream-tables-silently", test_stream_tables_silently },
        { "/accel/walk/accel-cases", test_accel_cases },
        { "/accel/walk/accel-cases-silently", test_accel_cases_silently },
        { "/accel/walk/cd-in-bar", test_cd_in_bar },
        { "/accel/walk/52bit-cases", test_52bit_cases },
        { "/accel/walk/stream-states", test_stream_states },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
