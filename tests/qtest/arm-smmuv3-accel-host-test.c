/*
 * QTest for an accelerated SMMUv3: the host follows the guest
 *
 * What is attached to a device is a nested HWPT with the guest's STE, or one
 * that aborts or bypasses stage 1.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "smmuv3-accel-machine.h"

#define ANY_IOCTL   0

static unsigned calls(Machine *m, unsigned long request)
{
    return request == ANY_IOCTL ? m->hd->shm->num_calls
                                : host_double_calls(m->hd, request);
}

static HDCall *last_call(Machine *m)
{
    return &m->hd->shm->calls[m->hd->shm->num_calls - 1];
}

/* 2^(@range + 1) streams, or all if it is 31 */
static void cfgi_range(QSMMUGuest *g, uint32_t sid, unsigned range)
{
    qsmmu_command(g, SMMU_CMD_CFGI_STE_RANGE | (uint64_t)sid << 32, range);
}

static uint64_t s1(QSMMUDomain *d)
{
    return QSMMU_STE_S1 | d->cd;
}

static void test_ste(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_ABORT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    qsmmu_attach(g, ONE_SID, t.domain);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    qsmmu_attach(g, ONE_SID, NULL);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);

    /* Stage 2, and both stages: the vSMMU has none. */
    qsmmu_attach(g, ONE_SID, t.domain);
    for (uint64_t config = 6; config <= 7; config++) {
        qsmmu_set_ste(g, ONE_SID, 1 | config << 1 | t.domain->cd, 0);
        qsmmu_cfgi_ste(g, ONE_SID);
        g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    }
    one_device_stop(&t);
}

/* A range is aligned to its size and has this stream, or has not. */
static void test_ste_range(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];
    static const struct {
        uint32_t sid;
        uint8_t range;
        bool hit;
    } rows[] = {
        { ONE_SID, 0, true },
        { ONE_SID + 1, 0, true },
        { ONE_SID + 2, 0, false },
        { ONE_SID - 1, 0, false },
        { ONE_SID + 15, 3, true },
        { ONE_SID + 16, 3, false },
        { 0, 3, false },
        { 0, 4, true },
        { 0x12345, 31, true },
    };

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        qsmmu_attach(g, ONE_SID, t.domain);
        qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
        cfgi_range(g, rows[i].sid, rows[i].range);
        g_test_message("sid 0x%x range %u", rows[i].sid, rows[i].range);
        g_assert_cmphex(attached(t.m, t.dev), ==,
                        rows[i].hit ? QSMMU_STE_BYPASS : s1(t.domain));
    }
    one_device_stop(&t);
}

static void write_cr0(QSMMUGuest *g, uint32_t cr0)
{
    qtest_writel(g->qts, g->base + A_CR0, cr0);
    g_assert_cmphex(qtest_readl(g->qts, g->base + A_CR0ACK), ==, cr0);
}

/* As qsmmu_guest_enable(), when it was enabled before */
static void enable_again(QSMMUGuest *g)
{
    write_cr0(g, 0);
    qsmmu_guest_enable(g);
}

static void write_gbpa(QSMMUGuest *g, uint32_t gbpa)
{
    qtest_writel(g->qts, g->base + A_GBPA, R_GBPA_UPDATE_MASK | gbpa);
}

static void test_smmuen(void)
{
    const uint32_t queues = R_CR0_CMDQEN_MASK | R_CR0_EVENTQEN_MASK;
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    qsmmu_guest_disable(g);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);
    write_gbpa(g, R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    write_cr0(g, queues | R_CR0_SMMUEN_MASK);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    write_cr0(g, queues);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    write_gbpa(g, 0);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);

    /* Without UPDATE, a write is ignored. */
    qtest_writel(g->qts, g->base + A_GBPA, R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);

    /* A command does not make a disabled SMMU translate. */
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);
    g_assert_cmpuint(host_double_objects(t.m->hd, HD_HWPT_NESTED), ==, 2);
    one_device_stop(&t);
}

static void test_gbpa(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    /* It has no effect while the SMMU is enabled, but afterwards. */
    write_gbpa(g, R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    qsmmu_guest_disable(g);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

static void test_reset(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    write_gbpa(g, R_GBPA_ABORT_MASK);
    qtest_system_reset(t.m->qts);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);
    g_assert_cmpuint(host_double_objects(t.m->hd, HD_HWPT_NESTED), ==, 2);
    qsmmu_guest_enable(g);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    one_device_stop(&t);
}

static void test_missing_ste(void)
{
    OneDevice t = one_device_start(machine_new_default());

    /* The stream table ends before the device's STE. */
    qtest_writel(t.m->qts, t.m->smmu[0].base + A_STRTAB_BASE_CFG, 2);
    qsmmu_cfgi_ste(&t.m->smmu[0], ONE_SID);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

static void set_strtab(QSMMUGuest *g, uint64_t base, uint32_t cfg)
{
    qtest_writeq(g->qts, g->base + A_STRTAB_BASE, base);
    qtest_writel(g->qts, g->base + A_STRTAB_BASE_CFG, cfg);
}

/* Linear, two levels, linear again: each time it is enabled, and no CFGI */
static void test_stream_table(void)
{
    const uint32_t split = 6, log2size = 12;
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];
    uint64_t l1 = qsmmu_guest_alloc(g, 8 << (log2size - split));
    uint64_t l2 = qsmmu_guest_alloc(g, sizeof(STE) << split);
    uint32_t two_levels = 1 << R_STRTAB_BASE_CFG_FMT_SHIFT |
                          split << R_STRTAB_BASE_CFG_SPLIT_SHIFT | log2size;
    uint32_t cr0 = qtest_readl(g->qts, g->base + A_CR0);

    qtest_writeq(g->qts, l1, l2 | (split + 1));
    qtest_writeq(g->qts, l2 + ONE_SID * sizeof(STE), QSMMU_STE_BYPASS);
    for (int i = 0; i < 2; i++) {
        qsmmu_guest_disable(g);
        set_strtab(g, l1, two_levels);
        write_cr0(g, cr0);
        g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_BYPASS);
        qsmmu_guest_disable(g);
        set_strtab(g, g->strtab, log2size);
        write_cr0(g, cr0);
        g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    }

    /* No level 2 table */
    qsmmu_guest_disable(g);
    set_strtab(g, l1, two_levels);
    write_cr0(g, cr0);
    qtest_writeq(g->qts, l1, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);

    /* A table on registers cannot be read. */
    qsmmu_guest_disable(g);
    set_strtab(g, GICD_BASE, log2size);
    write_cr0(g, cr0);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);

    /* While it is enabled, the host sees another table when the walk does. */
    set_strtab(g, g->strtab, log2size);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    qtest_writel(g->qts, g->base + A_STRTAB_BASE, GICD_BASE);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    qtest_writel(g->qts, g->base + A_STRTAB_BASE, g->strtab);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    qtest_writel(g->qts, g->base + A_STRTAB_BASE + 4, 0xf);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

/* What is attached already is not attached again. */
static void test_unchanged(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];
    uint64_t n = calls(t.m, ANY_IOCTL);

    write_cr0(g, qtest_readl(g->qts, g->base + A_CR0));
    write_gbpa(g, 0);
    qsmmu_cfgi_ste(g, ONE_SID + 1);
    qsmmu_cfgi_ste(g, ONE_SID + 0x100);
    g_assert_cmpuint(calls(t.m, ANY_IOCTL), ==, n);

    /* CFGI_STE is about the CDs as well. */
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmpuint(calls(t.m, ANY_IOCTL), ==, ++n);
    g_assert_cmpuint(last_call(t.m)->nr, ==, _IOC_NR(IOMMU_HWPT_INVALIDATE));
    g_assert_cmphex(last_call(t.m)->arg[1], ==,
                    SMMU_CMD_CFGI_CD_ALL | (uint64_t)ONE_SID << 32);

    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    n = calls(t.m, ANY_IOCTL);
    qsmmu_cfgi_ste(g, ONE_SID);
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 3);
    cfgi_range(g, 0, 31);
    qsmmu_cfgi_cd(g, ONE_SID);
    qsmmu_guest_disable(g);
    write_gbpa(g, 0);
    g_assert_cmpuint(calls(t.m, ANY_IOCTL), ==, n);

    /* In each 64 bits of the STE a change counts. */
    enable_again(g);
    qsmmu_attach(g, ONE_SID, t.domain);
    qsmmu_set_ste(g, ONE_SID, s1(t.domain), 0xfc);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(t.m->hd->shm->objects[t.dev->hwpt].data[1], ==, 0xfc);
    one_device_stop(&t);
}

static void test_cd(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];
    uint64_t n = calls(t.m, ANY_IOCTL);
    uint32_t hwpt = t.dev->hwpt;
    unsigned attaches;

    qsmmu_cfgi_cd(g, ONE_SID);
    g_assert_cmpuint(calls(t.m, ANY_IOCTL), ==, n + 1);
    g_assert_cmphex(last_call(t.m)->arg[1], ==,
                    SMMU_CMD_CFGI_CD | (uint64_t)ONE_SID << 32);
    g_assert_cmpint(last_call(t.m)->result, ==, 0);
    g_assert_cmpuint(t.dev->hwpt, ==, hwpt);

    /* If the host does not, it is made to read the CDs by attaching. */
    for (int i = 0; i < 2; i++) {
        attaches = calls(t.m, VFIO_DEVICE_ATTACH_IOMMUFD_PT);
        host_double_fail(t.m->hd, IOMMU_HWPT_INVALIDATE, 1, ENOMEM);
        if (i) {
            qsmmu_cfgi_ste(g, ONE_SID);
        } else {
            qsmmu_cfgi_cd(g, ONE_SID);
        }
        g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
        g_assert_cmpuint(calls(t.m, VFIO_DEVICE_ATTACH_IOMMUFD_PT), ==,
                         attaches + 2);
        g_assert_cmpuint(host_double_objects(t.m->hd, HD_HWPT_NESTED), ==, 3);
    }
    one_device_stop(&t);
}

static Machine *machine_new_ats(bool ats)
{
    Machine *m = machine_new("gic-version=3", ats ? ",ats=on" : ",ats=off");

    m->hd->shm->smmu[0].ats = true;
    m->hd->shm->smmu[0].idr[0] |= R_IDR0_ATS_MASK;
    return m;
}

/* ATS is the guest's only if the vSMMU has it. */
static void test_ats(void)
{
    for (int ats = 0; ats < 2; ats++) {
        Machine *m = machine_new_ats(ats);
        char *messages = catch_messages(m);
        OneDevice t;

        t = one_device_start(m);
        qsmmu_set_ste(&m->smmu[0], ONE_SID, s1(t.domain), 1 << 28);
        qsmmu_cfgi_ste(&m->smmu[0], ONE_SID);
        g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
        g_assert_cmphex(m->hd->shm->objects[t.dev->hwpt].data[1], ==,
                        ats ? 1 << 28 : 0);

        /* Reserved: no ATS */
        qsmmu_set_ste(&m->smmu[0], ONE_SID, s1(t.domain), 3 << 28);
        qsmmu_cfgi_ste(&m->smmu[0], ONE_SID);
        g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
        g_assert_cmphex(m->hd->shm->objects[t.dev->hwpt].data[1], ==, 0);

        /* Split-stage ATS takes two stages, for messages as for the host. */
        qsmmu_set_ste(&m->smmu[0], ONE_SID, s1(t.domain), 2 << 28);
        qsmmu_cfgi_ste(&m->smmu[0], ONE_SID);
        g_assert_cmphex(attached(t.m, t.dev), ==,
                        ats ? QSMMU_STE_ABORT : s1(t.domain));
        qsmmu_map(t.domain, DOORBELL & ~0xfffull, TARGET(0));
        set_vector(t.pci, 0, DOORBELL, MSI_DATA);
        fire(m, t.dev, 0);
        if (ats) {
            assert_dropped(m);
            assert_one_event(m, QSMMU_C_BAD_STE, ONE_SID);
        } else {
            assert_delivered(m, TARGET(0));
        }
        assert_no_message(messages);
        one_device_stop(&t);
        memory_file_free(messages);
    }
}

/* One device, as one_device_start() has it, but still without an STE */
static OneDevice idle_device_start(Machine *m)
{
    OneDevice t = { .m = m, .dev = add_vfio(m, 0, "bus=pcie.0,addr=2.0") };

    machine_start(m);
    t.pci = find_pci(m, ONE_SID);
    qsmmu_guest_enable(&m->smmu[0]);
    t.domain = qsmmu_domain_new(&m->smmu[0], 12, 1);
    return t;
}

/* An error of the host aborts the stream, and is reported once. */
static void test_failure(void)
{
    static const struct {
        unsigned long request;
        int err;
        bool guest;     /* it is the guest's error, an STE that is not legal */
    } rows[] = {
        { IOMMU_HWPT_ALLOC, EIO, true },
        { IOMMU_HWPT_ALLOC, ENOMEM },
        { IOMMU_HWPT_ALLOC, EINVAL },
        { VFIO_DEVICE_ATTACH_IOMMUFD_PT, EINVAL },
        { VFIO_DEVICE_ATTACH_IOMMUFD_PT, EBUSY },
        { VFIO_DEVICE_ATTACH_IOMMUFD_PT, EIO },
    };

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        Machine *m = machine_new_default();
        char *messages = catch_messages(m);
        OneDevice t = idle_device_start(m);
        QSMMUGuest *g = &m->smmu[0];

        g_test_message("row %d", i);
        for (int round = 0; round < 2; round++) {
            qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
            qsmmu_cfgi_ste(g, ONE_SID);
            for (int n = 0; n < 3; n++) {
                host_double_fail(m->hd, rows[i].request, 1, rows[i].err);
                qsmmu_attach(g, ONE_SID, t.domain);
                g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
                g_assert_cmpuint(host_double_objects(m->hd, HD_HWPT_NESTED),
                                 ==, 2);
            }
            g_assert_cmpuint(take_messages(messages, "vfio0, stream 0x10: "),
                             ==, !rows[i].guest);
            qsmmu_cfgi_ste(g, ONE_SID);
            g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
            assert_no_message(messages);
        }
        one_device_stop(&t);
        memory_file_free(messages);
    }
}

/* The same with the vDEVICE, which comes when the SMMU is enabled */
static void test_vdevice_failure(void)
{
    static const int errs[] = { ENOMEM, EEXIST };

    for (int i = 0; i < ARRAY_SIZE(errs); i++) {
        Machine *m = machine_new_default();
        char *messages = catch_messages(m);
        OneDevice t = { .m = m, .dev = add_vfio(m, 0, "bus=pcie.0,addr=2.0") };
        QSMMUGuest *g = &m->smmu[0];

        machine_start(m);
        t.pci = find_pci(m, ONE_SID);
        host_double_fail_forever(m->hd, IOMMU_VDEVICE_ALLOC, errs[i]);
        qsmmu_guest_enable(g);
        t.domain = qsmmu_domain_new(g, 12, 1);
        qsmmu_attach(g, ONE_SID, t.domain);
        g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
        qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
        qsmmu_cfgi_ste(g, ONE_SID);
        g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
        g_assert_cmpuint(take_messages(messages, "vfio0, stream 0x10: "), ==,
                         1);
        host_double_fail_forever(m->hd, IOMMU_VDEVICE_ALLOC, 0);
        qsmmu_attach(g, ONE_SID, t.domain);
        g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
        assert_no_message(messages);
        one_device_stop(&t);
        memory_file_free(messages);
    }
}

/* What is attached goes away even if the host refuses to attach any other. */
static void test_stray(void)
{
    Machine *m = machine_new_default();
    char *messages = catch_messages(m);
    OneDevice t = one_device_start(m);
    QSMMUGuest *g = &m->smmu[0];
    QSMMUDomain *other = qsmmu_domain_new(g, 12, 2);

    host_double_fail_forever(m->hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, EIO);
    qsmmu_attach(g, ONE_SID, other);
    g_assert_cmphex(attached(m, t.dev), ==, BLOCKED);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmpuint(take_messages(messages, "Its stream is aborted"), ==, 1);
    host_double_fail_forever(m->hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(m, t.dev), ==, s1(other));

    /* Nothing at all works: it is said, and tried until it does. */
    host_double_fail_forever(m->hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, EIO);
    host_double_fail_forever(m->hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, EIO);
    for (int i = 0; i < 3; i++) {
        qsmmu_attach(g, ONE_SID, NULL);
        g_assert_cmphex(attached(m, t.dev), ==, s1(other));
    }
    g_assert_cmpuint(take_messages(messages, "cannot even be aborted"), ==, 1);
    host_double_fail_forever(m->hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(m, t.dev), ==, BLOCKED);
    host_double_fail_forever(m->hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached(m, t.dev), ==, QSMMU_STE_ABORT);
    qsmmu_attach(g, ONE_SID, t.domain);
    g_assert_cmphex(attached(m, t.dev), ==, s1(t.domain));
    g_assert_cmpuint(host_double_objects(m->hd, HD_HWPT_NESTED), ==, 3);
    assert_no_message(messages);
    g_free(other);
    one_device_stop(&t);
    memory_file_free(messages);
}

/* Root ports on pcie.0 at 1.0, 2.0 and so on, whose IDs are rp, rp1, ... */
static Machine *machine_new_ports(unsigned n)
{
    Machine *m = machine_new_default();

    for (unsigned i = 0; i < n; i++) {
        g_autofree char *id = i ? g_strdup_printf("rp%u", i) : g_strdup("rp");

        g_string_append_printf(m->args, "-device pcie-root-port,id=%s,"
                               "bus=pcie.0,addr=%u.0,chassis=%u ", id, i + 1,
                               i + 1);
    }
    return m;
}

#define PORT(n)         PCI_DEVFN((n) + 1, 0)
#define SID(bus, devfn) PCI_BUILD_BDF(bus, devfn)

static void test_veventq_failure(void)
{
    Machine *m = machine_new_ports(1);
    char *messages = catch_messages(m);
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QSMMUGuest *g = &m->smmu[0];
    QPCIDevice *port;

    machine_start(m);
    port = enable_port(m, PORT(0));
    for (int i = 0; i < 2; i++) {
        write_cr0(g, 0);
        plug(m, dev, port);
        host_double_fail_forever(m->hd, IOMMU_VEVENTQ_ALLOC, ENOMEM);
        enable_again(g);
        enable_again(g);
        g_assert_cmpuint(take_messages(messages, "events of the host"), ==, 1);
        host_double_fail_forever(m->hd, IOMMU_VEVENTQ_ALLOC, 0);
        enable_again(g);
        g_assert_cmpuint(host_double_objects(m->hd, HD_VEVENTQ), ==, 1);
        unplug(m, dev, port);
        assert_no_message(messages);
    }
    g_free(port);
    machine_stop(m);
    memory_file_free(messages);
}

/* Which of the calls to destroy something was that of object @id? */
static unsigned find_destroyed(Machine *m, uint32_t id)
{
    HDShared *shm = m->hd->shm;
    unsigned n = 0;

    for (unsigned i = 0; i < shm->num_calls; i++) {
        if (shm->calls[i].nr == _IOC_NR(IOMMU_DESTROY)) {
            n++;
            if (shm->calls[i].id == id) {
                return n;
            }
        }
    }
    g_assert_not_reached();
}

/* The main loop has its file in poll(), for a moment, while a vCPU frees it. */
static void test_veventq_polled(void)
{
    Machine *m = machine_new_ports(1);
    char *messages = catch_messages(m);
    HDDevice *dev = host_double_add_device(m->hd, 0);
    unsigned n = 0;
    QPCIDevice *port;

    machine_start(m);
    qsmmu_guest_enable(&m->smmu[0]);
    port = enable_port(m, PORT(0));
    for (int i = 0; i < 2; i++) {
        uint32_t id;

        plug(m, dev, port);
        id = only_object(m, HD_VEVENTQ);
        host_double_forget_calls(m->hd);
        host_double_fail(m->hd, IOMMU_DESTROY, n, EBUSY);
        unplug(m, dev, port);
        n = find_destroyed(m, id);
        g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);
        assert_no_message(messages);
    }
    g_free(port);
    machine_stop(m);
    memory_file_free(messages);
}

/* A device that comes second gets what its SMMU does, too. */
static void test_second_device(void)
{
    Machine *m = machine_new_ports(1);
    HDDevice *second = host_double_add_device(m->hd, 0);
    OneDevice t = one_device_start(m);
    QSMMUGuest *g = &m->smmu[0];
    QPCIDevice *port = enable_port(m, PORT(0));

    qsmmu_guest_disable(g);
    write_gbpa(g, R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached(t.m, t.dev), ==, QSMMU_STE_ABORT);
    plug(m, second, port);
    g_assert_cmphex(attached(m, second), ==, QSMMU_STE_ABORT);
    unplug(m, second, port);

    /* Without an STE, and with one that is there already */
    enable_again(g);
    plug(m, second, port);
    g_assert_cmphex(attached(m, second), ==, QSMMU_STE_ABORT);
    unplug(m, second, port);
    qsmmu_set_ste(g, SID(1, 0), s1(t.domain), 0);
    plug(m, second, port);
    g_assert_cmphex(attached(m, second), ==, s1(t.domain));
    g_assert_cmphex(vsid(m, second), ==, SID(1, 0));
    g_free(port);
    one_device_stop(&t);
}

static bool has_devices(const char *first, const char *second)
{
    if (qtest_has_device(first) && qtest_has_device(second)) {
        return true;
    }
    g_test_skip("this QEMU lacks a device");
    return false;
}

/* Each call that plugging makes may fail; then the device is not there. */
static void test_plug_failure(void)
{
    static const struct {
        unsigned long request;
        unsigned n;
        int err;
    } rows[] = {
        { IOMMU_GET_HW_INFO, 3, ENOMEM },   /* after those of VFIO itself */
        { IOMMU_VIOMMU_ALLOC, 1, EOPNOTSUPP },
        { IOMMU_VIOMMU_ALLOC, 1, ENOMEM },
        { IOMMU_HWPT_ALLOC, 2, ENOMEM },    /* the one that aborts */
        { IOMMU_HWPT_ALLOC, 3, ENOMEM },    /* the one that bypasses */
        { IOMMU_HWPT_ALLOC, 4, EINVAL },    /* the one with the STE */
        { IOMMU_VEVENTQ_ALLOC, 1, ENOMEM },
        { IOMMU_VDEVICE_ALLOC, 1, ENOMEM },
        { VFIO_DEVICE_ATTACH_IOMMUFD_PT, 2, EBUSY },
        { VFIO_DEVICE_ATTACH_IOMMUFD_PT, 2, EINVAL },
    };
    Machine *m = machine_new_ports(1);
    char *messages = catch_messages(m);
    HDDevice *dev = host_double_add_device(m->hd, 0);
    QSMMUGuest *g = &m->smmu[0];
    QSMMUDomain *domain;
    QPCIDevice *port;

    machine_start(m);
    port = enable_port(m, PORT(0));
    qsmmu_guest_enable(g);
    domain = qsmmu_domain_new(g, 12, 1);
    qsmmu_attach(g, SID(1, 0), domain);

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        g_autofree char *error = NULL;

        g_test_message("row %d", i);
        host_double_fail(m->hd, rows[i].request, rows[i].n, rows[i].err);
        error = try_plug(m, dev, "rp");
        g_assert_nonnull(error);
        g_test_message("%s", error);
        g_assert_nonnull(strstr(error, g_strerror(rows[i].err)));
        wait_unbound(dev);
        g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);
        assert_no_message(messages);
    }

    plug(m, dev, port);
    g_assert_cmphex(attached(m, dev), ==, s1(domain));
    g_free(domain);
    g_free(port);
    machine_stop(m);
    memory_file_free(messages);
}

/* A device needs no ID, even if it comes as a descriptor. */
static void test_no_id(void)
{
    Machine *m = machine_new_default();
    HDDevice *dev = host_double_add_device(m->hd, 0);

    g_string_append_printf(m->args, "-device vfio-pci,fd=%d,iommufd=iommufd0,"
                           "rombar=0,bus=pcie.0,addr=2.0 ", dev->fd);
    machine_start(m);
    g_assert_cmphex(attached(m, dev), ==, QSMMU_STE_BYPASS);
    machine_stop(m);
}

/* One vSMMU cannot stand for two of the host's. */
static void test_other_host_smmu(void)
{
    Machine *m = machine_new_ports(1);
    char *messages = catch_messages(m);
    HDDevice *other = host_double_add_device(m->hd, 1);
    OneDevice t = one_device_start(m);
    QPCIDevice *port = enable_port(m, PORT(0));
    unsigned objects = host_double_objects(m->hd, HD_FREE);
    g_autofree char *error = try_plug(m, other, "rp");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, "vIOMMU"));
    wait_unbound(other);
    g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, objects);
    g_assert_cmphex(attached(t.m, t.dev), ==, s1(t.domain));
    assert_no_message(messages);
    g_free(port);
    one_device_stop(&t);
    memory_file_free(messages);
}

/*
 * A device that goes is attached to nothing that translates less, and leaves
 * nothing behind. What comes in its place has its stream, and its doorbell.
 */
static void test_replaced_device(void)
{
    Machine *m = machine_new_ports(1);
    char *messages = catch_messages(m);
    HDDevice *dev[2] = {
        host_double_add_device(m->hd, 0), host_double_add_device(m->hd, 0),
    };
    QSMMUGuest *g = &m->smmu[0];
    QSMMUDomain *domain;
    QPCIDevice *port;

    machine_start(m);
    port = enable_port(m, PORT(0));
    qsmmu_guest_enable(g);
    domain = qsmmu_domain_new(g, 12, 1);
    qsmmu_map(domain, DOORBELL & ~0xfffull, TARGET(0));
    qsmmu_attach(g, SID(1, 0), domain);
    for (int i = 0; i < 4; i++) {
        HDDevice *d = dev[i % 2];
        QPCIDevice *pci;
        unsigned n;

        plug(m, d, port);
        g_assert_cmphex(attached(m, d), ==, s1(domain));
        g_assert_cmphex(vsid(m, d), ==, SID(1, 0));

        pci = find_pci(m, SID(1, 0));
        qpci_iomap(pci, HD_BAR_MSIX, NULL);
        set_vector(pci, 0, DOORBELL, MSI_DATA);
        fire(m, d, 0);
        assert_delivered(m, TARGET(0));
        qpci_msix_disable(pci);
        g_free(pci);

        n = calls(m, VFIO_DEVICE_ATTACH_IOMMUFD_PT);
        unplug(m, d, port);
        g_assert_cmpuint(calls(m, VFIO_DEVICE_ATTACH_IOMMUFD_PT), ==, n);
        g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);
    }
    assert_no_message(messages);
    g_free(domain);
    g_free(port);
    machine_stop(m);
    memory_file_free(messages);
}

/* The SMMU does not notice a function level reset. */
static void test_flr(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint8_t cap = qpci_find_capability(t.pci, PCI_CAP_ID_EXP, 0);
    uint32_t hwpt = t.dev->hwpt;
    uint64_t n = calls(t.m, ANY_IOCTL);

    qpci_config_writew(t.pci, cap + PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR);
    g_assert_cmpuint(t.dev->hwpt, ==, hwpt);
    g_assert_cmphex(vsid(t.m, t.dev), ==, ONE_SID);
    g_assert_cmpuint(calls(t.m, ANY_IOCTL), ==, n);
    one_device_stop(&t);
}

/* Two devices behind root ports with buses 1 and 2, each with a domain */
typedef struct TwoPorts {
    Machine *m;
    char *messages;
    HDDevice *dev[2];
    QSMMUDomain *domain[2];
} TwoPorts;

static TwoPorts two_ports_start(void)
{
    TwoPorts t = { .m = machine_new_ports(2) };
    Machine *m = t.m;

    t.messages = catch_messages(m);
    t.dev[0] = add_vfio(m, 0, "bus=rp");
    t.dev[1] = add_vfio(m, 0, "bus=rp1");
    machine_start(m);
    for (int i = 0; i < 2; i++) {
        set_buses(m, PORT(i), i + 1, i + 1);
    }
    qsmmu_guest_enable(&m->smmu[0]);
    for (int i = 0; i < 2; i++) {
        t.domain[i] = qsmmu_domain_new(&m->smmu[0], 12, i + 1);
        qsmmu_attach(&m->smmu[0], SID(i + 1, 0), t.domain[i]);
        g_assert_cmphex(attached(m, t.dev[i]), ==, s1(t.domain[i]));
        g_assert_cmphex(vsid(m, t.dev[i]), ==, SID(i + 1, 0));
    }
    return t;
}

/* No test with it may make QEMU say anything. */
static void two_ports_stop(TwoPorts *t)
{
    assert_no_message(t->messages);
    g_free(t->domain[0]);
    g_free(t->domain[1]);
    machine_stop(t->m);
    memory_file_free(t->messages);
}

/* An event that the host's SMMU reports */
static const uint64_t host_fault[4] = { QSMMU_F_TRANSLATION, 0, 0x12345000, 0 };

static void assert_event_from(Machine *m, HDDevice *dev, uint32_t sid)
{
    gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;
    unsigned n = qsmmu_events(&m->smmu[0]);
    uint64_t event[4];

    g_assert_true(host_double_post_event(m->hd, dev, host_fault));
    while (qsmmu_events(&m->smmu[0]) == n) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    qsmmu_event(&m->smmu[0], n, event);
    g_assert_cmphex(QSMMU_EVT_SID(event), ==, sid);
}

/* Stream IDs follow the bus numbers at once, and with them all else. */
static void test_renumbered(void)
{
    TwoPorts t = two_ports_start();
    QSMMUGuest *g = &t.m->smmu[0];
    uint64_t n;

    set_buses(t.m, PORT(0), 3, 3);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, QSMMU_STE_ABORT);
    g_assert_cmphex(vsid(t.m, t.dev[0]), ==, SID(3, 0));
    g_assert_cmphex(attached(t.m, t.dev[1]), ==, s1(t.domain[1]));

    /* They swap their places. */
    set_buses(t.m, PORT(1), 1, 1);
    g_assert_cmphex(attached(t.m, t.dev[1]), ==, s1(t.domain[0]));
    g_assert_cmphex(vsid(t.m, t.dev[1]), ==, SID(1, 0));
    set_buses(t.m, PORT(0), 2, 2);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, s1(t.domain[1]));
    g_assert_cmphex(vsid(t.m, t.dev[0]), ==, SID(2, 0));

    /* Commands and events are about the device that has the ID now. */
    qsmmu_cfgi_cd(g, SID(1, 0));
    g_assert_cmpint(last_call(t.m)->result, ==, 0);
    qsmmu_set_ste(g, SID(1, 0), QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(g, SID(1, 0));
    g_assert_cmphex(attached(t.m, t.dev[1]), ==, QSMMU_STE_BYPASS);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, s1(t.domain[1]));
    assert_event_from(t.m, t.dev[0], SID(2, 0));

    /* The same STE at the other ID: the events' ID needs an attachment. */
    qsmmu_set_ste(g, SID(4, 0), s1(t.domain[1]), 0);
    set_buses(t.m, PORT(0), 4, 4);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, s1(t.domain[1]));
    assert_event_from(t.m, t.dev[0], SID(4, 0));

    /* A write that changes no number makes no call. */
    n = calls(t.m, ANY_IOCTL);
    set_buses(t.m, PORT(0), 4, 4);
    set_buses(t.m, PORT(0), 4, 5);
    qsmmu_cfgi_ste(g, SID(1, 0));
    g_assert_cmpuint(calls(t.m, ANY_IOCTL), ==, n);
    two_ports_stop(&t);
}

/* While a device cannot be reached by its ID, another may have it. */
static void test_no_stream_id(void)
{
    TwoPorts t = two_ports_start();
    QSMMUGuest *g = &t.m->smmu[0];

    /* Bus 0 is the root bus. */
    qsmmu_set_ste(g, 0, QSMMU_STE_BYPASS, 0);
    set_buses(t.m, PORT(0), 0, 0);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, QSMMU_STE_ABORT);
    g_assert_cmphex(vsid(t.m, t.dev[0]), ==, NO_VSID);
    cfgi_range(g, 0, 31);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, QSMMU_STE_ABORT);

    /* Both have bus 2: only one of them gets there. */
    set_buses(t.m, PORT(0), 2, 2);
    g_assert_cmpuint((attached(t.m, t.dev[0]) == s1(t.domain[1])) +
                     (attached(t.m, t.dev[1]) == s1(t.domain[1])), ==, 1);
    g_assert_cmpuint((attached(t.m, t.dev[0]) == QSMMU_STE_ABORT) +
                     (attached(t.m, t.dev[1]) == QSMMU_STE_ABORT), ==, 1);

    /* When the other goes, this one has it. */
    set_buses(t.m, PORT(1), 1, 1);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, s1(t.domain[1]));
    g_assert_cmphex(attached(t.m, t.dev[1]), ==, s1(t.domain[0]));

    /* Without an SMMU, IDs do not matter. */
    qsmmu_guest_disable(g);
    set_buses(t.m, PORT(0), 0, 0);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, QSMMU_STE_BYPASS);

    /* A reset takes all numbers. */
    enable_again(g);
    qtest_system_reset(t.m->qts);
    g_assert_cmphex(attached(t.m, t.dev[1]), ==, QSMMU_STE_BYPASS);
    g_assert_cmphex(vsid(t.m, t.dev[1]), ==, NO_VSID);
    two_ports_stop(&t);
}

/* Nothing of a renumbering goes wrong with a host that fails. */
static void test_renumbered_failure(void)
{
    TwoPorts t = two_ports_start();

    host_double_fail(t.m->hd, IOMMU_VDEVICE_ALLOC, 1, ENOMEM);
    qsmmu_set_ste(&t.m->smmu[0], SID(3, 0), s1(t.domain[0]), 0);
    set_buses(t.m, PORT(0), 3, 3);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, QSMMU_STE_ABORT);
    g_assert_cmpuint(take_messages(t.messages, "vfio0, stream 0x300: "), ==, 1);
    qsmmu_cfgi_ste(&t.m->smmu[0], SID(3, 0));
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, s1(t.domain[0]));

    /* It cannot be blocked: the old ID must still not stay. */
    host_double_fail_forever(t.m->hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, EIO);
    host_double_fail_forever(t.m->hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, EIO);
    set_buses(t.m, PORT(0), 4, 4);
    g_assert_cmphex(vsid(t.m, t.dev[0]), ==, SID(4, 0));
    g_assert_cmpuint(take_messages(t.messages, "cannot even be aborted"), ==,
                     1);
    host_double_fail_forever(t.m->hd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0);
    host_double_fail_forever(t.m->hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, 0);
    qsmmu_attach(&t.m->smmu[0], SID(4, 0), t.domain[0]);
    g_assert_cmphex(attached(t.m, t.dev[0]), ==, s1(t.domain[0]));
    assert_event_from(t.m, t.dev[0], SID(4, 0));
    two_ports_stop(&t);
}

/* Each function is a stream. */
static void test_multifunction(void)
{
    Machine *m = machine_new_default();
    HDDevice *dev[2] = {
        add_vfio(m, 0, "bus=pcie.0,addr=2.0,multifunction=on"),
        add_vfio(m, 0, "bus=pcie.0,addr=2.1"),
    };
    QSMMUGuest *g = &m->smmu[0];
    QSMMUDomain *domain;

    machine_start(m);
    qsmmu_guest_enable(g);
    domain = qsmmu_domain_new(g, 12, 1);
    qsmmu_attach(g, ONE_SID + 1, domain);
    g_assert_cmphex(attached(m, dev[0]), ==, QSMMU_STE_ABORT);
    g_assert_cmphex(attached(m, dev[1]), ==, s1(domain));
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    qsmmu_set_ste(g, ONE_SID + 1, QSMMU_STE_BYPASS, 0);
    cfgi_range(g, ONE_SID + 1, 0);
    g_assert_cmphex(attached(m, dev[0]), ==, QSMMU_STE_BYPASS);
    g_assert_cmphex(attached(m, dev[1]), ==, QSMMU_STE_BYPASS);
    g_free(domain);
    machine_stop(m);
}

#define SWITCH_PORT(bus, n) SID(bus, PCI_DEVFN(n, 0))

/* A root port, and behind it a switch with two devices */
static Machine *machine_new_switch(HDDevice *dev[2])
{
    Machine *m = machine_new_ports(1);

    g_string_append(m->args, "-device x3130-upstream,id=up,bus=rp ");
    for (int i = 0; i < 2; i++) {
        g_autofree char *where = g_strdup_printf("bus=down%d", i);

        g_string_append_printf(m->args, "-device xio3130-downstream,id=down%d,"
                               "bus=up,addr=%d.0,chassis=%d ", i, i, 10 + i);
        dev[i] = add_vfio(m, 0, where);
    }
    return m;
}

static void test_switch(void)
{
    HDDevice *dev[2];
    Machine *m;
    QSMMUGuest *g;
    QSMMUDomain *domain[2];

    if (!has_devices("x3130-upstream", "xio3130-downstream")) {
        return;
    }
    m = machine_new_switch(dev);
    g = &m->smmu[0];
    machine_start(m);
    set_buses(m, PORT(0), 1, 4);
    set_buses(m, SID(1, 0), 2, 4);
    set_buses(m, SWITCH_PORT(2, 0), 3, 3);
    set_buses(m, SWITCH_PORT(2, 1), 4, 4);
    qsmmu_guest_enable(g);
    for (int i = 0; i < 2; i++) {
        domain[i] = qsmmu_domain_new(g, 12, i + 1);
        qsmmu_attach(g, SID(3 + i, 0), domain[i]);
        qsmmu_set_ste(g, SID(9 - i, 0), s1(domain[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        g_assert_cmphex(attached(m, dev[i]), ==, s1(domain[i]));
        g_assert_cmphex(vsid(m, dev[i]), ==, SID(3 + i, 0));
    }

    /* The root port no longer leads to the buses below. */
    set_buses(m, PORT(0), 6, 9);
    for (int i = 0; i < 2; i++) {
        g_assert_cmphex(attached(m, dev[i]), ==, QSMMU_STE_ABORT);
        g_assert_cmphex(vsid(m, dev[i]), ==, NO_VSID);
    }
    set_buses(m, SID(6, 0), 7, 9);
    set_buses(m, SWITCH_PORT(7, 0), 8, 8);
    set_buses(m, SWITCH_PORT(7, 1), 9, 9);
    for (int i = 0; i < 2; i++) {
        g_assert_cmphex(attached(m, dev[i]), ==, s1(domain[!i]));
        g_assert_cmphex(vsid(m, dev[i]), ==, SID(8 + i, 0));
    }
    g_free(domain[0]);
    g_free(domain[1]);
    machine_stop(m);
}

/* Buses that go away with a switch are forgotten, devices and all. */
static void test_switch_unplugged(void)
{
    HDDevice *dev[2];
    Machine *m;
    char *messages;
    QSMMUGuest *g;
    g_autofree char *mtree = NULL;
    QSMMUDomain *domain;
    QPCIDevice *port;

    if (!has_devices("x3130-upstream", "xio3130-downstream")) {
        return;
    }
    m = machine_new_switch(dev);
    g = &m->smmu[0];
    messages = catch_messages(m);
    machine_start(m);
    set_buses(m, PORT(0), 1, 4);
    set_buses(m, SID(1, 0), 2, 4);
    set_buses(m, SWITCH_PORT(2, 0), 3, 3);
    set_buses(m, SWITCH_PORT(2, 1), 4, 4);
    qsmmu_guest_enable(g);
    domain = qsmmu_domain_new(g, 12, 1);
    qsmmu_attach(g, SID(3, 0), domain);
    qsmmu_attach(g, SID(4, 0), domain);
    g_assert_cmphex(attached(m, dev[1]), ==, s1(domain));

    port = find_pci(m, PORT(0));
    remove_from_slot(m, "up", port);
    wait_unbound(dev[0]);
    wait_unbound(dev[1]);
    g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);
    cfgi_range(g, 0, 31);
    qsmmu_cfgi_ste(g, SID(3, 0));
    qsmmu_cfgi_cd(g, SID(4, 0));
    mtree = qtest_hmp(m->qts, "info mtree");
    g_assert_null(strstr(mtree, "smmuv3-accel-down"));
    g_assert_nonnull(strstr(mtree, "smmuv3-accel-rp"));
    assert_no_message(messages);
    g_free(port);
    g_free(domain);
    machine_stop(m);
    memory_file_free(messages);
}

/*
 * The same with an emulated SMMU, which has more to forget: the configuration
 * of a device that has sent something, here an MSI.
 */
static void test_emulated_bridge_unplugged(void)
{
    const int bridge = SID(1, 0), edu = SID(2, PCI_DEVFN(1, 0));
    Machine *m;
    QSMMUGuest *g;
    QPCIDevice *port, *pci;
    QPCIBar bar;

    if (!has_devices("pcie-pci-bridge", "edu")) {
        return;
    }
    m = machine_new_emulated(
        ROOT_PORT
        "-device pcie-pci-bridge,id=br,bus=rp "
        "-device edu,bus=br,addr=1.0 ");
    g = &m->smmu[0];

    machine_start(m);
    set_buses(m, PORT(0), 1, 2);
    set_buses(m, bridge, 2, 2);
    port = find_pci(m, PORT(0));
    pci = find_pci(m, bridge);
    qpci_config_writel(port, PCI_MEMORY_BASE, 0x3ef01000);
    qpci_config_writel(pci, PCI_MEMORY_BASE, 0x3ef01000);
    g_free(pci);

    qsmmu_guest_enable(g);
    /* The bridge's ID is that of the devices behind it. */
    qsmmu_set_ste(g, SID(2, 0), QSMMU_STE_BYPASS, 0);
    pci = find_pci(m, edu);
    bar = qpci_iomap(pci, 0, NULL);
    enable_msi(pci, TARGET(0), 0x1234, 0);
    qpci_io_writel(pci, bar, 0x60 /* raise an interrupt */, 1);
    g_assert_cmphex(qtest_readl(m->qts, TARGET(0)), ==, 0x1234);
    g_assert_cmpuint(qsmmu_events(g), ==, 0);
    g_free(pci);

    remove_from_slot(m, "br", port);
    drain_rcu(m);
    cfgi_range(g, 0, 31);
    qsmmu_cfgi_ste(g, SID(2, 0));
    g_free(port);
    machine_stop(m);
}

/* Each vSMMU has streams of its own, whatever their host SMMUs are. */
static void test_two_vsmmus(void)
{
    for (int host_smmu = 0; host_smmu < 2; host_smmu++) {
        Machine *m = machine_new_default();
        QSMMUGuest *g = m->smmu;
        QSMMUDomain *domain[2];
        HDDevice *dev[2];

        start_two_smmus(m, dev, host_smmu);
        set_buses(m, SID(8, PCI_DEVFN(1, 0)), 9, 9);
        for (int i = 0; i < 2; i++) {
            qsmmu_guest_enable(&g[i]);
            domain[i] = qsmmu_domain_new(&g[i], 12, i + 1);
            qsmmu_set_ste(&g[i], ONE_SID, s1(domain[i]), 0);
            qsmmu_set_ste(&g[i], SID(9, 0), s1(domain[i]), 0);
        }
        cfgi_range(&g[0], 0, 31);
        g_assert_cmphex(attached(m, dev[0]), ==, s1(domain[0]));
        g_assert_cmphex(attached(m, dev[1]), ==, QSMMU_STE_ABORT);
        qsmmu_cfgi_ste(&g[1], ONE_SID);
        g_assert_cmphex(attached(m, dev[1]), ==, QSMMU_STE_ABORT);
        qsmmu_cfgi_ste(&g[1], SID(9, 0));
        g_assert_cmphex(attached(m, dev[1]), ==, s1(domain[1]));
        g_assert_cmphex(vsid(m, dev[1]), ==, SID(9, 0));

        qsmmu_guest_disable(&g[0]);
        g_assert_cmphex(attached(m, dev[0]), ==, QSMMU_STE_BYPASS);
        g_assert_cmphex(attached(m, dev[1]), ==, s1(domain[1]));
        set_buses(m, SID(8, PCI_DEVFN(1, 0)), 10, 10);
        g_assert_cmphex(attached(m, dev[1]), ==, QSMMU_STE_ABORT);
        qsmmu_attach(&g[1], SID(10, 0), domain[1]);
        g_assert_cmphex(attached(m, dev[1]), ==, s1(domain[1]));
        g_assert_cmphex(vsid(m, dev[1]), ==, SID(10, 0));
        g_free(domain[0]);
        g_free(domain[1]);
        machine_stop(m);
    }
}

/* Devices on a conventional bus share a stream ID: they are refused. */
static void test_conventional_bus(void)
{
    static const char *const buses[] = { "pcie_br", "pci_br" };
    g_autofree char *none = NULL;
    Machine *m;
    HDDevice *dev;
    QDict *rsp;
    unsigned fds;

    if (!has_devices("pcie-pci-bridge", "pci-bridge") ||
        !has_devices("pcie-pci-bridge", "edu")) {
        return;
    }
    m = machine_new_ports(2);
    dev = host_double_add_device(m->hd, 0);
    g_string_append(m->args,
                    "-device pcie-pci-bridge,id=pcie_br,bus=rp "
                    "-device pci-bridge,id=pci_br,bus=pcie_br,addr=3.0,"
                    "chassis_nr=1,shpc=on ");
    machine_start(m);
    fds = count_fds(m);
    for (int i = 0; i < ARRAY_SIZE(buses); i++) {
        g_autofree char *error = try_plug(m, dev, buses[i]);

        g_assert_nonnull(error);
        g_test_message("%s", error);
        g_assert_nonnull(strstr(error, "hot is behind PCI bridge "));
        g_assert_nonnull(strstr(error, buses[i]));
        drain_rcu(m);
        g_assert_cmpuint(count_fds(m), ==, fds);
    }

    /* As everywhere behind such an SMMU, nor may there be an emulated one. */
    rsp = qtest_qmp(m->qts, "{ 'execute': 'device_add', 'arguments': {"
                    "'driver': 'edu', 'bus': 'pcie_br' } }");
    g_assert_true(qdict_haskey(rsp, "error"));
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(rsp, "error"),
                                          "desc"), "Emulated endpoint"));
    qobject_unref(rsp);
    g_assert_cmpuint(host_double_objects(m->hd, HD_FREE), ==, 0);

    /* It, and its ID, can be had elsewhere, also at once. */
    g_free(try_plug(m, dev, "pci_br"));
    none = try_plug(m, dev, "rp1");
    g_assert_cmpstr(none, ==, NULL);
    drain_rcu(m);
    g_assert_cmphex(attached(m, dev), ==, QSMMU_STE_BYPASS);
    machine_stop(m);
}

static void test_event(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint64_t event[4];

    assert_event_from(t.m, t.dev, ONE_SID);
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    qsmmu_event(&t.m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==, 0x12345000);
    one_device_stop(&t);
}

/* Events that come to a full queue are lost, which is no error. */
static void test_event_queue_full(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];
    uint64_t page1 = g->base + 0x10000;
    uint32_t cr0 = qtest_readl(g->qts, g->base + A_CR0);
    static const struct {
        uint32_t cr0, cons, prod;
    } steps[] = {
        /* Two of three fit; the loss is told of once, until it is known. */
        { R_CR0_EVENTQEN_MASK, 0, 2 | R_EVENTQ_PROD_OVFLG_MASK },
        { R_CR0_EVENTQEN_MASK, 0, 2 | R_EVENTQ_PROD_OVFLG_MASK },
        { R_CR0_EVENTQEN_MASK, 2 | R_EVENTQ_CONS_OVACKFLG_MASK, 0 },
        { R_CR0_EVENTQEN_MASK, 0, 2 | R_EVENTQ_PROD_OVFLG_MASK },
        { 0, 2 | R_EVENTQ_CONS_OVACKFLG_MASK, 2 | R_EVENTQ_PROD_OVFLG_MASK },
    };

    write_cr0(g, cr0 & ~R_CR0_EVENTQEN_MASK);
    qtest_writeq(g->qts, g->base + A_EVENTQ_BASE, g->eventq | 1);
    for (int i = 0; i < ARRAY_SIZE(steps); i++) {
        write_cr0(g, (cr0 & ~R_CR0_EVENTQEN_MASK) | steps[i].cr0);
        qtest_writel(g->qts, page1 + A_EVENTQ_CONS, steps[i].cons);
        for (int n = 0; n < 3; n++) {
            g_assert_true(host_double_post_event(t.m->hd, t.dev, host_fault));
        }
        settle(t.m);
        g_test_message("step %d", i);
        g_assert_cmphex(qtest_readl(g->qts, page1 + A_EVENTQ_PROD), ==,
                        steps[i].prod);
        g_assert_cmphex(qtest_readl(g->qts, g->base + A_GERROR), ==, 0);
    }
    one_device_stop(&t);
}

/* IDs of one iommufd mean nothing to another one. */
static void test_other_iommufd(void)
{
    Machine *m = machine_new_ports(2);
    unsigned other = host_double_add_iommufd(m->hd);
    HDDevice *devs[] = {
        add_vfio(m, 0, "bus=rp"), host_double_add_device(m->hd, 0),
    };
    g_autofree char *error = NULL;
    g_autofree char *none = NULL;

    g_string_append_printf(m->args, "-object iommufd,id=iommufd1,fd=%d ",
                           m->hd->iommufd[other]);
    machine_start(m);
    error = try_plug_with(m, devs[1], "rp1", "iommufd1");
    g_assert_nonnull(error);
    g_test_message("%s", error);
    g_assert_nonnull(strstr(error, "does not have the iommufd of the SMMU's"));

    none = try_plug(m, devs[1], "rp1");
    g_assert_cmpstr(none, ==, NULL);
    g_assert_cmphex(attached(m, devs[1]), ==, QSMMU_STE_BYPASS);
    machine_stop(m);
}

/* Lost events are told of once; the ones after them are not lost. */
static void test_lost_events(void)
{
    Machine *m = machine_new_default();
    char *messages = catch_messages(m);
    OneDevice t = one_device_start(m);

    assert_event_from(m, t.dev, ONE_SID);
    for (int i = 0; i < 2; i++) {
        g_assert_true(host_double_post_lost(m->hd, t.dev));
        settle(m);
        assert_event_from(m, t.dev, ONE_SID);
        assert_event_from(m, t.dev, ONE_SID);
    }
    g_assert_cmpuint(take_messages(messages, "overflowed"), ==, 1);
    one_device_stop(&t);
    memory_file_free(messages);
}

/* There is no stream of the host's SMMU that would translate for it. */
static void test_mediated(void)
{
    Machine *m = machine_new_default();
    g_autofree char *text = NULL;

    g_string_append(m->args, "-device vfio-pci,id=mediated,iommufd=iommufd0,"
                             "sysfsdev=" HD_MEDIATED " ");
    g_assert_cmpint(host_double_run(m->hd, m->args->str, &text), !=, 0);
    g_test_message("%s", text);
    g_assert_nonnull(strstr(text, "mediated is a mediated device"));
    machine_stop(m);
}

/* There are also events of streams that bypass stage 1. */
static void test_event_of_bypass(void)
{
    static const uint64_t steps[] = {
        QSMMU_STE_ABORT, QSMMU_STE_BYPASS, QSMMU_STE_ABORT,
    };
    Machine *m = machine_new_ports(1);
    HDDevice *dev = add_vfio(m, 0, "bus=rp");
    QSMMUGuest *g = &m->smmu[0];

    machine_start(m);
    set_buses(m, PORT(0), 1, 1);
    qsmmu_guest_enable(g);
    for (int i = 0; i < ARRAY_SIZE(steps); i++) {
        qsmmu_set_ste(g, SID(1, 0), steps[i], 0);
        qsmmu_cfgi_ste(g, SID(1, 0));
        g_assert_cmphex(attached(m, dev), ==, steps[i]);
        assert_event_from(m, dev, SID(1, 0));
    }
    /* The host attaches nothing anew that is attached already. */
    for (int bus = 2; bus < 5; bus++) {
        qsmmu_set_ste(g, SID(bus, 0), QSMMU_STE_BYPASS, 0);
        qsmmu_cfgi_ste(g, SID(bus, 0));
        set_buses(m, PORT(0), bus, bus);
        g_assert_cmphex(attached(m, dev), ==, QSMMU_STE_BYPASS);
        assert_event_from(m, dev, SID(bus, 0));
    }
    /* What cannot be detached is blocked until the guest tries again. */
    host_double_fail(m->hd, VFIO_DEVICE_DETACH_IOMMUFD_PT, 1, EIO);
    qsmmu_set_ste(g, SID(5, 0), QSMMU_STE_BYPASS, 0);
    set_buses(m, PORT(0), 5, 5);
    g_assert_cmphex(attached(m, dev), ==, QSMMU_STE_ABORT);
    assert_event_from(m, dev, SID(5, 0));
    qsmmu_cfgi_ste(g, SID(5, 0));
    g_assert_cmphex(attached(m, dev), ==, QSMMU_STE_BYPASS);
    machine_stop(m);
}

static void test_invalidation(void)
{
    OneDevice t = one_device_start(machine_new_default());
    unsigned n = calls(t.m, IOMMU_HWPT_INVALIDATE);
    HDCall *last;

    qsmmu_tlbi_va(t.domain, DOORBELL);
    g_assert_cmpuint(calls(t.m, IOMMU_HWPT_INVALIDATE), ==, n + 1);
    last = last_call(t.m);
    g_assert_cmpint(last->result, ==, 0);
    g_assert_cmphex(last->arg[1], ==,
                    SMMU_CMD_TLBI_NH_VA | (uint64_t)t.domain->asid << 48);
    g_assert_cmphex(last->arg[2], ==, DOORBELL & ~0xfffull);
    one_device_stop(&t);
}

/* CMDQ_CONS.ERR */
enum { ILL = 1, ABT = 2, ATC_INV_SYNC = 3 };

/* One device that does not answer must not stop all commands for good. */
static void test_atc_inv_failure(void)
{
    OneDevice t = one_device_start(machine_new_ats(true));
    Machine *m = t.m;
    QSMMUGuest *g = &m->smmu[0];
    uint64_t atc_inv = SMMU_CMD_ATC_INV | (uint64_t)ONE_SID << 32;
    unsigned n;

    for (int i = 0; i < 2; i++) {
        uint32_t cons, sync;

        host_double_fail(m->hd, IOMMU_HWPT_INVALIDATE, 1, ETIMEDOUT);
        qsmmu_queue(g, atc_inv, 0);
        qsmmu_queue(g, SMMU_CMD_TLBI_NH_ALL, 0);
        sync = g->cmdq_prod;
        qsmmu_queue(g, SMMU_CMD_SYNC, 0);
        cons = qsmmu_issue_queued(g);
        g_assert_cmphex(cons & ~R_CMDQ_CONS_ERR_MASK, ==, sync);
        g_assert_cmpuint(FIELD_EX32(cons, CMDQ_CONS, ERR), ==, ATC_INV_SYNC);
        g_assert_cmphex(last_call(m)->arg[1], ==, SMMU_CMD_TLBI_NH_ALL);

        /* Linux acknowledges it, which repeats the CMD_SYNC. */
        cons = qsmmu_acknowledge(g, false);
        g_assert_cmphex(cons & ~R_CMDQ_CONS_ERR_MASK, ==, g->cmdq_prod);
        qsmmu_command(g, atc_inv, 0);
        qsmmu_command(g, SMMU_CMD_SYNC, 0);
    }

    /* A device that does not answer costs a second once, not each time. */
    n = calls(m, IOMMU_HWPT_INVALIDATE);
    host_double_fail_forever(m->hd, IOMMU_HWPT_INVALIDATE, ETIMEDOUT);
    for (int i = 0; i < 3; i++) {
        qsmmu_queue(g, atc_inv, 0);
    }
    qsmmu_queue(g, SMMU_CMD_SYNC, 0);
    g_assert_cmpuint(FIELD_EX32(qsmmu_issue_queued(g), CMDQ_CONS, ERR), ==,
                     ATC_INV_SYNC);
    g_assert_cmpuint(calls(m, IOMMU_HWPT_INVALIDATE), ==, n + 1);
    host_double_fail_forever(m->hd, IOMMU_HWPT_INVALIDATE, 0);
    qsmmu_acknowledge(g, false);
    qsmmu_command(g, atc_inv, 0);
    qsmmu_command(g, SMMU_CMD_SYNC, 0);
    g_assert_cmpuint(calls(m, IOMMU_HWPT_INVALIDATE), ==, n + 2);

    host_double_fail(m->hd, IOMMU_HWPT_INVALIDATE, 1, EIO);
    g_assert_cmpuint(FIELD_EX32(qsmmu_issue(g, atc_inv, 0), CMDQ_CONS, ERR),
                     ==, ILL);
    qsmmu_acknowledge(g, true);
    qsmmu_command(g, SMMU_CMD_SYNC, 0);
    one_device_stop(&t);
}

/* A command that the host has not done is not complete. */
static void test_invalidation_failure(void)
{
    static const struct {
        int err;
        unsigned cerror;
    } rows[] = {
        { EIO, ILL }, { ENOMEM, ABT }, { ETIMEDOUT, ABT },
    };
    static const uint64_t commands[] = {
        SMMU_CMD_TLBI_NH_ALL, SMMU_CMD_TLBI_NH_ASID | 1ull << 48,
        SMMU_CMD_TLBI_NH_VA | 1ull << 48, SMMU_CMD_TLBI_NH_VAA,
        SMMU_CMD_TLBI_NSNH_ALL,
    };
    Machine *m = machine_new_default();
    char *messages = catch_messages(m);
    OneDevice t = one_device_start(m);
    QSMMUGuest *g = &m->smmu[0];

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        for (int j = 0; j < ARRAY_SIZE(commands); j++) {
            uint32_t old = g->cmdq_prod, cons;
            unsigned n = calls(m, IOMMU_HWPT_INVALIDATE);

            g_test_message("error %d, command 0x%" PRIx64, rows[i].err,
                           commands[j]);
            host_double_fail_forever(m->hd, IOMMU_HWPT_INVALIDATE,
                                     rows[i].err);
            cons = qsmmu_issue(g, commands[j], 0);
            for (int k = 0; k < 2; k++) {
                g_assert_cmphex(cons & ~R_CMDQ_CONS_ERR_MASK, ==, old);
                g_assert_cmpuint(FIELD_EX32(cons, CMDQ_CONS, ERR), ==,
                                 rows[i].cerror);
                cons = qsmmu_acknowledge(g, false);
            }
            host_double_fail_forever(m->hd, IOMMU_HWPT_INVALIDATE, 0);
            cons = qsmmu_acknowledge(g, false);
            g_assert_cmphex(cons & ~R_CMDQ_CONS_ERR_MASK, ==, g->cmdq_prod);
            g_assert_cmpuint(calls(m, IOMMU_HWPT_INVALIDATE), ==, n + 4);
            g_assert_cmpint(last_call(m)->result, ==, 0);
            if (rows[i].cerror == ABT) {
                g_assert_cmpuint(take_messages(messages,
                                               g_strerror(rows[i].err)), ==, 1);
            }
            assert_no_message(messages);
        }
    }
    one_device_stop(&t);
    memory_file_free(messages);
}

int main(int argc, char **argv)
{
    static const AccelTest tests[] = {
        { "/accel/host/ste", test_ste },
        { "/accel/host/ste-range", test_ste_range },
        { "/accel/host/smmuen", test_smmuen },
        { "/accel/host/gbpa", test_gbpa },
        { "/accel/host/reset", test_reset },
        { "/accel/host/missing-ste", test_missing_ste },
        { "/accel/host/stream-table", test_stream_table },
        { "/accel/host/unchanged", test_unchanged },
        { "/accel/host/cd", test_cd },
        { "/accel/host/ats", test_ats },
        { "/accel/host/failure", test_failure },
        { "/accel/host/vdevice-failure", test_vdevice_failure },
        { "/accel/host/stray", test_stray },
        { "/accel/host/veventq-failure", test_veventq_failure },
        { "/accel/host/veventq-polled", test_veventq_polled },
        { "/accel/host/second-device", test_second_device },
        { "/accel/host/plug-failure", test_plug_failure },
        { "/accel/host/no-id", test_no_id },
        { "/accel/host/other-host-smmu", test_other_host_smmu },
        { "/accel/host/replaced-device", test_replaced_device },
        { "/accel/host/flr", test_flr },
        { "/accel/host/renumbered", test_renumbered },
        { "/accel/host/renumbered-failure", test_renumbered_failure },
        { "/accel/host/no-stream-id", test_no_stream_id },
        { "/accel/host/multifunction", test_multifunction },
        { "/accel/host/switch", test_switch },
        { "/accel/host/switch-unplugged", test_switch_unplugged },
        { "/accel/host/emulated-bridge-unplugged",
          test_emulated_bridge_unplugged },
        { "/accel/host/two-vsmmus", test_two_vsmmus },
        { "/accel/host/conventional-bus", test_conventional_bus },
        { "/accel/host/other-iommufd", test_other_iommufd },
        { "/accel/host/event", test_event },
        { "/accel/host/event-queue-full", test_event_queue_full },
        { "/accel/host/lost-events", test_lost_events },
        { "/accel/host/mediated", test_mediated },
        { "/accel/host/event-of-bypass", test_event_of_bypass },
        { "/accel/host/invalidation", test_invalidation },
        { "/accel/host/invalidation-failure", test_invalidation_failure },
        { "/accel/host/atc-inv-failure", test_atc_inv_failure },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
