/*
 * What a guest does to an Arm SMMUv3: registers, queues and tables
 *
 * For an SMMU at any base, with any number of streams and domains, unlike
 * qos-smmuv3.h which has one fixed translation.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef LIBQOS_SMMUV3_GUEST_H
#define LIBQOS_SMMUV3_GUEST_H

#include "../libqtest.h"
#include "hw/arm/smmuv3-common.h"

/* Of a leaf: accessed, inner shareable, writable */
#define QSMMU_PTE_RW            0x0000000000000743ull
#define QSMMU_PTE_TABLE         0x2ull      /* or a page, else a block */
#define QSMMU_PTE_NG            0x800ull    /* not global */

/* Fields of an event of 64-bit words */
#define QSMMU_EVT_TYPE(evt)     ((evt)[0] & 0xff)
#define QSMMU_EVT_SSV(evt)      (((evt)[0] >> 11) & 1)
#define QSMMU_EVT_SID(evt)      ((evt)[0] >> 32)
#define QSMMU_EVT_PNU(evt)      (((evt)[1] >> 33) & 1)
#define QSMMU_EVT_RNW(evt)      (((evt)[1] >> 35) & 1)
#define QSMMU_EVT_S2(evt)       (((evt)[1] >> 39) & 1)
#define QSMMU_EVT_CLASS(evt)    (((evt)[1] >> 40) & 3)
#define QSMMU_EVT_ADDR(evt)     ((evt)[2])
#define QSMMU_EVT_FETCH(evt)    ((evt)[3])  /* IPA or FetchAddr */

#define QSMMU_CLASS_TT          1
#define QSMMU_CLASS_IN          2

/* The first 64-bit word of an STE; with the CD's address for stage 1 */
#define QSMMU_STE_ABORT         0x1ull
#define QSMMU_STE_BYPASS        0x9ull
#define QSMMU_STE_S1            0xbull

/* Events */
#define QSMMU_C_BAD_STREAMID    0x02
#define QSMMU_F_STE_FETCH       0x03
#define QSMMU_C_BAD_STE         0x04
#define QSMMU_F_STREAM_DISABLED 0x06
#define QSMMU_C_BAD_SUBSTREAMID 0x08
#define QSMMU_F_CD_FETCH        0x09
#define QSMMU_C_BAD_CD          0x0a
#define QSMMU_F_WALK_EABT       0x0b
#define QSMMU_F_TRANSLATION     0x10
#define QSMMU_F_ADDR_SIZE       0x11
#define QSMMU_F_ACCESS          0x12
#define QSMMU_F_PERMISSION      0x13

typedef struct QSMMUGuest {
    QTestState *qts;
    uint64_t base;          /* of the registers */
    uint64_t next, end;     /* guest RAM for tables that is not used yet */
    uint64_t strtab, cmdq, eventq;
    uint32_t cmdq_prod;
    unsigned split;         /* of the stream table; 0 if it is linear */
    unsigned sid_bits;
} QSMMUGuest;

/* A CD with its page tables */
typedef struct QSMMUDomain {
    QSMMUGuest *g;
    uint64_t cd;
    uint64_t l1cd;          /* if there is one */
    uint64_t ttb;
    uint64_t ttb1;          /* for addresses with bit 55 set, if enabled */
    unsigned granule;       /* as a shift: 12, 14 or 16 */
    uint16_t asid;
} QSMMUDomain;

/**
 * qsmmu_guest_init - prepare tables and queues, leave the SMMU as it is
 *
 * @base: where the registers are
 * @mem: guest RAM that the tables may use
 * @size: of that RAM
 */
void qsmmu_guest_init(QSMMUGuest *g, QTestState *qts, uint64_t base,
                      uint64_t mem, uint64_t size);

/**
 * qsmmu_guest_enable - enable queues and translation; all streams are invalid
 */
void qsmmu_guest_enable(QSMMUGuest *g);
void qsmmu_guest_disable(QSMMUGuest *g);

/**
 * qsmmu_guest_alloc - zeroed, aligned to @size, a power of 2
 */
uint64_t qsmmu_guest_alloc(QSMMUGuest *g, uint64_t size);

/**
 * qsmmu_queue - write a command into the queue, to be issued with others
 *
 * There is room for 255 of them.
 */
void qsmmu_queue(QSMMUGuest *g, uint64_t word0, uint64_t word1);

/**
 * qsmmu_issue_queued - issue all of them at once
 *
 * Returns: as qsmmu_issue()
 */
uint32_t qsmmu_issue_queued(QSMMUGuest *g);

/**
 * qsmmu_issue - issue a command that may fail
 *
 * Returns: CMDQ_CONS, with the error if there is one
 */
uint32_t qsmmu_issue(QSMMUGuest *g, uint64_t word0, uint64_t word1);

/**
 * qsmmu_command - issue a command and check that it was consumed
 */
void qsmmu_command(QSMMUGuest *g, uint64_t word0, uint64_t word1);

/**
 * qsmmu_acknowledge - acknowledge the error of a command
 *
 * @skip: replace it by a CMD_SYNC, else it is tried again
 *
 * Returns: as qsmmu_issue(); the error may be that of before
 */
uint32_t qsmmu_acknowledge(QSMMUGuest *g, bool skip);
void qsmmu_cfgi_ste(QSMMUGuest *g, uint32_t sid);
void qsmmu_cfgi_cd(QSMMUGuest *g, uint32_t sid);
void qsmmu_tlbi_va(QSMMUDomain *d, uint64_t va);

/**
 * qsmmu_two_level_strtab - have a two-level stream table from the next
 * qsmmu_guest_enable() on; all streams are invalid
 *
 * @split: 6, 8 or 10
 * @sid_bits: of the stream IDs that it has
 */
void qsmmu_two_level_strtab(QSMMUGuest *g, unsigned split, unsigned sid_bits);

/**
 * qsmmu_l1std - where the first level descriptor of stream @sid is
 */
uint64_t qsmmu_l1std(QSMMUGuest *g, uint32_t sid);

/**
 * qsmmu_ste - where the STE of @sid is; makes a second level table for it
 */
uint64_t qsmmu_ste(QSMMUGuest *g, uint32_t sid);

/**
 * qsmmu_modify - replace the bits @mask of a 64-bit word in memory
 */
void qsmmu_modify(QSMMUGuest *g, uint64_t addr, uint64_t mask,
                  uint64_t value);

/**
 * qsmmu_set_ste - write the first two 64-bit words of an STE
 *
 * Nothing is invalidated.
 */
void qsmmu_set_ste(QSMMUGuest *g, uint32_t sid, uint64_t word0,
                   uint64_t word1);

/**
 * qsmmu_attach - let stream @sid translate by @d, or be invalid if NULL
 */
void qsmmu_attach(QSMMUGuest *g, uint32_t sid, QSMMUDomain *d);

/**
 * qsmmu_domain_new - a domain of 48 bits that maps nothing
 *
 * @granule: 12, 14 or 16
 */
QSMMUDomain *qsmmu_domain_new(QSMMUGuest *g, unsigned granule, uint16_t asid);

/**
 * qsmmu_cd_table - make the CD of a domain the first one of a table
 *
 * @s1fmt: STE.S1Fmt: 0 is linear, 1 and 2 have two levels
 * @s1cdmax: STE.S1CDMax, the logarithm of how many CDs there are
 *
 * Returns: the first word of an STE with that table
 */
uint64_t qsmmu_cd_table(QSMMUDomain *d, unsigned s1fmt, unsigned s1cdmax);

/**
 * qsmmu_enable_ttb1 - translate the upper 48 bits of addresses as well, by
 * tables of the same granule that map nothing
 */
void qsmmu_enable_ttb1(QSMMUDomain *d);

/**
 * qsmmu_set_ttb - point the CD to another domain's tables; nothing is
 * invalidated
 */
void qsmmu_set_ttb(QSMMUDomain *d, uint64_t ttb);

/**
 * qsmmu_pte - where the descriptor of @va at @level is; makes tables for it
 */
uint64_t qsmmu_pte(QSMMUDomain *d, uint64_t va, int level);

/**
 * qsmmu_domain_set_pte - write the descriptor of @va at @level
 */
void qsmmu_domain_set_pte(QSMMUDomain *d, uint64_t va, int level,
                          uint64_t pte);

/**
 * qsmmu_map - map one page; nothing is invalidated
 */
void qsmmu_map(QSMMUDomain *d, uint64_t va, uint64_t pa);
void qsmmu_unmap(QSMMUDomain *d, uint64_t va);

/**
 * qsmmu_events - number of events ever recorded
 */
unsigned qsmmu_events(QSMMUGuest *g);
void qsmmu_event(QSMMUGuest *g, unsigned index, uint64_t event[4]);

#endif /* LIBQOS_SMMUV3_GUEST_H */
