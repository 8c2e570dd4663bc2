/*
 * QTest for the re-check of routes of devices behind an accelerated SMMUv3
 *
 * A route is checked again when what it was made from may have changed: before
 * the guest can see that its command is done, and not more often than needed.
 * Look-ups are counted by their traces.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

#define PAGE            0x1000ull
#define BASE            0x4000000000ull /* a gIOVA, of blocks of any size */
#define PORT_SID        PCI_BUILD_BDF(1, 0)
#define CFGI_ALL        31              /* as range */
#define CERROR_ABT      2
#define SYNC_SIG_IRQ    (1ull << 12)

#define VA(address)     ((address) & ~0xfffull)
#define ASID(asid)      ((uint64_t)(asid) << 48)
#define SID(sid)        ((uint64_t)(sid) << 32)
#define NUM_SCALE(num, scale)   ((uint64_t)(num) << 12 | \
                                 (uint64_t)(scale) << 20)
#define TG(granule)     ((uint64_t)((granule) - 10) / 2 << 10)

typedef struct Routed {
    OneDevice t;
    uint64_t address;       /* of the message */
    uint64_t start, size;   /* what the leaf maps */
    int level;
    uint64_t pte;
} Routed;

static Machine *machine_new_traced(void)
{
    Machine *m = machine_new_irqchip();

    if (machine_can_trace()) {
        machine_trace(m, "trace:smmuv3_accel_msi_translate,"
                         "trace:smmuv3_trigger_irq");
    }
    return m;
}

static unsigned walks(Machine *m)
{
    return traced(m, "smmuv3_accel_msi_translate ");
}

static void assert_walks(Machine *m, unsigned n)
{
    if (machine_can_trace()) {
        g_assert_cmpuint(walks(m), ==, n);
        trace_mark(m);
    }
}

static void assert_walks_at_most(Machine *m, unsigned n)
{
    if (machine_can_trace()) {
        g_assert_cmpuint(walks(m), <=, n);
        trace_mark(m);
    }
}

static void ignore_walks(Machine *m)
{
    if (machine_can_trace()) {
        trace_mark(m);
    }
}

static bool is_routed(OneDevice *t, unsigned vector)
{
    QTestIrqRoute route;

    return find_route(t, VFIO_PCI_MSIX_IRQ_INDEX, vector, &route);
}

/* Vector 0 of a device is routed by a leaf at @level with bits @bits. */
static Routed routed_start_leaf(unsigned granule, int level, uint64_t bits)
{
    Routed r = { .t = irqchip_start(machine_new_traced()), .level = level };

    if (granule != 12) {
        g_free(r.t.domain);
        r.t.domain = qsmmu_domain_new(&r.t.m->smmu[0], granule, 1);
        qsmmu_attach(&r.t.m->smmu[0], ONE_SID, r.t.domain);
    }
    r.size = 1ull << (granule + (3 - level) * (granule - 3));
    r.start = BASE;
    r.address = r.start + (V2M_BASE & (r.size - 1)) + V2M_SETSPI_NS;
    r.pte = (V2M_BASE & ~(r.size - 1)) | bits;
    r.pte |= QSMMU_PTE_RW;
    if (level < 3) {
        r.pte &= ~QSMMU_PTE_TABLE;
    }
    qsmmu_domain_set_pte(r.t.domain, r.start, level, r.pte);
    set_vector(r.t.pci, 0, r.address, SPI);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    ignore_walks(r.t.m);
    return r;
}

static Routed routed_start(void)
{
    return routed_start_leaf(12, 3, QSMMU_PTE_NG);
}

static void routed_stop(Routed *r)
{
    one_device_stop(&r->t);
}

typedef struct Command {
    const char *name;
    uint64_t word0, word1;
    bool checks;
} Command;

/* A command makes the route be looked at once, or leaves it alone. */
static void try_command(Routed *r, const Command *c)
{
    QSMMUGuest *g = &r->t.m->smmu[0];
    uint64_t before = count_irqchip_calls(r->t.m);

    g_test_message("%s", c->name);
    qsmmu_command(g, c->word0, c->word1);
    assert_walks(r->t.m, c->checks);
    /* Nothing has changed. */
    g_assert_cmpuint(count_irqchip_calls(r->t.m), ==, before);
    assert_routed(&r->t, 0, DOORBELL_GPA, SPI);

    qsmmu_domain_set_pte(r->t.domain, r->start, r->level, 0);
    qsmmu_command(g, c->word0, c->word1);
    assert_walks(r->t.m, c->checks);
    g_assert_cmpint(is_routed(&r->t, 0), ==, !c->checks);
    /* What has no translation is not looked at again. */
    qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(1), VA(r->address));
    assert_walks(r->t.m, !c->checks);
    g_assert_false(is_routed(&r->t, 0));

    qsmmu_domain_set_pte(r->t.domain, r->start, r->level, r->pte);
    qsmmu_cfgi_ste(g, ONE_SID);
    assert_routed(&r->t, 0, DOORBELL_GPA, SPI);
    g_assert_cmpuint(qsmmu_events(g), ==, 0);
    ignore_walks(r->t.m);
}

static void test_tlbi(void)
{
    static const struct {
        unsigned granule;
        int level;
    } leaves[] = {
        { 12, 3 }, { 12, 2 }, { 12, 1 }, { 14, 3 }, { 14, 2 }, { 16, 3 },
        { 16, 2 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(leaves); i++) {
        unsigned granule = leaves[i].granule;
        Routed r = routed_start_leaf(granule, leaves[i].level, QSMMU_PTE_NG);
        uint64_t page = 1ull << granule, end = r.start + r.size;
        const uint64_t va = SMMU_CMD_TLBI_NH_VA | ASID(1);
        const uint64_t vaa = SMMU_CMD_TLBI_NH_VAA;
        const uint64_t tg = TG(granule);
        const Command commands[] = {
            { "the doorbell", va, VA(r.address), true },
            { "leaf only", va, VA(r.address) | 1, true },
            { "first page", va, r.start, true },
            { "last page", va, end - PAGE, true },
            { "page before", va, r.start - page },
            { "page after", va, end },
            { "other ASID", SMMU_CMD_TLBI_NH_VA | ASID(2), VA(r.address) },
            { "ASID with the same low byte", va | ASID(0x100),
              VA(r.address) },
            { "any ASID", vaa, VA(r.address), true },
            { "any ASID, not the last", vaa | ASID(2), end - PAGE, true },
            { "any ASID, before", vaa, r.start - page },
            { "ASID", SMMU_CMD_TLBI_NH_ASID | ASID(1), 0, true },
            { "ASID, another", SMMU_CMD_TLBI_NH_ASID | ASID(2), 0 },
            { "all", SMMU_CMD_TLBI_NH_ALL, 0, true },
            { "all of all worlds", SMMU_CMD_TLBI_NSNH_ALL, 0, true },
            { "range of one", va, r.start | tg, true },
            { "range up to it", va | NUM_SCALE(15, 0),
              (r.start - 16 * page) | tg },
            { "range into it", va | NUM_SCALE(16, 0),
              (r.start - 16 * page) | tg, true },
            { "range from its end", va | NUM_SCALE(31, 3),
              (end - page) | tg, true },
            { "range after it", va | NUM_SCALE(31, 3), end | tg },
            { "scaled range up to it", va | NUM_SCALE(1, 5),
              (r.start - 64 * page) | tg },
            { "scaled range into it", va | NUM_SCALE(2, 5),
              (r.start - 64 * page) | tg, true },
            { "large range around it", va | NUM_SCALE(31, 20),
              (r.start - 4096 * page) | tg, true },
            { "range of any ASID", vaa | NUM_SCALE(16, 0),
              (r.start - 16 * page) | tg, true },
            { "range of another ASID",
              SMMU_CMD_TLBI_NH_VA | ASID(2) | NUM_SCALE(16, 0),
              (r.start - 16 * page) | tg },
            { "largest range", va | NUM_SCALE(31, 31), tg, true },
            { "range past the end, taken as all", va | NUM_SCALE(1, 0),
              -page | tg, true },
        };

        g_test_message("granule %u, level %d", granule, leaves[i].level);
        for (unsigned j = 0; j < ARRAY_SIZE(commands); j++) {
            try_command(&r, &commands[j]);
        }
        routed_stop(&r);
    }
}

/* A global page belongs to all ASIDs, but does not go with any of them. */
static void test_tlbi_global(void)
{
    Routed r = routed_start_leaf(12, 3, 0);
    const Command commands[] = {
        { "VA of another ASID", SMMU_CMD_TLBI_NH_VA | ASID(2), BASE, true },
        { "other VA", SMMU_CMD_TLBI_NH_VA | ASID(2), BASE + PAGE },
        { "ASID", SMMU_CMD_TLBI_NH_ASID | ASID(1), 0 },
        { "all", SMMU_CMD_TLBI_NH_ALL, 0, true },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        try_command(&r, &commands[i]);
    }
    routed_stop(&r);
}

/* With CD.TBI, the top byte is no part of an address. */
static void test_tlbi_top_byte(void)
{
    const uint64_t tag = 0x5aull << 56;
    Routed r = routed_start();
    QTestState *qts = r.t.m->qts;
    uint64_t word1 = r.t.domain->cd + 4;
    const uint64_t va = SMMU_CMD_TLBI_NH_VA | ASID(1);
    const Command commands[] = {
        { "same tag", va, BASE | tag, true },
        { "no tag", va, BASE, true },
        { "other tag", va, BASE | 0xa5ull << 56, true },
        { "other page", va, (BASE + PAGE) | tag },
    };

    qtest_writel(qts, word1, qtest_readl(qts, word1) | 1 << 6);
    qsmmu_cfgi_cd(&r.t.m->smmu[0], ONE_SID);
    r.address |= tag;
    write_message(r.t.pci, 0, r.address, SPI);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    ignore_walks(r.t.m);
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        try_command(&r, &commands[i]);
    }
    routed_stop(&r);
}

static void test_cfgi(void)
{
    const uint64_t ste = SMMU_CMD_CFGI_STE, cd = SMMU_CMD_CFGI_CD;
    const uint64_t cd_all = SMMU_CMD_CFGI_CD_ALL;
    const uint64_t range = SMMU_CMD_CFGI_STE_RANGE;
    static const uint32_t sid = ONE_SID;
    const Command commands[] = {
        { "STE", ste | SID(sid), 1, true },
        { "STE, not the leaf only", ste | SID(sid), 0, true },
        { "other STE", ste | SID(sid + 1), 1 },
        { "STE of another bus", ste | SID(0x100 | sid), 1 },
        { "CD", cd | SID(sid), 1, true },
        { "other CD", cd | SID(sid - 1), 1 },
        { "all CDs", cd_all | SID(sid), 0, true },
        { "all CDs of another", cd_all | SID(sid + 8), 0 },
        { "range", range | SID(sid), 3, true },
        { "range, from within", range | SID(sid + 15), 3, true },
        { "range before", range | SID(sid - 1), 3 },
        { "range after", range | SID(sid + 16), 3 },
        { "larger range", range | SID(0), 4, true },
        { "all", range | SID(0), CFGI_ALL, true },
        { "prefetch", SMMU_CMD_PREFETCH_CONFIG | SID(sid), 0 },
        { "sync", SMMU_CMD_SYNC, 0 },
    };
    Routed r = routed_start();

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        try_command(&r, &commands[i]);
    }
    routed_stop(&r);
}

static void write_cr0(Routed *r, uint32_t bits)
{
    qtest_writel(r->t.m->qts, r->t.m->smmu[0].base + A_CR0,
                 R_CR0_CMDQEN_MASK | R_CR0_EVENTQEN_MASK | bits);
}

static void write_gbpa(Routed *r, uint32_t bits)
{
    qtest_writel(r->t.m->qts, r->t.m->smmu[0].base + A_GBPA,
                 R_GBPA_UPDATE_MASK | bits);
}

/* A doorbell that is where it seems to be when nothing is translated */
static void test_registers(void)
{
    Routed r = routed_start();

    qsmmu_map(r.t.domain, V2M_BASE, TARGET(0));
    write_message(r.t.pci, 0, DOORBELL_GPA, SPI);
    g_assert_false(is_routed(&r.t, 0));
    ignore_walks(r.t.m);

    write_cr0(&r, R_CR0_SMMUEN_MASK); /* as it was */
    assert_walks(r.t.m, 0);
    write_cr0(&r, 0);
    assert_walks(r.t.m, 1);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    write_gbpa(&r, R_GBPA_ABORT_MASK);
    assert_walks(r.t.m, 1);
    g_assert_false(is_routed(&r.t, 0));
    write_gbpa(&r, 0);
    assert_walks(r.t.m, 1);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    /* Invalidations do not concern what is not translated. */
    qsmmu_command(&r.t.m->smmu[0], SMMU_CMD_TLBI_NH_ALL, 0);
    assert_walks(r.t.m, 0);
    write_cr0(&r, R_CR0_SMMUEN_MASK);
    assert_walks(r.t.m, 1);
    g_assert_false(is_routed(&r.t, 0));
    routed_stop(&r);

    /* The stream table ends before the device's STE. */
    r = routed_start();
    qtest_writel(r.t.m->qts, r.t.m->smmu[0].base + A_STRTAB_BASE_CFG, 2);
    assert_walks(r.t.m, 1);
    g_assert_false(is_routed(&r.t, 0));
    routed_stop(&r);
}

static void test_ste(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];
    static const struct {
        uint64_t ste;
        bool routed;
    } stes[] = {
        { QSMMU_STE_BYPASS, true }, { QSMMU_STE_ABORT }, { 0 },
        { QSMMU_STE_BYPASS, true },
    };

    qsmmu_map(r.t.domain, V2M_BASE, TARGET(0));
    write_message(r.t.pci, 0, DOORBELL_GPA, SPI);
    for (unsigned i = 0; i < ARRAY_SIZE(stes); i++) {
        qsmmu_set_ste(g, ONE_SID, stes[i].ste, 1ull << 44 /* SHCFG */);
        qsmmu_cfgi_ste(g, ONE_SID);
        g_assert_cmpint(is_routed(&r.t, 0), ==, stes[i].routed);
    }
    qsmmu_attach(g, ONE_SID, r.t.domain);
    g_assert_false(is_routed(&r.t, 0));
    g_assert_cmpuint(qsmmu_events(g), ==, 0);
    routed_stop(&r);
}

/* To look is no access: no event, and nothing that a guest did wrong. */
static void test_silent(void)
{
    static const struct {
        const char *name;
        uint64_t ste, cd;
    } tables[] = {
        { "invalid STE", 0, 0 },
        { "aborting STE", QSMMU_STE_ABORT, 0 },
        { "CD outside RAM", QSMMU_STE_S1 | 0x1000000000ull, 0 },
        { "invalid CD", QSMMU_STE_S1, 0 },
        { "CD with the largest sizes", QSMMU_STE_S1, UINT64_MAX },
        { "nothing mapped", QSMMU_STE_S1, 1 },
    };
    Machine *m = machine_new_irqchip();
    OneDevice t;

    machine_trace(m, "guest_errors");
    t = irqchip_start(m);
    for (unsigned i = 0; i < ARRAY_SIZE(tables); i++) {
        QSMMUDomain *d = qsmmu_domain_new(&m->smmu[0], 12, 1);
        bool s1 = tables[i].ste == QSMMU_STE_S1;

        g_test_message("%s", tables[i].name);
        qsmmu_attach(&m->smmu[0], ONE_SID, t.domain);
        map_v2m(&t);
        set_vector(t.pci, 0, V2M_DOORBELL, SPI);
        assert_routed(&t, 0, DOORBELL_GPA, SPI);
        if (tables[i].cd != 1) {
            qtest_writeq(m->qts, d->cd, tables[i].cd);
        }
        trace_mark(m);
        qsmmu_set_ste(&m->smmu[0], ONE_SID, tables[i].ste | (s1 ? d->cd : 0),
                      0);
        qsmmu_command(&m->smmu[0], SMMU_CMD_CFGI_CD | SID(ONE_SID), 1);
        assert_not_routed(&t, 0);
        mask_vector(t.pci, 0, true);
        mask_vector(t.pci, 0, false);
        g_assert_cmpuint(traced(m, "\n"), ==, 0);
        g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
        g_free(d);
    }
    one_device_stop(&t);
}

static void test_reset(void)
{
    Routed r = routed_start();

    qtest_system_reset(r.t.m->qts);
    g_assert_cmpuint(count_routes(r.t.m), ==, 0);
    ignore_walks(r.t.m);
    qsmmu_guest_enable(&r.t.m->smmu[0]);
    qsmmu_command(&r.t.m->smmu[0], SMMU_CMD_TLBI_NH_ALL, 0);
    assert_walks(r.t.m, 0);

    g_free(r.t.pci);
    r.t.pci = find_pci(r.t.m, ONE_SID);
    set_vector(r.t.pci, 0, r.address, SPI);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    routed_stop(&r);
}

/* The message says where to look, whatever the last one said. */
static void test_message(void)
{
    Routed r = routed_start();

    write_message(r.t.pci, 0, r.address, SPI + 1);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI + 1);

    qsmmu_map(r.t.domain, BASE + PAGE, V2M_BASE);
    write_message(r.t.pci, 0, r.address + PAGE, SPI + 1);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI + 1);
    qsmmu_unmap(r.t.domain, BASE + PAGE);
    qsmmu_command(&r.t.m->smmu[0], SMMU_CMD_TLBI_NH_VA | ASID(1),
                  BASE + PAGE);
    g_assert_false(is_routed(&r.t, 0));
    routed_stop(&r);
}

static void test_delivered(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_not_routed(&t, 0);
    map_v2m(&t);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    one_device_stop(&t);
}

static void test_unchanged(void)
{
    Routed r = routed_start();
    QTestState *qts = r.t.m->qts;
    uint64_t updates = qtest_irqchip_calls(qts, "update");
    uint64_t commits = qtest_irqchip_calls(qts, "commit");

    mask_vector(r.t.pci, 0, true);
    mask_vector(r.t.pci, 0, false);
    write_message(r.t.pci, 0, r.address, SPI);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    g_assert_cmpuint(qtest_irqchip_calls(qts, "update"), ==, updates);
    g_assert_cmpuint(qtest_irqchip_calls(qts, "commit"), ==, commits);
    routed_stop(&r);
}

/* A guest may leave its old mapping be, and invalidate all of them later. */
static void test_lazy(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];

    qsmmu_unmap(r.t.domain, BASE);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    qsmmu_queue(g, SMMU_CMD_TLBI_NH_ASID | ASID(1), 0);
    qsmmu_queue(g, SMMU_CMD_SYNC, 0);
    g_assert_cmphex(qsmmu_issue_queued(g), ==, g->cmdq_prod);
    g_assert_false(is_routed(&r.t, 0));

    /* What becomes valid needs no invalidation. */
    qsmmu_map(r.t.domain, BASE, V2M_BASE);
    fire(r.t.m, r.t.dev, 0);
    g_assert_true(take_spi(r.t.m, SPI));
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    g_assert_cmpuint(qsmmu_events(g), ==, 0);
    routed_stop(&r);
}

static void test_storm(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];

    if (!machine_can_trace()) {
        g_test_skip("without traces, look-ups cannot be counted");
        routed_stop(&r);
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned j = 1; j < 50; j++) {
            qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE + j * PAGE);
            qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(2), BASE);
            qsmmu_queue(g, SMMU_CMD_TLBI_NH_VAA, BASE - j * PAGE);
            qsmmu_queue(g, SMMU_CMD_TLBI_NH_ASID | ASID(1 + j), 0);
            qsmmu_queue(g, SMMU_CMD_CFGI_STE | SID(ONE_SID + j), 1);
        }
        g_assert_cmphex(qsmmu_issue_queued(g), ==, g->cmdq_prod);
        assert_walks(r.t.m, 0);
    }

    /* All of these concern the doorbell. */
    for (unsigned i = 0; i < 20; i++) {
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_VAA, BASE);
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_ASID | ASID(1), 0);
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_ALL, 0);
    }
    g_assert_cmphex(qsmmu_issue_queued(g), ==, g->cmdq_prod);
    assert_walks(r.t.m, 1);
    for (unsigned i = 0; i < 20; i++) {
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
        qsmmu_queue(g, SMMU_CMD_CFGI_STE | SID(ONE_SID), 1);
        qsmmu_queue(g, SMMU_CMD_CFGI_CD | SID(ONE_SID), 1);
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_ASID | ASID(1), 0);
    }
    g_assert_cmphex(qsmmu_issue_queued(g), ==, g->cmdq_prod);
    assert_walks(r.t.m, 1);
    assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
    routed_stop(&r);
}

/* A masked vector is QEMU's, whatever happens to its doorbell meanwhile. */
static void test_masked(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];

    for (unsigned i = 0; i < 2; i++) {
        /* It has a route when it is masked, or it has none. */
        mask_vector(r.t.pci, 0, true);
        for (unsigned j = 0; j < 2; j++) {
            qsmmu_map(r.t.domain, BASE, j ? V2M_BASE : TARGET(0));
            qsmmu_command(g, SMMU_CMD_TLBI_NH_ALL, 0);
            qsmmu_cfgi_ste(g, ONE_SID);
            g_assert_false(is_routed(&r.t, 0));
            fire(r.t.m, r.t.dev, 0);
            settle(r.t.m);
            g_assert_false(take_spi(r.t.m, SPI));
            g_assert_cmphex(take(r.t.m, TARGET(0), DOORBELL), ==, 0);
        }
        if (i == 0) {
            qsmmu_map(r.t.domain, BASE, TARGET(0));
            mask_vector(r.t.pci, 0, false);
            g_assert_cmphex(take(r.t.m, TARGET(0), DOORBELL), ==, SPI);
        } else {
            mask_vector(r.t.pci, 0, false);
            g_assert_true(take_spi(r.t.m, SPI));
            assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
        }
    }
    routed_stop(&r);
}

/* However many vectors name it, a page is looked at once. */
static void test_many_vectors(void)
{
    const unsigned n = HD_MAX_MSIX;
    QSMMUGuest *g;
    HDDevice *dev;
    OneDevice t;
    Machine *m;

    if (!enough_fds(n)) {
        return;
    }
    m = machine_new_traced();
    g = &m->smmu[0];
    dev = add_one_device(m);
    dev->num_msix = n;
    t = irqchip_start_with(m, dev);
    qpci_msix_enable(t.pci);
    change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
    qsmmu_domain_set_pte(t.domain, BASE, 3, V2M_BASE | QSMMU_PTE_RW);
    qsmmu_domain_set_pte(t.domain, BASE + PAGE, 3, TARGET(0) | QSMMU_PTE_RW);
    for (unsigned i = 0; i < n; i++) {
        /* One of two pages, and at any place */
        write_message(t.pci, i, i % 4 ? BASE + V2M_SETSPI_NS
                                      : BASE + (i * 20 & 0x1ffc), SPI);
        mask_vector(t.pci, i, false);
    }
    change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
    g_assert_cmpuint(count_routes(m), >=, n / 4 * 3);
    ignore_walks(m);

    qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
    assert_walks(m, 1);
    qsmmu_command(g, SMMU_CMD_TLBI_NH_ALL, 0);
    assert_walks(m, 2);
    qsmmu_cfgi_ste(g, ONE_SID);
    assert_walks(m, 2);

    qsmmu_unmap(t.domain, BASE);
    qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
    g_assert_cmpuint(count_routes(m), ==, 0);
    assert_walks(m, 1);
    one_device_stop(&t);
}

/* Only the device whose doorbell it may be is asked. */
static void test_two_devices(void)
{
    Machine *m = machine_new_traced();
    HDDevice *other_dev = add_vfio(m, 0, "bus=pcie.0,addr=3.0");
    OneDevice t = irqchip_start(m);
    QSMMUGuest *g = &m->smmu[0];
    QSMMUDomain *other = qsmmu_domain_new(g, 12, 2);
    QPCIDevice *pci = find_pci(m, PCI_DEVFN(3, 0));

    qsmmu_attach(g, PCI_DEVFN(3, 0), other);
    qsmmu_domain_set_pte(t.domain, BASE, 3,
                         V2M_BASE | QSMMU_PTE_RW | QSMMU_PTE_NG);
    qsmmu_domain_set_pte(other, BASE, 3,
                         V2M_BASE | QSMMU_PTE_RW | QSMMU_PTE_NG);
    set_vector(t.pci, 0, BASE + V2M_SETSPI_NS, SPI);
    set_vector(pci, 0, BASE + V2M_SETSPI_NS, SPI); /* the same */
    g_assert_cmpuint(count_routes(m), ==, 2);
    ignore_walks(m);

    qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(2), BASE);
    assert_walks(m, 1);
    qsmmu_cfgi_ste(g, ONE_SID);
    assert_walks(m, 1);
    qsmmu_command(g, SMMU_CMD_TLBI_NH_VAA, BASE);
    assert_walks(m, 2);

    fire(m, t.dev, 0);
    g_assert_true(take_spi(m, SPI));
    fire(m, other_dev, 0);
    g_assert_true(take_spi(m, SPI));
    qsmmu_unmap(other, BASE);
    qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(2), BASE);
    g_assert_cmpuint(count_routes(m), ==, 1);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    g_free(other);
    g_free(pci);
    one_device_stop(&t);
}

/* A vector that goes from page to page is followed to the last of them. */
static void test_many_pages(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];
    unsigned i;

    for (i = 1; i < 70; i++) {
        qsmmu_map(r.t.domain, BASE + i * PAGE, V2M_BASE);
        write_message(r.t.pci, 0, r.address + i * PAGE, SPI);
        assert_routed(&r.t, 0, DOORBELL_GPA, SPI);
        /* It is not, or no more, about the page of another vector. */
        if (i % 10 == 1) {
            write_message(r.t.pci, 1, r.address, SPI + 1);
            mask_vector(r.t.pci, 1, false);
            g_assert_true(is_routed(&r.t, 1));
        } else if (i % 10 == 9) {
            qsmmu_unmap(r.t.domain, BASE);
            qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
            g_assert_false(is_routed(&r.t, 1));
            qsmmu_map(r.t.domain, BASE, V2M_BASE);
            mask_vector(r.t.pci, 1, true);
        }
    }
    i--;
    qsmmu_unmap(r.t.domain, BASE + i * PAGE);
    qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE + i * PAGE);
    g_assert_false(is_routed(&r.t, 0));
    routed_stop(&r);
}

/* What comes to a place knows nothing of what was there, however it left. */
static void test_replugged(void)
{
    Machine *m = machine_new_irqchip();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QSMMUGuest *g = &m->smmu[0];
    QSMMUDomain *domain;
    QPCIDevice *port;

    port = machine_start_with_port(m);
    qsmmu_guest_enable(g);
    domain = qsmmu_domain_new(g, 12, 1);
    qsmmu_attach(g, PORT_SID, domain);

    for (unsigned pages = 1; pages <= 70; pages += 69) {
        QPCIDevice *pci;

        plug(m, dev, port);
        pci = find_pci(m, PORT_SID);
        /* Twice as many as there are vectors are remembered one by one. */
        for (unsigned i = 0; i < pages; i++) {
            qsmmu_map(domain, BASE + i * PAGE, V2M_BASE);
            set_vector(pci, 0, BASE + i * PAGE + V2M_SETSPI_NS, SPI);
            g_assert_cmpuint(count_routes(m), ==, 1);
        }
        unplug(m, dev, port);
        g_free(pci);
        qsmmu_command(g, SMMU_CMD_SYNC, 0);

        plug(m, dev, port);
        pci = find_pci(m, PORT_SID);
        set_vector(pci, 0, BASE + V2M_SETSPI_NS, SPI);
        g_assert_cmpuint(count_routes(m), ==, 1);
        qsmmu_unmap(domain, BASE);
        qsmmu_command(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
        g_assert_cmpuint(count_routes(m), ==, 0);
        unplug(m, dev, port);
        g_free(pci);
    }
    g_free(domain);
    g_free(port);
    machine_stop(m);
}

/* An event that is written to registers would come back to the SMMU. */
static void test_queues_in_registers(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];
    QTestState *qts = r.t.m->qts;
    uint32_t cr0 = qtest_readl(qts, g->base + A_CR0);
    uint64_t strtab = qtest_readq(qts, g->base + A_STRTAB_BASE);

    qtest_writel(qts, g->base + A_CR0, cr0 & ~R_CR0_EVENTQEN_MASK);
    qtest_writeq(qts, g->base + A_EVENTQ_BASE, g->base + A_STRTAB_BASE);
    qtest_writel(qts, g->base + A_CR0, cr0);
    write_message(r.t.pci, 1, BASE + 0x1000000, SPI);
    mask_vector(r.t.pci, 1, false);
    fire(r.t.m, r.t.dev, 1);
    g_assert_cmphex(qtest_readl(qts, g->base + A_GERROR), ==,
                    R_GERROR_EVENTQ_ABT_ERR_MASK);
    g_assert_cmphex(qtest_readq(qts, g->base + A_STRTAB_BASE), ==, strtab);
    g_assert_true(is_routed(&r.t, 0));

    /* Nor are commands read from there. */
    qtest_writel(qts, g->base + A_CR0, cr0 & ~R_CR0_CMDQEN_MASK);
    qtest_writeq(qts, g->base + A_CMDQ_BASE, g->base + A_STRTAB_BASE);
    qtest_writel(qts, g->base + A_CMDQ_CONS, 0);
    qtest_writel(qts, g->base + A_CR0, cr0);
    qtest_writel(qts, g->base + A_CMDQ_PROD, 1);
    g_assert_cmphex(qtest_readl(qts, g->base + A_GERROR), ==,
                    R_GERROR_EVENTQ_ABT_ERR_MASK | R_GERROR_CMDQ_ERR_MASK);
    g_assert_cmpuint(FIELD_EX32(qtest_readl(qts, g->base + A_CMDQ_CONS),
                                CMDQ_CONS, ERR), ==, CERROR_ABT);
    routed_stop(&r);
}

/* Each vector has a page of its own, and many change at once. */
static void test_page_each(void)
{
    const unsigned n = 64;
    Machine *m = machine_new_traced();
    QSMMUGuest *g = &m->smmu[0];
    HDDevice *dev = add_one_device(m);
    OneDevice t;

    dev->num_msix = n;
    t = irqchip_start_with(m, dev);
    qpci_msix_enable(t.pci);
    for (unsigned i = 0; i < n; i++) {
        qsmmu_map(t.domain, BASE + i * PAGE, V2M_BASE);
        write_message(t.pci, i, BASE + i * PAGE + V2M_SETSPI_NS, SPI + i % 2);
        mask_vector(t.pci, i, false);
    }
    g_assert_cmpuint(count_routes(m), ==, n);
    ignore_walks(m);
    qsmmu_command(g, SMMU_CMD_TLBI_NH_ALL, 0);
    assert_walks(m, n);

    for (unsigned left = n; left > 0; left /= 2) {
        for (unsigned i = left / 2; i < left; i++) {
            qsmmu_unmap(t.domain, BASE + i * PAGE);
            qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE + i * PAGE);
        }
        qsmmu_issue_queued(g);
        g_assert_cmpuint(count_routes(m), ==, left / 2);
        assert_walks_at_most(m, n);
    }
    for (unsigned i = 0; i < n; i++) {
        qsmmu_map(t.domain, BASE + i * PAGE, V2M_BASE);
    }
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmpuint(count_routes(m), ==, n);
    one_device_stop(&t);
}

/* CMD_SYNC tells that the route is as it should be. */
static void test_sync_interrupt(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];
    QTestState *qts = r.t.m->qts;
    g_autofree char *text = NULL;
    const char *walk, *irq;

    if (!machine_can_trace()) {
        g_test_skip("without traces, the order cannot be seen");
        routed_stop(&r);
        return;
    }
    qtest_writel(qts, g->base + A_IRQ_CTRL, R_IRQ_CTRL_GERROR_IRQEN_MASK |
                                            R_IRQ_CTRL_EVENTQ_IRQEN_MASK);
    qsmmu_unmap(r.t.domain, BASE);
    qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
    qsmmu_queue(g, SMMU_CMD_SYNC | SYNC_SIG_IRQ, 0);
    g_assert_cmphex(qsmmu_issue_queued(g), ==, g->cmdq_prod);
    g_assert_false(is_routed(&r.t, 0));

    g_assert_true(g_file_get_contents(r.t.m->log, &text, NULL, NULL));
    walk = strstr(text + r.t.m->log_mark, "smmuv3_accel_msi_translate ");
    irq = strstr(text + r.t.m->log_mark, "smmuv3_trigger_irq ");
    g_assert_nonnull(walk);
    g_assert_nonnull(irq);
    g_assert_true(walk < irq);
    routed_stop(&r);
}

/* A command that is illegal does not undo those before it. */
static void test_after_error(void)
{
    Routed r = routed_start();
    QSMMUGuest *g = &r.t.m->smmu[0];

    qsmmu_unmap(r.t.domain, BASE);
    qsmmu_queue(g, SMMU_CMD_TLBI_NH_VA | ASID(1), BASE);
    qsmmu_queue(g, 0xff, 0);
    g_assert_cmphex(qsmmu_issue_queued(g), !=, g->cmdq_prod);
    g_assert_false(is_routed(&r.t, 0));
    routed_stop(&r);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/recheck/tlbi", test_tlbi },
        { "/accel/recheck/tlbi-global", test_tlbi_global },
        { "/accel/recheck/tlbi-top-byte", test_tlbi_top_byte },
        { "/accel/recheck/cfgi", test_cfgi },
        { "/accel/recheck/registers", test_registers },
        { "/accel/recheck/ste", test_ste },
        { "/accel/recheck/silent", test_silent },
        { "/accel/recheck/reset", test_reset },
        { "/accel/recheck/message", test_message },
        { "/accel/recheck/delivered", test_delivered },
        { "/accel/recheck/unchanged", test_unchanged },
        { "/accel/recheck/lazy", test_lazy },
        { "/accel/recheck/storm", test_storm },
        { "/accel/recheck/masked", test_masked },
        { "/accel/recheck/many-vectors", test_many_vectors },
        { "/accel/recheck/two-devices", test_two_devices },
        { "/accel/recheck/many-pages", test_many_pages },
        { "/accel/recheck/replugged", test_replugged },
        { "/accel/recheck/queues-in-registers", test_queues_in_registers },
        { "/accel/recheck/page-each", test_page_each },
        { "/accel/recheck/sync-interrupt", test_sync_interrupt },
        { "/accel/recheck/after-error", test_after_error },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
