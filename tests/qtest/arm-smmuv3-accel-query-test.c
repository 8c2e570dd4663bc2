/*
 * QTest for what users can see of devices behind an accelerated SMMUv3
 *
 * Names are those of QMP, which must not change. Each query is checked to
 * leave no trace: no event, no call of the host or the irqchip, no message in
 * the log, no look-up that anybody would be told of later.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "smmuv3-accel-machine.h"
#include "smmuv3-cases.h"

#define PAGE(address)   ((address) & ~0xfffull)
#define NO_GPA          UINT64_MAX

typedef struct Activity {
    uint64_t host, irqchip;
    unsigned events[2], logged;
} Activity;

static Activity activity(Machine *m)
{
    Activity a = { .host = m->hd->shm->num_calls };

    if (strstr(m->args->str, "irqchip=on")) {
        a.irqchip = count_irqchip_calls(m);
    }
    for (int i = 0; i < ARRAY_SIZE(a.events); i++) {
        if (m->smmu[i].eventq) {
            a.events[i] = qsmmu_events(&m->smmu[i]);
        }
    }
    if (m->log) {
        a.logged = traced(m, "\n");
    }
    return a;
}

static void assert_same_activity(Machine *m, const Activity *before)
{
    Activity after = activity(m);

    g_assert_cmpuint(after.host, ==, before->host);
    g_assert_cmpuint(after.irqchip, ==, before->irqchip);
    g_assert_cmpuint(after.logged, ==, before->logged);
    for (int i = 0; i < ARRAY_SIZE(after.events); i++) {
        g_assert_cmpuint(after.events[i], ==, before->events[i]);
    }
}

/* All devices, to be freed */
static QList *query(Machine *m)
{
    Activity before = activity(m);
    QDict *reply = qtest_qmp(m->qts,
                             "{ 'execute': 'query-arm-smmuv3-accel' }");
    QList *list = qobject_ref(qdict_get_qlist(reply, "return"));

    g_assert_nonnull(list);
    qobject_unref(reply);
    assert_same_activity(m, &before);
    return list;
}

/* What "info smmuv3-accel" says, to be freed */
static char *query_hmp(Machine *m)
{
    Activity before = activity(m);
    char *text = qtest_hmp(m->qts, "info smmuv3-accel");

    assert_same_activity(m, &before);
    return text;
}

static unsigned count_devices(Machine *m)
{
    QList *list = query(m);
    unsigned n = qlist_size(list);

    qobject_unref(list);
    return n;
}

/* One device, to be freed */
static QDict *query_device(Machine *m, const char *id)
{
    QList *list = query(m);
    QDict *found = NULL;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *dev = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(dev, "device"), id)) {
            g_assert_null(found);
            found = qobject_ref(dev);
        }
    }
    g_assert_nonnull(found);
    qobject_unref(list);
    return found;
}

static uint64_t get_uint(QDict *dict, const char *key)
{
    return qnum_get_uint(qobject_to(QNum, qdict_get(dict, key)));
}

static void assert_str(QDict *dict, const char *key, const char *value)
{
    g_assert_cmpstr(qdict_get_str(dict, key), ==, value);
}

static void assert_attached(Machine *m, const char *id, const char *attached,
                            const char *host)
{
    QDict *dev = query_device(m, id);

    assert_str(dev, "attached", attached);
    assert_str(dev, "host", host);
    qobject_unref(dev);
}

/* @sid is negative for none. */
static void assert_stream(Machine *m, const char *id, int64_t sid)
{
    QDict *dev = query_device(m, id);

    g_assert_cmpint(qdict_get_try_int(dev, "stream-id", -1), ==, sid);
    qobject_unref(dev);
}

static void assert_lists(Machine *m, const char *id, unsigned doorbells,
                         unsigned vectors)
{
    QDict *dev = query_device(m, id);

    g_assert_cmpuint(qlist_size(qdict_get_qlist(dev, "doorbells")), ==,
                     doorbells);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(dev, "vectors")), ==, vectors);
    qobject_unref(dev);
}

/* The entry of a list with these values, which is there once */
static QDict *find_entry(QDict *dev, const char *list, const char *key,
                         uint64_t value, const char *kind)
{
    QDict *found = NULL;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(dev, list), entry) {
        QDict *dict = qobject_to(QDict, qlist_entry_obj(entry));

        if (get_uint(dict, key) == value &&
            (!kind || g_str_equal(qdict_get_str(dict, "kind"), kind))) {
            g_assert_null(found);
            found = dict;
        }
    }
    g_assert_nonnull(found);
    return found;
}

static void assert_doorbell(Machine *m, const char *id, uint64_t address,
                            const char *outcome, uint64_t gpa)
{
    QDict *dev = query_device(m, id);
    QDict *doorbell = find_entry(dev, "doorbells", "giova", PAGE(address),
                                 NULL);

    assert_str(doorbell, "outcome", outcome);
    g_assert_cmpint(qdict_haskey(doorbell, "gpa"), ==, gpa != NO_GPA);
    if (gpa != NO_GPA) {
        g_assert_cmphex(get_uint(doorbell, "gpa"), ==, gpa);
    }
    qobject_unref(dev);
}

static void assert_vector_of(Machine *m, const char *id, const char *kind,
                             unsigned nr, const char *delivery,
                             const char *reason)
{
    QDict *dev = query_device(m, id);
    QDict *vector = find_entry(dev, "vectors", "vector", nr, kind);

    assert_str(vector, "reason", reason);
    assert_str(vector, "delivery", delivery);
    qobject_unref(dev);
}

static void assert_vector(OneDevice *t, unsigned nr, const char *delivery,
                          const char *reason)
{
    assert_vector_of(t->m, "vfio0", "msix", nr, delivery, reason);
}

/* SMMUs that are not accelerated, or have no such device behind them */
static void test_none(void)
{
    Machine *machines[] = {
        machine_new_emulated("-device edu,addr=2.0 "), machine_new_default(),
    };

    for (int i = 0; i < ARRAY_SIZE(machines); i++) {
        g_autofree char *text = NULL;

        machine_start(machines[i]);
        g_assert_cmpuint(count_devices(machines[i]), ==, 0);
        text = query_hmp(machines[i]);
        g_assert_cmpstr(text, ==,
                        "No device that is passed through is behind an "
                        "accelerated SMMUv3\r\n");
        machine_stop(machines[i]);
    }
}

static void test_device(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QDict *dev, *vector;

    dev = query_device(t.m, "vfio0");
    assert_str(dev, "path", "/machine/peripheral/vfio0");
    assert_str(dev, "smmu", "/machine/peripheral-anon/device[0]");
    assert_str(dev, "bus", "pcie.0");
    g_assert_cmpuint(get_uint(dev, "slot"), ==, 2);
    g_assert_cmpuint(get_uint(dev, "function"), ==, 0);
    g_assert_cmpuint(get_uint(dev, "stream-id"), ==, ONE_SID);
    qobject_unref(dev);
    assert_lists(t.m, "vfio0", 0, 0);

    qpci_msix_enable(t.pci);
    assert_lists(t.m, "vfio0", 0, 8);
    set_vector(t.pci, 3, DOORBELL, MSI_DATA);
    assert_lists(t.m, "vfio0", 1, 8);
    dev = query_device(t.m, "vfio0");
    vector = find_entry(dev, "vectors", "vector", 3, "msix");
    g_assert_false(qdict_get_bool(vector, "masked"));
    g_assert_cmphex(get_uint(vector, "address"), ==, DOORBELL);
    g_assert_cmphex(get_uint(vector, "data"), ==, MSI_DATA);
    vector = find_entry(dev, "vectors", "vector", 4, "msix");
    g_assert_true(qdict_get_bool(vector, "masked"));
    qobject_unref(dev);

    /* Vectors of a page share it. */
    set_vector(t.pci, 4, DOORBELL + 8, MSI_DATA);
    assert_lists(t.m, "vfio0", 1, 8);
    set_vector(t.pci, 5, DOORBELL + 0x1000, MSI_DATA);
    assert_lists(t.m, "vfio0", 2, 8);
    qpci_msix_disable(t.pci);
    assert_lists(t.m, "vfio0", 0, 0);
    one_device_stop(&t);
}

static void test_attached(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];
    HostDouble *hd = t.m->hd;

    assert_attached(t.m, "vfio0", "nested", "follows");
    qsmmu_attach(g, ONE_SID, NULL);
    assert_attached(t.m, "vfio0", "abort", "follows");
    qsmmu_guest_disable(g);
    assert_attached(t.m, "vfio0", "bypass", "follows");

    /* The host fails to attach, and to detach. */
    host_double_fail(hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 1, EIO);
    qsmmu_guest_enable(g);
    assert_attached(t.m, "vfio0", "abort", "follows");
    qsmmu_attach(g, ONE_SID, t.domain);
    assert_attached(t.m, "vfio0", "nested", "follows");
    host_double_fail(hd, IOMMU_HWPT_ALLOC, 1, ENOMEM);
    qsmmu_modify(g, qsmmu_ste(g, ONE_SID) + 8, 0, 1);
    qsmmu_cfgi_ste(g, ONE_SID);
    assert_attached(t.m, "vfio0", "abort", "blocks");
    host_double_fail_forever(hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, EIO);
    host_double_fail_forever(hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, EIO);
    qsmmu_guest_disable(g);
    assert_attached(t.m, "vfio0", "abort", "blocks");
    host_double_fail_forever(hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0);
    qsmmu_guest_enable(g);
    qsmmu_attach(g, ONE_SID, t.domain);
    assert_attached(t.m, "vfio0", "nested", "follows");
    host_double_fail_forever(hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, EIO);
    qsmmu_attach(g, ONE_SID, NULL);
    assert_attached(t.m, "vfio0", "nested", "strays");
    host_double_fail_forever(hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    assert_attached(t.m, "vfio0", "none", "blocks");
    host_double_fail_forever(hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    assert_attached(t.m, "vfio0", "abort", "follows");
    one_device_stop(&t);
}

typedef struct Fault {
    uint8_t type;
    const char *name;
    bool seen;
} Fault;

static Fault faults[] = {
    { QSMMU_C_BAD_STREAMID, "c-bad-streamid" },
    { QSMMU_F_STE_FETCH, "f-ste-fetch" },
    { QSMMU_C_BAD_STE, "c-bad-ste" },
    { QSMMU_F_STREAM_DISABLED, "f-stream-disabled" },
    { QSMMU_C_BAD_SUBSTREAMID, "c-bad-substreamid" },
    { QSMMU_F_CD_FETCH, "f-cd-fetch" },
    { QSMMU_C_BAD_CD, "c-bad-cd" },
    { QSMMU_F_WALK_EABT, "f-walk-eabt" },
    { QSMMU_F_TRANSLATION, "f-translation" },
    { QSMMU_F_ADDR_SIZE, "f-addr-size" },
    { QSMMU_F_ACCESS, "f-access" },
    { QSMMU_F_PERMISSION, "f-permission" },
};

static Fault *find_fault(const char *name)
{
    for (int i = 0; i < ARRAY_SIZE(faults); i++) {
        if (g_str_equal(faults[i].name, name)) {
            return &faults[i];
        }
    }
    return NULL;
}

typedef struct QueryTarget {
    SMMUv3Target target;
    OneDevice *device;
} QueryTarget;

/* What the query says has to come true when the message is sent. */
static bool access_as_told(SMMUv3Target *target, uint64_t giova)
{
    OneDevice *t = container_of(target, QueryTarget, target)->device;
    unsigned events = qsmmu_events(target->g);
    uint64_t event[4], gpa = NO_GPA;
    QDict *dev, *doorbell;
    const char *outcome;
    bool arrived;
    Fault *fault;

    set_vector(t->pci, 0, giova, MSI_DATA);
    dev = query_device(t->m, "vfio0");
    doorbell = find_entry(dev, "doorbells", "giova", PAGE(giova), NULL);
    outcome = qdict_get_str(doorbell, "outcome");
    fault = find_fault(outcome);
    if (qdict_haskey(doorbell, "gpa")) {
        gpa = get_uint(doorbell, "gpa");
    }
    g_test_message("0x%016" PRIx64 ": %s", giova, outcome);
    assert_str(find_entry(dev, "vectors", "vector", 0, "msix"), "reason",
               gpa == NO_GPA ? "dropped" : "no-irqchip");

    fire(t->m, t->dev, 0);
    mask_vector(t->pci, 0, true);
    arrived = take(t->m, PAGE(target->pa), giova) == MSI_DATA;
    if (arrived) {
        g_assert_cmphex(gpa, ==, PAGE(target->pa));
        g_assert_true(g_str_equal(outcome, "translated") ||
                      g_str_equal(outcome, "bypass"));
    } else {
        g_assert_cmphex(gpa, ==, NO_GPA);
        g_assert_true(fault || g_str_equal(outcome, "aborted"));
    }
    if (qsmmu_events(target->g) != events) {
        g_assert_nonnull(fault);
        qsmmu_event(target->g, events, event);
        g_assert_cmphex(QSMMU_EVT_TYPE(event), ==, fault->type);
        fault->seen = true;
    }
    qobject_unref(dev);
    return arrived;
}

static void test_outcomes(void)
{
    static const SMMUv3Case cases[] = {
        { "S1DSS terminates", .s1cdmax = 4,
          .outcome = QSMMU_F_STREAM_DISABLED },
        { "L1CD.V = 0", .s1fmt = 1, .s1cdmax = 8,
          .change = { { IN_STE, 1, 0, 2 }, { IN_L1CD, 0, 1, 0 } },
          .outcome = QSMMU_C_BAD_SUBSTREAMID },
    };
    Machine *m = machine_new("gic-version=3", ",ssidsize=8");
    OneDevice t;
    QueryTarget target = {
        .target = {
            .g = &m->smmu[0],
            .sid = ONE_SID,
            .pa = TARGET(1) | 0x40,
            .access = access_as_told,
        },
        .device = &t,
    };

    machine_trace(m, "guest_errors");
    t = one_device_start(m);
    smmuv3_test_stage1(&target.target);
    smmuv3_run_cases(&target.target, cases, ARRAY_SIZE(cases));
    smmuv3_test_stream_tables(&target.target);
    for (int i = 0; i < ARRAY_SIZE(faults); i++) {
        g_test_message("%s", faults[i].name);
        g_assert_true(faults[i].seen);
    }
    one_device_stop(&t);
}

/* The same page, by what is not a fault */
static void test_no_fault(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    assert_doorbell(t.m, "vfio0", DOORBELL, "translated", TARGET(0));
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    assert_doorbell(t.m, "vfio0", DOORBELL, "bypass", PAGE(DOORBELL));
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_ABORT, 0);
    assert_doorbell(t.m, "vfio0", DOORBELL, "aborted", NO_GPA);
    qsmmu_guest_disable(g);
    assert_doorbell(t.m, "vfio0", DOORBELL, "disabled", PAGE(DOORBELL));
    /* More than IDR5.OAS */
    write_message(t.pci, 0, DOORBELL | 1ull << 44, MSI_DATA);
    assert_doorbell(t.m, "vfio0", DOORBELL | 1ull << 44, "aborted", NO_GPA);
    write_message(t.pci, 0, DOORBELL, MSI_DATA);
    qtest_writel(t.m->qts, g->base + A_GBPA,
                 R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    assert_doorbell(t.m, "vfio0", DOORBELL, "aborted", NO_GPA);
    one_device_stop(&t);
}

static void test_routed(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    qpci_msix_enable(t.pci);
    assert_vector(&t, 0, "none", "masked");
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_vector(&t, 0, "irqchip", "routed");
    assert_doorbell(t.m, "vfio0", V2M_DOORBELL, "translated", V2M_BASE);
    mask_vector(t.pci, 0, true);
    assert_vector(&t, 0, "none", "masked");
    assert_lists(t.m, "vfio0", 0, 8);
    mask_vector(t.pci, 0, false);
    change_msix(t.pci, 0, PCI_MSIX_FLAGS_MASKALL);
    assert_vector(&t, 0, "none", "masked");
    one_device_stop(&t);
}

/* The guest owes an invalidation. */
static void test_stale(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    qsmmu_map(t.domain, PAGE(V2M_DOORBELL), TARGET(0));
    assert_vector(&t, 0, "irqchip", "stale");
    assert_doorbell(t.m, "vfio0", V2M_DOORBELL, "translated", TARGET(0));
    qsmmu_unmap(t.domain, PAGE(V2M_DOORBELL));
    assert_vector(&t, 0, "irqchip", "stale");
    map_v2m(&t);
    assert_vector(&t, 0, "irqchip", "routed");
    qsmmu_unmap(t.domain, PAGE(V2M_DOORBELL));
    qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
    assert_vector(&t, 0, "none", "dropped");
    one_device_stop(&t);
}

/* Nobody is told of what only the query has looked up. */
static void test_mapped_late(void)
{
    Machine *m = machine_new_irqchip();
    OneDevice t;

    if (machine_can_trace()) {
        machine_trace(m, "trace:smmuv3_accel_msi_translate");
    }
    t = irqchip_start(m);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_vector(&t, 0, "none", "dropped");
    map_v2m(&t);
    assert_vector(&t, 0, "qemu", "mapped-late");
    qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
    assert_vector(&t, 0, "qemu", "mapped-late");
    g_assert_cmpuint(count_routes(m), ==, 0);
    fire(m, t.dev, 0);
    g_assert_true(take_spi(m, SPI));
    assert_vector(&t, 0, "irqchip", "routed");
    one_device_stop(&t);
}

static void test_refused(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    static const char *const calls[] = { "add", "attach" };

    map_v2m(&t);
    for (int i = 0; i < ARRAY_SIZE(calls); i++) {
        qtest_irqchip_fail(t.m->qts, calls[i], 1, ENOSPC);
        set_vector(t.pci, i, V2M_DOORBELL, SPI);
        assert_vector(&t, i, "qemu", "refused");
        fire(t.m, t.dev, i);
        assert_vector(&t, i, "irqchip", "routed");
    }

    /* The same for both at once */
    for (int i = 0; i < ARRAY_SIZE(calls); i++) {
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
        qtest_irqchip_fail(t.m->qts, calls[i], 2, ENOSPC);
        change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
        assert_vector(&t, 0, "irqchip", "routed");
        assert_vector(&t, 1, "qemu", "refused");
        fire(t.m, t.dev, 1);
        assert_vector(&t, 1, "irqchip", "routed");
    }

    /* What cannot be updated is made anew; that is refused as well. */
    qtest_irqchip_fail(t.m->qts, "update", 1, EINVAL);
    qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
    write_message(t.pci, 0, V2M_DOORBELL, SPI + 1);
    assert_vector(&t, 0, "qemu", "refused");

    /* Elsewhere it would not be refused, and back here it is not. */
    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    write_message(t.pci, 0, DOORBELL, MSI_DATA);
    assert_vector(&t, 0, "qemu", "not-doorbell");
    map_v2m(&t);
    qsmmu_map(t.domain, DOORBELL, V2M_BASE);
    assert_doorbell(t.m, "vfio0", DOORBELL, "translated", V2M_BASE);
    write_message(t.pci, 0, V2M_DOORBELL, SPI);
    assert_vector(&t, 0, "irqchip", "routed");
    one_device_stop(&t);
}

/* A refusal is forgotten when there is nothing to ask for. */
static void test_not_refused(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_vector(&t, 0, "qemu", "refused");
    mask_vector(t.pci, 0, true);
    qsmmu_unmap(t.domain, PAGE(V2M_DOORBELL));
    mask_vector(t.pci, 0, false);
    assert_vector(&t, 0, "none", "dropped");
    map_v2m(&t);
    assert_vector(&t, 0, "qemu", "mapped-late");
    one_device_stop(&t);
}

static void test_not_doorbell(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    assert_vector(&t, 0, "qemu", "not-doorbell");
    set_vector(t.pci, 1, V2M_DOORBELL + 4, SPI);
    assert_vector(&t, 1, "qemu", "not-doorbell");
    set_vector(t.pci, 2, V2M_DOORBELL, V2M_FIRST_SPI - 1);
    assert_vector(&t, 2, "qemu", "not-doorbell");

    qsmmu_map(t.domain, 0xffffe000, HOLE);
    set_vector(t.pci, 3, 0xffffe040, SPI);
    assert_vector(&t, 3, "none", "unassigned");
    assert_doorbell(t.m, "vfio0", 0xffffe040, "translated", HOLE);
    one_device_stop(&t);
}

static void test_no_irqchip(void)
{
    OneDevice t = irqchip_start(machine_new("gic-version=2", ""));

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_vector(&t, 0, "qemu", "no-irqchip");
    qpci_config_writew(t.pci, PCI_COMMAND, PCI_COMMAND_MEMORY);
    assert_vector(&t, 0, "none", "no-bus-master");
    one_device_stop(&t);
}

static void test_chosen(void)
{
    Machine *m = machine_new_irqchip();
    OneDevice t = irqchip_start_with(m, add_vfio(m, 0, "bus=pcie.0,addr=2.0,"
                                                 "x-no-kvm-msix=on"));

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    assert_vector(&t, 0, "qemu", "chosen");
    qpci_msix_disable(t.pci);
    enable_msi(t.pci, V2M_DOORBELL, SPI, 0);
    assert_vector_of(m, "vfio0", "msi", 0, "irqchip", "routed");
    one_device_stop(&t);
}

/* A guest must not enable both, and gets what it enabled last. */
static void test_msi(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint8_t cap = qpci_find_capability(t.pci, PCI_CAP_ID_MSI, 0);
    const unsigned first = V2M_FIRST_SPI + 8;

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    enable_msi(t.pci, V2M_DOORBELL, first, 2);
    assert_lists(t.m, "vfio0", 1, 4 + 8);
    assert_vector(&t, 0, "none", "unused");
    for (int i = 0; i < 4; i++) {
        assert_vector_of(t.m, "vfio0", "msi", i, "irqchip", "routed");
    }

    /* The device masks them, so that the route can stay. */
    qpci_msix_disable(t.pci);
    qpci_config_writel(t.pci, cap + PCI_MSI_MASK_64, 0xf);
    assert_lists(t.m, "vfio0", 0, 4);
    assert_vector_of(t.m, "vfio0", "msi", 0, "irqchip", "routed");
    qsmmu_unmap(t.domain, PAGE(V2M_DOORBELL));
    assert_vector_of(t.m, "vfio0", "msi", 0, "irqchip", "stale");
    qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
    assert_vector_of(t.m, "vfio0", "msi", 0, "none", "masked");
    qpci_config_writel(t.pci, cap + PCI_MSI_MASK_64, 0);
    assert_vector_of(t.m, "vfio0", "msi", 0, "none", "dropped");

    /* The host cannot enable them. */
    map_v2m(&t);
    qpci_config_writew(t.pci, cap + PCI_MSI_FLAGS, 0);
    host_double_fail_forever(t.m->hd, VFIO_DEVICE_SET_IRQS, EINVAL);
    enable_msi(t.pci, V2M_DOORBELL, first, 2);
    assert_vector_of(t.m, "vfio0", "msi", 0, "none", "unused");
    host_double_fail_forever(t.m->hd, VFIO_DEVICE_SET_IRQS, 0);
    one_device_stop(&t);
}

static void test_two_smmus(void)
{
    Machine *m = machine_new_default();
    QSMMUDomain *domain;
    HDDevice *dev[2];
    QPCIDevice *port;
    QDict *info[2];

    start_two_smmus(m, dev, 1);
    port = find_pci(m, 8 << 8 | PCI_DEVFN(1, 0));
    g_assert_cmpuint(count_devices(m), ==, 2);
    assert_stream(m, "vfio0", ONE_SID);
    qpci_config_writew(port, PCI_SECONDARY_BUS, 9 | 9 << 8);
    assert_stream(m, "vfio1", 9 << 8);
    for (int i = 0; i < 2; i++) {
        info[i] = query_device(m, i ? "vfio1" : "vfio0");
    }
    g_assert_cmpstr(qdict_get_str(info[0], "smmu"), !=,
                    qdict_get_str(info[1], "smmu"));
    assert_str(info[0], "bus", "pcie.0");
    assert_str(info[1], "bus", "rp");
    g_assert_cmpuint(get_uint(info[1], "slot"), ==, 0);

    qsmmu_guest_enable(&m->smmu[1]);
    domain = qsmmu_domain_new(&m->smmu[1], 12, 1);
    qsmmu_attach(&m->smmu[1], 9 << 8, domain);
    assert_attached(m, "vfio0", "bypass", "follows");
    assert_attached(m, "vfio1", "nested", "follows");
    qobject_unref(info[0]);
    qobject_unref(info[1]);
    g_free(domain);
    g_free(port);
    machine_stop(m);
}

static Machine *machine_new_port(void)
{
    Machine *m = machine_new_default();

    g_string_append(m->args, ROOT_PORT);
    return m;
}

/* Its number on the bus may be that of another device. */
static void test_no_stream(void)
{
    Machine *m = machine_new_port();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QSMMUGuest *g = &m->smmu[0];
    g_autofree char *text = NULL;
    QPCIDevice *port, *pci;

    machine_start(m);
    port = enable_port(m, PCI_DEVFN(1, 0));
    plug(m, dev, port);
    pci = find_pci(m, 1 << 8);
    set_vector(pci, 0, DOORBELL, MSI_DATA);
    assert_stream(m, "hot", 1 << 8);
    assert_doorbell(m, "hot", DOORBELL, "disabled", PAGE(DOORBELL));
    qsmmu_guest_enable(g);
    assert_doorbell(m, "hot", DOORBELL, "c-bad-ste", NO_GPA);
    qpci_config_writew(port, PCI_SECONDARY_BUS, 0);
    assert_stream(m, "hot", -1);
    assert_attached(m, "hot", "abort", "follows");
    assert_doorbell(m, "hot", DOORBELL, "aborted", NO_GPA);
    text = query_hmp(m);
    g_assert_nonnull(strstr(text, "  no stream ID, attached: abort"));
    g_free(pci);
    g_free(port);
    machine_stop(m);
}

static void test_unplugged(void)
{
    Machine *m = machine_new_port();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QPCIDevice *port;

    machine_start(m);
    port = enable_port(m, PCI_DEVFN(1, 0));
    for (int i = 0; i < 2; i++) {
        g_assert_cmpuint(count_devices(m), ==, 0);
        plug(m, dev, port);
        assert_attached(m, "hot", "bypass", "follows");
        unplug(m, dev, port);
    }
    g_assert_cmpuint(count_devices(m), ==, 0);
    g_free(port);
    machine_stop(m);
}

/* As many vectors as there can be, each with a page of its own */
static void test_many_vectors(void)
{
    const unsigned n = HD_MAX_MSIX;
    g_autofree char *text = NULL;
    OneDevice t;
    Machine *m;

    if (!enough_fds(n)) {
        return;
    }
    m = machine_new_default();
    t.dev = add_one_device(m);
    t.dev->num_msix = n;
    t = one_device_start_with(m, t.dev);
    qsmmu_map(t.domain, DOORBELL + (n - 1) * 0x1000, TARGET(0));
    for (unsigned i = 0; i < n; i++) {
        set_vector(t.pci, i, DOORBELL + i * 0x1000, MSI_DATA);
    }
    assert_lists(m, "vfio0", n, n);
    assert_vector(&t, n - 2, "none", "dropped");
    assert_vector(&t, n - 1, "qemu", "no-irqchip");
    text = query_hmp(m);
    g_assert_nonnull(strstr(text, "  msix 2046: 0x4f7ff040 0x1234abcd, "
                            "none (dropped)\r\n"));
    one_device_stop(&t);
}

static void test_hmp(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint8_t cap = qpci_find_capability(t.pci, PCI_CAP_ID_MSI, 0);
    char *text;

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    set_vector(t.pci, 2, DOORBELL, SPI);
    text = query_hmp(t.m);
    g_assert_cmpstr(text, ==,
        "vfio0 (pcie.0 02.0) behind /machine/peripheral-anon/device[0]\r\n"
        "  stream ID 0x10, attached: nested, host follows\r\n"
        "  doorbell 0xfffff000 -> 0x8020000: translated\r\n"
        "  doorbell 0x4f001000: f-translation\r\n"
        "  msix 0: 0xfffff040 0x55, irqchip (routed)\r\n"
        "  msix 1: masked\r\n"
        "  msix 2: 0x4f001040 0x55, none (dropped)\r\n"
        "  msix 3-7: masked\r\n");
    g_free(text);

    qpci_msix_disable(t.pci);
    enable_msi(t.pci, V2M_DOORBELL, SPI + 1, 0);
    qpci_config_writel(t.pci, cap + PCI_MSI_MASK_64, 1);
    text = query_hmp(t.m);
    g_assert_nonnull(strstr(text,
        "host follows\r\n"
        "  msi 0: 0xfffff040 0x56 masked, irqchip (routed)\r\n"));
    g_free(text);
    one_device_stop(&t);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/query/none", test_none },
        { "/accel/query/device", test_device },
        { "/accel/query/attached", test_attached },
        { "/accel/query/outcomes", test_outcomes },
        { "/accel/query/no-fault", test_no_fault },
        { "/accel/query/routed", test_routed },
        { "/accel/query/stale", test_stale },
        { "/accel/query/mapped-late", test_mapped_late },
        { "/accel/query/refused", test_refused },
        { "/accel/query/not-refused", test_not_refused },
        { "/accel/query/not-doorbell", test_not_doorbell },
        { "/accel/query/no-irqchip", test_no_irqchip },
        { "/accel/query/chosen", test_chosen },
        { "/accel/query/msi", test_msi },
        { "/accel/query/two-smmus", test_two_smmus },
        { "/accel/query/no-stream", test_no_stream },
        { "/accel/query/unplugged", test_unplugged },
        { "/accel/query/many-vectors", test_many_vectors },
        { "/accel/query/hmp", test_hmp },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
