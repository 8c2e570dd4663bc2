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

/* A doorbell page has the size of the smallest translation granule. */
#define DOORBELL_PAGE_MASK MAKE_64BIT_MASK(0, 12)

/* What an access is for: the IOMMU indexes of the region. */
enum {
    MSI_DELIVER,    /* QEMU sends a message */
    MSI_ROUTE,      /* somebody asks where a message would go */
    MSI_NUM_INDEXES,
};

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
 * device, and nobody hears of it when they change.
 */
static bool smmuv3_accel_msi_is_doorbell(SMMUDevice *sdev, hwaddr addr,
                                         int iommu_idx)
{
    PCIDevice *pdev = sdev->bus->devices[sdev->devfn];
    bool any = iommu_idx == MSI_ROUTE;

    if (!pdev) {
        return false;
    }

    if (msix_enabled(pdev)) {
        for (unsigned v = 0; v < pdev->msix_entries_nr; v++) {
            if (same_page(addr, msix_get_message(pdev, v).address) &&
                (any || !msix_is_masked(pdev, v))) {
                return true;
            }
        }
    } else if (msi_enabled(pdev) &&
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
    bool route = iommu_idx == MSI_ROUTE;
    SMMUEventInfo event = {
        .sid = smmu_get_sid(sdev),
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
    bool dropped;
    hwaddr gpa;

    if (!smmuv3_accel_msi_is_doorbell(sdev, addr, iommu_idx)) {
        return entry;
    }

    status = smmuv3_walk(sdev, addr, flag, &gpa, &event);
    dropped = status == SMMU_TRANS_ABORT || status == SMMU_TRANS_ERROR;
    trace_smmuv3_accel_msi_translate(event.sid, route ? "route" : "deliver",
                                     addr, dropped ? 0 : gpa,
                                     smmuv3_accel_msi_outcome(status, &event));
    if (dropped) {
        entry.perm = IOMMU_NONE;
    } else {
        entry.translated_addr = gpa & ~DOORBELL_PAGE_MASK;
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

/* Listeners work on the base address space; nothing is known to notify. */
static int smmuv3_accel_msi_notify_flag_changed(IOMMUMemoryRegion *mr,
                                                IOMMUNotifierFlag old,
                                                IOMMUNotifierFlag new,
                                                Error **errp)
{
    error_setg(errp, "%s: IOMMU notifiers are not supported by an accelerated "
               "SMMUv3", memory_region_name(MEMORY_REGION(mr)));
    return -ENOTSUP;
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
