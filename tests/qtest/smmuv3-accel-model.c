/*
 * What becomes of the MSIs of devices behind SMMUv3s: a model
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-model.h"

#define PAGE_MASK       0xfffull
#define BLOCK_MASK      0x1fffffull

#define STE_ABORT       0x1
#define STE_BYPASS      0x9
#define STE_S1          0xb

bool model_live(const ModelDevice *dev, unsigned vector)
{
    return dev->enabled && !dev->masked && !dev->vector[vector].masked;
}

static ModelOutcome fault(uint8_t event, bool recorded)
{
    return (ModelOutcome) {
        .kind = MODEL_FAULT,
        .event = event,
        .recorded = recorded,
    };
}

static ModelOutcome sent(uint64_t gpa)
{
    return (ModelOutcome) { .kind = MODEL_SENT, .gpa = gpa };
}

static uint64_t leaf_mask(const ModelLeaf *leaf)
{
    return leaf->kind == MODEL_BLOCK ? BLOCK_MASK : PAGE_MASK;
}

static ModelOutcome translate_stage1(const Model *m, const ModelSMMU *smmu,
                                     const ModelDomain *d, uint64_t address)
{
    static const ModelLeaf unmapped = { .kind = MODEL_UNMAPPED };
    const ModelLeaf *leaf = &unmapped;
    ModelOutcome o;

    for (int i = 0; i < MODEL_PAGES; i++) {
        if (m->page[i] == (address & ~PAGE_MASK)) {
            leaf = &smmu->leaf[d->tables][i];
        }
    }
    if (leaf->kind == MODEL_NO_TABLE) {
        return fault(MODEL_F_WALK_EABT, true);
    }
    if (leaf->kind == MODEL_UNMAPPED) {
        return fault(MODEL_F_TRANSLATION, d->record);
    }
    if (leaf->not_accessed) {
        return fault(MODEL_F_ACCESS, d->record);
    }
    if (leaf->read_only) {
        return fault(MODEL_F_PERMISSION, d->record);
    }
    o = sent(leaf->pa | (address & leaf_mask(leaf)));
    o.leaf = leaf;
    o.asid = d->asid;
    return o;
}

static bool stream_exists(const ModelSMMU *smmu, const ModelDevice *dev)
{
    return dev->sid >> smmu->log2_streams == 0;
}

ModelOutcome model_translate(const Model *m, const ModelDevice *dev,
                             uint64_t address)
{
    const ModelSMMU *smmu = &m->smmu[dev->smmu];
    const ModelDomain *d = &smmu->domain[dev->domain];
    const ModelOutcome dropped = { .kind = MODEL_DROPPED };

    if (!dev->master) {
        return dropped;
    }
    if (!smmu->enabled) {
        return smmu->abort ? dropped : sent(address);
    }
    if (!stream_exists(smmu, dev)) {
        return fault(MODEL_C_BAD_STREAMID, smmu->recinvsid);
    }
    switch (dev->ste) {
    case MODEL_STE_INVALID:
        return fault(MODEL_C_BAD_STE, true);
    case MODEL_STE_ABORT:
        return dropped;
    case MODEL_STE_BYPASS:
        return sent(address);
    case MODEL_STE_S1_NO_CD:
        return fault(MODEL_F_CD_FETCH, true);
    case MODEL_STE_S1:
        if (!d->valid) {
            return fault(MODEL_C_BAD_CD, true);
        }
        return translate_stage1(m, smmu, d, address);
    }
    g_assert_not_reached();
}

bool model_is_interrupt(const Model *m, const ModelOutcome *o, uint32_t data)
{
    return o->kind == MODEL_SENT && o->gpa == m->doorbell &&
           data >= m->first && data <= m->last;
}

uint64_t model_host_ste(const Model *m, const ModelDevice *dev, uint64_t cd)
{
    const ModelSMMU *smmu = &m->smmu[dev->smmu];

    if (!smmu->enabled) {
        return smmu->abort ? STE_ABORT : STE_BYPASS;
    }
    if (!stream_exists(smmu, dev)) {
        return STE_ABORT;
    }
    switch (dev->ste) {
    case MODEL_STE_S1:
    case MODEL_STE_S1_NO_CD:
        return STE_S1 | cd;
    case MODEL_STE_BYPASS:
        return STE_BYPASS;
    default:
        return STE_ABORT;
    }
}

bool model_tlbi_covers(const ModelTLBI *tlbi, const ModelLeaf *leaf,
                       uint16_t asid, uint64_t address)
{
    uint64_t first = address & ~leaf_mask(leaf);
    uint64_t last = address | leaf_mask(leaf);
    bool global = !leaf->not_global;

    if (!tlbi->any_asid &&
        (global ? tlbi->keeps_global : tlbi->asid != asid)) {
        return false;
    }
    return tlbi->all_addresses || (tlbi->first <= last && tlbi->last >= first);
}
