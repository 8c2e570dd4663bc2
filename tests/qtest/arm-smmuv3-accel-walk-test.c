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

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/walk/granules", test_granules },
        { "/accel/walk/stream-states", test_stream_states },
        { "/accel/walk/fault-not-recorded", test_fault_not_recorded },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
