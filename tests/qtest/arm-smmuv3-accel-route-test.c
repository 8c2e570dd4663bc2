/*
 * QTest for the irqchip routes of devices behind an accelerated SMMUv3
 *
 * The irqchip is the accelerator's; interrupts that it injects as well as those
 * that QEMU sends end as an SPI of the GICv2m, or as an LPI.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

static void test_route(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(count_routes(t.m), ==, 1);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);

    g_assert_false(take_spi(t.m, SPI));
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    g_assert_cmpuint(injected(&t), ==, 1);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* To decide on a route is no access: there is no event. */
static void test_route_unmapped(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);

    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);

    /* QEMU has it, and translates it as it fires. */
    map_v2m(&t);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));

    mask_vector(t.pci, 0, true);
    mask_vector(t.pci, 0, false);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 1);
    one_device_stop(&t);
}

/* The host, which may lose an interrupt when it changes eventfds, does not. */
static void test_route_masked(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    unsigned calls;

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    calls = host_double_calls(t.m->hd, VFIO_DEVICE_SET_IRQS);
    mask_vector(t.pci, 0, true);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));
    g_assert_true(qpci_msix_pending(t.pci, 0));

    mask_vector(t.pci, 0, false);
    g_assert_true(take_spi(t.m, SPI));
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    g_assert_cmpuint(injected(&t), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    g_assert_cmpuint(injected(&t), ==, 1);
    g_assert_cmpuint(host_double_calls(t.m->hd, VFIO_DEVICE_SET_IRQS), ==,
                     calls);
    one_device_stop(&t);
}

static void write_anew(OneDevice *t, unsigned how)
{
    /* A driver restores the table as a whole, or a vector by itself. */
    if (how) {
        mask_vector(t->pci, 0, true);
    } else {
        change_msix(t->pci, 0, PCI_MSIX_FLAGS_MASKALL);
    }
    write_message(t->pci, 0, V2M_DOORBELL, SPI);
    if (how) {
        mask_vector(t->pci, 0, false);
    } else {
        change_msix(t->pci, PCI_MSIX_FLAGS_MASKALL, 0);
    }
}

/* A reset that the host does not see clears the table: so is it filled. */
static void test_route_written_anew(void)
{
    for (int irqchip = 0; irqchip <= 1; irqchip++) {
        Machine *m = machine_new_irqchip();
        OneDevice t;

        if (!irqchip) {
            g_string_append(m->args, "-global vfio-pci.x-no-kvm-msix=on ");
        }
        t = irqchip_start(m);
        map_v2m(&t);
        set_vector(t.pci, 0, V2M_DOORBELL, SPI);
        for (unsigned how = 0; how < 2; how++) {
            g_test_message("%s, %s", irqchip ? "irqchip" : "QEMU",
                           how ? "vector" : "function");
            host_double_clear_msix(m->hd, t.dev);
            g_assert_false(host_double_fire(m->hd, t.dev,
                                            VFIO_PCI_MSIX_IRQ_INDEX, 0));
            write_anew(&t, how);
            g_assert_cmpuint(count_routes(m), ==, irqchip);
            fire(m, t.dev, 0);
            g_assert_true(take_spi(m, SPI));
        }
        g_assert_cmpuint(injected(&t), ==, irqchip ? 2 : 0);
        one_device_stop(&t);
    }
}

static void test_route_function_masked(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint8_t cap = qpci_find_capability(t.pci, PCI_CAP_ID_MSIX, 0);
    uint16_t flags;

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    flags = qpci_config_readw(t.pci, cap + PCI_MSIX_FLAGS);
    qpci_config_writew(t.pci, cap + PCI_MSIX_FLAGS,
                       flags | PCI_MSIX_FLAGS_MASKALL);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));

    qpci_config_writew(t.pci, cap + PCI_MSIX_FLAGS, flags);
    g_assert_true(take_spi(t.m, SPI));
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    one_device_stop(&t);
}

/* What changed while the vector was masked counts when it is unmasked. */
static void test_route_updated_on_unmask(void)
{
    Machine *m = machine_new_irqchip();
    OneDevice t;

    if (machine_can_trace()) {
        machine_trace(m, "trace:vfio_msi_unroute");
    }
    t = irqchip_start(m);
    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    mask_vector(t.pci, 0, true);
    qsmmu_map(t.domain, 0xffffe000, V2M_BASE);
    write_message(t.pci, 0, 0xffffe000 + V2M_SETSPI_NS, SPI + 1);
    mask_vector(t.pci, 0, false);
    assert_routed(&t, 0, DOORBELL_GPA, SPI + 1);
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI));
    g_assert_true(take_spi(t.m, SPI + 1));

    mask_vector(t.pci, 0, true);
    qsmmu_unmap(t.domain, 0xffffe000);
    mask_vector(t.pci, 0, false);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    if (machine_can_trace()) {
        g_assert_cmpuint(traced(m, "vfio_msi_unroute"), ==, 1);
    }
    fire(t.m, t.dev, 0);
    g_assert_false(take_spi(t.m, SPI + 1));
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    one_device_stop(&t);
}

static void test_route_its(void)
{
    Machine *m = machine_new_default();
    OneDevice t;

    g_string_append(m->args, "-accel qtest,irqchip=on ");
    t = one_device_start(m);
    its_start(t.m, ONE_SID);
    qsmmu_map(t.domain, 0xfffff000, ITS_TRANSLATER & ~0xfffull);
    set_vector(t.pci, 0, 0xfffff040, 7);
    assert_routed(&t, 0, ITS_TRANSLATER, 7);
    fire(t.m, t.dev, 0);
    g_assert_true(take_lpi(t.m, 7));
    g_assert_cmpuint(injected(&t), ==, 1);
    one_device_stop(&t);
}

/*
 * A vector that the irqchip does not take is QEMU's, until it is delivered and
 * the irqchip takes it.
 */
static void test_route_failures(void)
{
    static const char *const calls[] = { "add", "attach" };
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint64_t sent = 0;

    map_v2m(&t);
    qpci_msix_enable(t.pci);
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        g_test_message("%s fails", calls[i]);
        qtest_irqchip_fail(t.m->qts, calls[i], 1, EINVAL);
        set_vector(t.pci, i, V2M_DOORBELL, SPI + i);
        g_assert_cmpuint(count_routes(t.m), ==, i);
        fire(t.m, t.dev, i);
        g_assert_true(take_spi(t.m, SPI + i));
        g_assert_cmpuint(injected(&t), ==, sent);

        assert_routed(&t, i, DOORBELL_GPA, SPI + i);
        fire(t.m, t.dev, i);
        g_assert_true(take_spi(t.m, SPI + i));
        g_assert_cmpuint(injected(&t), ==, ++sent);
    }

    /* A route that cannot be updated is made anew, or removed. */
    qtest_irqchip_fail(t.m->qts, "update", 1, EINVAL);
    write_message(t.pci, 0, V2M_DOORBELL, SPI + 2);
    assert_routed(&t, 0, DOORBELL_GPA, SPI + 2);
    qtest_irqchip_fail(t.m->qts, "update", 1, EINVAL);
    qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
    write_message(t.pci, 0, V2M_DOORBELL, SPI + 3);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI + 3));
    one_device_stop(&t);
}

/* An irqchip that goes on refusing is asked less and less often. */
static void test_route_refused(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint64_t adds;

    map_v2m(&t);
    qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    adds = qtest_irqchip_calls(t.m->qts, "add");
    for (unsigned i = 0; i < 100; i++) {
        qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
        fire(t.m, t.dev, 0);
        g_assert_true(take_spi(t.m, SPI));
        assert_not_routed(&t, 0);
    }
    adds = qtest_irqchip_calls(t.m->qts, "add") - adds;
    g_assert_cmpuint(adds, <, 10);
    g_assert_cmpuint(adds, >, 2);

    /* A new message is reason enough to ask. */
    qtest_irqchip_fail(t.m->qts, "add", 0, 0);
    write_message(t.pci, 0, V2M_DOORBELL, SPI + 1);
    assert_routed(&t, 0, DOORBELL_GPA, SPI + 1);

    /* It is forgiven. */
    qtest_irqchip_fail(t.m->qts, "update", 1, EINVAL);
    qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
    write_message(t.pci, 0, V2M_DOORBELL, SPI);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    one_device_stop(&t);
}

static void test_route_batch(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    const unsigned n = 8;
    uint64_t commits;

    map_v2m(&t);
    qpci_msix_enable(t.pci);
    for (unsigned i = 0; i < n; i++) {
        set_vector(t.pci, i, V2M_DOORBELL, SPI + i);
    }
    qpci_msix_disable(t.pci);
    g_assert_cmpuint(count_routes(t.m), ==, 0);

    /* The vectors are unmasked when MSI-X is enabled. */
    commits = qtest_irqchip_calls(t.m->qts, "commit");
    qpci_msix_enable(t.pci);
    g_assert_cmpuint(qtest_irqchip_calls(t.m->qts, "commit"), ==, commits + 1);
    g_assert_cmpuint(count_routes(t.m), ==, n);
    for (unsigned i = 0; i < n; i++) {
        assert_routed(&t, i, DOORBELL_GPA, SPI + i);
        fire(t.m, t.dev, i);
        g_assert_true(take_spi(t.m, SPI + i));
    }
    g_assert_cmpuint(injected(&t), ==, n);
    one_device_stop(&t);
}

static void test_route_option(void)
{
    Machine *m = machine_new_irqchip();
    OneDevice t;

    g_string_append(m->args, "-global vfio-pci.x-no-kvm-msix=on ");
    t = irqchip_start(m);
    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    one_device_stop(&t);
}

/* No irqchip can write to RAM; QEMU does, as the device would. */
static void test_route_to_ram(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

/* Enable four vectors; each has a route and arrives. */
static void try_msi(OneDevice *t, uint64_t address, unsigned first)
{
    const unsigned msi = VFIO_PCI_MSI_IRQ_INDEX;

    enable_msi(t->pci, address, first, 2);
    g_assert_cmpuint(count_routes(t->m), ==, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_routed_index(t, msi, i, DOORBELL_GPA, first + i);
        fire_irq(t->m, t->dev, msi, i);
        g_assert_true(take_spi(t->m, first + i));
    }
}

static void test_route_msi(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    try_msi(&t, V2M_DOORBELL, V2M_FIRST_SPI + 8);
    g_assert_cmpuint(injected(&t), ==, 4);
    one_device_stop(&t);
}

/* A device behind no SMMU: its messages go where they say. */
static OneDevice plain_start(void)
{
    Machine *m = machine_new_irqchip();
    OneDevice t = { .m = m };

    g_string_printf(m->args, "-machine virt,gic-version=2 -cpu max -smp 1 "
                    "-m 512 -net none -accel qtest,irqchip=on "
                    "-object iommufd,id=iommufd0,fd=%d ", m->hd->iommufd[0]);
    t.dev = add_one_device(m);
    machine_start(m);
    v2m_start(m);
    t.pci = find_pci(m, ONE_SID);
    return t;
}

/* The irqchip looks at the message itself, as it did before. */
static void test_plain(void)
{
    OneDevice t = plain_start();

    set_vector(t.pci, 0, DOORBELL_GPA, SPI);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));

    mask_vector(t.pci, 0, true);
    write_message(t.pci, 0, DOORBELL_GPA, SPI + 1);
    fire(t.m, t.dev, 0);
    mask_vector(t.pci, 0, false);
    g_assert_true(take_spi(t.m, SPI + 1));
    assert_routed(&t, 0, DOORBELL_GPA, SPI + 1);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI + 1));
    g_assert_cmpuint(injected(&t), ==, 2);

    /* What the irqchip refuses is QEMU's. */
    qtest_irqchip_fail(t.m->qts, "update", 1, EINVAL);
    qtest_irqchip_fail(t.m->qts, "add", 1, ENOSPC);
    mask_vector(t.pci, 0, true);
    write_message(t.pci, 0, DOORBELL_GPA, SPI);
    mask_vector(t.pci, 0, false);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));

    mask_vector(t.pci, 0, true);
    mask_vector(t.pci, 0, false);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);

    change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
    g_assert_cmpuint(count_routes(t.m), ==, 0);

    /* Also when it refuses after the routes were made */
    qtest_irqchip_fail(t.m->qts, "attach", 1, ENOSPC);
    change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
    g_assert_cmpuint(count_routes(t.m), ==, 0);
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    one_device_stop(&t);
}

static void test_plain_msi(void)
{
    OneDevice t = plain_start();

    try_msi(&t, DOORBELL_GPA, V2M_FIRST_SPI);
    try_msi(&t, DOORBELL_GPA, V2M_FIRST_SPI + 4);
    g_assert_cmpuint(injected(&t), ==, 8);
    one_device_stop(&t);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/route/routed", test_route },
        { "/accel/route/its", test_route_its },
        { "/accel/route/unmapped", test_route_unmapped },
        { "/accel/route/masked", test_route_masked },
        { "/accel/route/written-anew", test_route_written_anew },
        { "/accel/route/function-masked", test_route_function_masked },
        { "/accel/route/updated-on-unmask", test_route_updated_on_unmask },
        { "/accel/route/failures", test_route_failures },
        { "/accel/route/refused", test_route_refused },
        { "/accel/route/batch", test_route_batch },
        { "/accel/route/option", test_route_option },
        { "/accel/route/msi", test_route_msi },
        { "/accel/route/to-ram", test_route_to_ram },
        { "/accel/route/plain", test_plain },
        { "/accel/route/plain-msi", test_plain_msi },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
