/*
 * What users can see of devices behind an accelerated SMMUv3
 *
 * All here only looks: it walks as a message would, but records, remembers and
 * routes nothing, so that a device that is watched is like one that is not.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/arm/smmuv3.h"
#include "hw/core/boards.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_bus.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/qapi-commands-misc-arm.h"
#include "system/accel-irq.h"

#include "smmuv3-internal.h"
#include "smmuv3-accel.h"

/* What a message to a page comes to */
typedef struct MessagePage {
    gint64 giova;
    ArmSMMUv3AccelOutcome outcome;
    bool dropped;
    bool listed;    /* as a doorbell page */
    hwaddr gpa;
} MessagePage;

typedef struct DeviceQuery {
    SMMUv3AccelDevice *accel_dev;
    PCIDevice *pdev;
    GHashTable *pages;      /* MessagePage by giova, walked once each */
    ArmSMMUv3AccelDoorbellList **doorbells;
    ArmSMMUv3AccelVectorList **vectors;
} DeviceQuery;

static ArmSMMUv3AccelOutcome walk_outcome(SMMUTranslationStatus status,
                                          SMMUEventType fault)
{
    static const ArmSMMUv3AccelOutcome faults[] = {
        [SMMU_EVT_C_BAD_STREAMID] = ARM_SMMUV3_ACCEL_OUTCOME_C_BAD_STREAMID,
        [SMMU_EVT_F_STE_FETCH] = ARM_SMMUV3_ACCEL_OUTCOME_F_STE_FETCH,
        [SMMU_EVT_C_BAD_STE] = ARM_SMMUV3_ACCEL_OUTCOME_C_BAD_STE,
        [SMMU_EVT_F_STREAM_DISABLED] =
            ARM_SMMUV3_ACCEL_OUTCOME_F_STREAM_DISABLED,
        [SMMU_EVT_C_BAD_SUBSTREAMID] =
            ARM_SMMUV3_ACCEL_OUTCOME_C_BAD_SUBSTREAMID,
        [SMMU_EVT_F_CD_FETCH] = ARM_SMMUV3_ACCEL_OUTCOME_F_CD_FETCH,
        [SMMU_EVT_C_BAD_CD] = ARM_SMMUV3_ACCEL_OUTCOME_C_BAD_CD,
        [SMMU_EVT_F_WALK_EABT] = ARM_SMMUV3_ACCEL_OUTCOME_F_WALK_EABT,
        [SMMU_EVT_F_TRANSLATION] = ARM_SMMUV3_ACCEL_OUTCOME_F_TRANSLATION,
        [SMMU_EVT_F_ADDR_SIZE] = ARM_SMMUV3_ACCEL_OUTCOME_F_ADDR_SIZE,
        [SMMU_EVT_F_ACCESS] = ARM_SMMUV3_ACCEL_OUTCOME_F_ACCESS,
        [SMMU_EVT_F_PERMISSION] = ARM_SMMUV3_ACCEL_OUTCOME_F_PERMISSION,
    };

    switch (status) {
    case SMMU_TRANS_DISABLE:
        return ARM_SMMUV3_ACCEL_OUTCOME_DISABLED;
    case SMMU_TRANS_ABORT:
        return ARM_SMMUV3_ACCEL_OUTCOME_ABORTED;
    case SMMU_TRANS_BYPASS:
        return ARM_SMMUV3_ACCEL_OUTCOME_BYPASS;
    case SMMU_TRANS_SUCCESS:
        return ARM_SMMUV3_ACCEL_OUTCOME_TRANSLATED;
    case SMMU_TRANS_ERROR:
        return faults[fault];
    }
    g_assert_not_reached();
}

static MessagePage *find_page(DeviceQuery *q, hwaddr address)
{
    gint64 giova = address & ~DOORBELL_PAGE_MASK;
    MessagePage *page = g_hash_table_lookup(q->pages, &giova);
    SMMUEventInfo event = { .inval_ste_allowed = true, .silent = true };
    SMMUTranslationStatus status;
    SMMUv3WalkResult result;

    if (page) {
        return page;
    }
    status = smmuv3_accel_msi_walk(q->accel_dev, giova, IOMMU_WO, &result,
                                   &event);
    page = g_new0(MessagePage, 1);
    page->giova = giova;
    page->outcome = walk_outcome(status, event.type);
    page->dropped = status == SMMU_TRANS_ABORT || status == SMMU_TRANS_ERROR;
    if (!page->dropped) {
        page->gpa = result.addr;
    }
    g_hash_table_insert(q->pages, &page->giova, page);
    return page;
}

static void list_doorbell(DeviceQuery *q, MessagePage *page)
{
    ArmSMMUv3AccelDoorbell *doorbell;

    if (page->listed) {
        return;
    }
    page->listed = true;
    doorbell = g_new0(ArmSMMUv3AccelDoorbell, 1);
    doorbell->giova = page->giova;
    doorbell->outcome = page->outcome;
    doorbell->has_gpa = !page->dropped;
    doorbell->gpa = page->gpa;
    QAPI_LIST_APPEND(q->doorbells, doorbell);
}

static ArmSMMUv3AccelReason find_reason(DeviceQuery *q, bool msix,
                                        unsigned nr, bool masked,
                                        MSIMessage msg)
{
    MSIMessage routed, translated = { .data = msg.data };
    MSIDelivery delivery = msi_delivery(q->pdev, msix, nr, &routed);
    AccelMSIPath path = ACCEL_MSI_FAULT;
    MessagePage *page;

    /* The device masks MSI by itself, and keeps the route. */
    if (masked && delivery != MSI_DELIVERY_IRQCHIP) {
        return ARM_SMMUV3_ACCEL_REASON_MASKED;
    }
    if (delivery == MSI_DELIVERY_NONE) {
        return ARM_SMMUV3_ACCEL_REASON_UNUSED;
    }

    page = find_page(q, msg.address);
    if (!page->dropped) {
        translated.address = page->gpa | (msg.address & DOORBELL_PAGE_MASK);
        path = accel_irqchip_msi_path(translated);
    }
    if (delivery == MSI_DELIVERY_IRQCHIP) {
        return path == ACCEL_MSI_IRQCHIP &&
               translated.address == routed.address ?
               ARM_SMMUV3_ACCEL_REASON_ROUTED : ARM_SMMUV3_ACCEL_REASON_STALE;
    }

    if (!q->pdev->is_master) {
        return ARM_SMMUV3_ACCEL_REASON_NO_BUS_MASTER;
    }
    if (page->dropped) {
        return ARM_SMMUV3_ACCEL_REASON_DROPPED;
    }
    if (path == ACCEL_MSI_FAULT) {
        return ARM_SMMUV3_ACCEL_REASON_UNASSIGNED;
    }
    if (delivery == MSI_DELIVERY_QEMU_ONLY) {
        return ARM_SMMUV3_ACCEL_REASON_NO_IRQCHIP;
    }
    if (delivery == MSI_DELIVERY_QEMU_CHOSEN) {
        return ARM_SMMUV3_ACCEL_REASON_CHOSEN;
    }
    if (path == ACCEL_MSI_QEMU) {
        return ARM_SMMUV3_ACCEL_REASON_NOT_DOORBELL;
    }
    return delivery == MSI_DELIVERY_QEMU_REFUSED ?
           ARM_SMMUV3_ACCEL_REASON_REFUSED :
           ARM_SMMUV3_ACCEL_REASON_MAPPED_LATE;
}

static ArmSMMUv3AccelDelivery reason_delivery(ArmSMMUv3AccelReason reason)
{
    switch (reason) {
    case ARM_SMMUV3_ACCEL_REASON_ROUTED:
    case ARM_SMMUV3_ACCEL_REASON_STALE:
        return ARM_SMMUV3_ACCEL_DELIVERY_IRQCHIP;
    case ARM_SMMUV3_ACCEL_REASON_NO_IRQCHIP:
    case ARM_SMMUV3_ACCEL_REASON_CHOSEN:
    case ARM_SMMUV3_ACCEL_REASON_NOT_DOORBELL:
    case ARM_SMMUV3_ACCEL_REASON_REFUSED:
    case ARM_SMMUV3_ACCEL_REASON_MAPPED_LATE:
        return ARM_SMMUV3_ACCEL_DELIVERY_QEMU;
    default:
        return ARM_SMMUV3_ACCEL_DELIVERY_NONE;
    }
}

static void list_vector(DeviceQuery *q, bool msix, unsigned nr, bool masked,
                        MSIMessage msg)
{
    ArmSMMUv3AccelVector *vector = g_new0(ArmSMMUv3AccelVector, 1);

    vector->kind = msix ? ARM_SMMUV3_ACCEL_VECTOR_KIND_MSIX
                        : ARM_SMMUV3_ACCEL_VECTOR_KIND_MSI;
    vector->vector = nr;
    vector->masked = masked;
    vector->address = msg.address;
    vector->data = msg.data;
    vector->reason = find_reason(q, msix, nr, masked, msg);
    vector->delivery = reason_delivery(vector->reason);
    QAPI_LIST_APPEND(q->vectors, vector);
    if (!masked) {
        list_doorbell(q, find_page(q, msg.address));
    }
}

static ArmSMMUv3AccelHWPT device_attached(SMMUv3AccelDevice *accel_dev)
{
    if (!accel_dev->hwpt_id) {
        return ARM_SMMUV3_ACCEL_HWPT_NONE;
    }
    if (accel_dev->hwpt_id == accel_dev->s_accel->abort_hwpt_id) {
        return ARM_SMMUV3_ACCEL_HWPT_ABORT;
    }
    if (accel_dev->hwpt_id == accel_dev->s_accel->bypass_hwpt_id) {
        return ARM_SMMUV3_ACCEL_HWPT_BYPASS;
    }
    return ARM_SMMUV3_ACCEL_HWPT_NESTED;
}

static ArmSMMUv3AccelHost device_host(SMMUv3AccelDevice *accel_dev)
{
    switch (accel_dev->reported) {
    case SMMUV3_ACCEL_NO_TROUBLE:
        return ARM_SMMUV3_ACCEL_HOST_FOLLOWS;
    case SMMUV3_ACCEL_BLOCKED:
        return ARM_SMMUV3_ACCEL_HOST_BLOCKS;
    case SMMUV3_ACCEL_STRAY:
        return ARM_SMMUV3_ACCEL_HOST_STRAYS;
    }
    g_assert_not_reached();
}

static ArmSMMUv3AccelInfo *query_device(SMMUv3AccelDevice *accel_dev)
{
    SMMUDevice *sdev = &accel_dev->sdev;
    PCIDevice *pdev = sdev->bus->devices[sdev->devfn];
    ArmSMMUv3AccelInfo *info = g_new0(ArmSMMUv3AccelInfo, 1);
    g_autoptr(GHashTable) pages = g_hash_table_new_full(g_int64_hash,
                                                        g_int64_equal, NULL,
                                                        g_free);
    DeviceQuery q = {
        .accel_dev = accel_dev,
        .pdev = pdev,
        .pages = pages,
        .doorbells = &info->doorbells,
        .vectors = &info->vectors,
    };

    info->device = g_strdup(DEVICE(pdev)->id);
    info->path = object_get_canonical_path(OBJECT(pdev));
    info->smmu = object_get_canonical_path(OBJECT(sdev->smmu));
    info->bus = g_strdup(BUS(sdev->bus)->name);
    info->slot = PCI_SLOT(sdev->devfn);
    info->function = PCI_FUNC(sdev->devfn);
    info->stream_id = smmuv3_accel_find_sid(accel_dev);
    info->has_stream_id = info->stream_id != SMMU_SID_NONE;
    info->attached = device_attached(accel_dev);
    info->host = device_host(accel_dev);

    if (msi_enabled(pdev)) {
        for (unsigned nr = 0; nr < msi_nr_vectors_allocated(pdev); nr++) {
            list_vector(&q, false, nr, msi_is_masked(pdev, nr),
                        msi_get_message(pdev, nr));
        }
    }
    if (msix_enabled(pdev)) {
        for (unsigned nr = 0; nr < pdev->msix_entries_nr; nr++) {
            list_vector(&q, true, nr, msix_is_masked(pdev, nr),
                        msix_get_message(pdev, nr));
        }
    }
    return info;
}

static int query_smmu(Object *obj, void *opaque)
{
    ArmSMMUv3AccelInfoList **list = opaque;
    SMMUv3State *s = (SMMUv3State *)object_dynamic_cast(obj, TYPE_ARM_SMMUV3);
    SMMUv3AccelDevice *accel_dev;

    if (s && s->s_accel) {
        QLIST_FOREACH(accel_dev, &s->s_accel->device_list, next) {
            QAPI_LIST_PREPEND(*list, query_device(accel_dev));
        }
    }
    return 0;
}

ArmSMMUv3AccelInfoList *qmp_query_arm_smmuv3_accel(Error **errp)
{
    ArmSMMUv3AccelInfoList *list = NULL;

    object_child_foreach_recursive(qdev_get_machine(), query_smmu, &list);
    return list;
}

/* Vectors that are masked alike share a line: most of them are, in general. */
static ArmSMMUv3AccelVectorList *print_vectors(Monitor *mon,
                                               ArmSMMUv3AccelVectorList *item)
{
    ArmSMMUv3AccelVector *v = item->value, *last = v;
    const char *kind = ArmSMMUv3AccelVectorKind_str(v->kind);

    if (v->reason != ARM_SMMUV3_ACCEL_REASON_MASKED) {
        monitor_printf(mon, "  %s %u: 0x%" PRIx64 " 0x%" PRIx32 "%s, %s (%s)\n",
                       kind, v->vector, v->address, v->data,
                       v->masked ? " masked" : "",
                       ArmSMMUv3AccelDelivery_str(v->delivery),
                       ArmSMMUv3AccelReason_str(v->reason));
        return item->next;
    }
    do {
        last = item->value;
        item = item->next;
    } while (item && item->value->reason == v->reason &&
             item->value->kind == v->kind);
    if (last == v) {
        monitor_printf(mon, "  %s %u: masked\n", kind, v->vector);
    } else {
        monitor_printf(mon, "  %s %u-%u: masked\n", kind, v->vector,
                       last->vector);
    }
    return item;
}

static void print_device(Monitor *mon, const ArmSMMUv3AccelInfo *info)
{
    ArmSMMUv3AccelVectorList *vectors = info->vectors;

    monitor_printf(mon, "%s (%s %02x.%x) behind %s\n",
                   info->device ?: info->path, info->bus, info->slot,
                   info->function, info->smmu);
    if (info->has_stream_id) {
        monitor_printf(mon, "  stream ID 0x%" PRIx32, info->stream_id);
    } else {
        monitor_printf(mon, "  no stream ID");
    }
    monitor_printf(mon, ", attached: %s, host %s\n",
                   ArmSMMUv3AccelHWPT_str(info->attached),
                   ArmSMMUv3AccelHost_str(info->host));
    for (ArmSMMUv3AccelDoorbellList *item = info->doorbells; item;
         item = item->next) {
        ArmSMMUv3AccelDoorbell *doorbell = item->value;

        monitor_printf(mon, "  doorbell 0x%" PRIx64, doorbell->giova);
        if (doorbell->has_gpa) {
            monitor_printf(mon, " -> 0x%" PRIx64, doorbell->gpa);
        }
        monitor_printf(mon, ": %s\n",
                       ArmSMMUv3AccelOutcome_str(doorbell->outcome));
    }
    while (vectors) {
        vectors = print_vectors(mon, vectors);
    }
}

static void hmp_info_smmuv3_accel(Monitor *mon, const QDict *qdict)
{
    g_autoptr(ArmSMMUv3AccelInfoList) list = qmp_query_arm_smmuv3_accel(NULL);

    if (!list) {
        monitor_puts(mon, "No device that is passed through is behind an "
                     "accelerated SMMUv3\n");
    }
    for (ArmSMMUv3AccelInfoList *item = list; item; item = item->next) {
        print_device(mon, item->value);
    }
}

static void smmuv3_accel_query_register(void)
{
    monitor_register_hmp("smmuv3-accel", true, hmp_info_smmuv3_accel);
}

type_init(smmuv3_accel_query_register)
