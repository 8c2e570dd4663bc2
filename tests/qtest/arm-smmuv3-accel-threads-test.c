/*
 * QTest for vCPUs that change everything while interrupts come
 *
 * One vCPU rewrites page tables and stream table entry, and invalidates; the
 * other one rewrites the MSI-X table; the host signals vectors meanwhile. In
 * every state that there is in between, a message translates to one of a few
 * pages, so none may fault or end up elsewhere. With an irqchip, some of these
 * are a doorbell of it, and routes come and go.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

#define VECTORS         4
#define PASSES          3       /* of each vCPU, while interrupts come */
#define FIRES           500
#define QUEUE_ENTRIES   256
#define PATIENCE        (240 * G_USEC_PER_SEC)

/*
 * What vCPU @n writes, over and over. A list has a header of 16 bytes, then an
 * address and a value, 64 bits each, for each write, and ends with an address
 * of 0. Writes are of 32 bits, or of 64 if bit 0 of the address is set.
 */
#define LIST(n)         (RAM_BASE + 32 * MiB + (n) * 64 * KiB)
#define LIST_GO         0
#define LIST_PASSES     4
#define LIST_RUNNING    8
#define LIST_WRITES     16
#define WRITE_64        1

static const uint32_t program[] = {
    0xd53800a0,         /*       mrs  x0, mpidr_el1 */
    0x92400000,         /*       and  x0, x0, #1 */
    0xd2a84001,         /*       mov  x1, #0x42000000       LIST(0) */
    0x8b004021,         /*       add  x1, x1, x0, lsl #16 */
    0xb9400022,         /* run:  ldr  w2, [x1]              LIST_GO */
    0xb9000822,         /*       str  w2, [x1, #8]          LIST_RUNNING */
    0x34ffffc2,         /*       cbz  w2, run */
    0x91004023,         /*       add  x3, x1, #16           LIST_WRITES */
    0xa8c11464,         /* next: ldp  x4, x5, [x3], #16 */
    0xb40000c4,         /*       cbz  x4, done */
    0x37000064,         /*       tbnz w4, #0, wide */
    0xb9000085,         /*       str  w5, [x4] */
    0x17fffffc,         /*       b    next */
    0xf81ff085,         /* wide: stur x5, [x4, #-1] */
    0x17fffffa,         /*       b    next */
    0xb9400426,         /* done: ldr  w6, [x1, #4]          LIST_PASSES */
    0x110004c6,         /*       add  w6, w6, #1 */
    0xb9000426,         /*       str  w6, [x1, #4] */
    0x17fffff2,         /*       b    run */
};

/* Two vCPUs at the first word of the program @bios, with the MMU off */
static OneDevice threads_start(const char *gic, char **bios)
{
    Machine *m = machine_new(gic, "");
    int fd;

    *bios = memory_file_new("firmware", 4096);
    fd = open(*bios, O_WRONLY);
    g_assert_cmpint(write(fd, program, sizeof(program)), ==, sizeof(program));
    close(fd);
    g_string_append_printf(m->args, "-bios %s -smp 2 -accel tcg,thread=multi ",
                           *bios);
    return one_device_start(m);
}

static void add_write(GArray *list, uint64_t addr, uint64_t value)
{
    uint64_t words[] = { cpu_to_le64(addr), cpu_to_le64(value) };

    g_array_append_vals(list, words, ARRAY_SIZE(words));
}

/* Have vCPU @n write @list, which this frees, until stop(). */
static void go(Machine *m, unsigned n, GArray *list)
{
    add_write(list, 0, 0);
    g_assert_cmpuint(LIST_WRITES + list->len * 8, <=, LIST(1) - LIST(0));
    qtest_memwrite(m->qts, LIST(n) + LIST_WRITES, list->data, list->len * 8);
    g_array_free(list, true);
    qtest_writel(m->qts, LIST(n) + LIST_GO, 1);
}

static void stop(Machine *m, unsigned n)
{
    gint64 end = g_get_monotonic_time() + PATIENCE;

    qtest_writel(m->qts, LIST(n) + LIST_GO, 0);
    while (qtest_readl(m->qts, LIST(n) + LIST_RUNNING)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* Have routes come and gone, if there are any? */
static bool enough_routes(Machine *m)
{
    return qtest_irqchip_calls(m->qts, "attach") > 2 * VECTORS &&
           qtest_irqchip_calls(m->qts, "detach") > VECTORS;
}

static bool enough(Machine *m, bool routes)
{
    for (unsigned n = 0; n < 2; n++) {
        if (qtest_readl(m->qts, LIST(n) + LIST_PASSES) < PASSES) {
            return false;
        }
    }
    return !routes || enough_routes(m);
}

static uint64_t bell(unsigned n)
{
    return DOORBELL + n * 0x1000;
}

/*
 * Go once around the command queue and back, so that PROD is what it was:
 * between two commands, a new stage 1 for the stream, or a new page for a
 * doorbell.
 */
static GArray *tables_and_commands(OneDevice *t, QSMMUDomain *other,
                                   const uint64_t pages[2])
{
    QSMMUGuest *g = &t->m->smmu[0];
    const uint64_t cmds[][2] = {
        { SMMU_CMD_TLBI_NH_VA | (uint64_t)t->domain->asid << 48,
          bell(0) & ~0xfffull },
        { SMMU_CMD_CFGI_STE | (uint64_t)ONE_SID << 32, 1 },
        { SMMU_CMD_TLBI_NH_VA | (uint64_t)other->asid << 48,
          bell(1) & ~0xfffull },
        { SMMU_CMD_SYNC, 0 },
    };
    const QSMMUDomain *domains[] = { t->domain, other };
    GArray *list = g_array_new(false, false, sizeof(uint64_t));

    for (unsigned i = 0; i < QUEUE_ENTRIES; i++) {
        const uint64_t *cmd = cmds[i % ARRAY_SIZE(cmds)];

        qtest_writeq(t->m->qts, g->cmdq + i * 16, cmd[0]);
        qtest_writeq(t->m->qts, g->cmdq + i * 16 + 8, cmd[1]);
    }
    for (unsigned i = 1; i <= 2 * QUEUE_ENTRIES; i++) {
        add_write(list, qsmmu_pte(t->domain, bell(i & 1), 3) | WRITE_64,
                  pages[i / 2 % 2] | QSMMU_PTE_RW);
        if (i % 8 == 0) {
            add_write(list, qsmmu_ste(g, ONE_SID) | WRITE_64,
                      QSMMU_STE_S1 | domains[i / 8 % 2]->cd);
        }
        add_write(list, g->base + A_CMDQ_PROD,
                  (g->cmdq_prod + i) % (2 * QUEUE_ENTRIES));
    }
    return list;
}

/* Masks, moves and unmasks each vector, then all of them at once. */
static GArray *messages(OneDevice *t)
{
    QPCIDevice *pci = t->pci;
    uint64_t table = pci->msix_table_bar.addr + pci->msix_table_off;
    uint8_t cap = qpci_find_capability(pci, PCI_CAP_ID_MSIX, 0);
    uint32_t flags = qpci_config_readl(pci, cap);
    uint64_t control = ECAM_BASE + (ONE_SID << 12) + cap;
    GArray *list = g_array_new(false, false, sizeof(uint64_t));

    for (unsigned i = 0; i < 8 * VECTORS; i++) {
        uint64_t entry = table + i % VECTORS * PCI_MSIX_ENTRY_SIZE;

        add_write(list, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 1);
        add_write(list, entry + PCI_MSIX_ENTRY_LOWER_ADDR,
                  bell(i / VECTORS % 2));
        add_write(list, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
        add_write(list, entry + PCI_MSIX_ENTRY_LOWER_ADDR,
                  bell(i / VECTORS / 2 % 2));
    }
    add_write(list, control, flags | PCI_MSIX_FLAGS_MASKALL << 16);
    add_write(list, control, flags);
    add_write(list, control, flags & ~(PCI_MSIX_FLAGS_ENABLE << 16));
    add_write(list, control, flags);
    return list;
}

/* A message in any of the pages of RAM, of which there is no other */
static bool take_any(Machine *m, uint32_t expected)
{
    bool any = false;

    for (unsigned n = 0; n < 3; n++) {
        for (unsigned b = 0; b < 2; b++) {
            uint32_t data = take(m, TARGET(n), bell(b));

            g_assert_true(data == 0 || data == expected);
            any |= data != 0;
        }
    }
    return any;
}

/*
 * Everything at once: a doorbell's page is one of @pages, or @other_page in
 * the domain that is returned.
 */
static QSMMUDomain *all_at_once(OneDevice *t, const uint64_t pages[2],
                                uint64_t other_page, uint32_t data, bool routes)
{
    gint64 end = g_get_monotonic_time() + PATIENCE;
    Machine *m = t->m;
    QSMMUDomain *other = qsmmu_domain_new(&m->smmu[0], 12, 2);
    unsigned arrived = 0;

    for (unsigned b = 0; b < 2; b++) {
        uint64_t page = bell(b) & ~0xfffull;

        qsmmu_map(t->domain, page, pages[0]);
        qsmmu_map(other, page, other_page);
        qtest_writel(m->qts, bell(b), 0);
    }
    for (unsigned v = 0; v < VECTORS; v++) {
        set_vector(t->pci, v, bell(0), data);
    }

    go(m, 0, tables_and_commands(t, other, pages));
    go(m, 1, messages(t));
    for (unsigned i = 0; i < FIRES || !enough(m, routes); i++) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        /* Between disable and enable there is nothing to signal. */
        host_double_fire(m->hd, t->dev, VFIO_PCI_MSIX_IRQ_INDEX, i % VECTORS);
        arrived += take_any(m, data);
    }
    stop(m, 0);
    stop(m, 1);
    settle(m);

    g_assert_cmpuint(arrived, >, 0);
    for (unsigned b = 0; b < 2; b++) {
        g_assert_cmphex(qtest_readl(m->qts, bell(b)), ==, 0);
    }
    g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
    g_assert_cmphex(qtest_readl(m->qts, m->smmu[0].base + A_GERROR), ==, 0);
    take_any(m, data);
    return other;
}

/* Is a message of @other's, to any doorbell, in @page? */
static bool fire_to(OneDevice *t, unsigned vector, uint64_t page, uint32_t data)
{
    fire(t->m, t->dev, vector);
    return take(t->m, page, bell(0)) == data ||
           take(t->m, page, bell(1)) == data;
}

static void test_all_at_once(void)
{
    const uint64_t pages[] = { TARGET(0), TARGET(1) };
    char *bios;
    OneDevice t = threads_start("gic-version=3,secure=on", &bios);
    QSMMUDomain *other = all_at_once(&t, pages, TARGET(2), MSI_DATA, false);

    /* What the vCPUs wrote last holds. */
    qsmmu_attach(&t.m->smmu[0], ONE_SID, other);
    g_assert_true(fire_to(&t, 0, TARGET(2), MSI_DATA));
    g_free(other);
    one_device_stop(&t);
    memory_file_free(bios);
}

static void test_routes(void)
{
    const uint64_t pages[] = { V2M_BASE, TARGET(1) };
    char *bios;
    OneDevice t = threads_start("gic-version=2,secure=on", &bios);
    QTestState *qts = t.m->qts;
    QSMMUDomain *other;

    qtest_irqchip_on(qts);
    other = all_at_once(&t, pages, TARGET(2), SPI, true);

    /* Routes are what the tables say now, and none was left behind. */
    for (unsigned b = 0; b < 2; b++) {
        qsmmu_map(t.domain, bell(b) & ~0xfffull, V2M_BASE);
    }
    qsmmu_attach(&t.m->smmu[0], ONE_SID, other);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    for (unsigned v = 0; v < VECTORS; v++) {
        g_assert_true(fire_to(&t, v, TARGET(2), SPI));
    }
    qsmmu_attach(&t.m->smmu[0], ONE_SID, t.domain);
    g_assert_cmpuint(count_routes(t.m), ==, VECTORS);
    for (unsigned v = 0; v < VECTORS; v++) {
        assert_routed(&t, v, DOORBELL_GPA, SPI);
        fire(t.m, t.dev, v);
    }
    settle(t.m);
    g_assert_cmpuint(injected(&t), ==, VECTORS);
    g_free(other);
    one_device_stop(&t);
    memory_file_free(bios);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/threads/all-at-once", test_all_at_once, .vcpus = true },
        { "/accel/threads/routes", test_routes, .vcpus = true },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
