/*
 * QTest for VFIO devices behind an accelerated SMMUv3
 *
 * How they are attached, and the messages that QEMU delivers for them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

static void test_own_address_space(void)
{
    Machine *m = machine_new_default();
    g_autofree char *mtree = NULL;

    add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    add_vfio(m, 0, "bus=pcie.0,addr=3.0");
    machine_start(m);
    mtree = qtest_hmp(m->qts, "info mtree");
    for (int slot = 2; slot <= 3; slot++) {
        g_autofree char *as =
            g_strdup_printf("address-space: smmuv3-accel-pcie.0-%02d.0\r\n",
                            slot);

        g_assert_nonnull(strstr(mtree, as));
    }
    machine_stop(m);
}

static void test_one_ioas(void)
{
    Machine *m = machine_new_default();
    const unsigned n = 4;
    HDDevice *dev[4];
    uint32_t ioas;

    for (unsigned i = 0; i < n; i++) {
        g_autofree char *where = g_strdup_printf("bus=pcie.0,addr=%u.0", i + 2);

        dev[i] = add_vfio(m, 0, where);
    }
    machine_start(m);

    ioas = only_object(m, HD_IOAS);
    g_assert_cmpuint(ioas, !=, 0);
    g_assert_cmpuint(only_object(m, HD_HWPT_PAGING), !=, 0);
    g_assert_cmpuint(only_object(m, HD_VIOMMU), !=, 0);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(dev[i]->hwpt, !=, 0);
    }
    assert_ram_mapped(m, ioas);
    machine_stop(m);
}

/* Two SMMUs of the guest and of the host: one IOAS, a nesting parent each */
static void test_one_ioas_two_vsmmus(void)
{
    for (int host_smmu = 0; host_smmu < 2; host_smmu++) {
        Machine *m = machine_new_default();
        HDDevice *dev[2];
        uint32_t ioas;

        start_two_smmus(m, dev, host_smmu);
        ioas = only_object(m, HD_IOAS);
        g_assert_cmpuint(host_double_objects(m->hd, HD_HWPT_PAGING), ==,
                         host_smmu + 1);
        g_assert_cmpuint(host_double_objects(m->hd, HD_VIOMMU), ==, 2);
        g_assert_cmpuint(dev[0]->hwpt, !=, dev[1]->hwpt);
        assert_ram_mapped(m, ioas);
        machine_stop(m);
    }
}

static void test_no_sharing_with_bypassed(void)
{
    Machine *m = machine_new_default();
    HDDevice *dev[2];

    g_string_append(m->args, "-device pxb-pcie,id=pxb,bus=pcie.0,addr=4.0,"
                             "bus_nr=8,bypass_iommu=on "
                             "-device pcie-root-port,id=rp,bus=pxb,chassis=1 ");
    dev[1] = add_vfio(m, 0, "bus=rp");
    dev[0] = add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    machine_start(m);
    g_assert_cmpuint(host_double_objects(m->hd, HD_IOAS), ==, 2);
    g_assert_cmpuint(m->hd->shm->objects[dev[0]->hwpt].type, ==,
                     HD_HWPT_NESTED);
    g_assert_cmpuint(m->hd->shm->objects[dev[1]->hwpt].type, ==,
                     HD_HWPT_PAGING);
    g_assert_false(m->hd->shm->objects[dev[1]->hwpt].flags &
                   IOMMU_HWPT_ALLOC_NEST_PARENT);
    machine_stop(m);
}

static void test_doorbell_leaves_stage2(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint32_t ioas = only_object(t.m, HD_IOAS);
    unsigned maps, mapped, unmapped;

    /* The BAR with the table is mapped now as well. */
    qpci_msix_enable(t.pci);
    maps = count_maps(t.m, ioas);
    mapped = host_double_calls(t.m->hd, IOMMU_IOAS_MAP);
    unmapped = host_double_calls(t.m->hd, IOMMU_IOAS_UNMAP);

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    set_vector(t.pci, 1, DOORBELL + 0x1000, MSI_DATA);
    write_message(t.pci, 1, DOORBELL + 0x2000, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    qpci_msix_disable(t.pci);

    g_assert_cmpuint(count_maps(t.m, ioas), ==, maps);
    g_assert_cmpuint(host_double_calls(t.m->hd, IOMMU_IOAS_MAP), ==, mapped);
    g_assert_cmpuint(host_double_calls(t.m->hd, IOMMU_IOAS_UNMAP), ==,
                     unmapped);
    assert_ram_mapped(t.m, ioas);
    one_device_stop(&t);
}

static void test_translated(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

static void test_unmapped(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint64_t event[4];

    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    qsmmu_event(&t.m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==, DOORBELL);
    one_device_stop(&t);
}

static void test_pending_while_masked(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    mask_vector(t.pci, 0, true);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    g_assert_true(qpci_msix_pending(t.pci, 0));

    mask_vector(t.pci, 0, false);
    assert_delivered(t.m, TARGET(0));
    g_assert_false(qpci_msix_pending(t.pci, 0));
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

static void test_several_pages(void)
{
    OneDevice t = one_device_start(machine_new_default());
    const unsigned n = 4;

    for (unsigned i = 0; i < n; i++) {
        qsmmu_map(t.domain, DOORBELL + i * 0x1000, TARGET(i));
        set_vector(t.pci, i, DOORBELL + i * 0x1000, MSI_DATA + i);
    }
    for (unsigned i = 0; i < n; i++) {
        fire(t.m, t.dev, i);
        for (unsigned j = 0; j < n; j++) {
            g_assert_cmphex(take(t.m, TARGET(j), DOORBELL), ==,
                            i == j ? MSI_DATA + i : 0);
        }
    }
    assert_ram_intact(t.m);
    one_device_stop(&t);
}

static void test_two_domains(void)
{
    Machine *m = machine_new_default();
    HDDevice *dev[2];
    QPCIDevice *pci[2];
    QSMMUDomain *domain[2];

    for (int i = 0; i < 2; i++) {
        g_autofree char *where = g_strdup_printf("bus=pcie.0,addr=%d.0", i + 2);

        dev[i] = add_vfio(m, 0, where);
    }
    machine_start(m);
    qsmmu_guest_enable(&m->smmu[0]);
    for (int i = 0; i < 2; i++) {
        uint32_t sid = PCI_DEVFN(i + 2, 0);

        pci[i] = find_pci(m, sid);
        domain[i] = qsmmu_domain_new(&m->smmu[0], 12, i + 1);
        qsmmu_map(domain[i], DOORBELL, TARGET(i));
        qsmmu_attach(&m->smmu[0], sid, domain[i]);
        set_vector(pci[i], 0, DOORBELL, MSI_DATA);
    }
    for (int i = 0; i < 2; i++) {
        fire(m, dev[i], 0);
        g_assert_cmphex(take(m, TARGET(!i), DOORBELL), ==, 0);
        assert_delivered(m, TARGET(i));
    }
    for (int i = 0; i < 2; i++) {
        g_free(pci[i]);
        g_free(domain[i]);
    }
    machine_stop(m);
}

static void test_no_bus_master(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint16_t cmd = qpci_config_readw(t.pci, PCI_COMMAND);

    qpci_config_writew(t.pci, PCI_COMMAND, cmd & ~PCI_COMMAND_MASTER);
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_dropped(t.m);
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    qpci_config_writew(t.pci, PCI_COMMAND, cmd);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

/* Through the doorbell of a GICv2m, on a page as Linux would have it */
static void test_gicv2m(void)
{
    OneDevice t = irqchip_start(machine_new("gic-version=2", ""));

    map_v2m(&t);
    set_vector(t.pci, 0, V2M_DOORBELL, SPI);
    g_assert_false(take_spi(t.m, SPI));
    fire(t.m, t.dev, 0);
    g_assert_true(take_spi(t.m, SPI));
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* The ITS knows the device by the ID that comes with the message. */
static void test_its(void)
{
    OneDevice t = one_device_start(machine_new_default());

    its_start(t.m, ONE_SID);
    qsmmu_map(t.domain, 0xfffff000, ITS_TRANSLATER & ~0xfffull);
    for (unsigned i = 0; i < 4; i++) {
        set_vector(t.pci, i, 0xfffff040, i + 3);
        fire(t.m, t.dev, i);
        g_assert_true(take_lpi(t.m, i + 3));
    }
    g_assert_false(take_lpi(t.m, 0));
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* A guest may choose any address for its doorbell. */
static void test_any_doorbell(void)
{
    static const uint64_t doorbells[] = {
        0x40,                       /* the first page */
        HD_RESERVED_BASE + 0x40,    /* what the host has for its own MSIs */
        DOORBELL_GPA,
        0x09000000,                 /* a device's registers */
        0xfffff040,
        0x100000040,
        TARGET(0) + 0x40,           /* identity */
        0xfffffffff040,
    };
    OneDevice t = one_device_start(machine_new_default());

    for (unsigned i = 0; i < ARRAY_SIZE(doorbells); i++) {
        g_test_message("doorbell 0x%" PRIx64, doorbells[i]);
        qsmmu_map(t.domain, doorbells[i] & ~0xfffull, TARGET(0));
        set_vector(t.pci, 0, doorbells[i], MSI_DATA + i);
        fire(t.m, t.dev, 0);
        g_assert_cmphex(take(t.m, TARGET(0), doorbells[i]), ==, MSI_DATA + i);
    }
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

/* With and without an invalidation: no cache is consulted */
static void test_remapped(void)
{
    OneDevice t = one_device_start(machine_new_default());

    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    for (int i = 0; i < 4; i++) {
        qsmmu_map(t.domain, DOORBELL & ~0xfffull, TARGET(i));
        if (i == 3) {
            qsmmu_tlbi_va(t.domain, DOORBELL);
        }
        fire(t.m, t.dev, 0);
        assert_delivered(t.m, TARGET(i));
    }
    one_device_stop(&t);
}

static void test_domain_switched(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUDomain *other = qsmmu_domain_new(&t.m->smmu[0], 12, 2);

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    qsmmu_map(other, DOORBELL, TARGET(1));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    qsmmu_attach(&t.m->smmu[0], ONE_SID, other);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(0), DOORBELL), ==, 0);
    assert_delivered(t.m, TARGET(1));

    qsmmu_attach(&t.m->smmu[0], ONE_SID, t.domain);
    qsmmu_set_ttb(t.domain, other->ttb);
    qsmmu_cfgi_cd(&t.m->smmu[0], ONE_SID);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(0), DOORBELL), ==, 0);
    assert_delivered(t.m, TARGET(1));
    g_free(other);
    one_device_stop(&t);
}

/* A doorbell that maps to what is no doorbell harms nobody. */
static void test_wrong_target(void)
{
    static const uint64_t targets[] = {
        ITS_BASE,       /* its control frame */
        0x0b000000,     /* nothing */
        SMMU_BASE(0),   /* the SMMU itself */
    };
    OneDevice t = one_device_start(machine_new_default());

    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    for (unsigned i = 0; i < ARRAY_SIZE(targets); i++) {
        qsmmu_map(t.domain, DOORBELL, targets[i]);
        fire(t.m, t.dev, 0);
        assert_ram_intact(t.m);
        g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    }
    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

static void test_reset(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint32_t resets;

    qsmmu_map(t.domain, DOORBELL, TARGET(0));
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));

    resets = t.dev->resets;
    qtest_system_reset(t.m->qts);
    g_assert_cmpuint(t.dev->resets, >, resets);
    g_assert_cmpint(host_double_eventfd(t.m->hd, t.dev,
                                        VFIO_PCI_MSIX_IRQ_INDEX, 0), ==,
                    HD_NONE);

    /* The SMMU is disabled now. */
    g_free(t.pci);
    t.pci = find_pci(t.m, ONE_SID);
    set_vector(t.pci, 0, TARGET(1) | 0x40, MSI_DATA);
    fire(t.m, t.dev, 0);
    g_assert_cmphex(take(t.m, TARGET(1), 0x40), ==, MSI_DATA);
    qsmmu_guest_enable(&t.m->smmu[0]);
    set_vector(t.pci, 0, DOORBELL, MSI_DATA);
    fire(t.m, t.dev, 0);
    assert_delivered(t.m, TARGET(0));
    one_device_stop(&t);
}

static void test_msi(void)
{
    const unsigned first = V2M_FIRST_SPI + 8;
    OneDevice t = irqchip_start(machine_new("gic-version=2", ""));

    map_v2m(&t);
    enable_msi(t.pci, V2M_DOORBELL, first, 3);
    for (unsigned i = 0; i < 8; i++) {
        fire_irq(t.m, t.dev, VFIO_PCI_MSI_IRQ_INDEX, i);
        g_assert_true(take_spi(t.m, first + i));
    }
    g_assert_cmpuint(qsmmu_events(&t.m->smmu[0]), ==, 0);
    one_device_stop(&t);
}

static void test_hotplug(void)
{
    const uint32_t sid = PCI_BUILD_BDF(1, 0);
    Machine *m = machine_new_default();
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QSMMUDomain *domain;
    QPCIDevice *port;

    port = machine_start_with_port(m);
    qsmmu_guest_enable(&m->smmu[0]);
    domain = qsmmu_domain_new(&m->smmu[0], 12, 1);
    qsmmu_map(domain, DOORBELL, TARGET(0));

    for (int i = 0; i < 3; i++) {
        QPCIDevice *pci;

        plug(m, dev, port);
        pci = find_pci(m, sid);
        qsmmu_attach(&m->smmu[0], sid, domain);
        assert_ram_mapped(m, only_object(m, HD_IOAS));
        g_assert_cmpuint(m->hd->shm->objects[dev->hwpt].type, ==,
                         HD_HWPT_NESTED);
        set_vector(pci, 0, DOORBELL, MSI_DATA);
        fire(m, dev, 0);
        assert_delivered(m, TARGET(0));

        /* A guest may take the stream's domain away first, or not. */
        if (i == 1) {
            qsmmu_attach(&m->smmu[0], sid, NULL);
        }
        unplug(m, dev, port);
        g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);
        g_free(pci);
    }
    g_free(domain);
    g_free(port);
    machine_stop(m);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/attach/own-address-space", test_own_address_space },
        { "/accel/attach/one-ioas", test_one_ioas },
        { "/accel/attach/one-ioas-two-vsmmus", test_one_ioas_two_vsmmus },
        { "/accel/attach/no-sharing-with-bypassed",
          test_no_sharing_with_bypassed },
        { "/accel/attach/doorbell-leaves-stage2",
          test_doorbell_leaves_stage2 },
        { "/accel/msix/translated", test_translated },
        { "/accel/msix/unmapped", test_unmapped },
        { "/accel/msix/pending-while-masked", test_pending_while_masked },
        { "/accel/msix/several-pages", test_several_pages },
        { "/accel/msix/two-domains", test_two_domains },
        { "/accel/msix/no-bus-master", test_no_bus_master },
        { "/accel/msix/gicv2m", test_gicv2m },
        { "/accel/msix/its", test_its },
        { "/accel/msix/any-doorbell", test_any_doorbell },
        { "/accel/msix/remapped", test_remapped },
        { "/accel/msix/domain-switched", test_domain_switched },
        { "/accel/msix/wrong-target", test_wrong_target },
        { "/accel/msix/reset", test_reset },
        { "/accel/msi/gicv2m", test_msi },
        { "/accel/hotplug", test_hotplug },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
