/*
 * QTest for an accelerated SMMUv3: devices do not use each other's tables
 *
 * Each device has a domain of its own, in which the same two gIOVAs lead
 * elsewhere, so a message tells by its data whose it is and by its place whose
 * tables it was translated by. While the guest renumbers buses, has bridges
 * with aliases, plugs devices or switches domains, messages are sent before and
 * after each of its steps, and at each call that a step makes of the host and
 * of the irqchip.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

enum { A, B, HOT, NUM_DEVICES };

/* Vector 0 is QEMU's; 1 is the irqchip's by A's tables, and QEMU's by others */
#define NUM_VECTORS     2
#define BELL(vector)    (DOORBELL + 0x20000 + (vector) * 0x1000)
#define PAGE(domain, vector) TARGET(2 * (domain) + (vector))
#define NUM_DOMAINS     3
#define DATA(dev)       (V2M_FIRST_SPI + 8 + (dev))

/* Whose tables a message uses: a bit for each domain, or it is dropped */
#define BY(domain)      (1u << (domain))
#define DROPPED         (1u << NUM_DOMAINS)

/* The slot of HOT, those of A and B, and one with a PCIe-to-PCI bridge */
#define PORT(n)         PCI_DEVFN((n) + 1, 0)
#define WINDOW(n)       (0x20000000 + (n) * 0x1000000)
#define BRIDGE          PCI_BUILD_BDF(8, 0)
#define BRIDGE_BUS      9

typedef struct World {
    Machine *m;
    QSMMUGuest *g;
    HDDevice *dev[NUM_DEVICES];
    QPCIDevice *pci[NUM_DEVICES];
    QPCIDevice *port;           /* of HOT */
    QSMMUDomain *domain[NUM_DOMAINS];
} World;

typedef struct Step {
    const char *name;
    void (*fn)(World *w);
    unsigned by[NUM_DEVICES];   /* 0 for a device that is not there */
} Step;

static void set_messages(World *w, unsigned i)
{
    for (unsigned v = 0; v < NUM_VECTORS; v++) {
        set_vector(w->pci[i], v, BELL(v), DATA(i));
    }
}

static void enable_window(World *w, unsigned n)
{
    QPCIDevice *port = find_pci(w->m, PORT(n));

    qpci_config_writew(port, PCI_MEMORY_BASE, WINDOW(n) >> 16);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, (WINDOW(n) >> 16) + 0xf0);
    g_free(port);
    w->m->gbus.bus.mmio_alloc_ptr = WINDOW(n);
}

static bool world_start(World *w)
{
    Machine *m;

    if (!qtest_has_device("pcie-pci-bridge")) {
        g_test_skip("this QEMU lacks pcie-pci-bridge");
        return false;
    }
    *w = (World) { .m = machine_new_irqchip() };
    m = w->m;
    w->g = &m->smmu[0];
    for (unsigned n = 0; n < 4; n++) {
        g_autofree char *id = n ? g_strdup_printf("rp%u", n) : g_strdup("rp");

        g_string_append_printf(m->args, "-device pcie-root-port,id=%s,"
                               "bus=pcie.0,addr=%u.0,chassis=%u ", id, n + 1,
                               n + 1);
    }
    g_string_append(m->args, "-device pcie-pci-bridge,id=br,bus=rp3 ");
    w->dev[A] = add_vfio(m, 0, "bus=rp1");
    w->dev[B] = add_vfio(m, 0, "bus=rp2");
    w->dev[HOT] = host_double_add_device(m->hd, 0);
    machine_start(m);
    set_buses(m, PORT(0), 3, 3);
    set_buses(m, PORT(1), 1, 1);
    set_buses(m, PORT(2), 2, 2);
    set_buses(m, PORT(3), 8, BRIDGE_BUS);
    set_buses(m, BRIDGE, BRIDGE_BUS, BRIDGE_BUS);
    v2m_start(m);

    qsmmu_guest_enable(w->g);
    for (unsigned d = 0; d < NUM_DOMAINS; d++) {
        w->domain[d] = qsmmu_domain_new(w->g, 12, d + 1);
        for (unsigned v = 0; v < NUM_VECTORS; v++) {
            qsmmu_map(w->domain[d], BELL(v) & ~0xfffull,
                      d == A && v == 1 ? V2M_BASE : PAGE(d, v));
            qtest_memset(m->qts, PAGE(d, v), 0, 0x1000);
            qtest_memset(m->qts, BELL(v) & ~0xfffull, 0, 0x1000);
        }
    }
    for (unsigned i = A; i <= B; i++) {
        enable_window(w, i + 1);
        w->pci[i] = find_pci(m, PCI_BUILD_BDF(i + 1, 0));
        qsmmu_attach(w->g, PCI_BUILD_BDF(i + 1, 0), w->domain[i]);
        set_messages(w, i);
    }
    enable_window(w, 0);
    w->port = find_pci(m, PORT(0));
    /* Who takes a bridge's alias, or no bus number, for an ID finds tables. */
    qsmmu_set_ste(w->g, PCI_BUILD_BDF(BRIDGE_BUS, 0),
                  QSMMU_STE_S1 | w->domain[HOT]->cd, 0);
    qsmmu_set_ste(w->g, PCI_BUILD_BDF(0, 0),
                  QSMMU_STE_S1 | w->domain[HOT]->cd, 0);
    return true;
}

static void world_stop(World *w)
{
    for (unsigned i = 0; i < NUM_DEVICES; i++) {
        g_free(w->pci[i]);
    }
    for (unsigned d = 0; d < NUM_DOMAINS; d++) {
        g_free(w->domain[d]);
    }
    g_free(w->port);
    machine_stop(w->m);
}

static bool take_word(World *w, uint64_t page, unsigned i)
{
    uint32_t data = take(w->m, page, DOORBELL);

    if (data) {
        g_assert_cmpuint(data, ==, DATA(i));
    }
    return data;
}

/* Whose tables the messages of a vector of @i were translated by */
static unsigned take_messages_of(World *w, unsigned i, unsigned v)
{
    unsigned by = 0;

    for (unsigned d = 0; d < NUM_DOMAINS; d++) {
        by |= take_word(w, PAGE(d, v), i) * BY(d);
    }
    if (v == 1) {
        g_assert_false(by & BY(A));
        by |= take_spi(w->m, DATA(i)) * BY(A);
    }
    for (unsigned other = 0; other < NUM_DEVICES; other++) {
        g_assert_false(other != i && take_spi(w->m, DATA(other)));
    }
    g_assert_false(take_word(w, BELL(v) & ~0xfffull, i)); /* untranslated */
    return by ?: DROPPED;
}

static void check_messages(World *w, const Step *step)
{
    for (unsigned i = 0; i < NUM_DEVICES; i++) {
        for (unsigned v = 0; v < NUM_VECTORS && step->by[i]; v++) {
            unsigned by;

            fire(w->m, w->dev[i], v);
            settle(w->m);
            by = take_messages_of(w, i, v);
            g_test_message("%s: device %u vector %u by 0x%x", step->name, i, v,
                           by);
            g_assert_cmphex(by, ==, step->by[i]);
        }
    }
}

/* What is called, and how often */
typedef struct Call {
    unsigned nr;
    const char *irqchip;
    unsigned n;
} Call;

/* The calls of a step, one after the other */
static GArray *record_step(World *w, const Step *step)
{
    GArray *calls = g_array_new(false, true, sizeof(Call));
    uint64_t before[ARRAY_SIZE(irqchip_calls)];
    HDShared *shm = w->m->hd->shm;
    unsigned count[ARRAY_SIZE(shm->signal)] = { };

    for (unsigned i = 0; i < ARRAY_SIZE(irqchip_calls); i++) {
        before[i] = qtest_irqchip_calls(w->m->qts, irqchip_calls[i]);
    }
    host_double_forget_calls(w->m->hd);
    step->fn(w);
    for (uint64_t i = 0; i < shm->num_calls; i++) {
        Call call = { .nr = shm->calls[i].nr };

        call.n = ++count[call.nr];
        g_array_append_val(calls, call);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(irqchip_calls); i++) {
        uint64_t n = qtest_irqchip_calls(w->m->qts, irqchip_calls[i]) -
                     before[i];

        for (unsigned j = 1; j <= n; j++) {
            Call call = { .irqchip = irqchip_calls[i], .n = j };

            g_array_append_val(calls, call);
        }
    }
    return calls;
}

/* A vector of @i fires at a call of a step. */
static void fire_at(World *w, const Step *from, const Step *step,
                    const Call *call, unsigned i, unsigned v, bool after)
{
    const unsigned msix = VFIO_PCI_MSIX_IRQ_INDEX;
    Machine *m = w->m;
    unsigned by;

    g_test_message("%s, %s %u %s %u: device %u vector %u", step->name,
                   call->irqchip ?: "call", call->nr,
                   after ? "after" : "before", call->n, i, v);
    if (call->irqchip) {
        qtest_irqchip_signal(m->qts, call->irqchip, call->n,
                             host_double_eventfd(m->hd, w->dev[i], msix, v));
    } else {
        host_double_signal(m->hd, call->nr, call->n, after, w->dev[i], msix, v);
    }
    step->fn(w);
    if (call->irqchip) {
        qtest_irqchip_signal(m->qts, call->irqchip, 0, 0);
    } else {
        g_assert_true(host_double_signalled(m->hd, call->nr));
        host_double_signal(m->hd, call->nr, 0, false, w->dev[i], msix, v);
    }
    settle(m);
    by = take_messages_of(w, i, v);
    g_assert_cmphex(by & (by - 1), ==, 0);
    g_assert_cmphex(by & ~(from->by[i] | step->by[i]), ==, 0);
}

/* The last of @steps ends where the first one starts. */
static void run_steps(World *w, const Step *steps, unsigned num)
{
    g_autoptr(GPtrArray) calls = g_ptr_array_new();
    unsigned rounds = 0;

    for (unsigned n = 0; n < num; n++) {
        GArray *of_step = record_step(w, &steps[n]);

        g_ptr_array_add(calls, of_step);
        rounds = MAX(rounds, of_step->len);
        check_messages(w, &steps[n]);
    }
    for (unsigned round = 0; round < rounds * (g_test_slow() ? 8 : 1);
         round++) {
        for (unsigned n = 0; n < num; n++) {
            const Step *from = &steps[(n ?: num) - 1];
            GArray *of_step = g_ptr_array_index(calls, n);

            if (of_step->len) {
                fire_at(w, from, &steps[n],
                        &g_array_index(of_step, Call, round % of_step->len),
                        round / 2 % 2, (round + round / rounds) % 2,
                        round / 4 % 2);
            } else {
                steps[n].fn(w);
            }
            check_messages(w, &steps[n]);
        }
    }
    for (unsigned n = 0; n < num; n++) {
        g_array_free(g_ptr_array_index(calls, n), true);
    }
}

/* Bus renumbering: the devices' ports get each other's numbers. */

static void a_to_bus_1(World *w)
{
    set_buses(w->m, PORT(1), 1, 1);
}

static void a_to_bus_2(World *w)
{
    set_buses(w->m, PORT(1), 2, 2);
}

static void a_to_bus_4(World *w)
{
    set_buses(w->m, PORT(1), 4, 4);
}

static void a_to_no_bus(World *w)
{
    set_buses(w->m, PORT(1), 0, 0);
}

static void b_to_bus_1(World *w)
{
    set_buses(w->m, PORT(2), 1, 1);
}

static void b_to_bus_2(World *w)
{
    set_buses(w->m, PORT(2), 2, 2);
}

static void test_renumbering(void)
{
    static const Step steps[] = {
        { "A has no STE", a_to_bus_4, { DROPPED, BY(B) } },
        { "B has what was A's", b_to_bus_1, { DROPPED, BY(A) } },
        { "A has what was B's", a_to_bus_2, { BY(B), BY(A) } },
        { "A has no number", a_to_no_bus, { DROPPED, BY(A) } },
        { "B has its own", b_to_bus_2, { DROPPED, BY(B) } },
        { "both have B's", a_to_bus_2, { DROPPED, BY(B) } },
        { "A has its own", a_to_bus_1, { BY(A), BY(B) } },
    };
    World w;

    if (world_start(&w)) {
        run_steps(&w, steps, ARRAY_SIZE(steps));
        world_stop(&w);
    }
}

/* Bridge aliasing: what is behind a PCIe-to-PCI bridge has its ID. */

static void plug_on_bridge(World *w)
{
    g_autofree char *error = try_plug(w->m, w->dev[HOT], "br");

    g_assert_nonnull(error);
    g_test_message("%s", error);
    g_assert_nonnull(strstr(error, "is behind PCI bridge"));
}

static void alias_is_a(World *w)
{
    set_buses(w->m, PORT(3), 1, 1);
}

static void alias_is_b(World *w)
{
    set_buses(w->m, PORT(3), 8, 8);
    set_buses(w->m, BRIDGE, 2, 2);
}

static void alias_is_own(World *w)
{
    set_buses(w->m, PORT(3), 8, BRIDGE_BUS);
    set_buses(w->m, BRIDGE, BRIDGE_BUS, BRIDGE_BUS);
}

static void invalidate_all(World *w)
{
    qsmmu_command(w->g, SMMU_CMD_CFGI_STE_RANGE, 31);
}

static void test_bridge_aliasing(void)
{
    static const Step steps[] = {
        { "refused", plug_on_bridge, { BY(A), BY(B) } },
        { "bridge has A's", alias_is_a, { DROPPED, BY(B) } },
        { "all is invalidated", invalidate_all, { DROPPED, BY(B) } },
        { "alias is B's", alias_is_b, { BY(A), BY(B) } },
        { "all is invalidated", invalidate_all, { BY(A), BY(B) } },
        { "refused again", plug_on_bridge, { BY(A), BY(B) } },
        { "alias is its own", alias_is_own, { BY(A), BY(B) } },
    };
    World w;

    if (world_start(&w)) {
        run_steps(&w, steps, ARRAY_SIZE(steps));
        world_stop(&w);
    }
}

/* Hot plug: a third device comes to a stream that has tables, or has not. */

static void hot_comes(World *w)
{
    plug(w->m, w->dev[HOT], w->port);
    w->m->gbus.bus.mmio_alloc_ptr = WINDOW(0);
    w->pci[HOT] = find_pci(w->m, PCI_BUILD_BDF(3, 0));
    set_messages(w, HOT);
}

static void hot_is_attached(World *w)
{
    qsmmu_attach(w->g, PCI_BUILD_BDF(3, 0), w->domain[HOT]);
}

static void hot_is_detached(World *w)
{
    qsmmu_attach(w->g, PCI_BUILD_BDF(3, 0), NULL);
}

static void hot_goes(World *w)
{
    unplug(w->m, w->dev[HOT], w->port);
    g_free(w->pci[HOT]);
    w->pci[HOT] = NULL;
}

static void test_hotplug(void)
{
    static const Step steps[] = {
        { "comes without an STE", hot_comes, { BY(A), BY(B), DROPPED } },
        { "attached", hot_is_attached, { BY(A), BY(B), BY(HOT) } },
        { "goes", hot_goes, { BY(A), BY(B) } },
        { "comes with an STE", hot_comes, { BY(A), BY(B), BY(HOT) } },
        { "detached", hot_is_detached, { BY(A), BY(B), DROPPED } },
        { "goes again", hot_goes, { BY(A), BY(B) } },
    };
    World w;

    if (world_start(&w)) {
        run_steps(&w, steps, ARRAY_SIZE(steps));
        world_stop(&w);
    }
}

/* Domain switches of A */

static void switch_to(World *w, unsigned d)
{
    qsmmu_attach(w->g, PCI_BUILD_BDF(1, 0), w->domain[d]);
}

static void to_a(World *w)
{
    switch_to(w, A);
}

static void to_b(World *w)
{
    switch_to(w, B);
}

static void to_third(World *w)
{
    switch_to(w, HOT);
}

static void to_abort(World *w)
{
    qsmmu_set_ste(w->g, PCI_BUILD_BDF(1, 0), QSMMU_STE_ABORT, 0);
    qsmmu_cfgi_ste(w->g, PCI_BUILD_BDF(1, 0));
}

static void cd_to_b(World *w)
{
    qtest_writeq(w->m->qts, w->domain[A]->cd + A_CD_2, w->domain[B]->ttb);
    qsmmu_cfgi_cd(w->g, PCI_BUILD_BDF(1, 0));
}

static void cd_to_a(World *w)
{
    qtest_writeq(w->m->qts, w->domain[A]->cd + A_CD_2, w->domain[A]->ttb);
    qsmmu_cfgi_cd(w->g, PCI_BUILD_BDF(1, 0));
}

static void test_domain_switches(void)
{
    static const Step steps[] = {
        { "A in B's", to_b, { BY(B), BY(B) } },
        { "A in a third one", to_third, { BY(HOT), BY(B) } },
        { "A aborts", to_abort, { DROPPED, BY(B) } },
        { "A in its own", to_a, { BY(A), BY(B) } },
        { "A's CD is B's", cd_to_b, { BY(B), BY(B) } },
        { "A's CD is its own", cd_to_a, { BY(A), BY(B) } },
    };
    World w;

    if (world_start(&w)) {
        run_steps(&w, steps, ARRAY_SIZE(steps));
        world_stop(&w);
    }
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/isolation/bus-renumbering", test_renumbering },
        { "/accel/isolation/bridge-aliasing", test_bridge_aliasing },
        { "/accel/isolation/hot-plug", test_hotplug },
        { "/accel/isolation/domain-switches", test_domain_switches },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
