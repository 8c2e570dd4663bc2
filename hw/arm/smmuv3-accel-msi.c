/*
 * MSIs of devices behind an accelerated SMMUv3
 *
 * The host SMMU translates what a device does by itself. This file is about
 * the messages that QEMU sends for it, or has KVM send: each device gets an
 * AddressSpace that is system memory but for the device's MSI doorbell pages,
 * where the guest's stage 1 applies. See docs/devel/arm-smmuv3-accel.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/log.h"
#include "qapi/error.h"
#include "trace.h"

#include "hw/arm/smmuv3.h"
#include "hw/core/boards.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_bus.h"
#include "system/address-spaces.h"

#include "smmuv3-internal.h"
#include "smmuv3-accel.h"

#define TYPE_SMMUV3_ACCEL_MSI_REGION "arm-smmuv3-accel-msi-region"

/* What an access is for: the IOMMU indexes of the region. */
enum {
    MSI_DELIVER,    /* QEMU sends a message */
    MSI_ROUTE,      /* somebody asks where a message would go */
    MSI_NUM_INDEXES,
};

/* So many pages of a device are looked up one by one. */
#define MAX_CHANGED_PAGES 16

static bool same_page(hwaddr a, hwaddr b)
{
    return (a & ~DOORBELL_PAGE_MASK) == (b & ~DOORBELL_PAGE_MASK);
}

/*
 * Is @addr in a doorbell page, that is: does an enabled and unmasked vector
 * of the device name this page right now?
 *
 * The answer comes from the registers that the message itself is made of, so
 * it cannot differ from the message. To ask where a vector's message would go
 * is legal while the vector is masked: the mask bits of MSI belong to the
 * device, so a route stays while they are set.
 */
static bool smmuv3_accel_msi_is_doorbell(SMMUv3AccelDevice *accel_dev,
                                         hwaddr addr, int iommu_idx)
{
    SMMUDevice *sdev = &accel_dev->sdev;
    PCIDevice *pdev = sdev->bus->devices[sdev->devfn];
    bool any = iommu_idx == MSI_ROUTE;

    if (!pdev) {
        return false;
    }

    if (msix_enabled(pdev)) {
        unsigned v = accel_dev->msi_vector, n = pdev->msix_entries_nr;

        /* Vectors are often asked for in turn. */
        for (unsigned i = 0; i < n; i++, v++) {
            v = v < n ? v : 0;
            if (same_page(addr, msix_get_message(pdev, v).address) &&
                (any || !msix_is_masked(pdev, v))) {
                accel_dev->msi_vector = v;
                return true;
            }
        }
    }
    /* A guest must not enable both, but its messages are translated. */
    if (msi_enabled(pdev) &&
        same_page(addr, msi_get_message(pdev, 0).address)) {
        /* All vectors have one address. */
        for (unsigned v = 0; v < msi_nr_vectors_allocated(pdev); v++) {
            if (any || !msi_is_masked(pdev, v)) {
                return true;
            }
        }
    }
    return false;
}

/* How many pages the vectors of a device can name */
static unsigned smmuv3_accel_msi_max_pages(PCIDevice *pdev)
{
    return msix_present(pdev) ? pdev->msix_entries_nr : 1;
}

/*
 * A doorbell page that somebody looked up and that the tables translated. As
 * with ATS, whoever did is told once when the answer may have changed.
 */
typedef struct SMMUv3AccelMSIPage {
    IntervalTreeNode node;  /* what the leaf maps, as smmuv3_accel_msi_va() */
    SMMUv3AccelDevice *accel_dev;
    gint64 page;
    int asid;
    bool global;
    QSIMPLEQ_ENTRY(SMMUv3AccelMSIPage) next;    /* when it has changed */
} SMMUv3AccelMSIPage;

/* With CD.TBI the top byte is no part of the address, so never look at it. */
static uint64_t smmuv3_accel_msi_va(hwaddr addr)
{
    return sextract64(addr, 0, 56);
}

static SMMUv3AccelMSIState *smmuv3_accel_msi_state(SMMUv3AccelDevice *accel_dev)
{
    return &ARM_SMMUV3(accel_dev->sdev.smmu)->s_accel->msi;
}

static void smmuv3_accel_msi_forget(SMMUv3AccelMSIPage *page)
{
    SMMUv3AccelDevice *accel_dev = page->accel_dev;

    interval_tree_remove(&page->node,
                         &smmuv3_accel_msi_state(accel_dev)->pages);
    g_hash_table_steal(accel_dev->msi_pages, &page->page);
}

static void smmuv3_accel_msi_forget_device(SMMUv3AccelDevice *accel_dev)
{
    IntervalTreeRoot *pages = &smmuv3_accel_msi_state(accel_dev)->pages;
    SMMUv3AccelMSIPage *page;
    GHashTableIter iter;

    if (!accel_dev->msi_pages) {
        return;
    }
    g_hash_table_iter_init(&iter, accel_dev->msi_pages);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&page)) {
        interval_tree_remove(&page->node, pages);
        g_hash_table_iter_steal(&iter);
        g_free(page);
    }
}

void smmuv3_accel_msi_stream_changed(SMMUv3AccelDevice *accel_dev)
{
    accel_dev->msi_changed = true;
    smmuv3_accel_msi_state(accel_dev)->devices_changed = true;
}

/* Remember a page, and no more of them than vectors can name. */
static void smmuv3_accel_msi_remember(SMMUv3AccelDevice *accel_dev, hwaddr addr,
                                      const SMMUv3WalkResult *result)
{
    PCIDevice *pdev = accel_dev->sdev.bus->devices[accel_dev->sdev.devfn];
    SMMUv3AccelMSIState *msi = smmuv3_accel_msi_state(accel_dev);
    gint64 number = addr & ~DOORBELL_PAGE_MASK;
    SMMUv3AccelMSIPage *page;

    if (!accel_dev->msi_pages) {
        accel_dev->msi_pages = g_hash_table_new(g_int64_hash, g_int64_equal);
    }
    page = g_hash_table_lookup(accel_dev->msi_pages, &number);
    if (page) {
        smmuv3_accel_msi_forget(page);
    } else {
        if (g_hash_table_size(accel_dev->msi_pages) >=
            2 * smmuv3_accel_msi_max_pages(pdev)) {
            /* Half of them at least are not in use: ask anew for the others. */
            smmuv3_accel_msi_forget_device(accel_dev);
            smmuv3_accel_msi_stream_changed(accel_dev);
        }
        page = g_new(SMMUv3AccelMSIPage, 1);
    }
    *page = (SMMUv3AccelMSIPage) {
        .node.start = smmuv3_accel_msi_va(addr & ~result->mask),
        .node.last = smmuv3_accel_msi_va(addr | result->mask),
        .accel_dev = accel_dev,
        .page = number,
        .asid = result->asid,
        .global = result->global,
    };
    interval_tree_insert(&page->node, &msi->pages);
    g_hash_table_insert(accel_dev->msi_pages, &page->page, page);
}

static void smmuv3_accel_msi_page_changed(SMMUv3AccelMSIState *msi,
                                          SMMUv3AccelMSIPage *page)
{
    SMMUv3AccelDevice *accel_dev = page->accel_dev;

    smmuv3_accel_msi_forget(page);
    QSIMPLEQ_INSERT_TAIL(&msi->changed, page, next);
    if (++accel_dev->msi_pages_changed > MAX_CHANGED_PAGES) {
        /* Who is told of a page looks through all vectors for it. */
        smmuv3_accel_msi_stream_changed(accel_dev);
    }
}

/* @asid is negative for all of them. A global page is in each ASID. */
static void smmuv3_accel_msi_range_changed(SMMUv3AccelMSIState *msi, int asid,
                                           uint64_t start, uint64_t last)
{
    IntervalTreeNode *node = interval_tree_iter_first(&msi->pages, start, last);

    while (node) {
        SMMUv3AccelMSIPage *page = container_of(node, SMMUv3AccelMSIPage, node);

        node = interval_tree_iter_next(node, start, last);
        if (asid < 0 || page->global || page->asid == asid) {
            smmuv3_accel_msi_page_changed(msi, page);
        }
    }
}

/* Leaf and TTL only say what else need not be invalidated. */
static void smmuv3_accel_msi_tlbi_va(SMMUv3AccelMSIState *msi,
                                     const struct Cmd *cmd, int asid)
{
    uint64_t start = CMD_ADDR(cmd);
    unsigned shift = CMD_TG(cmd) ? CMD_TG(cmd) * 2 + 10 : 12;
    uint64_t pages = CMD_TG(cmd) ? (CMD_NUM(cmd) + 1ULL) << CMD_SCALE(cmd) : 1;
    uint64_t last;

    start = smmuv3_accel_msi_va(start & ~DOORBELL_PAGE_MASK);
    last = smmuv3_accel_msi_va(start + (pages << shift) - 1);
    if (last < start) { /* past the end of the address space */
        start = 0;
        last = UINT64_MAX;
    }
    smmuv3_accel_msi_range_changed(msi, asid, start, last);
}

void smmuv3_accel_msi_command(SMMUv3State *s, const struct Cmd *cmd)
{
    SMMUv3AccelMSIState *msi;

    if (!s->s_accel) {
        return;
    }
    msi = &s->s_accel->msi;

    switch (CMD_TYPE(cmd)) {
    case SMMU_CMD_TLBI_NH_ALL:
    case SMMU_CMD_TLBI_NSNH_ALL:
        smmuv3_accel_msi_range_changed(msi, -1, 0, UINT64_MAX);
        break;
    case SMMU_CMD_TLBI_NH_ASID:
        /* There may be many, so look through the pages once for all. */
        set_bit(CMD_ASID(cmd), msi->asids);
        msi->asids_changed = true;
        break;
    case SMMU_CMD_TLBI_NH_VAA:
        smmuv3_accel_msi_tlbi_va(msi, cmd, -1);
        break;
    case SMMU_CMD_TLBI_NH_VA:
        smmuv3_accel_msi_tlbi_va(msi, cmd, CMD_ASID(cmd));
        break;
    default:
        break;
    }
}

static void smmuv3_accel_msi_asids_changed(SMMUv3AccelMSIState *msi)
{
    IntervalTreeNode *node = interval_tree_iter_first(&msi->pages, 0,
                                                      UINT64_MAX);

    while (node) {
        SMMUv3AccelMSIPage *page = container_of(node, SMMUv3AccelMSIPage, node);

        node = interval_tree_iter_next(node, 0, UINT64_MAX);
        /* CMD_TLBI_NH_ASID leaves global entries alone. */
        if (!page->global && test_bit(page->asid, msi->asids)) {
            smmuv3_accel_msi_page_changed(msi, page);
        }
    }
    bitmap_zero(msi->asids, SMMUV3_NUM_ASIDS);
    msi->asids_changed = false;
}

static void smmuv3_accel_msi_tell(SMMUv3AccelDevice *accel_dev, hwaddr iova,
                                  hwaddr mask)
{
    IOMMUTLBEvent event = {
        .type = IOMMU_NOTIFIER_DEVIOTLB_UNMAP,
        .entry = {
            .target_as = &address_space_memory,
            .iova = iova,
            .addr_mask = mask,
            .perm = IOMMU_NONE,
        },
    };

    memory_region_notify_iommu(&accel_dev->sdev.iommu, MSI_ROUTE, event);
}

void smmuv3_accel_msi_notify(SMMUv3State *s)
{
    SMMUv3AccelDevice *accel_dev, *next_dev;
    SMMUv3AccelMSIPage *page;
    SMMUv3AccelMSIState *msi;

    if (!s->s_accel) {
        return;
    }
    msi = &s->s_accel->msi;

    if (msi->asids_changed) {
        smmuv3_accel_msi_asids_changed(msi);
    }
    /* What is looked up meanwhile is remembered for the next time. */
    while ((page = QSIMPLEQ_FIRST(&msi->changed))) {
        QSIMPLEQ_REMOVE_HEAD(&msi->changed, next);
        page->accel_dev->msi_pages_changed = 0;
        if (!page->accel_dev->msi_changed) {
            smmuv3_accel_msi_tell(page->accel_dev, page->page,
                                  DOORBELL_PAGE_MASK);
        }
        g_free(page);
    }
    if (!msi->devices_changed) {
        return;
    }
    msi->devices_changed = false;
    QLIST_FOREACH_SAFE(accel_dev, &s->s_accel->device_list, next, next_dev) {
        if (accel_dev->msi_changed) {
            accel_dev->msi_changed = false;
            smmuv3_accel_msi_forget_device(accel_dev);
            smmuv3_accel_msi_tell(accel_dev, 0, HWADDR_MAX);
        }
    }
}

void smmuv3_accel_msi_init(SMMUv3AccelState *accel)
{
    QSIMPLEQ_INIT(&accel->msi.changed);
}

static const char *smmuv3_accel_msi_outcome(SMMUTranslationStatus status,
                                            const SMMUEventInfo *event)
{
    switch (status) {
    case SMMU_TRANS_DISABLE:
        return "disabled";
    case SMMU_TRANS_ABORT:
        return "aborted";
    case SMMU_TRANS_BYPASS:
        return "bypass";
    case SMMU_TRANS_SUCCESS:
        return "translated";
    case SMMU_TRANS_ERROR:
        return smmu_event_string(event->type);
    }
    g_assert_not_reached();
}

SMMUTranslationStatus smmuv3_accel_msi_walk(SMMUv3AccelDevice *accel_dev,
                                            hwaddr addr, IOMMUAccessFlags flag,
                                            SMMUv3WalkResult *result,
                                            SMMUEventInfo *event)
{
    SMMUDevice *sdev = &accel_dev->sdev;

    event->sid = smmuv3_accel_find_sid(accel_dev);
    if (event->sid == SMMU_SID_NONE && smmu_enabled(sdev->smmu)) {
        /* Its number on the bus is that of another device. */
        return SMMU_TRANS_ABORT;
    }
    return smmuv3_walk(sdev, addr, flag, result, event);
}

/*
 * Outside the doorbell pages the region is transparent. In them it does what
 * the host SMMU does with a write of the device to this address.
 *
 * Called with the BQL held, like all that sends or routes MSIs.
 */
static IOMMUTLBEntry smmuv3_accel_msi_translate(IOMMUMemoryRegion *mr,
                                                hwaddr addr,
                                                IOMMUAccessFlags flag,
                                                int iommu_idx)
{
    SMMUDevice *sdev = container_of(mr, SMMUDevice, iommu);
    SMMUv3AccelDevice *accel_dev = container_of(sdev, SMMUv3AccelDevice, sdev);
    bool route = iommu_idx == MSI_ROUTE;
    SMMUEventInfo event = {
        .inval_ste_allowed = route,
        .silent = route,
    };
    IOMMUTLBEntry entry = {
        .target_as = &address_space_memory,
        .iova = addr & ~DOORBELL_PAGE_MASK,
        .translated_addr = addr & ~DOORBELL_PAGE_MASK,
        .addr_mask = DOORBELL_PAGE_MASK,
        .perm = IOMMU_RW,
    };
    SMMUTranslationStatus status;
    SMMUv3WalkResult result;
    bool dropped;

    if (!smmuv3_accel_msi_is_doorbell(accel_dev, addr, iommu_idx)) {
        return entry;
    }

    status = smmuv3_accel_msi_walk(accel_dev, addr, flag, &result, &event);
    dropped = status == SMMU_TRANS_ABORT || status == SMMU_TRANS_ERROR;
    if (trace_event_get_state_backends(TRACE_SMMUV3_ACCEL_MSI_TRANSLATE)) {
        trace_smmuv3_accel_msi_translate(
            event.sid, route ? "route" : "deliver", addr,
            dropped ? 0 : result.addr,
            smmuv3_accel_msi_outcome(status, &event));
    }
    if (dropped) {
        entry.perm = IOMMU_NONE;
    } else {
        entry.translated_addr = result.addr & ~DOORBELL_PAGE_MASK;
    }
    if (route && status == SMMU_TRANS_SUCCESS &&
        mr->iommu_notify_flags != IOMMU_NOTIFIER_NONE) {
        smmuv3_accel_msi_remember(accel_dev, addr, &result);
    }

    if (status == SMMU_TRANS_ERROR && !route) {
        qemu_log_mask(LOG_GUEST_ERROR, "%s: MSI of stream 0x%x to gIOVA 0x%"
                      HWADDR_PRIx " is dropped (%s)\n",
                      memory_region_name(MEMORY_REGION(mr)), event.sid, addr,
                      smmu_event_string(event.type));
        smmuv3_record_event(sdev->smmu, &event);
    }
    return entry;
}

static int smmuv3_accel_msi_attrs_to_index(IOMMUMemoryRegion *mr,
                                           MemTxAttrs attrs)
{
    return attrs.debug ? MSI_ROUTE : MSI_DELIVER;
}

static int smmuv3_accel_msi_num_indexes(IOMMUMemoryRegion *mr)
{
    return MSI_NUM_INDEXES;
}

/*
 * Nobody can shadow the guest's tables here, and listeners work on the base
 * address space. What there is to tell is that a doorbell has changed.
 */
static int smmuv3_accel_msi_notify_flag_changed(IOMMUMemoryRegion *mr,
                                                IOMMUNotifierFlag old,
                                                IOMMUNotifierFlag new,
                                                Error **errp)
{
    SMMUDevice *sdev = container_of(mr, SMMUDevice, iommu);
    SMMUv3AccelDevice *accel_dev = container_of(sdev, SMMUv3AccelDevice, sdev);

    if (new & ~IOMMU_NOTIFIER_DEVIOTLB_UNMAP) {
        error_setg(errp, "%s: an accelerated SMMUv3 notifies of doorbells only",
                   memory_region_name(MEMORY_REGION(mr)));
        return -ENOTSUP;
    }
    if (new == IOMMU_NOTIFIER_NONE) {
        /* There is nobody left who could be told, of what changed before. */
        smmuv3_accel_msi_forget_device(accel_dev);
        accel_dev->msi_changed = false;
        accel_dev->msi_pages_changed = 0;
    }
    return 0;
}

void smmuv3_accel_msi_init_notifier(PCIBus *bus, void *opaque, int devfn,
                                    IOMMUNotifier *n, IOMMUNotify fn,
                                    void *user_opaque)
{
    n->opaque = user_opaque;
    iommu_notifier_init(n, fn, IOMMU_NOTIFIER_DEVIOTLB_EVENTS, 0, HWADDR_MAX,
                        MSI_ROUTE);
}

static MemoryRegion *smmuv3_accel_msi_region(SMMUState *bs, PCIBus *bus,
                                             int devfn)
{
    return MEMORY_REGION(&smmu_get_sbus(bs, bus)->pbdev[devfn]->iommu);
}

void smmuv3_accel_msi_register_notifier(PCIBus *bus, void *opaque, int devfn,
                                        uint32_t pasid, IOMMUNotifier *n)
{
    memory_region_register_iommu_notifier(
        smmuv3_accel_msi_region(opaque, bus, devfn), n, &error_abort);
}

void smmuv3_accel_msi_unregister_notifier(PCIBus *bus, void *opaque, int devfn,
                                          uint32_t pasid, IOMMUNotifier *n)
{
    memory_region_unregister_iommu_notifier(
        smmuv3_accel_msi_region(opaque, bus, devfn), n);
}

/*
 * What VFIO maps for every device behind an accelerated SMMU of this VM.
 *
 * It is one for all of them, so that they share one IOAS and one pin of guest
 * RAM. It is not address_space_memory, so that they share with no others: the
 * HWPT of a device that needs no nesting is no nesting parent, and VFIO tells
 * by this difference that a device is behind a vIOMMU.
 */
static AddressSpace *smmuv3_accel_msi_base_as(void)
{
    static MemoryRegion sysmem;
    static AddressSpace *base;

    if (!base) {
        memory_region_init_alias(&sysmem, OBJECT(qdev_get_machine()),
                                 "smmuv3-accel-base", get_system_memory(), 0,
                                 memory_region_size(get_system_memory()));
        base = g_new0(AddressSpace, 1);
        address_space_init(base, &sysmem, "smmuv3-accel-base");
    }
    return base;
}

void smmuv3_accel_msi_init_as(SMMUState *bs, SMMUv3AccelDevice *accel_dev,
                              PCIBus *bus, int devfn)
{
    SMMUDevice *sdev = &accel_dev->sdev;
    MemoryRegion *sysmem = get_system_memory();
    g_autofree char *name = g_strdup_printf("smmuv3-accel-%s-%02x.%x",
                                            BUS(bus)->name, PCI_SLOT(devfn),
                                            PCI_FUNC(devfn));
    g_autofree char *msi_name = g_strconcat(name, "-msi", NULL);
    g_autofree char *sysmem_name = g_strconcat(name, "-sysmem", NULL);

    sdev->smmu = bs;
    sdev->bus = bus;
    sdev->devfn = devfn;

    memory_region_init(&accel_dev->root, OBJECT(bs), name, UINT64_MAX);
    memory_region_init_alias(&accel_dev->sysmem, OBJECT(bs), sysmem_name,
                             sysmem, 0, memory_region_size(sysmem));
    memory_region_init_iommu(&sdev->iommu, sizeof(sdev->iommu),
                             TYPE_SMMUV3_ACCEL_MSI_REGION, OBJECT(bs),
                             msi_name, UINT64_MAX);

    memory_region_transaction_begin();
    memory_region_add_subregion(&accel_dev->root, 0, &accel_dev->sysmem);
    memory_region_add_subregion_overlap(&accel_dev->root, 0,
                                        MEMORY_REGION(&sdev->iommu), 1);
    memory_region_transaction_commit();

    address_space_init_overlay(&sdev->as, &accel_dev->root, name,
                               smmuv3_accel_msi_base_as());
}

static void smmuv3_accel_msi_region_class_init(ObjectClass *klass,
                                               const void *data)
{
    IOMMUMemoryRegionClass *imrc = IOMMU_MEMORY_REGION_CLASS(klass);

    imrc->translate = smmuv3_accel_msi_translate;
    imrc->attrs_to_index = smmuv3_accel_msi_attrs_to_index;
    imrc->num_indexes = smmuv3_accel_msi_num_indexes;
    imrc->notify_flag_changed = smmuv3_accel_msi_notify_flag_changed;
}

static const TypeInfo smmuv3_accel_msi_region_info = {
    .name = TYPE_SMMUV3_ACCEL_MSI_REGION,
    .parent = TYPE_IOMMU_MEMORY_REGION,
    .class_init = smmuv3_accel_msi_region_class_init,
};

static void smmuv3_accel_msi_register_types(void)
{
    type_register_static(&smmuv3_accel_msi_region_info);
}

type_init(smmuv3_accel_msi_register_types)
