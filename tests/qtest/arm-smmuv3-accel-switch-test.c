/*
 * QTest for interrupts that come while their vector changes over
 *
 * A vector goes from QEMU to the irqchip and back, is masked, disabled and so
 * on, in steps: calls of the irqchip and of the host. An interrupt comes before
 * each of them and must arrive exactly once.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

#define ACPI_PCIHP_BASE         0x090c0000ull
#define ACPI_PCIHP_EJECT        0x08
#define ACPI_PCIHP_SELECT       0x10

/* Two doorbells; by number both are RAM that is written to by mistake only. */
#define BELL(n)         (DOORBELL + 0x20000 + (n) * 0x1000)

typedef struct Setup {
    OneDevice t;
    unsigned index;         /* VFIO_PCI_MSIX_IRQ_INDEX or that of MSI */
    QSMMUDomain *other;     /* maps BELL(0) to RAM, not to the GICv2m */
} Setup;

static void map_bell(QSMMUDomain *domain, unsigned n, uint64_t page)
{
    qsmmu_map(domain, BELL(n) & ~0xfffull, page);
}

static void set_message(Setup *s, uint64_t address, uint16_t data)
{
    QPCIDevice *pci = s->t.pci;
    uint8_t cap;

    if (s->index == VFIO_PCI_MSIX_IRQ_INDEX) {
        write_message(pci, 0, address, data);
        return;
    }
    cap = qpci_find_capability(pci, PCI_CAP_ID_MSI, 0);
    qpci_config_writel(pci, cap + PCI_MSI_ADDRESS_LO, address);
    qpci_config_writew(pci, cap + PCI_MSI_DATA_64, data);
}

static void enable(Setup *s, bool on)
{
    uint8_t cap;

    if (s->index == VFIO_PCI_MSIX_IRQ_INDEX) {
        change_msix(s->t.pci, PCI_MSIX_FLAGS_ENABLE,
                    on ? PCI_MSIX_FLAGS_ENABLE : 0);
        return;
    }
    cap = qpci_find_capability(s->t.pci, PCI_CAP_ID_MSI, 0);
    qpci_config_writew(s->t.pci, cap + PCI_MSI_FLAGS,
                       on ? PCI_MSI_FLAGS_ENABLE : 0);
}

static void mask_function(Setup *s, bool on)
{
    change_msix(s->t.pci, PCI_MSIX_FLAGS_MASKALL,
                on ? PCI_MSIX_FLAGS_MASKALL : 0);
}

static void tlbi(Setup *s)
{
    qsmmu_tlbi_va(s->t.domain, BELL(0));
}

/* What a change starts from, and the change */

static void irqchip_has_it(Setup *s)
{
    map_bell(s->t.domain, 0, V2M_BASE);
    set_message(s, BELL(0), SPI);
    tlbi(s);
    assert_routed_index(&s->t, s->index, 0, DOORBELL_GPA, SPI);
}

static void qemu_has_it(Setup *s)
{
    QTestIrqRoute route;

    map_bell(s->t.domain, 0, TARGET(0));
    set_message(s, BELL(0), SPI);
    tlbi(s);
    g_assert_false(find_route(&s->t, s->index, 0, &route));
}

static void tlbi_to_ram(Setup *s)
{
    map_bell(s->t.domain, 0, TARGET(0));
    tlbi(s);
}

static void tlbi_to_doorbell(Setup *s)
{
    map_bell(s->t.domain, 0, V2M_BASE);
    tlbi(s);
}

static void other_domain(Setup *s)
{
    qsmmu_attach(&s->t.m->smmu[0], ONE_SID, s->other);
}

static void own_domain(Setup *s)
{
    qsmmu_attach(&s->t.m->smmu[0], ONE_SID, s->t.domain);
}

static void irqchip_had_it(Setup *s)
{
    own_domain(s);
    irqchip_has_it(s);
    other_domain(s);
}

static void other_cd(Setup *s)
{
    qtest_writeq(s->t.m->qts, s->t.domain->cd + A_CD_2, s->other->ttb);
    qsmmu_cfgi_cd(&s->t.m->smmu[0], ONE_SID);
}

static void own_cd(Setup *s)
{
    qtest_writeq(s->t.m->qts, s->t.domain->cd + A_CD_2, s->t.domain->ttb);
    qsmmu_cfgi_cd(&s->t.m->smmu[0], ONE_SID);
}

static void irqchip_had_it_by_cd(Setup *s)
{
    own_cd(s);
    irqchip_has_it(s);
    other_cd(s);
}

static void disable_smmu(Setup *s)
{
    qsmmu_guest_disable(&s->t.m->smmu[0]);
}

static void enable_smmu(Setup *s)
{
    qtest_writel(s->t.m->qts, s->t.m->smmu[0].base + A_CR0,
                 R_CR0_CMDQEN_MASK | R_CR0_EVENTQEN_MASK | R_CR0_SMMUEN_MASK);
}

static void irqchip_had_it_by_smmuen(Setup *s)
{
    enable_smmu(s);
    irqchip_has_it(s);
    disable_smmu(s);
}

static void message_to_ram(Setup *s)
{
    set_message(s, BELL(1), SPI);
}

static void message_to_doorbell(Setup *s)
{
    set_message(s, BELL(0), SPI);
}

static void message_of_qemu(Setup *s)
{
    irqchip_has_it(s);
    message_to_ram(s);
}

static void other_spi(Setup *s)
{
    set_message(s, BELL(0), SPI + 1);
}

static void other_spi_not_updated(Setup *s)
{
    qtest_irqchip_fail(s->t.m->qts, "update", 1, EINVAL);
    other_spi(s);
    qtest_irqchip_fail(s->t.m->qts, "update", 0, 0);
}

/* Made anew, the route fails as well. */
static void other_spi_fails(Setup *s, const char *call, int err)
{
    qtest_irqchip_fail(s->t.m->qts, call, 1, err);
    other_spi_not_updated(s);
    qtest_irqchip_fail(s->t.m->qts, call, 0, 0);
}

static void other_spi_refused(Setup *s)
{
    other_spi_fails(s, "add", ENOSPC);
}

static void other_spi_not_attached(Setup *s)
{
    other_spi_fails(s, "attach", EINVAL);
}

static void mask_and_unmask(Setup *s)
{
    mask_vector(s->t.pci, 0, true);
    settle(s->t.m);
    mask_vector(s->t.pci, 0, false);
}

static void mask_and_change(Setup *s)
{
    mask_vector(s->t.pci, 0, true);
    set_message(s, BELL(0), SPI + 1);
    mask_vector(s->t.pci, 0, false);
}

static void mask_and_remap(Setup *s)
{
    mask_vector(s->t.pci, 0, true);
    map_bell(s->t.domain, 0, TARGET(0));
    mask_vector(s->t.pci, 0, false);
}

static void mask_and_map(Setup *s)
{
    mask_vector(s->t.pci, 0, true);
    map_bell(s->t.domain, 0, V2M_BASE);
    mask_vector(s->t.pci, 0, false);
}

static void mask_and_unmask_function(Setup *s)
{
    mask_function(s, true);
    mask_function(s, false);
}

/* With MSI-X that is not dynamic, the host would make all vectors anew. */
static void resize(Setup *s)
{
    HDDevice *dev = s->t.dev;
    unsigned vector;

    for (vector = 1; vector < dev->num_msix; vector++) {
        if (host_double_eventfd(s->t.m->hd, dev, s->index, vector) == HD_NONE) {
            break;
        }
    }
    g_assert_cmpuint(vector, <, dev->num_msix);
    write_message(s->t.pci, vector, BELL(0), SPI + vector);
    mask_vector(s->t.pci, vector, false);
}

static void small(Setup *s)
{
    enable(s, false);
    for (unsigned i = 1; i < s->t.dev->num_msix; i++) {
        mask_vector(s->t.pci, i, true);
    }
    enable(s, true);
    irqchip_has_it(s);
}

/* Changes that start with the vector masked: the host signals QEMU. */

static void masked(Setup *s)
{
    irqchip_has_it(s);
    mask_vector(s->t.pci, 0, true);
}

static void masked_other_spi(Setup *s)
{
    masked(s);
    other_spi(s);
}

static void masked_remapped(Setup *s)
{
    masked(s);
    map_bell(s->t.domain, 0, TARGET(0));
}

static void masked_mapped(Setup *s)
{
    qemu_has_it(s);
    mask_vector(s->t.pci, 0, true);
    map_bell(s->t.domain, 0, V2M_BASE);
}

static void unmask(Setup *s)
{
    mask_vector(s->t.pci, 0, false);
}

static void unmask_not_updated(Setup *s)
{
    qtest_irqchip_fail(s->t.m->qts, "update", 1, EINVAL);
    unmask(s);
    qtest_irqchip_fail(s->t.m->qts, "update", 0, 0);
}

static void disabled(Setup *s)
{
    irqchip_has_it(s);
    enable(s, false);
}

static void enabled(Setup *s)
{
    enable(s, true);
}

/* What QEMU delivers leads to the doorbell by now. */

static void unmapped(Setup *s)
{
    irqchip_has_it(s);
    qsmmu_unmap(s->t.domain, BELL(0));
    tlbi(s);
    map_bell(s->t.domain, 0, V2M_BASE);
}

static void deliver(Setup *s)
{
    fire_irq(s->t.m, s->t.dev, s->index, 0);
}

typedef struct Change {
    const char *name;
    void (*prepare)(Setup *s);
    void (*change)(Setup *s);
    bool msix_only;
    bool host_only;         /* it changes what the host signals meanwhile */
    bool fires;             /* the change is itself an interrupt */
    bool enables;           /* the change is that there are MSIs */
} Change;

static const Change changes[] = {
    { "to-qemu/tlbi", irqchip_has_it, tlbi_to_ram },
    { "to-qemu/cfgi-ste", irqchip_has_it, other_domain },
    { "to-qemu/cfgi-cd", irqchip_has_it, other_cd },
    { "to-qemu/smmuen", irqchip_has_it, disable_smmu },
    { "to-qemu/message", irqchip_has_it, message_to_ram },
    { "to-qemu/refused", irqchip_has_it, other_spi_refused },
    { "to-qemu/not-attached", irqchip_has_it, other_spi_not_attached },
    { "to-qemu/masked", irqchip_has_it, mask_and_remap, true, true },
    { "to-qemu/unmasked", masked_remapped, unmask, true },
    { "to-irqchip/tlbi", qemu_has_it, tlbi_to_doorbell },
    { "to-irqchip/cfgi-ste", irqchip_had_it, own_domain },
    { "to-irqchip/cfgi-cd", irqchip_had_it_by_cd, own_cd },
    { "to-irqchip/smmuen", irqchip_had_it_by_smmuen, enable_smmu },
    { "to-irqchip/message", message_of_qemu, message_to_doorbell },
    { "to-irqchip/masked", qemu_has_it, mask_and_map, true, true },
    { "to-irqchip/unmasked", masked_mapped, unmask, true },
    { "to-irqchip/delivered", unmapped, deliver, .fires = true },
    { "irqchip/message", irqchip_has_it, other_spi },
    { "irqchip/not-updated", irqchip_has_it, other_spi_not_updated },
    { "irqchip/enabled", disabled, enabled, .enables = true },
    { "irqchip/unmasked", masked, unmask, true },
    { "irqchip/unmasked-message", masked_other_spi, unmask, true },
    { "irqchip/unmasked-not-updated", masked_other_spi, unmask_not_updated,
      true },
    { "irqchip/masked", irqchip_has_it, mask_and_unmask, true, true },
    { "irqchip/masked-message", irqchip_has_it, mask_and_change, true, true },
    { "irqchip/function-masked", irqchip_has_it, mask_and_unmask_function,
      true, true },
    { "irqchip/resized", small, resize, true },
    { "qemu/masked", qemu_has_it, mask_and_unmask, true, true },
    { "qemu/function-masked", qemu_has_it, mask_and_unmask_function, true,
      true },
};

/* Messages that arrived: at the GICv2m, or in RAM where one may be sent to */
static unsigned arrived(Setup *s)
{
    Machine *m = s->t.m;
    unsigned n = 0;

    settle(m);
    for (unsigned spi = SPI; spi <= SPI + 1; spi++) {
        g_autofree char *line = g_strdup_printf("gic_set_irq irq %u level 1",
                                                spi);

        n += traced(m, line);
        g_assert_cmpuint(take_spi(m, spi), ==, traced(m, line) > 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        n += take(m, TARGET(i), DOORBELL) != 0;
        n += take(m, BELL(i) & ~0xfffull, DOORBELL) != 0;
    }
    g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
    trace_mark(m);
    return n;
}

static Setup setup_on(Machine *m, unsigned index, bool dynamic_msix)
{
    Setup s = { .index = index };
    HDDevice *dev;

    machine_trace(m, "trace:gic_set_irq");
    dev = add_one_device(m);
    dev->dynamic_msix = dynamic_msix;
    s.t = irqchip_start_with(m, dev);
    s.other = qsmmu_domain_new(&m->smmu[0], 12, 1);
    map_bell(s.other, 0, TARGET(1));
    map_bell(s.t.domain, 0, V2M_BASE);
    map_bell(s.t.domain, 1, TARGET(1));
    for (unsigned i = 0; i < 2; i++) {
        qtest_memset(m->qts, BELL(i) & ~0xfffull, 0, 0x1000);
        qtest_memset(m->qts, TARGET(i), 0, 0x1000);
    }
    if (index == VFIO_PCI_MSIX_IRQ_INDEX) {
        set_vector(s.t.pci, 0, BELL(0), SPI);
    } else {
        enable_msi(s.t.pci, BELL(0), SPI, 0);
    }
    trace_mark(m);
    return s;
}

static Setup setup(unsigned index, bool dynamic_msix)
{
    return setup_on(machine_new_irqchip(), index, dynamic_msix);
}

static void stop(Setup *s)
{
    g_free(s->other);
    one_device_stop(&s->t);
}

static void back_to_start(Setup *s, const Change *c)
{
    enable_smmu(s);
    own_cd(s);
    own_domain(s);
    enable(s, true);
    c->prepare(s);
    g_assert_cmpuint(arrived(s), ==, 0);
}

/* The interrupts arrive, and so does the next one. */
static void assert_arrive(Setup *s, unsigned n)
{
    g_assert_cmpuint(arrived(s), ==, n);
    fire_irq(s->t.m, s->t.dev, s->index, 0);
    g_assert_cmpuint(arrived(s), ==, 1);
}

/* Returns: whether there was an @n-th call */
static bool fire_at_irqchip(Setup *s, const Change *c, const char *call,
                            unsigned n)
{
    QTestState *qts = s->t.m->qts;
    uint64_t calls;
    bool signalled;
    int fd;

    back_to_start(s, c);
    fd = host_double_eventfd(s->t.m->hd, s->t.dev, s->index, 0);
    if (fd == HD_NONE) {
        return false;
    }
    calls = qtest_irqchip_calls(qts, call);
    qtest_irqchip_signal(qts, call, n, fd);
    c->change(s);
    qtest_irqchip_signal(qts, call, 0, 0);
    signalled = qtest_irqchip_calls(qts, call) >= calls + n;
    assert_arrive(s, signalled + c->fires);
    return signalled;
}

static bool fire_at_host(Setup *s, const Change *c, unsigned n, bool after)
{
    HostDouble *hd = s->t.m->hd;
    unsigned calls;

    back_to_start(s, c);
    calls = host_double_calls(hd, VFIO_DEVICE_SET_IRQS);
    host_double_signal(hd, VFIO_DEVICE_SET_IRQS, n, after, s->t.dev, s->index,
                       0);
    c->change(s);
    calls = host_double_calls(hd, VFIO_DEVICE_SET_IRQS) - calls;
    /* The host always has an eventfd to signal. */
    g_assert_true(calls < n || c->enables ||
                  host_double_signalled(hd, VFIO_DEVICE_SET_IRQS));
    assert_arrive(s, host_double_signalled(hd, VFIO_DEVICE_SET_IRQS) +
                     c->fires);
    host_double_signal(hd, VFIO_DEVICE_SET_IRQS, 0, false, s->t.dev, s->index,
                       0);
    return calls >= n;
}

static void run_changes(unsigned index, bool dynamic_msix)
{
    Setup s;

    if (!machine_can_trace()) {
        g_test_skip("without traces, messages cannot be counted");
        return;
    }
    s = setup(index, dynamic_msix);
    for (unsigned i = 0; i < ARRAY_SIZE(changes); i++) {
        const Change *c = &changes[i];

        if (c->msix_only && index != VFIO_PCI_MSIX_IRQ_INDEX) {
            continue;
        }
        for (unsigned j = 0; j < IRQCHIP_CALLS && !c->host_only; j++) {
            for (unsigned n = 1; ; n++) {
                g_test_message("%s, %s %u", c->name, irqchip_calls[j], n);
                if (!fire_at_irqchip(&s, c, irqchip_calls[j], n)) {
                    break;
                }
            }
        }
        for (int after = 0; after <= 1; after++) {
            for (unsigned n = 1; ; n++) {
                g_test_message("%s, %s SET_IRQS %u", c->name,
                               after ? "after" : "before", n);
                if (!fire_at_host(&s, c, n, after)) {
                    break;
                }
            }
        }
    }
    stop(&s);
}

static void test_msix(void)
{
    run_changes(VFIO_PCI_MSIX_IRQ_INDEX, true);
}

static void test_msix_static(void)
{
    run_changes(VFIO_PCI_MSIX_IRQ_INDEX, false);
}

static void test_msi(void)
{
    run_changes(VFIO_PCI_MSI_IRQ_INDEX, true);
}

/* What was signalled to QEMU while the vector was masked, and is not handled */
static void test_not_handled_yet(void)
{
    Setup s;
    int fd;

    if (!machine_can_trace()) {
        g_test_skip("without traces, messages cannot be counted");
        return;
    }
    s = setup(VFIO_PCI_MSIX_IRQ_INDEX, true);
    mask_vector(s.t.pci, 0, true);
    fd = host_double_eventfd(s.t.m->hd, s.t.dev, s.index, 0);
    mask_vector(s.t.pci, 0, false);
    irqchip_has_it(&s);
    qtest_irqchip_signal(s.t.m->qts, "detach", 1, fd);
    tlbi_to_ram(&s);
    assert_arrive(&s, 1);
    stop(&s);
}

/* Vectors 0 and 1 fire at once, when the third is unmasked and gets a route. */
static void fire_both(Setup *s)
{
    Machine *m = s->t.m;

    qtest_irqchip_signal(m->qts, "add", 1,
                         host_double_eventfd(m->hd, s->t.dev, s->index, 0));
    host_double_signal(m->hd, VFIO_DEVICE_SET_IRQS, 1, false, s->t.dev,
                       s->index, 1);
    mask_vector(s->t.pci, 2, false);
    g_assert_true(host_double_signalled(m->hd, VFIO_DEVICE_SET_IRQS));
}

/*
 * One vector's message disables MSI-X, or the device as bus master, while
 * another vector's is on its way. It depends on QEMU's main loop whose comes
 * first, so each has either part.
 */
static void test_disabled_by_message(void)
{
    Setup s;

    if (!machine_can_trace()) {
        g_test_skip("without traces, messages cannot be counted");
        return;
    }
    s = setup(VFIO_PCI_MSIX_IRQ_INDEX, true);
    map_bell(s.t.domain, 0, V2M_BASE);
    map_bell(s.t.domain, 1, ECAM_BASE + ((uint64_t)ONE_SID << 12));
    for (unsigned part = 0; part < 4; part++) {
        const unsigned first = part % 2;
        const bool master = part / 2;
        uint8_t cap = qpci_find_capability(s.t.pci, PCI_CAP_ID_MSIX, 0);
        unsigned at = master ? PCI_COMMAND : cap;
        uint32_t off = qpci_config_readl(s.t.pci, at) &
                       ~(master ? PCI_COMMAND_MASTER
                                : PCI_MSIX_FLAGS_ENABLE << 16);

        g_test_message("%s, vector %u", master ? "bus master" : "MSI-X", first);
        enable(&s, false);
        for (unsigned i = 0; i < 3; i++) {
            mask_vector(s.t.pci, i, true);
        }
        enable(&s, true);
        /* QEMU has both. */
        write_message(s.t.pci, first, (BELL(1) & ~0xfffull) + at, off);
        write_message(s.t.pci, !first, BELL(0), SPI);
        for (unsigned i = 0; i < 2; i++) {
            qtest_irqchip_fail(s.t.m->qts, "add", 1, ENOSPC);
            mask_vector(s.t.pci, i, false);
            qtest_irqchip_fail(s.t.m->qts, "add", 0, 0);
            assert_not_routed(&s.t, i);
        }
        write_message(s.t.pci, 2, BELL(0), SPI);
        fire_both(&s);
        g_assert_cmpuint(arrived(&s), ==, 1);
        if (master) {
            g_assert_cmphex(qpci_config_readl(s.t.pci, at), ==, off);
            qpci_config_writew(s.t.pci, at, off | PCI_COMMAND_MASTER);
        } else {
            g_assert_cmpint(s.t.dev->irq_index, ==, VFIO_PCI_INTX_IRQ_INDEX);
            g_assert_cmpuint(count_routes(s.t.m), ==, 0);
        }
    }
    stop(&s);
}

/*
 * One vector's message disables MSI-X while another one's, which has this very
 * device unplugged, is on its way. Again each vector has either part.
 */
static void test_unplugged_by_message(void)
{
    if (!machine_can_trace()) {
        g_test_skip("without traces, messages cannot be counted");
        return;
    }
    for (unsigned first = 0; first < 2; first++) {
        Machine *m = machine_new_irqchip();
        Setup s;
        uint8_t cap;
        uint32_t off;

        g_string_append(m->args, "-global acpi-ged.acpi-pci-hotplug-with-"
                                 "bridge-support=on ");
        s = setup_on(m, VFIO_PCI_MSIX_IRQ_INDEX, true);
        cap = qpci_find_capability(s.t.pci, PCI_CAP_ID_MSIX, 0);
        off = qpci_config_readl(s.t.pci, cap) & ~(PCI_MSIX_FLAGS_ENABLE << 16);
        map_bell(s.t.domain, 0, ACPI_PCIHP_BASE);
        map_bell(s.t.domain, 1, ECAM_BASE + ((uint64_t)ONE_SID << 12));
        qsmmu_map(s.t.domain, V2M_DOORBELL & ~0xfffull, V2M_BASE);
        enable(&s, false);
        for (unsigned i = 0; i < 3; i++) {
            mask_vector(s.t.pci, i, true);
        }
        enable(&s, true);
        /* The bus of the slots to eject */
        qtest_writel(m->qts, ACPI_PCIHP_BASE + ACPI_PCIHP_SELECT, 0);
        write_message(s.t.pci, first, (BELL(1) & ~0xfffull) + cap, off);
        write_message(s.t.pci, !first,
                      (BELL(0) & ~0xfffull) + ACPI_PCIHP_EJECT,
                      1 << PCI_SLOT(ONE_SID));
        for (unsigned i = 0; i < 2; i++) {
            mask_vector(s.t.pci, i, false);
            assert_not_routed(&s.t, i);
        }
        write_message(s.t.pci, 2, V2M_DOORBELL, SPI);
        fire_both(&s);
        settle(m);
        g_assert_cmphex(qpci_config_readl(s.t.pci, 0), ==, 0xffffffff);
        g_assert_cmpuint(count_routes(m), ==, 0);
        g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
        stop(&s);
    }
}

/* The same for a message that is pending when its MSI vector is unmasked */
static void test_unplugged_by_pending_message(void)
{
    Machine *m = machine_new_irqchip();
    uint8_t cap;
    OneDevice t;

    g_string_append(m->args, "-global acpi-ged.acpi-pci-hotplug-with-"
                             "bridge-support=on ");
    t = irqchip_start(m);
    cap = qpci_find_capability(t.pci, PCI_CAP_ID_MSI, 0);
    map_bell(t.domain, 0, ACPI_PCIHP_BASE);
    qtest_writel(m->qts, ACPI_PCIHP_BASE + ACPI_PCIHP_SELECT, 0);
    enable_msi(t.pci, (BELL(0) & ~0xfffull) + ACPI_PCIHP_EJECT,
               1 << PCI_SLOT(ONE_SID), 0);
    qpci_config_writel(t.pci, cap + PCI_MSI_MASK_64, 1);
    fire_irq(m, t.dev, VFIO_PCI_MSI_IRQ_INDEX, 0);
    g_assert_cmphex(qpci_config_readl(t.pci, cap + PCI_MSI_PENDING_64), ==, 1);

    qpci_config_writel(t.pci, cap + PCI_MSI_MASK_64, 0);
    settle(m);
    g_assert_cmphex(qpci_config_readl(t.pci, 0), ==, 0xffffffff);
    g_assert_cmpuint(count_routes(m), ==, 0);
    one_device_stop(&t);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/switch/msix", test_msix },
        { "/accel/switch/msix-static", test_msix_static },
        { "/accel/switch/msi", test_msi },
        { "/accel/switch/not-handled-yet", test_not_handled_yet },
        { "/accel/switch/disabled-by-message", test_disabled_by_message },
        { "/accel/switch/unplugged-by-message", test_unplugged_by_message },
        { "/accel/switch/unplugged-by-pending-message",
          test_unplugged_by_pending_message },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
