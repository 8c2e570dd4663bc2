/*
 * QTest for an accelerated SMMUv3: the host follows the guest
 *
 * What is attached to a device is a nested HWPT with the guest's STE, or one
 * that aborts or bypasses stage 1.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

static void test_host_follows_ste(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUGuest *g = &t.m->smmu[0];

    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_S1 | t.domain->cd);
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_BYPASS, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_BYPASS);
    qsmmu_set_ste(g, ONE_SID, QSMMU_STE_ABORT, 0);
    qsmmu_cfgi_ste(g, ONE_SID);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    qsmmu_attach(g, ONE_SID, t.domain);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_S1 | t.domain->cd);
    qsmmu_attach(g, ONE_SID, NULL);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

static void test_host_follows_smmuen(void)
{
    OneDevice t = one_device_start(machine_new_default());

    qsmmu_guest_disable(&t.m->smmu[0]);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_BYPASS);
    one_device_stop(&t);
}

static void test_host_follows_gbpa(void)
{
    OneDevice t = one_device_start(machine_new_default());
    uint64_t gbpa = t.m->smmu[0].base + A_GBPA;

    /* It has no effect while the SMMU is enabled. */
    qtest_writel(t.m->qts, gbpa, R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_S1 | t.domain->cd);
    one_device_stop(&t);
}

static void test_host_follows_missing_ste(void)
{
    OneDevice t = one_device_start(machine_new_default());

    /* The stream table ends before the device's STE. */
    qtest_writel(t.m->qts, t.m->smmu[0].base + A_STRTAB_BASE_CFG, 2);
    qsmmu_cfgi_ste(&t.m->smmu[0], ONE_SID);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    one_device_stop(&t);
}

/* An error of the host must not leave the old translation in place. */
static void test_host_follows_after_failure(void)
{
    OneDevice t = one_device_start(machine_new_default());
    QSMMUDomain *other = qsmmu_domain_new(&t.m->smmu[0], 12, 2);

    host_double_fail(t.m->hd, IOMMU_HWPT_ALLOC, 1, ENOMEM);
    qsmmu_set_ste(&t.m->smmu[0], ONE_SID, QSMMU_STE_S1 | other->cd, 0);
    qsmmu_issue(&t.m->smmu[0], SMMU_CMD_CFGI_STE | (uint64_t)ONE_SID << 32, 1);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    g_free(other);
    one_device_stop(&t);
}

/* A device that comes second gets what its SMMU does, too. */
static void test_host_follows_second_device(void)
{
    Machine *m = machine_new_default();
    HDDevice *second = host_double_add_device(m->hd, 0);
    HDObject *hwpt;
    QPCIDevice *port;
    OneDevice t;

    g_string_append(m->args,
                    "-device pcie-root-port,id=rp,bus=pcie.0,addr=1.0,"
                    "chassis=1 ");
    t = one_device_start(m);
    port = enable_port(m, PCI_DEVFN(1, 0));
    qsmmu_guest_disable(&m->smmu[0]);
    qtest_writel(m->qts, m->smmu[0].base + A_GBPA,
                 R_GBPA_UPDATE_MASK | R_GBPA_ABORT_MASK);
    g_assert_cmphex(attached_ste(&t), ==, QSMMU_STE_ABORT);
    plug(m, second, port);
    hwpt = &m->hd->shm->objects[second->hwpt];
    g_assert_cmpuint(hwpt->type, ==, HD_HWPT_NESTED);
    g_assert_cmphex(hwpt->data[0], ==, QSMMU_STE_ABORT);
    g_free(port);
    one_device_stop(&t);
}

static void test_host_event(void)
{
    static const uint64_t fault[4] = {
        QSMMU_F_TRANSLATION, 0, 0x12345000, 0,
    };
    OneDevice t = one_device_start(machine_new_default());
    gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;
    uint64_t event[4];

    g_assert_true(host_double_post_event(t.m->hd, t.dev, fault));
    while (!qsmmu_events(&t.m->smmu[0])) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    assert_one_event(t.m, QSMMU_F_TRANSLATION, ONE_SID);
    qsmmu_event(&t.m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_ADDR(event), ==, 0x12345000);
    one_device_stop(&t);
}

static void test_host_invalidation(void)
{
    OneDevice t = one_device_start(machine_new_default());
    unsigned calls = host_double_calls(t.m->hd, IOMMU_HWPT_INVALIDATE);
    HDShared *shm = t.m->hd->shm;
    HDCall *last;

    qsmmu_tlbi_va(t.domain, DOORBELL);
    g_assert_cmpuint(host_double_calls(t.m->hd, IOMMU_HWPT_INVALIDATE), ==,
                     calls + 1);
    last = &shm->calls[shm->num_calls - 1];
    g_assert_cmpint(last->result, ==, 0);
    g_assert_cmphex(last->arg[1], ==,
                    SMMU_CMD_TLBI_NH_VA | (uint64_t)t.domain->asid << 48);
    g_assert_cmphex(last->arg[2], ==, DOORBELL & ~0xfffull);
    one_device_stop(&t);
}

int main(int argc, char **argv)
{
    static const char host_lags[] =
        "only CFGI_STE and GBPA make QEMU attach another HWPT";
    static const AccelTest tests[] = {
        { "/accel/host/ste", test_host_follows_ste },
        { "/accel/host/smmuen", test_host_follows_smmuen, host_lags },
        { "/accel/host/gbpa", test_host_follows_gbpa,
          "GBPA is attached even while the SMMU is enabled" },
        { "/accel/host/missing-ste", test_host_follows_missing_ste,
          "an STE that is not found leaves the device as it is" },
        { "/accel/host/failure", test_host_follows_after_failure,
          "a host error leaves the device as it is" },
        { "/accel/host/second-device", test_host_follows_second_device,
          "only the first device of an SMMU is attached by it" },
        { "/accel/host/event", test_host_event },
        { "/accel/host/invalidation", test_host_invalidation },
    };

    return accel_tests_run(argc, argv, tests, ARRAY_SIZE(tests));
}
