/*
 * An irqchip for the qtest accelerator
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "accel/qtest-irqchip.h"
#include "hw/pci/pci_device.h"
#include "system/accel-irq.h"
#include "system/address-spaces.h"
#include "system/qtest.h"

#define MAX_ROUTES 4096 /* as KVM has */

typedef struct Route {
    MSIMessage msg;         /* with a translated address */
    uint32_t devid;
    bool used;
} Route;

typedef struct GSI {
    Route set;              /* by the device */
    Route live;             /* since the last commit */
    bool attached;
    int fd;                 /* of the irqfd, as the device knows it */
    EventNotifier irqfd;    /* the same, of our own */
    uint64_t sent, lost;
} GSI;

enum {
    CALL_ADD,
    CALL_UPDATE,
    CALL_COMMIT,
    CALL_RELEASE,
    CALL_ATTACH,
    CALL_DETACH,
    LOST,                   /* no call, but counted as one */
    NUM_CALLS,
};

static const char *const call_names[NUM_CALLS] = {
    [CALL_ADD] = "add",
    [CALL_UPDATE] = "update",
    [CALL_COMMIT] = "commit",
    [CALL_RELEASE] = "release",
    [CALL_ATTACH] = "attach",
    [CALL_DETACH] = "detach",
    [LOST] = "lost",
};

/* How often it was made, and in how many calls from now something happens */
static struct {
    uint64_t count;
    uint64_t fail_in;
    int err;
    uint64_t signal_in;
    int fd;
} calls[NUM_CALLS];

static GSI gsis[MAX_ROUTES];

bool qtest_irqchip_allowed;

static int count_call(int call)
{
    calls[call].count++;
    if (calls[call].signal_in && --calls[call].signal_in == 0) {
        uint64_t one = 1;
        ssize_t ret = write(calls[call].fd, &one, sizeof(one));

        g_assert(ret == sizeof(one));
    }
    if (calls[call].fail_in && --calls[call].fail_in == 0) {
        return -calls[call].err;
    }
    return 0;
}

static void set_route(Route *route, MSIMessage routed, PCIDevice *dev)
{
    *route = (Route) {
        .msg = routed,
        .devid = pci_requester_id(dev),
        .used = true,
    };
}

int qtest_irqchip_add_resolved_route(AccelRouteChange *c, PCIDevice *dev,
                                     MSIMessage routed)
{
    int ret = count_call(CALL_ADD);

    if (ret) {
        return ret;
    }
    for (int i = 0; i < MAX_ROUTES; i++) {
        if (!gsis[i].set.used) {
            set_route(&gsis[i].set, routed, dev);
            gsis[i].sent = gsis[i].lost = 0;
            c->changes++;
            return i;
        }
    }
    return -ENOSPC;
}

int qtest_irqchip_add_msi_route(AccelRouteChange *c, int vector,
                                PCIDevice *dev)
{
    MSIMessage msg = pci_get_msi_message(dev, vector);
    hwaddr gpa;

    if (!accel_irqchip_msi_gpa(dev, msg.address, &gpa)) {
        return -EINVAL;
    }
    msg.address = gpa;
    return qtest_irqchip_add_resolved_route(c, dev, msg);
}

int qtest_irqchip_update_resolved_route(int virq, PCIDevice *dev,
                                        MSIMessage routed)
{
    int ret = count_call(CALL_UPDATE);

    if (ret) {
        return ret;
    }
    assert(gsis[virq].set.used);
    set_route(&gsis[virq].set, routed, dev);
    return 0;
}

int qtest_irqchip_update_msi_route(int virq, MSIMessage msg, PCIDevice *dev)
{
    hwaddr gpa;

    if (!accel_irqchip_msi_gpa(dev, msg.address, &gpa)) {
        return -EINVAL;
    }
    msg.address = gpa;
    return qtest_irqchip_update_resolved_route(virq, dev, msg);
}

/* Send the message of a route to the MSI controller, if one is there. */
static bool send_message(const Route *route)
{
    MemTxAttrs attrs = { .requester_id = route->devid };
    hwaddr xlat, len = sizeof(route->msg.data);
    MemoryRegion *mr;

    if (!route->used) {
        return false;
    }
    RCU_READ_LOCK_GUARD();
    mr = address_space_translate(&address_space_memory, route->msg.address,
                                 &xlat, &len, true, attrs);
    if (memory_region_is_ram(mr) || memory_region_is_romd(mr)) {
        return false;
    }
    return memory_region_dispatch_write(mr, xlat, route->msg.data,
                                        MO_32 | MO_LE, attrs) == MEMTX_OK;
}

static void irqfd_read(EventNotifier *n)
{
    GSI *gsi = container_of(n, GSI, irqfd);

    if (event_notifier_test_and_clear(n)) {
        if (send_message(&gsi->live)) {
            gsi->sent++;
        } else {
            gsi->lost++;
            calls[LOST].count++;
        }
    }
}

void qtest_irqchip_commit_routes(void)
{
    count_call(CALL_COMMIT);
    for (int i = 0; i < MAX_ROUTES; i++) {
        /* What was signalled before goes the old way. */
        if (gsis[i].attached) {
            irqfd_read(&gsis[i].irqfd);
        }
        gsis[i].live = gsis[i].set;
    }
}

void qtest_irqchip_release_virq(int virq)
{
    count_call(CALL_RELEASE);
    assert(gsis[virq].set.used);
    gsis[virq].set.used = false;
}

#ifdef CONFIG_POSIX
int qtest_irqchip_add_irqfd_notifier_gsi(EventNotifier *n, EventNotifier *rn,
                                         int virq)
{
    int ret = count_call(CALL_ATTACH);
    int fd;

    if (ret) {
        return ret;
    }
    assert(!rn); /* MSIs are not acknowledged */
    for (int i = 0; i < MAX_ROUTES; i++) {
        if (gsis[i].attached && gsis[i].fd == event_notifier_get_fd(n)) {
            return -EBUSY;
        }
    }
    /* The device may have a handler of its own for its descriptor. */
    fd = qemu_dup(event_notifier_get_fd(n));
    if (fd < 0) {
        return -errno;
    }
    assert(!gsis[virq].attached);
    gsis[virq].attached = true;
    gsis[virq].fd = event_notifier_get_fd(n);
    event_notifier_init_fd(&gsis[virq].irqfd, fd);
    event_notifier_set_handler(&gsis[virq].irqfd, irqfd_read);
    return 0;
}

int qtest_irqchip_remove_irqfd_notifier_gsi(EventNotifier *n, int virq)
{
    int ret = count_call(CALL_DETACH);

    if (ret) {
        return ret;
    }
    if (gsis[virq].attached && gsis[virq].fd == event_notifier_get_fd(n)) {
        /* What was signalled before is not left to others. */
        irqfd_read(&gsis[virq].irqfd);
        event_notifier_set_handler(&gsis[virq].irqfd, NULL);
        event_notifier_cleanup(&gsis[virq].irqfd);
        gsis[virq].attached = false;
    }
    return 0;
}
#else
int qtest_irqchip_add_irqfd_notifier_gsi(EventNotifier *n, EventNotifier *rn,
                                         int virq)
{
    return -ENOSYS;
}

int qtest_irqchip_remove_irqfd_notifier_gsi(EventNotifier *n, int virq)
{
    return -ENOSYS;
}
#endif

static bool same_route(const Route *a, const Route *b)
{
    return a->used == b->used && a->msg.address == b->msg.address &&
           a->msg.data == b->msg.data && a->devid == b->devid;
}

static void command_routes(CharFrontend *chr)
{
    g_autoptr(GString) reply = g_string_new(NULL);
    unsigned n = 0;

    for (int i = 0; i < MAX_ROUTES; i++) {
        GSI *gsi = &gsis[i];

        if (!gsi->set.used && !gsi->live.used && !gsi->attached) {
            continue;
        }
        g_string_append_printf(reply, " %d 0x%" PRIx64 " 0x%x 0x%x %d %d %d %"
                               PRIu64 " %" PRIu64, i, gsi->set.msg.address,
                               gsi->set.msg.data, gsi->set.devid,
                               gsi->set.used, same_route(&gsi->set, &gsi->live),
                               gsi->attached ? gsi->fd : -1, gsi->sent,
                               gsi->lost);
        n++;
    }
    qtest_sendf(chr, "OK %u%s\n", n, reply->str);
}

static int find_call(const char *name)
{
    for (int i = 0; name && i < NUM_CALLS; i++) {
        if (!strcmp(name, call_names[i])) {
            return i;
        }
    }
    return -1;
}

bool qtest_irqchip_command(CharFrontend *chr, gchar **words)
{
    uint64_t in;
    int call, ret, value;

    if (!strcmp(words[0], "irqchip_on")) {
        qtest_irqchip_allowed = true;
        qtest_sendf(chr, "OK\n");
        return true;
    }
    if (!qtest_irqchip_enabled() || !g_str_has_prefix(words[0], "irqchip_")) {
        return false;
    }
    if (!strcmp(words[0], "irqchip_routes")) {
        command_routes(chr);
        return true;
    }
    call = find_call(words[1]);
    if (call < 0) {
        qtest_sendf(chr, "FAIL Unknown call\n");
        return true;
    }
    if (!strcmp(words[0], "irqchip_calls")) {
        qtest_sendf(chr, "OK %" PRIu64 "\n", calls[call].count);
        return true;
    }
    g_assert(words[2] && words[3]);
    ret = qemu_strtou64(words[2], NULL, 0, &in);
    g_assert(ret == 0);
    ret = qemu_strtoi(words[3], NULL, 0, &value);
    g_assert(ret == 0);
    if (!strcmp(words[0], "irqchip_fail")) {
        calls[call].fail_in = in;
        calls[call].err = value;
    } else if (!strcmp(words[0], "irqchip_signal")) {
        calls[call].signal_in = in;
        calls[call].fd = value;
    } else {
        return false;
    }
    qtest_sendf(chr, "OK\n");
    return true;
}
