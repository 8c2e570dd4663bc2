/*
 * What an SMMUv3 must make of a guest's tables, case by case, for qtests
 *
 * The cases are those of IHI 0070 and hold for emulated and accelerated SMMUs
 * alike. Each starts from a valid stream with one page mapped, breaks something
 * and makes an access.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QTEST_SMMUV3_CASES_H
#define QTEST_SMMUV3_CASES_H

#include "libqos/smmuv3-guest.h"

/* Nothing is there, neither memory nor a device. */
#define HOLE            0x60000000ull

/* Outcomes that are no event */
#define ARRIVES         0x00
#define DROPPED         0xff    /* without an event */

/* A structure that a case changes */
typedef enum {
    NOTHING,
    IN_STE,                     /* @index is that of a 64-bit word */
    IN_CD,
    IN_L1CD,
    IN_PTE,                     /* @index is the level */
} SMMUv3CaseWhere;

typedef struct SMMUv3Case {
    const char *name;
    unsigned granule;           /* as a shift; 0 is 12 */
    unsigned up;                /* levels from the leaf to level 3 */
    uint64_t high;              /* bits of the address above 48 */
    bool identity;              /* the address is that of the target itself */
    unsigned s1fmt, s1cdmax;    /* if the CD is in a table */
    struct {
        SMMUv3CaseWhere where;
        unsigned index;
        uint64_t mask, value;
    } change[4];
    uint8_t outcome;            /* ARRIVES, DROPPED or an event */
    uint64_t fetch;             /* page of the event's FetchAddr, if not 0 */
} SMMUv3Case;

/* How a test makes a stream's access */
typedef struct SMMUv3Target {
    QSMMUGuest *g;
    uint32_t sid;
    uint64_t pa;                /* where the access is to arrive */
    uint16_t asid;              /* the last one used */
    /*
     * Access @giova for writing, by the tables as they are: an SMMU that caches
     * is to be told. Returns: did it arrive at @pa?
     */
    bool (*access)(struct SMMUv3Target *t, uint64_t giova);
} SMMUv3Target;

/* Run @n cases, and check each event that is recorded in all its fields. */
void smmuv3_run_cases(SMMUv3Target *t, const SMMUv3Case *cases, size_t n);

/* Cases of one STE with stage 1 and no substreams */
void smmuv3_test_stage1(SMMUv3Target *t);

/* Linear and two-level stream tables, and streams that are not in them */
void smmuv3_test_stream_tables(SMMUv3Target *t);

#endif /* QTEST_SMMUV3_CASES_H */
