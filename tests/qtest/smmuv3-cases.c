/*
 * What an SMMUv3 must make of a guest's tables, case by case, for qtests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-cases.h"

#define BIT64(n)        (1ull << (n))

/* 64-bit words of a CD */
#define CD0_T0SZ        0x3full
#define CD0_TG0         (3ull << 6)
#define CD0_EPD0        BIT64(14)
#define CD0_ENDI        BIT64(15)
#define CD0_T1SZ        (0x3full << 16)
#define CD0_TG1         (3ull << 22)
#define CD0_EPD1        BIT64(30)
#define CD0_V           BIT64(31)
#define CD0_IPS(n)      ((uint64_t)(n) << 32)
#define CD0_AFFD        BIT64(35)
#define CD0_TBI0        BIT64(38)
#define CD0_TBI1        BIT64(39)
#define CD0_AA64        BIT64(41)
#define CD0_HD          BIT64(42)
#define CD0_HA          BIT64(43)
#define CD0_S           BIT64(44)
#define CD0_R           BIT64(45)
#define CD0_A           BIT64(46)
#define CD1_HAD0        BIT64(1)
#define CD2_HAD1        BIT64(1)

#define CONFIG(n)       ((uint64_t)(n) << 1)
#define S1CDMAX(n)      ((uint64_t)(n) << 59)

#define PTE_ADDR        MAKE_64BIT_MASK(12, 36)
#define PTE_RO          BIT64(7)
#define PTE_AF          BIT64(10)
#define PTE_APTABLE_RO  BIT64(62)
#define PTE_BLOCK       (QSMMU_PTE_RW & ~2ull)

#define TTB1_HIGH       0xffff000000000000ull

static const SMMUv3Case stage1_cases[] = {
    { "page of 4KB" },
    { "page of 16KB", .granule = 14 },
    { "page of 64KB", .granule = 16 },
    { "block of 4KB granule at level 2", .up = 1 },
    { "block of 4KB granule at level 1", .up = 2 },
    { "block of 16KB granule at level 2", .granule = 14, .up = 1 },
    { "block of 64KB granule at level 2", .granule = 16, .up = 1 },
    { "TTB1, 4KB", .high = TTB1_HIGH },
    { "TTB1, 16KB", .granule = 14, .high = TTB1_HIGH },
    { "TTB1, 64KB", .granule = 16, .high = TTB1_HIGH },
    { "TTB1, block", .high = TTB1_HIGH, .up = 1 },
    { "TBI0", .high = 0xabull << 56, .change = { { IN_CD, 0, 0, CD0_TBI0 } } },
    { "TBI1", .high = 0xabffull << 48,
      .change = { { IN_CD, 0, 0, CD0_TBI1 } } },
    { "IPS 48 is capped to OAS", .change = { { IN_CD, 0, CD0_IPS(7),
                                               CD0_IPS(5) } } },
    { "IPS 52", .change = { { IN_CD, 0, CD0_IPS(7), CD0_IPS(6) } } },
    { "IPS reserved", .change = { { IN_CD, 0, CD0_IPS(7), CD0_IPS(7) } } },
    { "IPS 32", .change = { { IN_CD, 0, CD0_IPS(7), 0 } } },
    { "AF with AFFD = 0", .change = { { IN_CD, 0, CD0_AFFD, 0 } } },
    { "no AF with AFFD = 1", .change = { { IN_PTE, 3, PTE_AF, 0 } } },
    { "HAD0 with APTable",
      .change = { { IN_CD, 1, 0, CD1_HAD0 },
                  { IN_PTE, 0, 0, PTE_APTABLE_RO } } },
    { "HAD1 with APTable", .high = TTB1_HIGH,
      .change = { { IN_CD, 2, 0, CD2_HAD1 },
                  { IN_PTE, 0, 0, PTE_APTABLE_RO } } },
    { "fields of EPD1 are ignored",
      .change = { { IN_CD, 0, CD0_T1SZ | CD0_TG1, 0 },
                  { IN_CD, 2, 0, BIT64(50) } } },
    { "bits 15:12 of a 64KB page are no address", .granule = 16,
      .change = { { IN_PTE, 3, 0, 0xf000 } } },
    { "bits 15:12 of a 64KB table are no address", .granule = 16,
      .change = { { IN_PTE, 2, 0, 0xf000 } } },

    /* F_TRANSLATION */
    { "no page", .change = { { IN_PTE, 3, ~0ull, 0 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "no table", .change = { { IN_PTE, 1, ~0ull, 0 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "block at level 3", .change = { { IN_PTE, 3, 2, 0 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "block of 4KB granule at level 0", .up = 3,
      .outcome = QSMMU_F_TRANSLATION },
    { "block of 16KB granule at level 1", .granule = 14, .up = 2,
      .outcome = QSMMU_F_TRANSLATION },
    { "block of 64KB granule at level 1", .granule = 16, .up = 2,
      .outcome = QSMMU_F_TRANSLATION },
    { "EPD0", .change = { { IN_CD, 0, 0, CD0_EPD0 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "EPD1", .high = TTB1_HIGH, .change = { { IN_CD, 0, 0, CD0_EPD1 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "both EPD", .change = { { IN_CD, 0, 0, CD0_EPD0 | CD0_EPD1 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "above T0SZ", .high = BIT64(48), .outcome = QSMMU_F_TRANSLATION },
    { "below T1SZ", .high = 0xfffeull << 48,
      .change = { { IN_CD, 0, 0, CD0_TBI0 | CD0_TBI1 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "tag without TBI0", .high = 0xabull << 56,
      .change = { { IN_CD, 0, 0, CD0_TBI1 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "tag without TBI1", .high = 0xabffull << 48,
      .change = { { IN_CD, 0, 0, CD0_TBI0 } },
      .outcome = QSMMU_F_TRANSLATION },
    { "no page below a read-only table",
      .change = { { IN_PTE, 3, ~0ull, 0 }, { IN_PTE, 0, 0, PTE_APTABLE_RO } },
      .outcome = QSMMU_F_TRANSLATION },
    { "no page, R = 0",
      .change = { { IN_PTE, 3, ~0ull, 0 }, { IN_CD, 0, CD0_R, 0 } },
      .outcome = DROPPED },

    /* F_ADDR_SIZE */
    { "page beyond OAS", .change = { { IN_PTE, 3, 0, BIT64(44) } },
      .outcome = QSMMU_F_ADDR_SIZE },
    { "block beyond OAS", .up = 1,
      .change = { { IN_PTE, 2, 0, BIT64(47) } },
      .outcome = QSMMU_F_ADDR_SIZE },
    { "table beyond OAS", .change = { { IN_PTE, 1, 0, BIT64(44) } },
      .outcome = QSMMU_F_ADDR_SIZE },
    { "page beyond IPS", .change = { { IN_CD, 0, CD0_IPS(7), CD0_IPS(1) },
                                     { IN_PTE, 3, 0, BIT64(36) } },
      .outcome = QSMMU_F_ADDR_SIZE },
    { "page beyond OAS that is not writable",
      .change = { { IN_PTE, 3, 0, BIT64(44) | PTE_RO } },
      .outcome = QSMMU_F_ADDR_SIZE },
    { "page beyond OAS without AF",
      .change = { { IN_PTE, 3, PTE_AF, BIT64(44) },
                  { IN_CD, 0, CD0_AFFD, 0 } },
      .outcome = QSMMU_F_ADDR_SIZE },
    { "page beyond OAS, R = 0",
      .change = { { IN_PTE, 3, 0, BIT64(44) }, { IN_CD, 0, CD0_R, 0 } },
      .outcome = DROPPED },

    /* F_ACCESS */
    { "no AF", .change = { { IN_PTE, 3, PTE_AF, 0 },
                           { IN_CD, 0, CD0_AFFD, 0 } },
      .outcome = QSMMU_F_ACCESS },
    { "no AF of a block", .up = 1,
      .change = { { IN_PTE, 2, PTE_AF, 0 }, { IN_CD, 0, CD0_AFFD, 0 } },
      .outcome = QSMMU_F_ACCESS },
    { "no AF and not writable",
      .change = { { IN_PTE, 3, PTE_AF, PTE_RO }, { IN_CD, 0, CD0_AFFD, 0 } },
      .outcome = QSMMU_F_ACCESS },
    { "no AF below a read-only table",
      .change = { { IN_PTE, 3, PTE_AF, 0 }, { IN_CD, 0, CD0_AFFD, 0 },
                  { IN_PTE, 1, 0, PTE_APTABLE_RO } },
      .outcome = QSMMU_F_ACCESS },
    { "no AF, R = 0",
      .change = { { IN_PTE, 3, PTE_AF, 0 },
                  { IN_CD, 0, CD0_AFFD | CD0_R, 0 } },
      .outcome = DROPPED },

    /* F_PERMISSION */
    { "not writable", .change = { { IN_PTE, 3, 0, PTE_RO } },
      .outcome = QSMMU_F_PERMISSION },
    { "below a read-only table", .change = { { IN_PTE, 0, 0, PTE_APTABLE_RO } },
      .outcome = QSMMU_F_PERMISSION },
    { "HAD1 is not for TTB0",
      .change = { { IN_PTE, 2, 0, PTE_APTABLE_RO },
                  { IN_CD, 2, 0, CD2_HAD1 } },
      .outcome = QSMMU_F_PERMISSION },
    { "not writable, R = 0",
      .change = { { IN_PTE, 3, 0, PTE_RO }, { IN_CD, 0, CD0_R, 0 } },
      .outcome = DROPPED },

    /* F_WALK_EABT */
    { "TTB0 in a hole", .change = { { IN_CD, 1, PTE_ADDR, HOLE } },
      .outcome = QSMMU_F_WALK_EABT, .fetch = HOLE },
    { "table in a hole", .change = { { IN_PTE, 1, PTE_ADDR, HOLE } },
      .outcome = QSMMU_F_WALK_EABT, .fetch = HOLE },
    { "table in a hole, R = 0",
      .change = { { IN_PTE, 2, PTE_ADDR, HOLE }, { IN_CD, 0, CD0_R, 0 } },
      .outcome = QSMMU_F_WALK_EABT, .fetch = HOLE },

    /* C_BAD_CD */
    { "CD.V = 0", .change = { { IN_CD, 0, CD0_V, 0 } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.AA64 = 0", .change = { { IN_CD, 0, CD0_AA64, 0 } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.A = 0", .change = { { IN_CD, 0, CD0_A, 0 } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.A = 0, R = 0", .change = { { IN_CD, 0, CD0_A | CD0_R, 0 } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.S = 1", .change = { { IN_CD, 0, 0, CD0_S } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.HA = 1", .change = { { IN_CD, 0, 0, CD0_HA } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.HD = 1", .change = { { IN_CD, 0, 0, CD0_HD } },
      .outcome = QSMMU_C_BAD_CD },
    { "CD.ENDI = 1", .change = { { IN_CD, 0, 0, CD0_ENDI } },
      .outcome = QSMMU_C_BAD_CD },
    { "T0SZ too small", .change = { { IN_CD, 0, CD0_T0SZ, 15 } },
      .outcome = QSMMU_C_BAD_CD },
    { "T0SZ too large", .change = { { IN_CD, 0, CD0_T0SZ, 40 } },
      .outcome = QSMMU_C_BAD_CD },
    { "TG0 reserved", .change = { { IN_CD, 0, 0, CD0_TG0 } },
      .outcome = QSMMU_C_BAD_CD },
    { "T1SZ too small", .change = { { IN_CD, 0, CD0_EPD1, 2ull << 22 } },
      .outcome = QSMMU_C_BAD_CD },
    { "TG1 reserved", .change = { { IN_CD, 0, CD0_EPD1, 16ull << 16 } },
      .outcome = QSMMU_C_BAD_CD },
    { "TTB0 beyond OAS", .change = { { IN_CD, 1, 0, BIT64(44) } },
      .outcome = QSMMU_C_BAD_CD },
    { "TTB0 beyond IPS", .change = { { IN_CD, 1, 0, BIT64(36) },
                                     { IN_CD, 0, CD0_IPS(7), CD0_IPS(1) } },
      .outcome = QSMMU_C_BAD_CD },
    { "TTB1 beyond OAS", .high = TTB1_HIGH,
      .change = { { IN_CD, 2, 0, BIT64(51) } }, .outcome = QSMMU_C_BAD_CD },

    /* F_CD_FETCH */
    { "CD in a hole", .change = { { IN_STE, 0, MAKE_64BIT_MASK(6, 46),
                                    HOLE } },
      .outcome = QSMMU_F_CD_FETCH, .fetch = HOLE },

    /* C_BAD_STE and STEs that abort */
    { "STE.V = 0", .change = { { IN_STE, 0, STE0_V, 0 } },
      .outcome = QSMMU_C_BAD_STE },
    { "abort", .change = { { IN_STE, 0, STE0_CONFIG, 0 } },
      .outcome = DROPPED },
    { "abort, reserved encoding",
      .change = { { IN_STE, 0, STE0_CONFIG, CONFIG(3) } },
      .outcome = DROPPED },
    { "abort, other fields are ignored",
      .change = { { IN_STE, 0, STE0_CONFIG, S1CDMAX(31) },
                  { IN_STE, 1, 0, STE1_S1STALLD } },
      .outcome = DROPPED },
    { "bypass", .identity = true,
      .change = { { IN_STE, 0, STE0_CONFIG | STE0_CTXPTR, CONFIG(4) } } },
    { "stage 2 is not supported",
      .change = { { IN_STE, 0, STE0_CONFIG, CONFIG(6) } },
      .outcome = QSMMU_C_BAD_STE },
    { "nesting is not supported",
      .change = { { IN_STE, 0, 0, STE0_CONFIG } },
      .outcome = QSMMU_C_BAD_STE },
    { "S1STALLD", .change = { { IN_STE, 1, 0, STE1_S1STALLD } },
      .outcome = QSMMU_C_BAD_STE },
    { "more substreams than there are",
      .change = { { IN_STE, 0, 0, S1CDMAX(31) } },
      .outcome = QSMMU_C_BAD_STE },
    { "S1ContextPtr beyond OAS", .change = { { IN_STE, 0, 0, BIT64(44) } },
      .outcome = QSMMU_C_BAD_STE },
    { "S1Fmt of one CD is ignored", .change = { { IN_STE, 0, 0, 1 << 4 } } },
};

static bool has_input_address(uint8_t type)
{
    return type == QSMMU_F_WALK_EABT || type >= QSMMU_F_TRANSLATION;
}

static void check_event(SMMUv3Target *t, unsigned index, uint64_t giova,
                        uint8_t type, uint64_t fetch)
{
    uint64_t event[4];

    qsmmu_event(t->g, index, event);
    g_test_message("event %016" PRIx64 " %016" PRIx64 " %016" PRIx64
                   " %016" PRIx64, event[0], event[1], event[2], event[3]);
    g_assert_cmphex(QSMMU_EVT_TYPE(event), ==, type);
    g_assert_cmphex(QSMMU_EVT_SID(event), ==, t->sid);
    g_assert_false(QSMMU_EVT_SSV(event));
    g_assert_false(QSMMU_EVT_RNW(event));
    g_assert_false(QSMMU_EVT_PNU(event));
    g_assert_false(QSMMU_EVT_S2(event));
    g_assert_cmpuint(QSMMU_EVT_CLASS(event), ==,
                     type == QSMMU_F_WALK_EABT ? QSMMU_CLASS_TT :
                     type >= QSMMU_F_TRANSLATION ? QSMMU_CLASS_IN : 0);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==,
                    has_input_address(type) ? giova : 0);
    g_assert_cmphex(QSMMU_EVT_FETCH(event) & ~0xfffull, ==, fetch);
}

/* Make the access and compare what comes of it. */
static void check_access(SMMUv3Target *t, uint64_t giova, uint8_t outcome,
                         uint64_t fetch)
{
    unsigned events = qsmmu_events(t->g);
    bool arrived = t->access(t, giova);
    unsigned recorded = qsmmu_events(t->g) - events;

    g_test_message("0x%016" PRIx64 " %s, %u event(s)", giova,
                   arrived ? "arrived" : "did not arrive", recorded);
    if (recorded) {
        g_assert_cmpuint(recorded, ==, 1);
        check_event(t, events, giova, outcome, fetch);
    }
    g_assert_cmpuint(recorded, ==, outcome != ARRIVES && outcome != DROPPED);
    g_assert_cmpint(arrived, ==, outcome == ARRIVES);
}

static uint64_t change_addr(SMMUv3Target *t, QSMMUDomain *d, uint64_t giova,
                            SMMUv3CaseWhere where, unsigned index)
{
    switch (where) {
    case IN_STE:
        return qsmmu_ste(t->g, t->sid) + index * 8;
    case IN_CD:
        return d->cd + index * 8;
    case IN_L1CD:
        return d->l1cd + index * 8;
    case IN_PTE:
        return qsmmu_pte(d, giova, index);
    default:
        g_assert_not_reached();
    }
}

static void run_case(SMMUv3Target *t, const SMMUv3Case *c)
{
    unsigned granule = c->granule ?: 12;
    unsigned shift = granule + c->up * (granule - 3);
    QSMMUDomain *d = qsmmu_domain_new(t->g, granule, ++t->asid);
    /* An offset that suits every block, in a region that is no GPA */
    uint64_t offset = MAKE_64BIT_MASK(0, 42);
    uint64_t giova = c->identity ? t->pa :
                     (c->high | 5ull << 42 | (t->pa & offset));
    uint64_t addr[ARRAY_SIZE(c->change)] = { };
    uint64_t ste;

    g_test_message("case: %s", c->name);
    if (extract64(giova, 55, 1)) {
        qsmmu_enable_ttb1(d);
    }
    qsmmu_domain_set_pte(d, giova, 3 - c->up,
                         (t->pa & ~MAKE_64BIT_MASK(0, shift)) |
                         (c->up ? PTE_BLOCK : QSMMU_PTE_RW));
    ste = c->s1cdmax ? qsmmu_cd_table(d, c->s1fmt, c->s1cdmax) :
                       QSMMU_STE_S1 | d->cd;
    qsmmu_set_ste(t->g, t->sid, ste, 0);
    /* Find all of them before any is broken. */
    for (int i = 0; i < ARRAY_SIZE(addr) && c->change[i].where; i++) {
        addr[i] = change_addr(t, d, giova, c->change[i].where,
                              c->change[i].index);
    }
    for (int i = 0; i < ARRAY_SIZE(addr) && addr[i]; i++) {
        qsmmu_modify(t->g, addr[i], c->change[i].mask, c->change[i].value);
    }

    check_access(t, giova, c->outcome, c->fetch);
    g_free(d);
}

void smmuv3_run_cases(SMMUv3Target *t, const SMMUv3Case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        run_case(t, &cases[i]);
    }
}

void smmuv3_test_stage1(SMMUv3Target *t)
{
    smmuv3_run_cases(t, stage1_cases, ARRAY_SIZE(stage1_cases));
}

static void set_cr2(SMMUv3Target *t, uint32_t value)
{
    qtest_writel(t->g->qts, t->g->base + A_CR2, value);
}

/* Enable the SMMU again, with a stream that maps a page. */
static QSMMUDomain *restart(SMMUv3Target *t, uint64_t giova)
{
    QSMMUDomain *d = qsmmu_domain_new(t->g, 12, ++t->asid);

    qsmmu_map(d, giova & ~0xfffull, t->pa & ~0xfffull);
    qsmmu_guest_enable(t->g);
    qsmmu_attach(t->g, t->sid, d);
    return d;
}

/* No stream: recorded if the guest wants it. */
static void check_bad_streamid(SMMUv3Target *t, uint64_t giova)
{
    set_cr2(t, 0);
    check_access(t, giova, DROPPED, 0);
    set_cr2(t, R_CR2_RECINVSID_MASK);
    check_access(t, giova, QSMMU_C_BAD_STREAMID, 0);
    set_cr2(t, 0);
}

void smmuv3_test_stream_tables(SMMUv3Target *t)
{
    uint64_t giova = 5ull << 42 | (t->pa & 0xfff);
    QSMMUGuest *g = t->g;
    static const unsigned splits[] = { 0, 6, 8, 10 };
    uint64_t cfg = g->base + A_STRTAB_BASE_CFG;

    for (int i = 0; i < ARRAY_SIZE(splits); i++) {
        unsigned split = splits[i];
        uint32_t old;
        uint64_t l1std, desc, unused;

        g_test_message("split: %u", split);
        qsmmu_guest_disable(g);
        if (split) {
            qsmmu_two_level_strtab(g, split, 12);
        }
        g_free(restart(t, giova));
        check_access(t, giova, ARRIVES, 0);

        g_test_message("stream beyond LOG2SIZE");
        old = qtest_readl(g->qts, cfg);
        qtest_writel(g->qts, cfg, (old & ~R_STRTAB_BASE_CFG_LOG2SIZE_MASK) |
                                  ctz32(pow2floor(t->sid)));
        check_bad_streamid(t, giova);
        qtest_writel(g->qts, cfg, old);

        g_test_message("stream table in a hole");
        qtest_writeq(g->qts, g->base + A_STRTAB_BASE, HOLE);
        check_access(t, giova, QSMMU_F_STE_FETCH, HOLE);
        qtest_writeq(g->qts, g->base + A_STRTAB_BASE, g->strtab);

        g_test_message("event queue disabled");
        qsmmu_modify(g, qsmmu_ste(g, t->sid), 1, 0);
        qtest_writel(g->qts, g->base + A_CR0,
                     R_CR0_CMDQEN_MASK | R_CR0_SMMUEN_MASK);
        check_access(t, giova, DROPPED, 0);
        qtest_writel(g->qts, g->base + A_CR0, R_CR0_CMDQEN_MASK |
                     R_CR0_EVENTQEN_MASK | R_CR0_SMMUEN_MASK);
        check_access(t, giova, QSMMU_C_BAD_STE, 0);
        qsmmu_modify(g, qsmmu_ste(g, t->sid), 0, 1);

        if (!split) {
            continue;
        }
        l1std = qsmmu_l1std(g, t->sid);
        desc = qtest_readq(g->qts, l1std);
        for (unsigned span = 0; span <= 31; span++) {
            bool found = span >= 1 && span <= split + 1 && span <= 11 &&
                         extract32(t->sid, 0, split) < 1u << (span - 1);

            g_test_message("Span: %u", span);
            qsmmu_modify(g, l1std, 0x1f, span);
            if (found) {
                check_access(t, giova, ARRIVES, 0);
            } else {
                check_bad_streamid(t, giova);
            }
        }
        unused = HOLE | (desc & 0x1f);
        qtest_writeq(g->qts, l1std, unused);
        check_access(t, giova, QSMMU_F_STE_FETCH,
                     HOLE + ROUND_DOWN(extract32(t->sid, 0, split) *
                                       sizeof(STE), 0x1000));
    }
}
