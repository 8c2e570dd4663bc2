/*
 * What a guest does to an Arm SMMUv3: registers, queues and tables
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-guest.h"

#define QUEUE_LOG2SIZE  8
#define SID_BITS        12  /* 16 buses */
#define CR1_CACHEABLE   0xd75

void qsmmu_guest_init(QSMMUGuest *g, QTestState *qts, uint64_t base,
                      uint64_t mem, uint64_t size)
{
    *g = (QSMMUGuest) {
        .qts = qts,
        .base = base,
        .next = mem,
        .end = mem + size,
        .sid_bits = SID_BITS,
    };
    g->strtab = qsmmu_guest_alloc(g, sizeof(STE) << g->sid_bits);
    g->cmdq = qsmmu_guest_alloc(g, 16 << QUEUE_LOG2SIZE);
    g->eventq = qsmmu_guest_alloc(g, 32 << QUEUE_LOG2SIZE);
}

uint64_t qsmmu_guest_alloc(QSMMUGuest *g, uint64_t size)
{
    uint64_t addr = ROUND_UP(g->next, size);

    g_assert_cmphex(addr + size, <=, g->end);
    g->next = addr + size;
    qtest_memset(g->qts, addr, 0, size);
    return addr;
}

void qsmmu_guest_enable(QSMMUGuest *g)
{
    qtest_writel(g->qts, g->base + A_CR0, 0);
    qtest_writel(g->qts, g->base + A_CR1, CR1_CACHEABLE);
    qtest_writeq(g->qts, g->base + A_CMDQ_BASE, g->cmdq | QUEUE_LOG2SIZE);
    qtest_writel(g->qts, g->base + A_CMDQ_PROD, 0);
    qtest_writel(g->qts, g->base + A_CMDQ_CONS, 0);
    qtest_writeq(g->qts, g->base + A_EVENTQ_BASE, g->eventq | QUEUE_LOG2SIZE);
    qtest_writel(g->qts, g->base + 0x10000 + A_EVENTQ_PROD, 0);
    qtest_writel(g->qts, g->base + 0x10000 + A_EVENTQ_CONS, 0);
    qtest_writel(g->qts, g->base + A_STRTAB_BASE_CFG, g->sid_bits |
                 g->split << R_STRTAB_BASE_CFG_SPLIT_SHIFT |
                 !!g->split << R_STRTAB_BASE_CFG_FMT_SHIFT);
    qtest_writeq(g->qts, g->base + A_STRTAB_BASE, g->strtab);
    g->cmdq_prod = 0;
    qtest_writel(g->qts, g->base + A_CR0,
                 R_CR0_CMDQEN_MASK | R_CR0_EVENTQEN_MASK);
    qtest_writel(g->qts, g->base + A_CR0, R_CR0_CMDQEN_MASK |
                 R_CR0_EVENTQEN_MASK | R_CR0_SMMUEN_MASK);
    /* CFGI_ALL, as a driver does */
    qsmmu_command(g, SMMU_CMD_CFGI_STE_RANGE, 31);
}

void qsmmu_guest_disable(QSMMUGuest *g)
{
    qtest_writel(g->qts, g->base + A_CR0,
                 R_CR0_CMDQEN_MASK | R_CR0_EVENTQEN_MASK);
}

void qsmmu_queue(QSMMUGuest *g, uint64_t word0, uint64_t word1)
{
    uint64_t addr = g->cmdq + 16 * (g->cmdq_prod % (1 << QUEUE_LOG2SIZE));

    qtest_writeq(g->qts, addr, word0);
    qtest_writeq(g->qts, addr + 8, word1);
    /* The wrap flag is the bit above the index. */
    g->cmdq_prod = (g->cmdq_prod + 1) % (2 << QUEUE_LOG2SIZE);
}

uint32_t qsmmu_issue_queued(QSMMUGuest *g)
{
    qtest_writel(g->qts, g->base + A_CMDQ_PROD, g->cmdq_prod);
    return qtest_readl(g->qts, g->base + A_CMDQ_CONS);
}

uint32_t qsmmu_issue(QSMMUGuest *g, uint64_t word0, uint64_t word1)
{
    qsmmu_queue(g, word0, word1);
    return qsmmu_issue_queued(g);
}

void qsmmu_command(QSMMUGuest *g, uint64_t word0, uint64_t word1)
{
    uint32_t cons = qsmmu_issue(g, word0, word1);

    /* Where it stops is that of an error; ERR may be that of an old one. */
    g_assert_cmphex(cons & ~R_CMDQ_CONS_ERR_MASK, ==, g->cmdq_prod);
}

uint32_t qsmmu_acknowledge(QSMMUGuest *g, bool skip)
{
    uint32_t cons = qtest_readl(g->qts, g->base + A_CMDQ_CONS);

    if (skip) {
        qtest_writeq(g->qts, g->cmdq + 16 * (cons % (1 << QUEUE_LOG2SIZE)),
                     SMMU_CMD_SYNC);
    }
    qtest_writel(g->qts, g->base + A_GERRORN,
                 qtest_readl(g->qts, g->base + A_GERROR));
    return qtest_readl(g->qts, g->base + A_CMDQ_CONS);
}

void qsmmu_cfgi_ste(QSMMUGuest *g, uint32_t sid)
{
    qsmmu_command(g, SMMU_CMD_CFGI_STE | (uint64_t)sid << 32, 1);
}

void qsmmu_cfgi_cd(QSMMUGuest *g, uint32_t sid)
{
    qsmmu_command(g, SMMU_CMD_CFGI_CD | (uint64_t)sid << 32, 1);
}

void qsmmu_tlbi_va(QSMMUDomain *d, uint64_t va)
{
    qsmmu_command(d->g, SMMU_CMD_TLBI_NH_VA | (uint64_t)d->asid << 48,
                  va & ~0xfffull);
}

void qsmmu_two_level_strtab(QSMMUGuest *g, unsigned split, unsigned sid_bits)
{
    g->split = split;
    g->sid_bits = sid_bits;
    g->strtab = qsmmu_guest_alloc(g, MAX(64, sizeof(STEDesc) <<
                                             (sid_bits - split)));
}

uint64_t qsmmu_l1std(QSMMUGuest *g, uint32_t sid)
{
    g_assert_cmpuint(g->split, !=, 0);
    return g->strtab + (sid >> g->split) * sizeof(STEDesc);
}

uint64_t qsmmu_ste(QSMMUGuest *g, uint32_t sid)
{
    uint64_t l1std, desc;

    g_assert_cmphex(sid, <, 1 << g->sid_bits);
    if (!g->split) {
        return g->strtab + sid * sizeof(STE);
    }

    l1std = qsmmu_l1std(g, sid);
    desc = qtest_readq(g->qts, l1std);
    if (!desc) {
        desc = qsmmu_guest_alloc(g, sizeof(STE) << g->split) | (g->split + 1);
        qtest_writeq(g->qts, l1std, desc);
    }
    return (desc & ~0x3full) + extract32(sid, 0, g->split) * sizeof(STE);
}

void qsmmu_modify(QSMMUGuest *g, uint64_t addr, uint64_t mask, uint64_t value)
{
    uint64_t old = qtest_readq(g->qts, addr);

    qtest_writeq(g->qts, addr, (old & ~mask) | value);
}

void qsmmu_set_ste(QSMMUGuest *g, uint32_t sid, uint64_t word0,
                   uint64_t word1)
{
    uint64_t ste = qsmmu_ste(g, sid);

    qtest_writeq(g->qts, ste + 8, word1);
    qtest_writeq(g->qts, ste, word0);
}

void qsmmu_attach(QSMMUGuest *g, uint32_t sid, QSMMUDomain *d)
{
    qsmmu_set_ste(g, sid, d ? QSMMU_STE_S1 | d->cd : 0, 0);
    qsmmu_cfgi_ste(g, sid);
}

QSMMUDomain *qsmmu_domain_new(QSMMUGuest *g, unsigned granule, uint16_t asid)
{
    static const uint32_t tg0[] = { [12] = 0, [14] = 2, [16] = 1 };
    QSMMUDomain *d = g_new0(QSMMUDomain, 1);
    CD cd = { };

    *d = (QSMMUDomain) {
        .g = g,
        .cd = qsmmu_guest_alloc(g, sizeof(CD)),
        .ttb = qsmmu_guest_alloc(g, 1 << granule),
        .granule = granule,
        .asid = asid,
    };
    CD_SET_VALID(&cd, 1);
    CD_SET_AARCH64(&cd, 1);
    CD_SET_ASID(&cd, asid);
    CD_SET_A(&cd, 1);
    CD_SET_R(&cd, 1);
    CD_SET_AFFD(&cd, 1);
    CD_SET_IPS(&cd, 5);
    CD_SET_TSZ(&cd, 0, 16);
    CD_SET_TG(&cd, 0, tg0[granule]);
    CD_SET_EPD(&cd, 1, 1);
    CD_SET_TTB(&cd, 0, d->ttb);
    for (int i = 0; i < ARRAY_SIZE(cd.word); i++) {
        qtest_writel(g->qts, d->cd + i * 4, cd.word[i]);
    }
    return d;
}

uint64_t qsmmu_cd_table(QSMMUDomain *d, unsigned s1fmt, unsigned s1cdmax)
{
    static const unsigned l2_log[] = { [1] = 6, [2] = 10 };
    QSMMUGuest *g = d->g;
    uint64_t table, cds;

    if (s1fmt == 1 || s1fmt == 2) {
        unsigned l2 = l2_log[s1fmt];

        table = qsmmu_guest_alloc(g, MAX(64, sizeof(CDDesc) <<
                                             (MAX(s1cdmax, l2) - l2)));
        cds = qsmmu_guest_alloc(g, sizeof(CD) << l2);
        qtest_writeq(g->qts, table, cds | R_L1CD_0_VALID_MASK);
        d->l1cd = table;
    } else {
        table = cds = qsmmu_guest_alloc(g, sizeof(CD) << s1cdmax);
    }
    for (int i = 0; i < sizeof(CD); i += 8) {
        qtest_writeq(g->qts, cds + i, qtest_readq(g->qts, d->cd + i));
    }
    d->cd = cds;
    return QSMMU_STE_S1 | table | s1fmt << R_STE_0_S1FMT_SHIFT |
           (uint64_t)s1cdmax << 59;
}

void qsmmu_enable_ttb1(QSMMUDomain *d)
{
    static const uint64_t tg1[] = { [12] = 2, [14] = 1, [16] = 3 };

    d->ttb1 = qsmmu_guest_alloc(d->g, 1 << d->granule);
    qtest_writeq(d->g->qts, d->cd + A_CD_4, d->ttb1);
    qsmmu_modify(d->g, d->cd, R_CD_0_EPD1_MASK | R_CD_0_TSZ1_MASK |
                 R_CD_0_TG1_MASK, 16 << R_CD_0_TSZ1_SHIFT |
                 tg1[d->granule] << R_CD_0_TG1_SHIFT);
}

void qsmmu_set_ttb(QSMMUDomain *d, uint64_t ttb)
{
    qtest_writeq(d->g->qts, d->cd + A_CD_2, ttb);
    d->ttb = ttb;
}

/* How far a level's index is shifted */
static unsigned level_shift(QSMMUDomain *d, int level)
{
    return d->granule + (3 - level) * (d->granule - 3);
}

uint64_t qsmmu_pte(QSMMUDomain *d, uint64_t va, int level)
{
    QTestState *qts = d->g->qts;
    uint64_t table = extract64(va, 55, 1) ? d->ttb1 : d->ttb;
    int l = d->granule == 16 ? 1 : 0;

    for (;; l++) {
        /* The first level may resolve fewer bits than the others. */
        uint64_t index = (va & MAKE_64BIT_MASK(0, 48)) >> level_shift(d, l);
        uint64_t addr = table + (index & MAKE_64BIT_MASK(0, d->granule - 3)) *
                        sizeof(uint64_t);
        uint64_t next;

        if (l == level) {
            return addr;
        }
        next = qtest_readq(qts, addr);
        if (!(next & 1)) {
            next = qsmmu_guest_alloc(d->g, 1 << d->granule) | 3;
            qtest_writeq(qts, addr, next);
        }
        table = next & MAKE_64BIT_MASK(12, 36);
    }
}

void qsmmu_domain_set_pte(QSMMUDomain *d, uint64_t va, int level, uint64_t pte)
{
    qtest_writeq(d->g->qts, qsmmu_pte(d, va, level), pte);
}

void qsmmu_map(QSMMUDomain *d, uint64_t va, uint64_t pa)
{
    qsmmu_domain_set_pte(d, va, 3, pa | QSMMU_PTE_RW);
}

void qsmmu_unmap(QSMMUDomain *d, uint64_t va)
{
    qsmmu_domain_set_pte(d, va, 3, 0);
}

unsigned qsmmu_events(QSMMUGuest *g)
{
    uint32_t prod = qtest_readl(g->qts, g->base + 0x10000 + A_EVENTQ_PROD);

    g_assert_cmpuint(prod, <, 1 << QUEUE_LOG2SIZE);
    return prod;
}

void qsmmu_event(QSMMUGuest *g, unsigned index, uint64_t event[4])
{
    for (int i = 0; i < 4; i++) {
        event[i] = qtest_readq(g->qts, g->eventq + index * 32 + i * 8);
    }
}
