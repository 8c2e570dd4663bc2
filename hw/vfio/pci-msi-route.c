/*
 * Routes of MSIs that a vIOMMU translates
 *
 * Where the IOMMU is the host's, a device's message reaches QEMU or the
 * accelerator's irqchip as the guest wrote it, and stage 1 of the guest says
 * where it goes. A route is what stage 1 said when it was asked last, so it is
 * there only while the message leads to a doorbell of the irqchip, and is
 * looked at again whenever the message, or what stage 1 says, may be another.
 * All other messages QEMU sends itself, translated as they are sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_bus.h"
#include "system/accel-irq.h"
#include "system/address-spaces.h"
#include "trace.h"

#include "pci.h"

static bool vfio_msi_route_possible(VFIOPCIDevice *vdev)
{
    return accel_msi_via_irqfd_enabled() &&
           !(vdev->interrupt == VFIO_INT_MSIX ? vdev->no_kvm_msix
                                              : vdev->no_kvm_msi);
}

/* Of the kind that is in use: a guest may enable both, though it must not. */
static MSIMessage vfio_msi_message(VFIOPCIDevice *vdev, int nr)
{
    PCIDevice *pdev = PCI_DEVICE(vdev);

    return vdev->interrupt == VFIO_INT_MSIX ? msix_get_message(pdev, nr)
                                            : msi_get_message(pdev, nr);
}

static bool vfio_msi_route_equal(const VFIOMSIRoute *a, const VFIOMSIRoute *b)
{
    return a->msg.address == b->msg.address && a->msg.data == b->msg.data &&
           a->devid == b->devid;
}

typedef enum VFIOMSIRouteResult {
    VFIO_MSI_ROUTED,
    VFIO_MSI_NO_DOORBELL,   /* of the irqchip: nothing to ask it for */
    VFIO_MSI_REFUSED,       /* by the irqchip */
} VFIOMSIRouteResult;

/*
 * Bring the route in line with the message. Nothing is committed, and no irqfd
 * is touched: the caller removes both if there was a route and this fails.
 */
static VFIOMSIRouteResult vfio_msi_route_update(VFIOPCIDevice *vdev, int nr,
                                                GHashTable *pages,
                                                AccelRouteChange *c)
{
    VFIOMSIVector *vector = &vdev->msi_vectors[nr];
    PCIDevice *pdev = PCI_DEVICE(vdev);
    VFIOMSIRoute route = { .devid = pci_requester_id(pdev) };
    MSIMessage msg = vfio_msi_message(vdev, nr);
    int ret;

    if (accel_irqchip_resolve_msi(pdev, msg, pages, &route.msg) !=
        ACCEL_MSI_IRQCHIP) {
        vector->no_route = false;
        return VFIO_MSI_NO_DOORBELL;
    }
    if (vector->virq < 0) {
        ret = accel_irqchip_add_resolved_route(c, nr, pdev, route.msg);
        vector->virq = ret;
    } else if (vfio_msi_route_equal(&route, &vector->route)) {
        return VFIO_MSI_ROUTED;
    } else {
        ret = accel_irqchip_update_resolved_route(vector->virq, pdev,
                                                  route.msg);
        c->changes += ret == 0;
    }
    vector->no_route = ret < 0;
    if (vector->no_route) {
        return VFIO_MSI_REFUSED;
    }
    vector->route = route;
    trace_vfio_msi_route(vdev->vbasedev.name, nr, vector->virq, msg.address,
                         route.msg.address, route.msg.data, route.devid);
    return VFIO_MSI_ROUTED;
}

void vfio_pci_msi_route_add(VFIOPCIDevice *vdev, int nr, AccelRouteChange *c)
{
    vfio_msi_route_update(vdev, nr, NULL, c);
}

bool vfio_pci_msi_route_update(VFIOPCIDevice *vdev, int nr)
{
    AccelRouteChange c = accel_irqchip_begin_route_changes();

    if (vfio_msi_route_update(vdev, nr, NULL, &c) != VFIO_MSI_ROUTED) {
        return false;
    }
    accel_irqchip_commit_route_changes(&c);
    return true;
}

/*
 * The irqchip may be full, for long: a vector that it refuses is delivered by
 * QEMU, and asks again after 0, 1, 3, 7... messages.
 */
static void vfio_msi_vector_refused(VFIOMSIVector *vector)
{
    vector->skip = vector->refused;
    vector->refused = MIN(vector->refused * 2 + 1, 1023);
}

/*
 * The host signals one of a vector's two eventfds, and goes on to do so. To
 * have it signal the other one frees and requests the interrupt there: what
 * comes meanwhile may be lost, and so may be what was not handled yet. So the
 * listener changes, and an eventfd counts for whoever comes next.
 */

void vfio_pci_msi_vector_to_qemu(VFIOPCIDevice *vdev, int nr)
{
    VFIOMSIVector *vector = &vdev->msi_vectors[nr];
    EventNotifier idle = vector->interrupt;

    if (!vector->irqfd) {
        return;
    }
    accel_irqchip_remove_irqfd_notifier_gsi(&vector->kvm_interrupt,
                                            vector->virq);
    vector->irqfd = false;

    vfio_pci_msi_set_handler(vdev, nr, false);
    vector->interrupt = vector->kvm_interrupt;
    vfio_pci_msi_set_handler(vdev, nr, true);

    /* From before the vector was routed, and not handled yet */
    if (event_notifier_test_and_clear(&idle)) {
        event_notifier_set(&vector->interrupt);
    }
    vfio_notifier_cleanup(vdev, &idle, "kvm_interrupt", nr);
}

void vfio_pci_msi_vector_to_irqchip(VFIOPCIDevice *vdev, int nr)
{
    VFIOMSIVector *vector = &vdev->msi_vectors[nr];
    EventNotifier idle;

    if (vector->virq < 0 || vector->irqfd) {
        return;
    }
    if (!vfio_notifier_init(vdev, &idle, "kvm_interrupt", nr, NULL)) {
        goto refused;
    }
    vfio_pci_msi_set_handler(vdev, nr, false);
    if (accel_irqchip_add_irqfd_notifier_gsi(&vector->interrupt, NULL,
                                             vector->virq) < 0) {
        vfio_pci_msi_set_handler(vdev, nr, true);
        vfio_notifier_cleanup(vdev, &idle, "kvm_interrupt", nr);
        goto refused;
    }
    vector->irqfd = true;
    vector->refused = 0;
    vector->kvm_interrupt = vector->interrupt;
    vector->interrupt = idle;
    vfio_pci_msi_set_handler(vdev, nr, true);
    return;

refused:
    vfio_pci_msi_release_virq(vdev, nr);
    vector->no_route = true;
    vfio_msi_vector_refused(vector);
}

/* Does QEMU or the irqchip send this vector's message as soon as it fires? */
static bool vfio_msi_vector_live(VFIOPCIDevice *vdev, int nr)
{
    PCIDevice *pdev = PCI_DEVICE(vdev);

    if (!vdev->msi_vectors[nr].use) {
        return false;
    }
    if (vdev->interrupt == VFIO_INT_MSIX) {
        return !msix_is_masked(pdev, nr);
    }
    /* The mask bits of MSI are the device's own. */
    return nr < msi_nr_vectors_allocated(pdev);
}

/* Look again at the vectors whose messages go to [@first, @last]. */
static void vfio_msi_route_check(VFIOPCIDevice *vdev, hwaddr first, hwaddr last)
{
    g_autofree unsigned long *added = NULL;
    g_autoptr(GHashTable) pages = NULL;
    AccelRouteChange c;
    int nr;

    if (!vdev->nr_vectors || !vfio_msi_route_possible(vdev)) {
        return;
    }
    added = bitmap_new(vdev->nr_vectors);
    pages = accel_irqchip_msi_pages_new();
    c = accel_irqchip_begin_route_changes();

    for (nr = 0; nr < vdev->nr_vectors; nr++) {
        VFIOMSIVector *vector = &vdev->msi_vectors[nr];
        MSIMessage msg;

        if (!vfio_msi_vector_live(vdev, nr)) {
            continue;
        }
        msg = vfio_msi_message(vdev, nr);
        if (msg.address < first || msg.address > last) {
            continue;
        }
        if (vector->virq >= 0) {
            if (vfio_msi_route_update(vdev, nr, pages, &c) ==
                VFIO_MSI_ROUTED) {
                continue;
            }
            vfio_pci_msi_vector_to_qemu(vdev, nr);
            vfio_pci_msi_release_virq(vdev, nr);
        }
        switch (vfio_msi_route_update(vdev, nr, pages, &c)) {
        case VFIO_MSI_ROUTED:
            set_bit(nr, added);
            break;
        case VFIO_MSI_REFUSED:
            vfio_msi_vector_refused(vector);
            break;
        case VFIO_MSI_NO_DOORBELL:
            break;
        }
    }

    accel_irqchip_commit_route_changes(&c);

    for (nr = find_first_bit(added, vdev->nr_vectors); nr < vdev->nr_vectors;
         nr = find_next_bit(added, vdev->nr_vectors, nr + 1)) {
        vfio_pci_msi_vector_to_irqchip(vdev, nr);
    }
}

void vfio_pci_msi_route_check_all(VFIOPCIDevice *vdev)
{
    vfio_msi_route_check(vdev, 0, HWADDR_MAX);
}

void vfio_pci_msi_route_delivered(VFIOPCIDevice *vdev, int nr)
{
    VFIOMSIVector *vector = &vdev->msi_vectors[nr];
    MSIMessage msg, routed;

    /* The message may have been written to anything, the device's own too. */
    if (nr >= vdev->nr_vectors || !vfio_msi_vector_live(vdev, nr) ||
        vector->virq >= 0) {
        return;
    }
    if (vector->skip) {
        vector->skip--;
        return;
    }

    /* One that goes elsewhere comes this way each time: ask for it alone. */
    msg = vfio_msi_message(vdev, nr);
    if (vfio_msi_route_possible(vdev) &&
        accel_irqchip_resolve_msi(PCI_DEVICE(vdev), msg, NULL, &routed) ==
        ACCEL_MSI_IRQCHIP) {
        vfio_msi_route_check(vdev, msg.address, msg.address);
    }
}

static void vfio_msi_route_message(PCIDevice *pdev, unsigned nr)
{
    VFIOPCIDevice *vdev = VFIO_PCI_DEVICE(pdev);
    hwaddr address;

    if (vdev->interrupt != VFIO_INT_MSIX) {
        return;
    }
    if (msix_is_masked(pdev, nr)) {
        /*
         * A guest writes all messages again when it has reset the device by a
         * register of its own, which leaves the real table empty: have the host
         * do so, too.
         */
        vdev->msi_vectors[nr].signalled = false;
        return;
    }
    address = vfio_msi_message(vdev, nr).address;
    vfio_msi_route_check(vdev, address, address);
}

static void vfio_msi_route_notify(IOMMUNotifier *n, IOMMUTLBEntry *entry)
{
    VFIOPCIDevice *vdev = n->opaque;

    vfio_msi_route_check(vdev, entry->iova, entry->iova + entry->addr_mask);
}

static MSIDelivery vfio_msi_delivery(PCIDevice *pdev, bool msix, unsigned nr,
                                     MSIMessage *routed)
{
    VFIOPCIDevice *vdev = VFIO_PCI_DEVICE(pdev);
    VFIOMSIVector *vector;

    if (vdev->interrupt != (msix ? VFIO_INT_MSIX : VFIO_INT_MSI) ||
        nr >= vdev->nr_vectors || !vdev->msi_vectors[nr].use) {
        return MSI_DELIVERY_NONE;
    }
    vector = &vdev->msi_vectors[nr];
    if (vector->irqfd) {
        *routed = vector->route.msg;
        return MSI_DELIVERY_IRQCHIP;
    }
    if (!accel_msi_via_irqfd_enabled()) {
        return MSI_DELIVERY_QEMU_ONLY;
    }
    if (!vfio_msi_route_possible(vdev)) {
        return MSI_DELIVERY_QEMU_CHOSEN;
    }
    return vector->no_route ? MSI_DELIVERY_QEMU_REFUSED : MSI_DELIVERY_QEMU;
}

void vfio_pci_msi_route_init(VFIOPCIDevice *vdev)
{
    PCIDevice *pdev = PCI_DEVICE(vdev);
    AddressSpace *as = pci_device_iommu_address_space(pdev);

    if (address_space_base(as) == as ||
        pci_iommu_init_iotlb_notifier(pdev, &vdev->msi_notifier,
                                      vfio_msi_route_notify, vdev)) {
        return;
    }
    pci_iommu_register_iotlb_notifier(pdev, PCI_NO_PASID, &vdev->msi_notifier);
    msix_set_message_notifier(pdev, vfio_msi_route_message);
    msi_set_delivery_query(pdev, vfio_msi_delivery);
    vdev->msi_translated = true;
}

void vfio_pci_msi_route_exit(VFIOPCIDevice *vdev)
{
    PCIDevice *pdev = PCI_DEVICE(vdev);

    if (vdev->msi_translated) {
        msi_set_delivery_query(pdev, NULL);
        msix_set_message_notifier(pdev, NULL);
        pci_iommu_unregister_iotlb_notifier(pdev, PCI_NO_PASID,
                                            &vdev->msi_notifier);
        vdev->msi_translated = false;
    }
}
