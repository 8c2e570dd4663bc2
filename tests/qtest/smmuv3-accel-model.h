/*
 * What becomes of the MSIs of devices behind SMMUv3s: a model
 *
 * The state here is what a guest has programmed, in the words of the
 * architecture (IHI 0070, PCIe) and without anything that QEMU keeps. From it
 * alone follows where a message goes, which event a fault leaves, and what the
 * host SMMU has to do with a stream. Nothing here knows how QEMU does it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QTEST_SMMUV3_ACCEL_MODEL_H
#define QTEST_SMMUV3_ACCEL_MODEL_H

#include "qemu/osdep.h"

enum {
    MODEL_SMMUS = 2,
    MODEL_DEVICES = 3,
    MODEL_VECTORS = 3,      /* of each device */
    MODEL_DOMAINS = 2,      /* of each SMMU */
    MODEL_PAGES = 6,        /* of gIOVA space that are ever used */
};

/* Events */
enum {
    MODEL_C_BAD_STREAMID = 0x02,
    MODEL_C_BAD_STE = 0x04,
    MODEL_F_CD_FETCH = 0x09,
    MODEL_C_BAD_CD = 0x0a,
    MODEL_F_WALK_EABT = 0x0b,
    MODEL_F_TRANSLATION = 0x10,
    MODEL_F_ACCESS = 0x12,
    MODEL_F_PERMISSION = 0x13,
};

typedef enum ModelLeafKind {
    MODEL_UNMAPPED,
    MODEL_PAGE,             /* of 4 KiB */
    MODEL_BLOCK,            /* of 2 MiB */
    MODEL_NO_TABLE,         /* its table is where no memory is */
} ModelLeafKind;

typedef struct ModelLeaf {
    ModelLeafKind kind;
    bool read_only;
    bool not_accessed;
    bool not_global;
    uint64_t pa;            /* of the page or block */
} ModelLeaf;

typedef struct ModelDomain {
    bool valid;             /* CD.V */
    bool record;            /* CD.R */
    uint16_t asid;
    unsigned tables;        /* which ones CD.TTB0 points to */
} ModelDomain;

typedef enum ModelSTE {
    MODEL_STE_INVALID,
    MODEL_STE_ABORT,
    MODEL_STE_BYPASS,
    MODEL_STE_S1,
    MODEL_STE_S1_NO_CD,     /* stage 1 with the CD where no memory is */
} ModelSTE;

typedef struct ModelSMMU {
    bool enabled, cmdq, eventq; /* in CR0 */
    bool abort;             /* GBPA.ABORT */
    bool recinvsid;         /* CR2.RECINVSID */
    unsigned log2_streams;  /* STRTAB_BASE_CFG.LOG2SIZE */
    ModelDomain domain[MODEL_DOMAINS];
    ModelLeaf leaf[MODEL_DOMAINS][MODEL_PAGES]; /* by tables */
} ModelSMMU;

typedef struct ModelVector {
    uint64_t address;
    uint32_t data;
    bool masked, pending;
} ModelVector;

typedef struct ModelDevice {
    unsigned smmu;
    uint32_t sid;
    ModelSTE ste;
    unsigned domain;        /* that the STE points to */
    bool enabled, masked;   /* MSI-X, the whole function */
    bool master;            /* may it write to memory? */
    ModelVector vector[MODEL_VECTORS];
} ModelDevice;

typedef struct Model {
    uint64_t page[MODEL_PAGES];     /* gIOVA */
    uint64_t doorbell;              /* GPA of the register */
    uint32_t first, last;           /* data that it takes */
    ModelSMMU smmu[MODEL_SMMUS];
    ModelDevice dev[MODEL_DEVICES];
} Model;

/* What a message meets on its way */
typedef struct ModelOutcome {
    enum {
        MODEL_DROPPED,      /* by an abort that leaves no event */
        MODEL_FAULT,
        MODEL_SENT,
    } kind;
    uint8_t event;          /* of a fault, */
    bool recorded;          /* and does it go to the event queue? */
    uint64_t gpa;           /* where it was sent */
    const ModelLeaf *leaf;  /* that stage 1 used, or NULL */
    uint16_t asid;          /* with it */
} ModelOutcome;

/* Does an interrupt of the vector become a message at once? */
bool model_live(const ModelDevice *dev, unsigned vector);

/* What stage 1 does with a write to @address */
ModelOutcome model_translate(const Model *m, const ModelDevice *dev,
                             uint64_t address);

/* Is this message one that an MSI controller takes, where it arrives? */
bool model_is_interrupt(const Model *m, const ModelOutcome *o, uint32_t data);

/*
 * The first 64 bits of the STE that the host has to use
 *
 * @cd: address of the CD of the device's domain
 */
uint64_t model_host_ste(const Model *m, const ModelDevice *dev, uint64_t cd);

/* What a TLB invalidation applies to */
typedef struct ModelTLBI {
    bool any_asid;
    bool all_addresses;
    bool keeps_global;      /* by ASID */
    uint16_t asid;
    uint64_t first, last;   /* unless all_addresses */
} ModelTLBI;

/* Does it apply to the TLB entry that @leaf in @asid made for @address? */
bool model_tlbi_covers(const ModelTLBI *tlbi, const ModelLeaf *leaf,
                       uint16_t asid, uint64_t address);

#endif /* QTEST_SMMUV3_ACCEL_MODEL_H */
