/*
 * An irqchip for the qtest accelerator
 *
 * Stands for an in-kernel irqchip: it takes routes of MSIs and irqfds, sends
 * what the irqfds ask for to the machine's MSI controller, and tells the test
 * about all that. See "Irqchip" in the qtest protocol.
 *
 * As KVM's irqchip for Arm it is behind the IOMMU, so a route has the address
 * that the message is translated to when the route is added or updated. A
 * route works as it was when routes were last committed. A message that is
 * routed to RAM or to nothing is lost: no irqchip is there. Again as with KVM,
 * an irqfd that is attached takes what its eventfd holds already, and one that
 * is detached leaves nothing behind.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef ACCEL_QTEST_IRQCHIP_H
#define ACCEL_QTEST_IRQCHIP_H

#include "accel/accel-route.h"
#include "chardev/char-fe.h"
#include "hw/pci/msi.h"
#include "qemu/event_notifier.h"

extern bool qtest_irqchip_allowed;

/* Is there one, by "-accel qtest,irqchip=on" or the command irqchip_on? */
#define qtest_irqchip_enabled() (qtest_irqchip_allowed)

int qtest_irqchip_add_msi_route(AccelRouteChange *c, int vector,
                                PCIDevice *dev);
int qtest_irqchip_update_msi_route(int virq, MSIMessage msg, PCIDevice *dev);
int qtest_irqchip_add_resolved_route(AccelRouteChange *c, PCIDevice *dev,
                                     MSIMessage routed);
int qtest_irqchip_update_resolved_route(int virq, PCIDevice *dev,
                                        MSIMessage routed);
void qtest_irqchip_commit_routes(void);
void qtest_irqchip_release_virq(int virq);
int qtest_irqchip_add_irqfd_notifier_gsi(EventNotifier *n, EventNotifier *rn,
                                         int virq);
int qtest_irqchip_remove_irqfd_notifier_gsi(EventNotifier *n, int virq);

/**
 * qtest_irqchip_command - handle a command of the qtest protocol
 *
 * Returns: whether it is one of the irqchip
 */
bool qtest_irqchip_command(CharFrontend *chr, gchar **words);

#endif
