/*
 * QTest for an accelerated SMMUv3 whose host or irqchip fails
 *
 * What QEMU asks for in a phase (start, hot plug, a guest's work, unplug) is
 * recorded in a run in which nothing fails. The phase is then run once more for
 * each of these calls, with that call failing, and once for each kind, with all
 * calls of that kind failing. The errors of a kind take turns, and of a kind
 * with more than MANY calls every other one fails; "-m slow" has each call fail
 * with each error, also for MSI-X that is not dynamic.
 *
 * Whatever fails, it works as if nothing had, or a message names the device
 * and the cause. In either case
 *  - QEMU lives, unless it is just starting
 *  - a device translates as its guest wants at this moment, or not at all
 *  - a message arrives where it should, or nowhere
 *  - a device that is not named works, and all do when the fault is gone
 *  - a device that goes, or does not come, leaves nothing behind
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <sys/wait.h>
#include "smmuv3-accel-machine.h"

/* The errors that Linux has for calls that are in order */
static const struct {
    unsigned long request;  /* 0 if it is the irqchip's */
    const char *name;
    int err[3];
} kinds[] = {
    { IOMMU_DESTROY, "DESTROY", { EBUSY } },
    { IOMMU_IOAS_ALLOC, "IOAS_ALLOC", { ENOMEM } },
    { IOMMU_IOAS_IOVA_RANGES, "IOAS_IOVA_RANGES", { EFAULT } },
    { IOMMU_IOAS_MAP, "IOAS_MAP", { ENOMEM, EFAULT } },
    { IOMMU_IOAS_MAP_FILE, "IOAS_MAP_FILE", { EOPNOTSUPP, ENOMEM } },
    { IOMMU_IOAS_CHANGE_PROCESS, "IOAS_CHANGE_PROCESS",
      { ENOTTY, EOPNOTSUPP } },
    { IOMMU_IOAS_UNMAP, "IOAS_UNMAP", { EBUSY, EDEADLK } },
    { IOMMU_HWPT_ALLOC, "HWPT_ALLOC", { ENOMEM, EOPNOTSUPP, EINVAL } },
    { IOMMU_GET_HW_INFO, "GET_HW_INFO", { ENODEV, ENOMEM } },
    { IOMMU_HWPT_INVALIDATE, "HWPT_INVALIDATE", { ENOMEM, ETIMEDOUT, EIO } },
    { IOMMU_VIOMMU_ALLOC, "VIOMMU_ALLOC", { EOPNOTSUPP, ENOMEM } },
    { IOMMU_VDEVICE_ALLOC, "VDEVICE_ALLOC", { ENOMEM, EEXIST, EOPNOTSUPP } },
    { IOMMU_VEVENTQ_ALLOC, "VEVENTQ_ALLOC", { ENOMEM, EMFILE } },
    { VFIO_DEVICE_BIND_IOMMUFD, "BIND", { EBUSY, EPERM } },
    { VFIO_DEVICE_GET_INFO, "GET_INFO", { EIO } },
    { VFIO_DEVICE_GET_REGION_INFO, "GET_REGION_INFO", { EIO, ENOMEM } },
    { VFIO_DEVICE_GET_IRQ_INFO, "GET_IRQ_INFO", { EIO } },
    { VFIO_DEVICE_SET_IRQS, "SET_IRQS", { ENOMEM, EBUSY, EIO } },
    { VFIO_DEVICE_RESET, "RESET", { EIO } },
    { VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "HOT_RESET_INFO", { ENODEV } },
    { VFIO_DEVICE_PCI_HOT_RESET, "HOT_RESET", { EIO } },
    { VFIO_DEVICE_FEATURE, "FEATURE", { ENOTTY, EOPNOTSUPP, ENOMEM } },
    { VFIO_DEVICE_ATTACH_IOMMUFD_PT, "ATTACH", { EINVAL, ENOMEM, EBUSY } },
    { VFIO_DEVICE_DETACH_IOMMUFD_PT, "DETACH", { EIO } },
    { 0, "add", { ENOSPC, EINVAL } },
    { 0, "update", { EINVAL } },
    { 0, "attach", { ENOMEM, EBUSY } },
    /* To commit, to release and to detach what is there does not fail. */
};

#define NUM_ERRS        ARRAY_SIZE(kinds[0].err)
#define MANY            16

typedef struct Fault {
    unsigned kind;
    unsigned n;             /* which call, or 0 for all of them */
    int err;
} Fault;

/* How many calls of each kind there were */
typedef struct Calls {
    unsigned n[ARRAY_SIZE(kinds)];
} Calls;

static Calls count_calls(Machine *m)
{
    HDShared *shm = m->hd->shm;
    Calls calls = { };

    hd_lock(shm);
    for (uint64_t i = 0; i < shm->num_calls; i++) {
        unsigned kind = 0;

        while (kind < ARRAY_SIZE(kinds) &&
               (!kinds[kind].request ||
                _IOC_NR(kinds[kind].request) != shm->calls[i].nr)) {
            kind++;
        }
        if (kind == ARRAY_SIZE(kinds)) {
            g_error("call %u is not in the table", shm->calls[i].nr);
        }
        calls.n[kind]++;
    }
    hd_unlock(shm);
    for (unsigned i = 0; i < ARRAY_SIZE(kinds) && m->qts; i++) {
        if (!kinds[i].request) {
            calls.n[i] = qtest_irqchip_calls(m->qts, kinds[i].name);
        }
    }
    return calls;
}

/* Count from here on. */
static Calls begin_calls(Machine *m)
{
    host_double_forget_calls(m->hd);
    return count_calls(m);
}

static Calls calls_since(Machine *m, const Calls *begin)
{
    Calls calls = count_calls(m);

    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        calls.n[i] -= begin->n[i];
    }
    return calls;
}

static void arm_fault(Machine *m, const Fault *f)
{
    unsigned long request = kinds[f->kind].request;

    if (!request) {
        qtest_irqchip_fail(m->qts, kinds[f->kind].name, f->n, f->err);
    } else if (f->n) {
        host_double_fail(m->hd, request, f->n, f->err);
    } else {
        host_double_fail_forever(m->hd, request, f->err);
    }
}

/* The call has failed, as it has been made since @begin. */
static void disarm_fault(Machine *m, const Fault *f, const Calls *begin)
{
    unsigned long request = kinds[f->kind].request;
    HDShared *shm = m->hd->shm;
    bool hit = false;

    if (!request) {
        qtest_irqchip_fail(m->qts, kinds[f->kind].name, 0, 0);
        g_assert_cmpuint(calls_since(m, begin).n[f->kind], >=, f->n);
        return;
    }
    host_double_fail(m->hd, request, 0, 0);
    for (uint64_t i = 0; i < shm->num_calls; i++) {
        hit |= shm->calls[i].nr == _IOC_NR(request) &&
               shm->calls[i].result == -f->err;
    }
    g_assert_true(hit);
}

typedef void FaultCase(void *opaque, const Fault *f);

/* Run @fn for each fault that @calls allow for. */
static void for_each_fault(const Calls *calls, FaultCase *fn, void *opaque)
{
    for (unsigned kind = 0; kind < ARRAY_SIZE(kinds); kind++) {
        unsigned last = calls->n[kind];
        unsigned errs = 0;
        /* The irqchip has no "all". */
        unsigned n = !kinds[kind].request;

        while (errs < NUM_ERRS && kinds[kind].err[errs]) {
            errs++;
        }
        for (; last && n <= last; n++) {
            for (unsigned e = 0; e < errs; e++) {
                Fault f = { kind, n, kinds[kind].err[e] };

                if (!g_test_slow() &&
                    (e != n % errs || (last > MANY && n % 2 && n != last))) {
                    continue;
                }
                g_test_message("%s %u of %u: %s", kinds[kind].name, n, last,
                               g_strerror(f.err));
                fn(opaque, &f);
            }
        }
    }
}

/*
 * Is it one of those calls that take something back in the host? It is still
 * there then, as a message tells. Of QEMU's own nothing may be.
 */
static bool keeps(const Fault *f, unsigned long request)
{
    return f && kinds[f->kind].request == request;
}

/*
 * Does a line of QEMU name this device and the cause? That it has the command
 * line in it does not count.
 */
static bool is_named(const char *text, const char *id, const Fault *f)
{
    g_autofree char *cause = g_regex_escape_string(g_strerror(f->err), -1);
    /* What could not be freed has a number only, and other calls then fail. */
    g_autofree char *pattern =
        g_strdup_printf("(?<!id=)\\b%s[:, ].*%s", id,
                        keeps(f, IOMMU_DESTROY) ? "" : cause);

    return g_regex_match_simple(pattern, text, 0, 0);
}

/* All that QEMU said since the last time */
static void read_messages(const char *path, GString *text)
{
    g_autofree char *now = NULL;

    g_assert_true(g_file_get_contents(path, &now, NULL, NULL));
    g_assert_cmpint(truncate(path, 0), ==, 0);
    g_string_append(text, now);
}

/* Start: QEMU is there for one case. */

static Machine *machine_for_start(HDDevice **dev)
{
    Machine *m = machine_new_irqchip();

    *dev = add_one_device(m);
    return m;
}

static void start_case(void *opaque, const Fault *f)
{
    g_autofree char *text = NULL;
    HDDevice *dev;
    Machine *m = machine_for_start(&dev);
    int status;

    arm_fault(m, f);
    status = host_double_run(m->hd, m->args->str, &text);
    g_test_message("status %d: %s", status, text);
    disarm_fault(m, f, NULL);
    g_assert_true(WIFEXITED(status));
    if (status) {
        g_assert_true(is_named(text, "vfio0", f));
    } else if (attached(m, dev) != QSMMU_STE_BYPASS) {
        g_assert_cmphex(attached(m, dev), ==, BLOCKED);
        g_assert_true(is_named(text, "vfio0", f));
    }
    machine_stop(m);
}

static void test_start(void)
{
    g_autofree char *text = NULL;
    HDDevice *dev;
    Machine *m = machine_for_start(&dev);
    Calls calls;
    int status = host_double_run(m->hd, m->args->str, &text);

    g_test_message("%s", text);
    g_assert_cmpint(status, ==, 0);
    g_assert_cmphex(attached(m, dev), ==, QSMMU_STE_BYPASS);
    calls = count_calls(m);
    machine_stop(m);
    for_each_fault(&calls, start_case, NULL);
}

/*
 * A device that comes to a running guest and goes, alone or as the second one
 * of its SMMU. The tables for it are there already.
 */

#define HOT_SID         PCI_BUILD_BDF(1, 0)
#define HOT_SPI         SPI
#define OTHER_SPI       (SPI + 1)

/* What there is of a device in QEMU and in the host */
typedef struct State {
    unsigned fds;
    unsigned spaces;
    unsigned maps;
    unsigned objects[HD_VEVENTQ + 1];
} State;

typedef struct Plug {
    Machine *m;
    char *messages;
    HDDevice *hot, *other;
    QPCIDevice *port, *other_pci;
    QSMMUDomain *domain, *other_domain;
    State before;
} Plug;

static State get_state(Machine *m)
{
    g_autofree char *mtree = qtest_hmp(m->qts, "info mtree");
    State s = { };

    /* The double has the other end of a vEVENTQ's descriptor. */
    s.fds = count_fds(m) - host_double_objects(m->hd, HD_VEVENTQ);
    for (char *p = mtree; (p = strstr(p, "address-space: ")); p++) {
        s.spaces++;
    }
    for (HDType type = HD_DEVICE; type <= HD_VEVENTQ; type++) {
        s.objects[type] = host_double_objects(m->hd, type);
    }
    for (unsigned i = 0; i < HD_MAX_MAPS; i++) {
        s.maps += m->hd->shm->maps[i].ioas != 0;
    }
    return s;
}

static bool same_state(const State *a, const State *b)
{
    return !memcmp(a, b, sizeof(*a));
}

/* Those that other devices use as well are not destroyed in any case. */
static bool keeps_objects(const Fault *f, bool second)
{
    return keeps(f, IOMMU_DESTROY) ||
           (keeps(f, VFIO_DEVICE_DETACH_IOMMUFD_PT) && !second);
}

static void assert_state(Plug *p, const Fault *f)
{
    const State *want = &p->before;
    State s;

    drain_rcu(p->m);
    s = get_state(p->m);
    if (keeps_objects(f, p->other)) {
        memcpy(s.objects, want->objects, sizeof(s.objects));
    }
    if (keeps(f, IOMMU_IOAS_UNMAP)) {
        s.maps = want->maps;
    }
    g_assert_cmpuint(s.fds, ==, want->fds);
    g_assert_cmpuint(s.spaces, ==, want->spaces);
    g_assert_cmpuint(s.maps, ==, want->maps);
    for (HDType type = HD_DEVICE; type <= HD_VEVENTQ; type++) {
        g_test_message("objects of type %u", type);
        g_assert_cmpuint(s.objects[type], ==, want->objects[type]);
    }
}

/* The vector's message arrives, and no other */
static bool arrives(Machine *m, HDDevice *dev, unsigned spi)
{
    if (dev->irq_index == VFIO_PCI_MSIX_IRQ_INDEX &&
        host_double_fire(m->hd, dev, VFIO_PCI_MSIX_IRQ_INDEX, 0)) {
        g_assert_true(host_double_wait(m->hd, dev, VFIO_PCI_MSIX_IRQ_INDEX,
                                       0));
    }
    settle(m);
    g_assert_false(take_spi(m, spi == HOT_SPI ? OTHER_SPI : HOT_SPI));
    return take_spi(m, spi);
}

/* The guest enables what was plugged. */
static bool use_hot(Plug *p)
{
    uint64_t mmio = p->m->gbus.bus.mmio_alloc_ptr;
    QPCIDevice *pci = find_pci(p->m, HOT_SID);
    bool works;

    set_vector(pci, 0, V2M_DOORBELL, HOT_SPI);
    works = attached(p->m, p->hot) == (QSMMU_STE_S1 | p->domain->cd) &&
            vsid(p->m, p->hot) == HOT_SID && arrives(p->m, p->hot, HOT_SPI);
    p->m->gbus.bus.mmio_alloc_ptr = mmio;
    g_free(pci);
    return works;
}

static void assert_other_works(Plug *p)
{
    if (p->other) {
        g_assert_cmphex(attached(p->m, p->other), ==,
                        QSMMU_STE_S1 | p->other_domain->cd);
        g_assert_true(arrives(p->m, p->other, OTHER_SPI));
    }
}

static QSMMUDomain *new_domain(Machine *m, uint16_t asid)
{
    QSMMUDomain *domain = qsmmu_domain_new(&m->smmu[0], 12, asid);

    qsmmu_map(domain, V2M_DOORBELL & ~0xfffull, V2M_BASE);
    return domain;
}

static void plug_start(Plug *p, bool second)
{
    Machine *m = p->m = machine_new_irqchip();

    p->messages = catch_messages(m);
    p->hot = host_double_add_device(m->hd, 0);
    g_string_append(m->args, ROOT_PORT);
    if (second) {
        OneDevice t = irqchip_start(m);

        p->other = t.dev;
        p->other_pci = t.pci;
        p->other_domain = t.domain;
        map_v2m(&t);
        set_vector(t.pci, 0, V2M_DOORBELL, OTHER_SPI);
    } else {
        machine_start(m);
        qsmmu_guest_enable(&m->smmu[0]);
        v2m_start(m);
    }
    p->port = enable_port(m, PCI_DEVFN(1, 0));
    /* The other device's BARs are outside of the port's window. */
    m->gbus.bus.mmio_alloc_ptr = 0x20000000;
    qpci_config_writew(p->port, PCI_MEMORY_BASE, 0x2000);
    qpci_config_writew(p->port, PCI_MEMORY_LIMIT, 0x20f0);
    p->domain = new_domain(m, 2);
    qsmmu_attach(&m->smmu[0], HOT_SID, p->domain);

    /* What remains of the first time is there once. */
    plug(m, p->hot, p->port);
    g_assert_true(use_hot(p));
    unplug(m, p->hot, p->port);
    drain_rcu(m);
    p->before = get_state(m);
    assert_no_message(p->messages);
}

static void plug_stop(Plug *p)
{
    g_free(p->domain);
    g_free(p->other_domain);
    g_free(p->other_pci);
    g_free(p->port);
    machine_stop(p->m);
    memory_file_free(p->messages);
}

static void assert_gone(Plug *p, const Fault *f, const char *text)
{
    wait_unbound(p->hot);
    assert_state(p, f);
    assert_other_works(p);
    if (keeps_objects(f, p->other) || keeps(f, IOMMU_IOAS_UNMAP)) {
        State s = get_state(p->m);
        bool second = p->other;

        /* A vEVENTQ that is busy goes at the second attempt, unsaid. */
        g_assert_true(strstr(text, g_strerror(f->err)) ||
                      (keeps(f, IOMMU_DESTROY) &&
                       same_state(&s, &p->before)));
        plug_stop(p);
        *p = (Plug) { };
        plug_start(p, second);
    }
}

static void plug_case(void *opaque, const Fault *f)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_autofree char *error = NULL;
    Plug *p = opaque;
    Calls begin = begin_calls(p->m);

    arm_fault(p->m, f);
    error = try_plug(p->m, p->hot, "rp");
    if (!error) {
        set_slot_power(p->port, true);
        /* They share all they can. */
        g_assert_cmpuint(host_double_objects(p->m->hd, HD_IOAS), ==, 1);
        g_assert_cmpuint(host_double_objects(p->m->hd, HD_HWPT_PAGING), ==, 1);
    }
    disarm_fault(p->m, f, &begin);
    read_messages(p->messages, text);
    g_test_message("%s; %s", error ?: "it goes on", text->str);
    if (error) {
        /* With EINVAL, it is another HWPT that it needs. */
        g_assert_true(is_named(error, "hot", f) ||
                      is_named(text->str, "hot", f) ||
                      (f->err == EINVAL && strstr(error, "share the stage 2")));
    } else {
        if (!use_hot(p)) {
            g_assert_true(is_named(text->str, "hot", f));
        }
        unplug(p->m, p->hot, p->port);
        read_messages(p->messages, text);
    }
    assert_gone(p, f, text->str);
}

static void run_plug(bool second)
{
    Plug p = { };
    Calls begin, calls;

    plug_start(&p, second);
    begin = begin_calls(p.m);
    plug(p.m, p.hot, p.port);
    calls = calls_since(p.m, &begin);
    unplug(p.m, p.hot, p.port);
    for_each_fault(&calls, plug_case, &p);
    plug(p.m, p.hot, p.port);
    g_assert_true(use_hot(&p));
    assert_other_works(&p);
    plug_stop(&p);
}

static void test_plug(void)
{
    run_plug(false);
}

static void test_plug_second(void)
{
    run_plug(true);
}

static void unplug_case(void *opaque, const Fault *f)
{
    g_autoptr(GString) text = g_string_new(NULL);
    Plug *p = opaque;
    Calls begin;

    plug(p->m, p->hot, p->port);
    g_assert_true(use_hot(p));
    assert_no_message(p->messages);
    begin = begin_calls(p->m);
    arm_fault(p->m, f);
    unplug(p->m, p->hot, p->port);
    disarm_fault(p->m, f, &begin);
    read_messages(p->messages, text);
    g_test_message("%s", text->str);
    assert_gone(p, f, text->str);
}

static void run_unplug(bool second)
{
    Plug p = { };
    Calls begin, calls;

    plug_start(&p, second);
    plug(p.m, p.hot, p.port);
    g_assert_true(use_hot(&p));
    begin = begin_calls(p.m);
    unplug(p.m, p.hot, p.port);
    assert_state(&p, NULL);
    calls = calls_since(p.m, &begin);
    for_each_fault(&calls, unplug_case, &p);
    plug_stop(&p);
}

static void test_unplug(void)
{
    run_unplug(false);
}

static void test_unplug_second(void)
{
    run_unplug(true);
}

/*
 * Run time: a guest does one thing after another with the first of its two
 * devices. After each step it is seen where both are, and where their messages
 * go.
 */

#define NUM_DEVICES     2
/* By their numbers, unused RAM */
#define GUEST_DOORBELL(i) (DOORBELL + 0x20000 + (i) * 0x1000)
#define GUEST_SPI(i)    (V2M_FIRST_SPI + 8 + 4 * (i))

typedef struct Guest {
    Machine *m;
    QSMMUGuest *g;
    char *messages;
    GString *text;          /* messages since the script began */
    HDDevice *dev[NUM_DEVICES];
    uint32_t sid[NUM_DEVICES];
    QPCIDevice *pci[NUM_DEVICES];
    QSMMUDomain *domain[NUM_DEVICES];
    QSMMUDomain *other;     /* has the doorbell's page elsewhere */
    bool dynamic_msix;
    bool told;              /* that a TLBI was not done */
} Guest;

/* Where a message arrived */
enum {
    AT_SPI = 1,             /* one bit for each SPI */
    AT_PAGE = 0x10,         /* and for each page of RAM */
};

/* What is seen of a device after a step */
typedef struct Seen {
    uint64_t attached;
    uint64_t vsid;
    int irq_index;
    unsigned arrived;
} Seen;

static void guest_boots(Guest *s)
{
    QPCIBus *bus = &s->m->gbus.bus;

    s->sid[0] = PCI_BUILD_BDF(1, 0);
    s->sid[1] = PCI_DEVFN(2, 0);
    set_buses(s->m, PCI_DEVFN(1, 0), 1, 1);
    for (int i = 0; i < NUM_DEVICES; i++) {
        /* The first one is behind a port, which has a window for it. */
        bus->mmio_alloc_ptr = i ? 0x10000000 : 0x20000000;
        g_free(s->pci[i]);
        s->pci[i] = find_pci(s->m, s->sid[i]);
        qpci_iomap(s->pci[i], HD_BAR_DATA, NULL);
        if (!i) {
            QPCIDevice *port = find_pci(s->m, PCI_DEVFN(1, 0));

            qpci_config_writew(port, PCI_MEMORY_BASE, 0x2000);
            qpci_config_writew(port, PCI_MEMORY_LIMIT, 0x20f0);
            g_free(port);
        }
        qsmmu_set_ste(s->g, s->sid[i], 0, 0);
    }
    v2m_start(s->m);
}

/* A driver tries again what failed; it gives up, where Linux does not. */
static void map_doorbell(Guest *s, unsigned i, uint64_t page)
{
    uint64_t va = GUEST_DOORBELL(i) & ~0xfffull;
    QSMMUDomain *domain = s->domain[i];
    uint32_t cons;

    qsmmu_map(domain, va, page);
    cons = qsmmu_issue(s->g, SMMU_CMD_TLBI_NH_VA | (uint64_t)domain->asid << 48,
                       va);
    for (int try = 1; try < 3; try++) {
        if ((cons & ~R_CMDQ_CONS_ERR_MASK) == s->g->cmdq_prod) {
            break;
        }
        s->told = true;
        cons = qsmmu_acknowledge(s->g, try == 2);
    }
    g_assert_cmphex(cons & ~R_CMDQ_CONS_ERR_MASK, ==, s->g->cmdq_prod);
}

static void guest_enables_smmu(Guest *s)
{
    qsmmu_guest_enable(s->g);
}

static void guest_attaches(Guest *s)
{
    for (int i = 0; i < NUM_DEVICES; i++) {
        map_doorbell(s, i, V2M_BASE);
        qsmmu_attach(s->g, s->sid[i], s->domain[i]);
    }
}

static void guest_enables_msix(Guest *s)
{
    for (int i = 0; i < NUM_DEVICES; i++) {
        s->m->gbus.bus.mmio_alloc_ptr = i ? 0x11000000 : 0x20800000;
        s->pci[i]->msix_enabled = false;
        set_vector(s->pci[i], 0, GUEST_DOORBELL(i), GUEST_SPI(i));
    }
}

static void guest_uses_vectors(Guest *s)
{
    for (unsigned i = 3; i > 0; i--) {
        write_message(s->pci[0], i, GUEST_DOORBELL(0), GUEST_SPI(0) + i);
        mask_vector(s->pci[0], i, false);
    }
}

static void guest_invalidates_cd(Guest *s)
{
    qsmmu_cfgi_cd(s->g, s->sid[0]);
}

static void guest_invalidates_ste(Guest *s)
{
    qsmmu_cfgi_ste(s->g, s->sid[0]);
}

static void guest_changes_message(Guest *s)
{
    write_message(s->pci[0], 0, GUEST_DOORBELL(0), GUEST_SPI(0) + 1);
}

static void guest_maps_ram(Guest *s)
{
    map_doorbell(s, 0, TARGET(0));
}

static void guest_maps_doorbell(Guest *s)
{
    map_doorbell(s, 0, V2M_BASE);
}

static void guest_masks(Guest *s)
{
    mask_vector(s->pci[0], 0, true);
}

static void guest_unmasks(Guest *s)
{
    mask_vector(s->pci[0], 0, false);
}

static void guest_switches_domain(Guest *s)
{
    qsmmu_attach(s->g, s->sid[0], s->other);
}

static void guest_bypasses(Guest *s)
{
    qsmmu_set_ste(s->g, s->sid[0], QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(s->g, s->sid[0]);
}

static void guest_aborts(Guest *s)
{
    qsmmu_set_ste(s->g, s->sid[0], QSMMU_STE_ABORT, 0);
    qsmmu_cfgi_ste(s->g, s->sid[0]);
}

static void guest_attaches_again(Guest *s)
{
    qsmmu_attach(s->g, s->sid[0], s->domain[0]);
}

static void guest_resets_function(Guest *s)
{
    uint8_t exp = qpci_find_capability(s->pci[0], PCI_CAP_ID_EXP, 0);

    qpci_config_writew(s->pci[0], exp + PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR);
}

static void guest_disables_msix(Guest *s)
{
    change_msix(s->pci[0], PCI_MSIX_FLAGS_ENABLE, 0);
}

static void guest_enables_msi(Guest *s)
{
    enable_msi(s->pci[0], GUEST_DOORBELL(0), GUEST_SPI(0), 1);
}

static void guest_enables_more_msis(Guest *s)
{
    enable_msi(s->pci[0], GUEST_DOORBELL(0), GUEST_SPI(0), 2);
}

static void guest_disables_msi(Guest *s)
{
    uint8_t msi = qpci_find_capability(s->pci[0], PCI_CAP_ID_MSI, 0);

    qpci_config_writew(s->pci[0], msi + PCI_MSI_FLAGS, 0);
}

static void guest_enables_msix_again(Guest *s)
{
    change_msix(s->pci[0], 0, PCI_MSIX_FLAGS_ENABLE);
}

static void guest_renumbers(Guest *s)
{
    uint32_t sid = PCI_BUILD_BDF(3, 0);

    qsmmu_set_ste(s->g, sid, QSMMU_STE_S1 | s->domain[0]->cd, 0);
    set_buses(s->m, PCI_DEVFN(1, 0), 3, 3);
    s->sid[0] = s->pci[0]->devfn = sid;
}

static void guest_moves_bars(Guest *s)
{
    uint16_t command = qpci_config_readw(s->pci[0], PCI_COMMAND);
    unsigned bar = PCI_BASE_ADDRESS_0 + 4 * HD_BAR_DATA;

    qpci_config_writew(s->pci[0], PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
    qpci_config_writel(s->pci[0], bar, 0x20c00000);
    qpci_config_writew(s->pci[0], PCI_COMMAND, command);
}

static void guest_disables_smmu(Guest *s)
{
    qsmmu_guest_disable(s->g);
}

static void guest_sets_gbpa(Guest *s)
{
    qtest_writel(s->m->qts, s->g->base + A_GBPA,
                 R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
}

static void guest_reboots(Guest *s)
{
    qtest_system_reset(s->m->qts);
}

static const struct {
    const char *name;
    void (*fn)(Guest *s);
} steps[] = {
    { "boots", guest_boots },
    { "enables the SMMU", guest_enables_smmu },
    { "attaches", guest_attaches },
    { "enables MSI-X", guest_enables_msix },
    { "uses more vectors", guest_uses_vectors },
    { "invalidates the CD", guest_invalidates_cd },
    { "invalidates the STE", guest_invalidates_ste },
    { "changes the message", guest_changes_message },
    { "maps RAM", guest_maps_ram },
    { "maps the doorbell", guest_maps_doorbell },
    { "masks", guest_masks },
    { "unmasks", guest_unmasks },
    { "switches the domain", guest_switches_domain },
    { "bypasses", guest_bypasses },
    { "aborts", guest_aborts },
    { "attaches again", guest_attaches_again },
    { "disables MSI-X", guest_disables_msix },
    { "enables MSI", guest_enables_msi },
    { "enables more MSIs", guest_enables_more_msis },
    { "disables MSI", guest_disables_msi },
    { "enables MSI-X again", guest_enables_msix_again },
    { "renumbers", guest_renumbers },
    { "moves BARs", guest_moves_bars },
    { "resets the function", guest_resets_function },
    { "disables the SMMU", guest_disables_smmu },
    { "sets GBPA", guest_sets_gbpa },
    { "enables the SMMU again", guest_enables_smmu },
    { "reboots", guest_reboots },
};

/* How the script went */
typedef struct Story {
    Seen seen[ARRAY_SIZE(steps)][NUM_DEVICES];
    State end;
} Story;

static void fire_vector(Guest *s, HDDevice *dev)
{
    if ((dev->irq_index == VFIO_PCI_MSIX_IRQ_INDEX ||
         dev->irq_index == VFIO_PCI_MSI_IRQ_INDEX) &&
        host_double_fire(s->m->hd, dev, dev->irq_index, 0)) {
        g_assert_true(host_double_wait(s->m->hd, dev, dev->irq_index, 0));
    }
}

/* Whose message is at @page, and clear it */
static int take_from_page(Guest *s, uint64_t page)
{
    uint32_t data = qtest_readl(s->m->qts, page | (DOORBELL & 0xfff));

    if (!data) {
        return -1;
    }
    qtest_writel(s->m->qts, page | (DOORBELL & 0xfff), 0);
    g_assert_cmpuint(data, >=, GUEST_SPI(0));
    g_assert_cmpuint(data, <, GUEST_SPI(NUM_DEVICES));
    return (data - GUEST_SPI(0)) / 4;
}

static void look(Guest *s, Seen seen[NUM_DEVICES])
{
    const uint64_t pages[] = {
        TARGET(0), TARGET(1), GUEST_DOORBELL(0) & ~0xfffull,
        GUEST_DOORBELL(1) & ~0xfffull,
    };
    uint64_t reg = GUEST_SPI(0) / 32 * 4;
    uint32_t pending;

    for (unsigned i = 0; i < NUM_DEVICES; i++) {
        seen[i] = (Seen) {
            .attached = attached(s->m, s->dev[i]),
            .vsid = vsid(s->m, s->dev[i]),
            .irq_index = s->dev[i]->irq_index,
        };
        fire_vector(s, s->dev[i]);
    }
    settle(s->m);
    pending = qtest_readl(s->m->qts, GICD_BASE + GICD_ISPENDR + reg);
    if (pending) {
        qtest_writel(s->m->qts, GICD_BASE + GICD_ICPENDR + reg, pending);
    }
    for (unsigned i = 0; i < NUM_DEVICES; i++) {
        seen[i].arrived = extract32(pending, GUEST_SPI(i) % 32, 4) * AT_SPI;
    }
    for (unsigned n = 0; n < ARRAY_SIZE(pages); n++) {
        int i = take_from_page(s, pages[n]);

        if (i >= 0) {
            seen[i].arrived |= AT_PAGE << n;
        }
    }
}

/* Nothing but what is wanted, or that less of it works */
static void assert_safe(const Seen *seen, const Seen *want)
{
    if (seen->attached != BLOCKED && seen->attached != QSMMU_STE_ABORT) {
        g_assert_cmphex(seen->attached, ==, want->attached);
    }
    if (seen->vsid != NO_VSID) {
        g_assert_cmphex(seen->vsid, ==, want->vsid);
    }
    g_assert_cmphex(seen->arrived & ~want->arrived, ==, 0);
}

/* Check each step against @want, if there is one; @f may have failed. */
static void run_script(Guest *s, Story *story, const Story *want,
                       const Fault *f)
{
    for (unsigned n = 0; n < ARRAY_SIZE(steps); n++) {
        steps[n].fn(s);
        look(s, story->seen[n]);
        for (unsigned i = 0; i < NUM_DEVICES; i++) {
            g_autofree char *id = g_strdup_printf("vfio%u", i);
            Seen *seen = &story->seen[n][i];

            if (keeps(f, IOMMU_DESTROY)) {
                seen->vsid = want->seen[n][i].vsid;
            }
            if (!want || !memcmp(seen, &want->seen[n][i], sizeof(*seen))) {
                continue;
            }
            read_messages(s->messages, s->text);
            g_test_message("%s %s: attached 0x%" PRIx64 " vSID 0x%" PRIx64
                           " interrupts %d arrived 0x%x", id, steps[n].name,
                           seen->attached, seen->vsid, seen->irq_index,
                           seen->arrived);
            g_test_message("QEMU: %s", s->text->str);
            g_assert_nonnull(f);
            assert_safe(seen, &want->seen[n][i]);
            g_assert_true(is_named(s->text->str, id, f));
        }
    }
    story->end = get_state(s->m);
}

static void assert_quiet(Guest *s)
{
    read_messages(s->messages, s->text);
    g_assert_cmpstr(s->text->str, ==, "");
}

static void guest_start(Guest *s)
{
    Machine *m = s->m = machine_new_irqchip();

    s->g = &m->smmu[0];
    s->messages = catch_messages(m);
    s->text = g_string_new(NULL);
    g_string_append(m->args, ROOT_PORT);
    s->dev[0] = add_vfio(m, 0, "bus=rp");
    s->dev[1] = add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    s->dev[0]->dynamic_msix = s->dynamic_msix;
    machine_start(m);
    for (int i = 0; i < NUM_DEVICES; i++) {
        s->domain[i] = qsmmu_domain_new(s->g, 12, i + 1);
    }
    s->other = qsmmu_domain_new(s->g, 12, 3);
    qsmmu_map(s->other, GUEST_DOORBELL(0) & ~0xfffull, TARGET(1));
    for (int i = 0; i < 2; i++) {
        qtest_memset(m->qts, TARGET(i), 0, 0x1000);
        qtest_memset(m->qts, GUEST_DOORBELL(i) & ~0xfffull, 0, 0x1000);
    }
}

static void guest_stop(Guest *s)
{
    for (int i = 0; i < NUM_DEVICES; i++) {
        g_free(s->pci[i]);
        g_free(s->domain[i]);
    }
    g_free(s->other);
    machine_stop(s->m);
    memory_file_free(s->messages);
    g_string_free(s->text, true);
}

typedef struct Run {
    Guest guest;
    Story want;
    Calls calls;
} Run;

/* What the host has not invalidated it forgets, or the guest is told. */
static void assert_not_stale(Run *r, const Calls *calls)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kinds) && !r->guest.told; i++) {
        if (kinds[i].request == VFIO_DEVICE_ATTACH_IOMMUFD_PT) {
            g_assert_cmpuint(calls->n[i], >, r->calls.n[i]);
        }
    }
}

static void run_case(void *opaque, const Fault *f)
{
    Run *r = opaque;
    Guest *s = &r->guest;
    Calls begin, calls;
    Story story;

    g_string_truncate(s->text, 0);
    s->told = false;
    begin = begin_calls(s->m);
    arm_fault(s->m, f);
    run_script(s, &story, &r->want, f);
    disarm_fault(s->m, f, &begin);
    calls = calls_since(s->m, &begin);
    if (kinds[f->kind].request == IOMMU_HWPT_INVALIDATE) {
        assert_not_stale(r, &calls);
    }
    read_messages(s->messages, s->text);
    g_test_message("QEMU: %s", s->text->str);

    if (keeps(f, IOMMU_DESTROY)) {
        g_assert_nonnull(strstr(s->text->str, g_strerror(f->err)));
        guest_stop(s);
        *s = (Guest) { .dynamic_msix = s->dynamic_msix };
        guest_start(s);
        run_script(s, &story, NULL, NULL);
        return;
    }

    /* Once more without, as the guest reboots: all is well again. */
    guest_reboots(s);
    read_messages(s->messages, s->text);
    g_string_truncate(s->text, 0);
    run_script(s, &story, &r->want, NULL);
    assert_quiet(s);
    g_assert_true(same_state(&story.end, &r->want.end));
}

static void run_guest(bool dynamic_msix)
{
    Run r = { .guest.dynamic_msix = dynamic_msix };
    Story story;
    Calls begin;

    guest_start(&r.guest);
    run_script(&r.guest, &r.want, NULL, NULL);
    begin = begin_calls(r.guest.m);
    run_script(&r.guest, &r.want, NULL, NULL);
    r.calls = calls_since(r.guest.m, &begin);
    run_script(&r.guest, &story, &r.want, NULL);
    assert_quiet(&r.guest);
    for_each_fault(&r.calls, run_case, &r);
    guest_stop(&r.guest);
}

static void test_run(void)
{
    run_guest(true);
    if (g_test_slow()) {
        run_guest(false);
    }
}

/*
 * QEMU has no descriptors left for some of the vectors. It says so, and the
 * guest may try again.
 */
static void test_eventfds(void)
{
    Machine *m = machine_new_irqchip();
    char *messages = catch_messages(m);
    HDDevice *dev = add_one_device(m);
    OneDevice t = irqchip_start_with(m, dev);
    g_autoptr(GString) text = g_string_new(NULL);
    unsigned fds = count_fds(m);
    struct rlimit limit;

    map_v2m(&t);
    qpci_msix_enable(t.pci);
    change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
    g_assert_cmpint(prlimit(qtest_pid(m->qts), RLIMIT_NOFILE, NULL, &limit),
                    ==, 0);
    for (unsigned i = 0; i < dev->num_msix; i++) {
        write_message(t.pci, i, V2M_DOORBELL, SPI + i);
        mask_vector(t.pci, i, false);
    }
    for (unsigned room = 0; room < 3 * dev->num_msix; room += 2) {
        struct rlimit low = { fds + room, limit.rlim_max };

        /* Then it unmasks the vectors again, then it enables MSI-X again. */
        for (unsigned again = 0; again < 3; again++) {
            unsigned arrived = 0;

            g_assert_cmpint(prlimit(qtest_pid(m->qts), RLIMIT_NOFILE,
                                    again ? &limit : &low, NULL), ==, 0);
            if (again == 1) {
                for (unsigned i = 0; i < dev->num_msix; i++) {
                    mask_vector(t.pci, i, true);
                    mask_vector(t.pci, i, false);
                }
            } else {
                change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
                change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
            }
            g_string_truncate(text, 0);
            read_messages(messages, text);
            for (unsigned i = 0; i < dev->num_msix; i++) {
                if (host_double_fire(m->hd, dev, VFIO_PCI_MSIX_IRQ_INDEX, i)) {
                    g_assert_true(host_double_wait(m->hd, dev,
                                                   VFIO_PCI_MSIX_IRQ_INDEX, i));
                }
                settle(m);
                arrived += take_spi(m, SPI + i);
            }
            g_test_message("room for %u: %u arrived; %s", room, arrived,
                           text->str);
            g_assert_cmpuint(arrived, >=,
                             again ? dev->num_msix : MIN(room, dev->num_msix));
            if (arrived < dev->num_msix) {
                g_assert_nonnull(strstr(text->str, "vfio vfio0: "));
                g_assert_nonnull(strstr(text->str, g_strerror(EMFILE)));
            }
        }
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
        g_assert_cmpuint(count_fds(m), ==, fds);
        read_messages(messages, text);
    }
    one_device_stop(&t);
    memory_file_free(messages);
}

/* Start a machine that will end in the midst of a command, freeing nothing. */
static void machine_start_leaky(Machine *m)
{
    g_autofree char *options = g_strdup(g_getenv("ASAN_OPTIONS"));
    g_autofree char *leaky =
        g_strconcat(options ?: "", ":detect_leaks=0", NULL);

    g_setenv("ASAN_OPTIONS", leaky, true);
    machine_start(m);
    if (options) {
        g_setenv("ASAN_OPTIONS", options, true);
    } else {
        g_unsetenv("ASAN_OPTIONS");
    }
}

/* RAM that the host cannot map ends QEMU: nobody waits for an answer. */
static void test_memory(void)
{
    static const int errs[] = { ENOMEM, EFAULT };

    for (int i = 0; i < ARRAY_SIZE(errs); i++) {
        Machine *m = machine_new_irqchip();
        char *messages = catch_messages(m);
        g_autoptr(GString) text = g_string_new(NULL);

        g_string_append(m->args, "-m 512M,slots=1,maxmem=1G "
                                 "-object memory-backend-ram,id=more,size=128M ");
        add_one_device(m);
        machine_start_leaky(m);
        host_double_fail(m->hd, IOMMU_IOAS_MAP, 1, errs[i]);
        qtest_set_expected_status(m->qts, EXIT_FAILURE);
        qtest_qmp_send(m->qts, "{ 'execute': 'device_add', 'arguments': {"
                               "'driver': 'pc-dimm', 'memdev': 'more' } }");
        qtest_wait_qemu(m->qts);
        read_messages(messages, text);
        g_test_message("QEMU: %s", text->str);
        g_assert_nonnull(strstr(text->str, "Region more: "));
        g_assert_nonnull(strstr(text->str, g_strerror(errs[i])));
        machine_stop(m);
        memory_file_free(messages);
    }
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/fault/memory", test_memory },
        { "/accel/fault/start", test_start },
        { "/accel/fault/run", test_run },
        { "/accel/fault/eventfds", test_eventfds },
        { "/accel/fault/plug", test_plug },
        { "/accel/fault/plug-second", test_plug_second },
        { "/accel/fault/unplug", test_unplug },
        { "/accel/fault/unplug-second", test_unplug_second },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
