/*
 * QTest for interrupts of all kinds of devices behind an accelerated SMMUv3
 *
 * INTx, MSI and MSI-X to their limits, what guests do to them, and a host or an
 * irqchip that does not do what it is asked for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

#define INTX_SPI        (32 + 3 + 2)    /* of slot 2 */
#define PORT_SID        PCI_BUILD_BDF(1, 0)

static bool spi_level(Machine *m, unsigned spi)
{
    return qtest_readl(m->qts, GICD_BASE + GICD_ISPENDR + spi / 32 * 4) &
           1u << spi % 32;
}

/* Of the GICv2m's SPIs @spi alone is pending, or none if it is 0. */
static void assert_only_spi(Machine *m, unsigned spi)
{
    settle(m);
    for (unsigned i = V2M_FIRST_SPI / 32;
         i <= (V2M_FIRST_SPI + V2M_NUM_SPIS - 1) / 32; i++) {
        uint32_t pending = qtest_readl(m->qts, GICD_BASE + GICD_ISPENDR +
                                               i * 4);

        g_assert_cmphex(pending, ==, i == spi / 32 ? 1u << spi % 32 : 0);
        qtest_writel(m->qts, GICD_BASE + GICD_ICPENDR + i * 4, pending);
    }
}

static void fire_intx(OneDevice *t)
{
    g_assert_true(host_double_fire(t->m->hd, t->dev, VFIO_PCI_INTX_IRQ_INDEX,
                                   0));
    settle(t->m);
}

/* A driver's access to the device is what QEMU takes for an end of interrupt */
static void end_intx(OneDevice *t)
{
    QPCIBar bar = qpci_iomap(t->pci, HD_BAR_DATA, NULL);

    qpci_io_readl(t->pci, bar, 0);
    settle(t->m);
}

static void test_intx(void)
{
    OneDevice t = one_device_start(machine_new_irqchip());

    g_assert_false(spi_level(t.m, INTX_SPI));
    fire_intx(&t);
    g_assert_true(spi_level(t.m, INTX_SPI));
    g_assert_true(t.dev->intx_masked);

    /* It is still asserted. */
    end_intx(&t);
    g_assert_true(spi_level(t.m, INTX_SPI));
    host_double_deassert(t.m->hd, t.dev);
    end_intx(&t);
    g_assert_false(spi_level(t.m, INTX_SPI));
    g_assert_false(t.dev->intx_masked);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

static void test_intx_and_msix(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    fire_intx(&t);
    g_assert_true(spi_level(t.m, INTX_SPI));
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpint(t.dev->irq_index, ==, VFIO_PCI_MSIX_IRQ_INDEX);
    g_assert_false(spi_level(t.m, INTX_SPI));
    fire(t.m, t.dev, 0);
    assert_only_spi(t.m, SPI);

    /* The device has asserted it all the time. */
    change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
    g_assert_cmpint(t.dev->irq_index, ==, VFIO_PCI_INTX_IRQ_INDEX);
    settle(t.m);
    g_assert_true(spi_level(t.m, INTX_SPI));
    host_double_deassert(t.m->hd, t.dev);
    end_intx(&t);
    g_assert_false(spi_level(t.m, INTX_SPI));
    one_device_stop(&t);
}

/* Mask bits of MSI are the device's, but QEMU's messages heed them as well. */
static void test_msi_masks(void)
{
    const unsigned first = V2M_FIRST_SPI + 8, n = 4;
    const unsigned msi = VFIO_PCI_MSI_IRQ_INDEX;

    for (int irqchip = 0; irqchip <= 1; irqchip++) {
        Machine *m = machine_new_irqchip();
        OneDevice t;
        uint8_t mask;

        if (!irqchip) {
            g_string_append(m->args, "-global vfio-pci.x-no-kvm-msi=on ");
        }
        t = irqchip_start(m);
        mask = qpci_find_capability(t.pci, PCI_CAP_ID_MSI, 0) +
               PCI_MSI_MASK_64;
        map_v2m(&t);
        enable_msi(t.pci, V2M_DOORBELL, first, 2);
        g_assert_cmpuint(count_routes(m), ==, irqchip ? n : 0);
        for (unsigned i = 0; i < n; i++) {
            fire_irq(m, t.dev, msi, i);
            assert_only_spi(m, first + i);
        }
        g_assert_cmpuint(injected(&t), ==, irqchip ? n : 0);

        qpci_config_writel(t.pci, mask, 1u << 1);
        g_assert_cmpuint(count_routes(m), ==, irqchip ? n : 0);
        fire_irq(m, t.dev, msi, 2);
        assert_only_spi(m, first + 2);
        if (!irqchip) {
            fire_irq(m, t.dev, msi, 1);
            assert_only_spi(m, 0);
        }
        qpci_config_writel(t.pci, mask, 0);
        assert_only_spi(m, irqchip ? 0 : first + 1);
        fire_irq(m, t.dev, msi, 1);
        assert_only_spi(m, first + 1);
        g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
        one_device_stop(&t);
    }
}

/* Have @n vectors, all of them live at once when MSI-X is enabled. */
static void set_many_vectors(Machine *m, QPCIDevice *pci, unsigned n)
{
    g_autofree uint32_t *table = g_new0(uint32_t, n * 4);

    qpci_msix_enable(pci);
    change_msix(pci, PCI_MSIX_FLAGS_ENABLE, 0);
    for (unsigned i = 0; i < n; i++) {
        table[i * 4] = cpu_to_le32(V2M_DOORBELL);
        table[i * 4 + 2] = cpu_to_le32(V2M_FIRST_SPI + i % V2M_NUM_SPIS);
    }
    qtest_memwrite(m->qts, pci->msix_table_bar.addr + pci->msix_table_off,
                   table, n * PCI_MSIX_ENTRY_SIZE);
    change_msix(pci, 0, PCI_MSIX_FLAGS_ENABLE);
}

static void test_many_vectors(void)
{
    const unsigned n = HD_MAX_MSIX;

    if (!enough_fds(n)) {
        return;
    }
    for (int dynamic = 0; dynamic <= 1; dynamic++) {
        Machine *m = machine_new_irqchip();
        HDDevice *dev = add_one_device(m);
        OneDevice t;

        dev->num_msix = n;
        dev->dynamic_msix = dynamic;
        t = irqchip_start_with(m, dev);
        map_v2m(&t);
        set_many_vectors(m, t.pci, n);
        g_assert_cmpuint(count_routes(m), ==, n);
        for (unsigned i = 0; i < n; i += 1 + i / 16) {
            fire(m, dev, i);
            g_assert_true(take_spi(m, V2M_FIRST_SPI + i % V2M_NUM_SPIS));
        }
        fire(m, dev, n - 1);
        assert_only_spi(m, V2M_FIRST_SPI + (n - 1) % V2M_NUM_SPIS);

        /* In both directions at once, and no message is lost. */
        qsmmu_map(t.domain, V2M_DOORBELL, TARGET(0));
        qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
        g_assert_cmpuint(count_routes(m), ==, 0);
        map_v2m(&t);
        qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
        g_assert_cmpuint(count_routes(m), ==, n);
        fire(m, dev, n - 1);
        assert_only_spi(m, V2M_FIRST_SPI + (n - 1) % V2M_NUM_SPIS);
        one_device_stop(&t);
    }
}

/* The irqchip has fewer routes than the devices have vectors. */
static void test_full(void)
{
    const unsigned n = HD_MAX_MSIX, room = 20;
    HDDevice *devs[3];
    QPCIDevice *pci[3];
    uint64_t adds;
    OneDevice t;
    Machine *m;

    if (!enough_fds(MAX_ROUTES)) {
        return;
    }
    m = machine_new_irqchip();
    for (int i = 1; i < 3; i++) {
        g_autofree char *where = g_strdup_printf("bus=pcie.0,addr=%d.0", i + 2);

        devs[i] = add_vfio(m, 0, where);
        devs[i]->num_msix = i == 1 ? n : V2M_NUM_SPIS;
    }
    devs[0] = add_one_device(m);
    devs[0]->num_msix = n;
    t = irqchip_start_with(m, devs[0]);
    map_v2m(&t);
    for (int i = 0; i < 3; i++) {
        uint32_t sid = PCI_DEVFN(i + 2, 0);

        qsmmu_attach(&m->smmu[0], sid, t.domain);
        pci[i] = find_pci(m, sid);
        /* Of the third, all but the last are routed. */
        set_many_vectors(m, pci[i], i < 2 ? n - room / 2 : room + 1);
    }
    g_assert_cmpuint(count_routes(m), ==, MAX_ROUTES);

    adds = qtest_irqchip_calls(m->qts, "add");
    for (unsigned i = 0; i < 100; i++) {
        unsigned vector = i % (room + 2);

        if (vector <= room) {
            fire(m, devs[2], vector);
            assert_only_spi(m, V2M_FIRST_SPI + vector);
        }
        fire(m, devs[2], room);
        assert_only_spi(m, V2M_FIRST_SPI + room);
    }
    adds = qtest_irqchip_calls(m->qts, "add") - adds;
    g_assert_cmpuint(adds, <, 10);

    /* There is room again. */
    change_msix(pci[0], PCI_MSIX_FLAGS_ENABLE, 0);
    g_assert_cmpuint(count_routes(m), ==, MAX_ROUTES - (n - room / 2));
    qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
    g_assert_cmpuint(count_routes(m), ==, MAX_ROUTES - (n - room / 2) + 1);
    fire(m, devs[2], room);
    assert_only_spi(m, V2M_FIRST_SPI + room);
    for (int i = 0; i < 3; i++) {
        g_free(pci[i]);
    }
    one_device_stop(&t);
}

/* An eventfd that cannot be attached leaves no route behind. */
static void test_not_attached(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint64_t attached;

    map_v2m(&t);
    qtest_irqchip_fail(t.m->qts, "attach", 1, ENOMEM);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    attached = qtest_irqchip_calls(t.m->qts, "attach");
    for (unsigned i = 0; i < 100; i++) {
        qtest_irqchip_fail(t.m->qts, "attach", 1, ENOMEM);
        fire(t.m, t.dev, 0);
        assert_only_spi(t.m, SPI);
        g_assert_cmpuint(count_routes(t.m), ==, 0);
    }
    attached = qtest_irqchip_calls(t.m->qts, "attach") - attached;
    g_assert_cmpuint(attached, >, 2);
    g_assert_cmpuint(attached, <, 10);
    qtest_irqchip_fail(t.m->qts, "attach", 0, 0);
    qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    one_device_stop(&t);
}

/* What no doorbell of the irqchip takes is a write of QEMU's. */
static void test_no_doorbell(void)
{
    static const struct {
        const char *name;
        uint64_t address;
        uint32_t data;
    } messages[] = {
        { "SPI below the frame's", V2M_DOORBELL, V2M_FIRST_SPI - 1 },
        { "SPI above the frame's", V2M_DOORBELL, V2M_FIRST_SPI + V2M_NUM_SPIS },
        { "no interrupt at all", V2M_DOORBELL, 0xffffffff },
        { "private interrupt", V2M_DOORBELL, 16 },
        { "register before", V2M_DOORBELL - 4, SPI },
        { "register after", V2M_DOORBELL + 4, SPI },
        { "start of the page", V2M_DOORBELL - V2M_SETSPI_NS, SPI },
        { "end of the page", V2M_DOORBELL - V2M_SETSPI_NS + 0xffc, SPI },
        { "unaligned", V2M_DOORBELL + 1, SPI },
        { "across the page's end", V2M_DOORBELL - V2M_SETSPI_NS + 0xffe, SPI },
    };
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    for (unsigned i = 0; i < ARRAY_SIZE(messages); i++) {
        g_test_message("%s", messages[i].name);
        write_message(t.pci, 0, V2M_DOORBELL, SPI);
        assert_routed(&t, 0, DOORBELL_GPA, SPI);
        write_message(t.pci, 0, messages[i].address, messages[i].data);
        assert_not_routed(&t, 0);
        fire(t.m, t.dev, 0);
        assert_only_spi(t.m, 0);
        assert_not_routed(&t, 0);
    }
    /* The first and the last SPI of the frame */
    for (unsigned i = 0; i < 2; i++) {
        unsigned spi = V2M_FIRST_SPI + i * (V2M_NUM_SPIS - 1);

        write_message(t.pci, 0, V2M_DOORBELL, spi);
        assert_routed(&t, 0, DOORBELL_GPA, spi);
        fire(t.m, t.dev, 0);
        assert_only_spi(t.m, spi);
    }
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* A device may raise the SPI that another one was given. */
static void test_shared_spi(void)
{
    Machine *m = machine_new_irqchip();
    HDDevice *other = add_vfio(m, 0, "bus=pcie.0,addr=3.0");
    OneDevice t = irqchip_start(m);
    QPCIDevice *pci = find_pci(m, PCI_DEVFN(3, 0));

    map_v2m(&t);
    qsmmu_attach(&m->smmu[0], PCI_DEVFN(3, 0), t.domain);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    set_vector(pci, 0, V2M_DOORBELL, SPI);
    for (unsigned i = 0; i < 2; i++) {
        fire(m, t.dev, 0);
        assert_only_spi(m, SPI);
        fire(m, other, 0);
        assert_only_spi(m, SPI);
    }
    /* One of them goes, the other stays. */
    change_msix(pci, PCI_MSIX_FLAGS_ENABLE, 0);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    fire(m, t.dev, 0);
    assert_only_spi(m, SPI);
    g_free(pci);
    one_device_stop(&t);
}

/* The two halves of an address come one after the other. */
static void test_message_halves(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint64_t high = 0x1200000000ull + V2M_SETSPI_NS;
    uint64_t low = DOORBELL; /* of it, high's is RAM if it is not translated */
    uint64_t entry;

    map_v2m(&t);
    qsmmu_map(t.domain, high & ~0xfffull, V2M_BASE);
    qsmmu_map(t.domain, low & ~0xfffull, V2M_BASE);
    set_vector(t.pci, 0, low, SPI);
    entry = t.pci->msix_table_bar.addr + t.pci->msix_table_off;
    assert_routed(&t, 0, DOORBELL_GPA, SPI);

    qtest_writeq(t.m->qts, entry, high);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    fire(t.m, t.dev, 0);
    assert_only_spi(t.m, SPI);

    /* What is in between names another page, mapped or not. */
    qtest_writel(t.m->qts, entry, low);
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    assert_only_spi(t.m, 0);
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    qtest_writel(t.m->qts, entry + 4, 0);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    fire(t.m, t.dev, 0);
    assert_only_spi(t.m, SPI);

    qsmmu_map(t.domain, (DOORBELL & 0xfffff000) | 0x1200000000ull, V2M_BASE);
    qtest_writel(t.m->qts, entry + 4, 0x12);
    assert_routed(&t, 0, DOORBELL_GPA, SPI);
    qtest_writel(t.m->qts, entry + 8, SPI + 1);
    assert_routed(&t, 0, DOORBELL_GPA, SPI + 1);
    /* Data and mask at once */
    qtest_writeq(t.m->qts, entry + 8, (1ull << 32) | (SPI + 2));
    assert_not_routed(&t, 0);
    fire(t.m, t.dev, 0);
    assert_only_spi(t.m, 0);
    qtest_writeq(t.m->qts, entry + 8, SPI + 3);
    assert_only_spi(t.m, SPI + 3);
    assert_routed(&t, 0, DOORBELL_GPA, SPI + 3);
    assert_ram_intact(t.m);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 1);
    one_device_stop(&t);
}

/* A reset of the function: QEMU hears nothing of it, the guest starts anew. */
static void test_function_reset(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint8_t exp = qpci_find_capability(t.pci, PCI_CAP_ID_EXP, 0);

    map_v2m(&t);
    for (unsigned i = 0; i < 3; i++) {
        set_vector(t.pci, 0, V2M_DOORBELL, SPI + i);
        assert_routed(&t, 0, DOORBELL_GPA, SPI + i);
        g_assert_true(host_double_fire(t.m->hd, t.dev,
                                       VFIO_PCI_MSIX_IRQ_INDEX, 0));
        qpci_config_writew(t.pci, exp + PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR);
        assert_only_spi(t.m, SPI + i);

        /* Configuration space is restored, the vectors are made anew. */
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
        t.pci->msix_enabled = false;
        g_assert_cmpuint(count_routes(t.m), ==, 0);
    }
    one_device_stop(&t);
}

/* Vectors that come and go leave nothing behind. */
static void test_cycles(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    unsigned fds = 0;

    map_v2m(&t);
    for (unsigned i = 0; i < 6; i++) {
        set_vector(t.pci, 0, V2M_DOORBELL, SPI);
        for (unsigned j = 1; j < 8; j++) {
            write_message(t.pci, j, V2M_DOORBELL, SPI + j);
            mask_vector(t.pci, j, false);
        }
        for (unsigned j = 0; j < 6; j++) {
            qsmmu_map(t.domain, V2M_DOORBELL & ~0xfffull, TARGET(0));
            qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
            g_assert_cmpuint(count_routes(t.m), ==, 0);
            map_v2m(&t);
            if (j % 2) {
                qtest_irqchip_fail(t.m->qts, "attach", 3, ENOMEM);
            }
            qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
            g_assert_cmpuint(count_routes(t.m), ==, 8 - j % 2);
        }
        if (i % 2) {
            change_msix(t.pci, 0, PCI_MSIX_FLAGS_MASKALL);
        }
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 0);
        t.pci->msix_enabled = false;
        g_assert_cmpuint(count_routes(t.m), ==, 0);

        enable_msi(t.pci, V2M_DOORBELL, V2M_FIRST_SPI + 8, 3);
        g_assert_cmpuint(count_routes(t.m), ==, 8);
        qsmmu_map(t.domain, V2M_DOORBELL & ~0xfffull, TARGET(0));
        qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
        g_assert_cmpuint(count_routes(t.m), ==, 0);
        map_v2m(&t);
        qpci_config_writew(t.pci, qpci_find_capability(t.pci, PCI_CAP_ID_MSI,
                                                       0) + PCI_MSI_FLAGS, 0);
        if (i < 2) {
            fds = count_fds(t.m);
        }
        g_assert_cmpuint(count_fds(t.m), ==, fds);
    }
    one_device_stop(&t);
}

/* A guest should not change the number of MSIs in use, but may. */
static void test_msi_number(void)
{
    const unsigned msi = VFIO_PCI_MSI_IRQ_INDEX;
    const unsigned first = V2M_FIRST_SPI + 8;
    static const unsigned logs[] = { 3, 0, 2, 1, 3 };
    OneDevice t = irqchip_start(machine_new_irqchip());

    map_v2m(&t);
    for (unsigned i = 0; i < ARRAY_SIZE(logs); i++) {
        unsigned n = 1u << logs[i];

        enable_msi(t.pci, V2M_DOORBELL, first, logs[i]);
        g_assert_cmpuint(count_routes(t.m), ==, n);
        qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
        for (unsigned j = 0; j < n; j++) {
            fire_irq(t.m, t.dev, msi, j);
            assert_only_spi(t.m, first + j);
        }
        g_assert_cmpint(host_double_eventfd(t.m->hd, t.dev, msi, n - 1), !=,
                        HD_NONE);
        if (n < 8) {
            g_assert_cmpint(host_double_eventfd(t.m->hd, t.dev, msi, n), ==,
                            HD_NONE);
        }
    }
    one_device_stop(&t);
}

/*
 * A guest must not enable both, and gets what is enabled last. It neither
 * breaks QEMU nor has messages go untranslated.
 */
static void test_msi_and_msix(void)
{
    OneDevice t = irqchip_start(machine_new_irqchip());
    uint8_t msi = qpci_find_capability(t.pci, PCI_CAP_ID_MSI, 0);

    map_v2m(&t);
    qsmmu_map(t.domain, DOORBELL & ~0xfffull, TARGET(0));
    for (unsigned i = 0; i < 2; i++) {
        /* MSI-X, then MSI: more vectors of it than QEMU has of the other */
        set_vector(t.pci, 0, V2M_DOORBELL, SPI);
        enable_msi(t.pci, DOORBELL, 0x100, 3);
        g_assert_cmpint(t.dev->irq_index, ==, VFIO_PCI_MSI_IRQ_INDEX);
        fire_irq(t.m, t.dev, VFIO_PCI_MSI_IRQ_INDEX, 7);
        g_assert_cmphex(take(t.m, TARGET(0), DOORBELL), ==, 0x107);
        assert_ram_intact(t.m);
        qsmmu_tlbi_va(t.domain, V2M_DOORBELL);
        qsmmu_cfgi_ste(&t.m->smmu[0], ONE_SID);
        /* The table is still there, with more vectors than MSI may have. */
        enable_msi(t.pci, DOORBELL, 0x100, 0);
        mask_vector(t.pci, 7, false);
        write_message(t.pci, 7, V2M_DOORBELL, SPI + i);
        mask_vector(t.pci, 7, true);
        mask_vector(t.pci, 0, true);
        write_message(t.pci, 0, V2M_DOORBELL, SPI + 1);
        mask_vector(t.pci, 0, false);
        write_message(t.pci, 0, V2M_DOORBELL, SPI);
        qpci_config_writew(t.pci, msi + PCI_MSI_FLAGS, 0);
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
        g_assert_cmpuint(count_routes(t.m), ==, 0);

        /* The other way round */
        enable_msi(t.pci, V2M_DOORBELL, V2M_FIRST_SPI, 1);
        write_message(t.pci, 7, DOORBELL, MSI_DATA);
        mask_vector(t.pci, 7, false);
        change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
        g_assert_cmpint(t.dev->irq_index, ==, VFIO_PCI_MSIX_IRQ_INDEX);
        fire(t.m, t.dev, 7);
        g_assert_cmphex(take(t.m, TARGET(0), DOORBELL), ==, MSI_DATA);
        assert_ram_intact(t.m);
        qpci_config_writew(t.pci, msi + PCI_MSI_FLAGS, 0);
        mask_vector(t.pci, 7, true);
        mask_vector(t.pci, 7, false);
        write_message(t.pci, 7, V2M_DOORBELL, SPI);
        fire(t.m, t.dev, 7);
        assert_only_spi(t.m, SPI);
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
        t.pci->msix_enabled = false;
        g_assert_cmpint(t.dev->irq_index, ==, VFIO_PCI_INTX_IRQ_INDEX);
    }
    one_device_stop(&t);
}

/* Of the host's own interrupts, one asks for the device, one is an error. */
static void test_req_and_err(void)
{
    Machine *m = machine_new_irqchip();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QPCIDevice *port;

    port = machine_start_with_port(m);
    plug(m, dev, port);
    g_assert_true(host_double_fire(m->hd, dev, VFIO_PCI_REQ_IRQ_INDEX, 0));
    settle(m);
    complete_unplug(m, dev, port);

    plug(m, dev, port);
    g_assert_true(host_double_fire(m->hd, dev, VFIO_PCI_ERR_IRQ_INDEX, 0));
    qtest_qmp_eventwait(m->qts, "STOP");
    g_free(port);
    machine_stop(m);
}

/* A device that has an interrupt on its way goes, another one comes. */
static void test_replaced(void)
{
    Machine *m = machine_new_irqchip();
    HDDevice *devs[2];
    QSMMUDomain *domain;
    QPCIDevice *port;

    for (int i = 0; i < 2; i++) {
        devs[i] = host_double_add_device(m->hd, 0);
    }
    port = machine_start_with_port(m);
    v2m_start(m);
    qsmmu_guest_enable(&m->smmu[0]);
    domain = qsmmu_domain_new(&m->smmu[0], 12, 1);
    qsmmu_map(domain, V2M_DOORBELL & ~0xfffull, V2M_BASE);
    qsmmu_map(domain, DOORBELL & ~0xfffull, TARGET(0));
    qsmmu_attach(&m->smmu[0], PORT_SID, domain);

    for (unsigned i = 0; i < 4; i++) {
        HDDevice *dev = devs[i % 2];
        bool routed = i < 2;
        uint64_t doorbell = routed ? V2M_DOORBELL : DOORBELL;
        QPCIDevice *pci;

        plug(m, dev, port);
        pci = find_pci(m, PORT_SID);
        set_vector(pci, 0, doorbell, SPI);
        g_assert_cmpuint(count_routes(m), ==, routed);
        fire(m, dev, 0);
        settle(m);
        g_assert_cmpint(take_spi(m, SPI), ==, routed);
        g_assert_cmphex(take(m, TARGET(0), DOORBELL), ==, routed ? 0 : SPI);
        /* As the guest lets it go */
        qtest_qmp_device_del_send(m->qts, "hot");
        settle(m);
        g_assert_true(host_double_fire(m->hd, dev, VFIO_PCI_MSIX_IRQ_INDEX,
                                       0));
        complete_unplug(m, dev, port);
        g_assert_cmpint(take_spi(m, SPI), ==, routed);
        g_assert_cmpuint(count_routes(m), ==, 0);
        qsmmu_command(&m->smmu[0], SMMU_CMD_TLBI_NH_ALL, 0);
        qsmmu_cfgi_ste(&m->smmu[0], PORT_SID);
        g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
        assert_ram_intact(m);
        g_free(pci);
    }
    g_free(domain);
    g_free(port);
    machine_stop(m);
}

/* The host refuses something: an error that names the device, and no more */
static void test_plug_fails(void)
{
    static const struct {
        const char *name;
        unsigned long request;
    } calls[] = {
        { "bind", VFIO_DEVICE_BIND_IOMMUFD },
        { "attach", VFIO_DEVICE_ATTACH_IOMMUFD_PT },
        { "map", IOMMU_IOAS_MAP },
        { "IOAS", IOMMU_IOAS_ALLOC },
        { "HWPT", IOMMU_HWPT_ALLOC },
        { "vIOMMU", IOMMU_VIOMMU_ALLOC },
    };
    Machine *m = machine_new_irqchip();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QPCIDevice *port;

    port = machine_start_with_port(m);
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        unsigned fds = count_fds(m);
        g_autofree char *error = NULL;

        host_double_fail(m->hd, calls[i].request, 1, EDQUOT);
        error = try_plug(m, dev, "rp");
        g_test_message("%s: %s", calls[i].name, error);
        g_assert_nonnull(error);
        g_assert_nonnull(strstr(error, "vfio hot: "));
        g_assert_nonnull(strstr(error, g_strerror(EDQUOT)));
        g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);
        g_assert_cmpuint(count_fds(m), ==, fds);
    }
    plug(m, dev, port);
    assert_ram_mapped(m, only_object(m, HD_IOAS));
    unplug(m, dev, port);
    g_free(port);
    machine_stop(m);
}

/* An RCU callback frees the device, maybe after all else is gone: see ASan. */
static void test_quit_after_unplug(void)
{
    for (unsigned i = 0; i < 8; i++) {
        Machine *m = machine_new_irqchip();
        HDDevice *dev = host_double_add_device(m->hd, 0);
        QPCIDevice *port;

        port = machine_start_with_port(m);
        plug(m, dev, port);
        qtest_qmp_device_del_send(m->qts, "hot");
        set_slot_power(port, false);
        g_free(port);
        machine_stop(m);
    }
}

/* What the host cannot give to one vector more, it leaves to the others. */
static void test_no_more_vectors(void)
{
    Machine *m = machine_new_irqchip();
    char *messages = catch_messages(m);
    OneDevice t = irqchip_start(m);

    map_v2m(&t);
    /* All at once are too many, after INTx was disabled. */
    host_double_fail(m->hd, VFIO_DEVICE_SET_IRQS, 2, ENOSPC);
    qpci_msix_enable(t.pci);
    g_assert_cmpuint(t.dev->num_vectors, ==, 1);
    assert_no_message(messages);

    /* MSI-X stays enabled without the first, which is asked for again. */
    host_double_fail(m->hd, VFIO_DEVICE_SET_IRQS, 2, ENOSPC);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_cmpuint(take_messages(messages, "failed to enable vectors"), ==,
                     1);
    g_assert_cmpint(t.dev->irq_index, ==, VFIO_PCI_MSIX_IRQ_INDEX);
    mask_vector(t.pci, 0, true);
    mask_vector(t.pci, 0, false);
    fire(m, t.dev, 0);
    assert_only_spi(m, SPI);
    set_vector(t.pci, 1, V2M_DOORBELL, SPI + 1);
    g_assert_cmpuint(t.dev->num_vectors, ==, 2);
    assert_no_message(messages);

    host_double_fail(m->hd, VFIO_DEVICE_SET_IRQS, 2, ENOSPC);
    set_vector(t.pci, 2, V2M_DOORBELL, SPI + 2);
    g_assert_cmpuint(take_messages(messages, "failed to enable vectors"), ==,
                     1);
    for (unsigned i = 0; i < 2; i++) {
        assert_routed(&t, i, DOORBELL_GPA, SPI + i);
        fire(m, t.dev, i);
        assert_only_spi(m, SPI + i);
        /* They need nothing of the host when they are unmasked. */
        mask_vector(t.pci, i, true);
        mask_vector(t.pci, i, false);
        fire(m, t.dev, i);
        assert_only_spi(m, SPI + i);
    }

    change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
    g_assert_cmpuint(count_routes(m), ==, 0);
    change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
    for (unsigned i = 0; i < 3; i++) {
        fire(m, t.dev, i);
        assert_only_spi(m, SPI + i);
    }
    memory_file_free(messages);
    one_device_stop(&t);
}

/* A vector that the host does not take is lost; the next one need not be. */
static void test_set_irqs_fails(void)
{
    static const struct {
        bool dynamic;
        unsigned n;
    } calls[] = {
        /* MSI-X without vectors; the vector */
        { true, 2 }, { true, 3 },
        /* All vectors at once; the vector */
        { false, 2 }, { false, 3 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        Machine *m = machine_new_irqchip();
        HDDevice *dev = add_one_device(m);
        uint8_t msi;
        OneDevice t;

        dev->dynamic_msix = calls[i].dynamic;
        t = irqchip_start_with(m, dev);
        map_v2m(&t);
        host_double_fail(m->hd, VFIO_DEVICE_SET_IRQS, calls[i].n, EIO);
        set_vector(t.pci, 0, V2M_DOORBELL, SPI);
        mask_vector(t.pci, 0, true);
        mask_vector(t.pci, 0, false);
        /* It is asked again, which helps if MSI-X is enabled there. */
        if (calls[i].n > 2 || !calls[i].dynamic) {
            fire(m, dev, 0);
            assert_only_spi(m, SPI);
        }
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);
        g_assert_cmpuint(count_routes(m), ==, 0);
        g_assert_cmpint(dev->irq_index, ==, VFIO_PCI_INTX_IRQ_INDEX);
        change_msix(t.pci, 0, PCI_MSIX_FLAGS_ENABLE);
        assert_routed(&t, 0, DOORBELL_GPA, SPI);
        fire(m, dev, 0);
        assert_only_spi(m, SPI);
        change_msix(t.pci, PCI_MSIX_FLAGS_ENABLE, 0);

        host_double_fail(m->hd, VFIO_DEVICE_SET_IRQS, 2, EIO);
        enable_msi(t.pci, V2M_DOORBELL, SPI, 0);
        g_assert_cmpuint(count_routes(m), ==, 0);
        msi = qpci_find_capability(t.pci, PCI_CAP_ID_MSI, 0);
        qpci_config_writew(t.pci, msi + PCI_MSI_FLAGS, 0);
        g_assert_cmpint(dev->irq_index, ==, VFIO_PCI_INTX_IRQ_INDEX);
        enable_msi(t.pci, V2M_DOORBELL, SPI, 0);
        fire_irq(m, dev, VFIO_PCI_MSI_IRQ_INDEX, 0);
        assert_only_spi(m, SPI);
        one_device_stop(&t);
    }
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/intx/level", test_intx },
        { "/accel/intx/msix", test_intx_and_msix },
        { "/accel/msi/masks", test_msi_masks },
        { "/accel/msi/number", test_msi_number },
        { "/accel/msi/with-msix", test_msi_and_msix },
        { "/accel/msix/many-vectors", test_many_vectors },
        { "/accel/msix/message-halves", test_message_halves },
        { "/accel/msix/function-reset", test_function_reset },
        { "/accel/msix/cycles", test_cycles },
        { "/accel/msix/no-more-vectors", test_no_more_vectors },
        { "/accel/irqchip/full", test_full },
        { "/accel/irqchip/not-attached", test_not_attached },
        { "/accel/irqchip/no-doorbell", test_no_doorbell },
        { "/accel/irqchip/shared-spi", test_shared_spi },
        { "/accel/irq/req-and-err", test_req_and_err },
        { "/accel/irq/replaced", test_replaced },
        { "/accel/irq/plug-fails", test_plug_fails },
        { "/accel/irq/quit-after-unplug", test_quit_after_unplug },
        { "/accel/irq/set-irqs-fails", test_set_irqs_fails },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
