/*
 * The test's side of the host double
 *
 * See host-double.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include "libqtest.h"
#include "hw/arm/smmuv3-common.h"
#include "host-double.h"

char *host_double_path(void)
{
    return g_test_build_filename(G_TEST_BUILT, "host-double.so", NULL);
}

/* A file that QEMU inherits */
static int new_file(const char *name, uint64_t size, uint64_t *st_dev,
                    uint64_t *st_ino)
{
    int fd = memfd_create(name, 0);
    struct stat st;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    g_assert_cmpint(fstat(fd, &st), ==, 0);
    *st_dev = st.st_dev;
    *st_ino = st.st_ino;
    return fd;
}

HostDouble *host_double_new(void)
{
    const struct timeval answer = { .tv_sec = 20 };
    HostDouble *hd = g_new0(HostDouble, 1);
    uint64_t ignored;
    int fds[2];

    hd->shm_fd = new_file("host-double", sizeof(*hd->shm), &ignored, &ignored);
    hd->shm = mmap(NULL, sizeof(*hd->shm), PROT_READ | PROT_WRITE, MAP_SHARED,
                   hd->shm_fd, 0);
    g_assert(hd->shm != MAP_FAILED);

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), ==, 0);
    hd->request_fd = fds[0];
    hd->peer_fd = fds[1];
    /*
     * QEMU shall see the end of it when the test ends. The test, which has the
     * other end as well, would wait for good when QEMU does.
     */
    g_assert_cmpint(fcntl(hd->request_fd, F_SETFD, FD_CLOEXEC), ==, 0);
    g_assert_cmpint(setsockopt(hd->request_fd, SOL_SOCKET, SO_RCVTIMEO, &answer,
                               sizeof(answer)), ==, 0);

    for (int i = 0; i < HD_MAX_SMMUS; i++) {
        HDSMMU *smmu = &hd->shm->smmu[i];
        uint32_t *idr = smmu->idr;

        idr[0] = FIELD_DP32(idr[0], IDR0, S2P, 1);
        idr[0] = FIELD_DP32(idr[0], IDR0, S1P, 1);
        idr[0] = FIELD_DP32(idr[0], IDR0, TTF, 2);
        idr[0] = FIELD_DP32(idr[0], IDR0, COHACC, 1);
        idr[0] = FIELD_DP32(idr[0], IDR0, ATS, 1);
        idr[0] = FIELD_DP32(idr[0], IDR0, TTENDIAN, 2);
        idr[0] = FIELD_DP32(idr[0], IDR0, STLEVEL, 1);
        idr[1] = FIELD_DP32(idr[1], IDR1, SIDSIZE, 16);
        idr[1] = FIELD_DP32(idr[1], IDR1, SSIDSIZE, 16);
        idr[3] = FIELD_DP32(idr[3], IDR3, RIL, 1);
        idr[5] = FIELD_DP32(idr[5], IDR5, OAS, 5); /* 48 bits */
        idr[5] = FIELD_DP32(idr[5], IDR5, GRAN4K, 1);
        idr[5] = FIELD_DP32(idr[5], IDR5, GRAN16K, 1);
        idr[5] = FIELD_DP32(idr[5], IDR5, GRAN64K, 1);
        smmu->nesting = true;
    }
    host_double_add_iommufd(hd);
    return hd;
}

/* A test that fails shows what the host saw. */
static void dump_hook(void *opaque)
{
    host_double_dump(opaque);
}

void host_double_free(HostDouble *hd)
{
    if (hd->dump_on_abort) {
        qtest_remove_abrt_handler(hd);
    }
    for (unsigned i = 0; i < hd->num_iommufds; i++) {
        close(hd->iommufd[i]);
    }
    for (unsigned i = 0; i < hd->num_devices; i++) {
        close(hd->shm->devices[i].fd);
    }
    close(hd->request_fd);
    close(hd->peer_fd);
    munmap(hd->shm, sizeof(*hd->shm));
    close(hd->shm_fd);
    g_free(hd);
}

unsigned host_double_add_iommufd(HostDouble *hd)
{
    unsigned i = hd->num_iommufds++;

    g_assert_cmpuint(i, <, HD_MAX_IOMMUFDS);
    hd->iommufd[i] = new_file("host-double-iommufd", 0,
                              &hd->shm->iommufd[i].st_dev,
                              &hd->shm->iommufd[i].st_ino);
    return i;
}

HDDevice *host_double_add_device(HostDouble *hd, int smmu)
{
    HDDevice *dev = &hd->shm->devices[hd->num_devices++];

    g_assert_cmpuint(hd->num_devices, <=, HD_MAX_DEVICES);
    g_assert_cmpint(smmu, <, HD_MAX_SMMUS);
    dev->smmu = smmu;
    dev->bar_size = 0x4000;
    dev->num_msi = 8;
    dev->num_msix = 8;
    dev->intx = true;
    dev->bound_fd = HD_NONE;
    dev->vsid = HD_NONE;
    dev->iommufd = HD_NONE;
    dev->irq_index = HD_NONE;
    for (int i = 0; i < HD_MAX_VECTORS; i++) {
        dev->vectors[i] = (HDVector) { HD_NONE, HD_NONE };
    }
    dev->fd = new_file("host-double-device",
                       HD_REGION_OFFSET(VFIO_PCI_NUM_REGIONS),
                       &dev->st_dev, &dev->st_ino);
    return dev;
}

/* Set @name in our environment; returns what g_setenv() puts back. */
static char *swap_env(const char *name, const char *value)
{
    char *old = g_strdup(g_getenv(name));

    if (value) {
        g_setenv(name, value, true);
    } else {
        g_unsetenv(name);
    }
    return old;
}

typedef struct Environment {
    char *preload, *asan, *fds;
} Environment;

/* Have what is started next run on this host. Returns: what was there before */
static Environment enter_host(HostDouble *hd)
{
    const char *others = g_getenv("LD_PRELOAD");
    const char *asan = g_getenv("ASAN_OPTIONS");
    g_autofree char *path = host_double_path();
    bool built = g_file_test(path, G_FILE_TEST_EXISTS);
    g_autofree char *preload =
        g_strdup_printf("%s%s%s", path, others ? ":" : "", others ?: "");
    g_autofree char *asan_options =
        g_strdup_printf("%s%sverify_asan_link_order=0", asan ?: "",
                        asan ? ":" : "");
    g_autofree char *fds = g_strdup_printf("%d,%d", hd->shm_fd, hd->peer_fd);

    if (!built) {
        g_error("%s is not there", path);
    }
    return (Environment) {
        .preload = swap_env("LD_PRELOAD", preload),
        .asan = swap_env("ASAN_OPTIONS", asan_options),
        .fds = swap_env(HOST_DOUBLE_ENV, fds),
    };
}

static void leave_host(Environment *old)
{
    g_free(swap_env("LD_PRELOAD", old->preload));
    g_free(swap_env("ASAN_OPTIONS", old->asan));
    g_free(swap_env(HOST_DOUBLE_ENV, old->fds));
    g_free(old->preload);
    g_free(old->asan);
    g_free(old->fds);
}

QTestState *host_double_qtest_init(HostDouble *hd, const char *args)
{
    Environment old = enter_host(hd);
    QTestState *qts;

    qtest_add_abrt_handler(dump_hook, hd);
    hd->dump_on_abort = true;
    qts = qtest_init(args);
    leave_host(&old);
    return qts;
}

int host_double_run(HostDouble *hd, const char *args, char **output)
{
    g_autofree char *command =
        g_strdup_printf("echo quit | exec %s -accel qtest -nodefaults -display "
                        "none -monitor stdio %s 2>&1",
                        g_getenv("QTEST_QEMU_BINARY"), args);
    const char *argv[] = { "/bin/sh", "-c", command, NULL };
    Environment old = enter_host(hd);
    GError *error = NULL;
    int status;

    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_LEAVE_DESCRIPTORS_OPEN,
                 NULL, NULL, output, NULL, &status, &error);
    g_assert_no_error(error);
    leave_host(&old);
    return status;
}

static int request(HostDouble *hd, const HDRequest *req)
{
    int32_t ret;

    g_assert_cmpint(send(hd->request_fd, req, sizeof(*req), MSG_NOSIGNAL), ==,
                    sizeof(*req));
    g_assert_cmpint(recv(hd->request_fd, &ret, sizeof(ret), 0), ==,
                    sizeof(ret));
    if (ret != 0 && ret != -ENOENT) {
        g_error("host double: request %d failed: %s", req->type,
                g_strerror(-ret));
    }
    return ret;
}

bool host_double_fire(HostDouble *hd, HDDevice *dev, unsigned index,
                      unsigned vector)
{
    HDRequest req = {
        .type = HD_FIRE,
        .device = dev - hd->shm->devices,
        .index = index,
        .vector = vector,
    };

    return request(hd, &req) == 0;
}

bool host_double_wait(HostDouble *hd, HDDevice *dev, unsigned index,
                      unsigned vector)
{
    HDRequest req = {
        .type = HD_PENDING,
        .device = dev - hd->shm->devices,
        .index = index,
        .vector = vector,
    };
    gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;

    while (request(hd, &req) != 0) {
        if (g_get_monotonic_time() > end) {
            return false;
        }
        g_usleep(200);
    }
    return true;
}

void host_double_deassert(HostDouble *hd, HDDevice *dev)
{
    HDRequest req = {
        .type = HD_DEASSERT,
        .device = dev - hd->shm->devices,
    };

    request(hd, &req);
}

void host_double_clear_msix(HostDouble *hd, HDDevice *dev)
{
    hd_lock(hd->shm);
    for (unsigned i = 0; i < dev->num_msix; i++) {
        dev->vectors[hd_vector(VFIO_PCI_MSIX_IRQ_INDEX, i)].no_message = true;
    }
    hd_unlock(hd->shm);
}

bool host_double_post_event(HostDouble *hd, HDDevice *dev,
                            const uint64_t event[4])
{
    HDRequest req = {
        .type = HD_POST_EVENT,
        .device = dev - hd->shm->devices,
        .event = { event[0], event[1], event[2], event[3] },
    };

    return request(hd, &req) == 0;
}

bool host_double_post_lost(HostDouble *hd, HDDevice *dev)
{
    HDRequest req = {
        .type = HD_POST_LOST,
        .device = dev - hd->shm->devices,
    };

    return request(hd, &req) == 0;
}

static void set_failure(HostDouble *hd, unsigned long request, unsigned n,
                        int err, bool forever)
{
    hd_lock(hd->shm);
    hd->shm->fail[_IOC_NR(request)].n = n;
    hd->shm->fail[_IOC_NR(request)].err = err;
    hd->shm->fail[_IOC_NR(request)].forever = forever;
    hd_unlock(hd->shm);
}

void host_double_fail(HostDouble *hd, unsigned long request, unsigned n,
                      int err)
{
    set_failure(hd, request, n, err, false);
}

void host_double_fail_forever(HostDouble *hd, unsigned long request, int err)
{
    set_failure(hd, request, err != 0, err, err != 0);
}

void host_double_forget_calls(HostDouble *hd)
{
    hd_lock(hd->shm);
    hd->shm->num_calls = 0;
    hd_unlock(hd->shm);
}

void host_double_signal(HostDouble *hd, unsigned long request, unsigned n,
                        bool after, HDDevice *dev, unsigned index,
                        unsigned vector)
{
    unsigned nr = _IOC_NR(request);

    hd_lock(hd->shm);
    hd->shm->signal[nr].n = n;
    hd->shm->signal[nr].after = after;
    hd->shm->signal[nr].sent = false;
    hd->shm->signal[nr].device = dev - hd->shm->devices;
    hd->shm->signal[nr].index = index;
    hd->shm->signal[nr].vector = vector;
    hd_unlock(hd->shm);
}

bool host_double_signalled(HostDouble *hd, unsigned long request)
{
    bool sent;

    hd_lock(hd->shm);
    sent = hd->shm->signal[_IOC_NR(request)].sent;
    hd_unlock(hd->shm);
    return sent;
}

unsigned host_double_calls(HostDouble *hd, unsigned long request)
{
    unsigned n = 0;

    hd_lock(hd->shm);
    g_assert_cmpuint(hd->shm->num_calls, <=, HD_MAX_CALLS);
    for (uint64_t i = 0; i < hd->shm->num_calls; i++) {
        n += hd->shm->calls[i].nr == _IOC_NR(request);
    }
    hd_unlock(hd->shm);
    return n;
}

unsigned host_double_objects(HostDouble *hd, HDType type)
{
    unsigned n = 0;

    hd_lock(hd->shm);
    for (int i = 1; i < HD_MAX_OBJECTS; i++) {
        HDType t = hd->shm->objects[i].type;

        n += type ? t == type : t != HD_FREE;
    }
    hd_unlock(hd->shm);
    return n;
}

int host_double_eventfd(HostDouble *hd, HDDevice *dev, unsigned index,
                        unsigned vector)
{
    int fd;

    hd_lock(hd->shm);
    fd = dev->vectors[hd_vector(index, vector)].fd;
    hd_unlock(hd->shm);
    return fd;
}

static void dump_call(const HDCall *call)
{
    static const struct {
        uint32_t nr;
        const char *name;
    } names[] = {
        { IOMMUFD_CMD_DESTROY, "IOMMU_DESTROY" },
        { IOMMUFD_CMD_IOAS_ALLOC, "IOMMU_IOAS_ALLOC" },
        { IOMMUFD_CMD_IOAS_IOVA_RANGES, "IOMMU_IOAS_IOVA_RANGES" },
        { IOMMUFD_CMD_IOAS_MAP, "IOMMU_IOAS_MAP" },
        { IOMMUFD_CMD_IOAS_UNMAP, "IOMMU_IOAS_UNMAP" },
        { IOMMUFD_CMD_HWPT_ALLOC, "IOMMU_HWPT_ALLOC" },
        { IOMMUFD_CMD_GET_HW_INFO, "IOMMU_GET_HW_INFO" },
        { IOMMUFD_CMD_HWPT_INVALIDATE, "IOMMU_HWPT_INVALIDATE" },
        { IOMMUFD_CMD_IOAS_MAP_FILE, "IOMMU_IOAS_MAP_FILE" },
        { IOMMUFD_CMD_VIOMMU_ALLOC, "IOMMU_VIOMMU_ALLOC" },
        { IOMMUFD_CMD_VDEVICE_ALLOC, "IOMMU_VDEVICE_ALLOC" },
        { IOMMUFD_CMD_VEVENTQ_ALLOC, "IOMMU_VEVENTQ_ALLOC" },
        { _IOC_NR(VFIO_DEVICE_GET_INFO), "VFIO_DEVICE_GET_INFO" },
        { _IOC_NR(VFIO_DEVICE_GET_REGION_INFO),
          "VFIO_DEVICE_GET_REGION_INFO" },
        { _IOC_NR(VFIO_DEVICE_GET_IRQ_INFO), "VFIO_DEVICE_GET_IRQ_INFO" },
        { _IOC_NR(VFIO_DEVICE_SET_IRQS), "VFIO_DEVICE_SET_IRQS" },
        { _IOC_NR(VFIO_DEVICE_RESET), "VFIO_DEVICE_RESET" },
        { _IOC_NR(VFIO_DEVICE_FEATURE), "VFIO_DEVICE_FEATURE" },
        { _IOC_NR(VFIO_DEVICE_BIND_IOMMUFD), "VFIO_DEVICE_BIND_IOMMUFD" },
        { _IOC_NR(VFIO_DEVICE_ATTACH_IOMMUFD_PT),
          "VFIO_DEVICE_ATTACH_IOMMUFD_PT" },
        { _IOC_NR(VFIO_DEVICE_DETACH_IOMMUFD_PT),
          "VFIO_DEVICE_DETACH_IOMMUFD_PT" },
    };
    const char *name = "call";

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        if (names[i].nr == call->nr) {
            name = names[i].name;
        }
    }
    g_test_message("  device %d: %s (%u) id %u arg 0x%" PRIx64 " 0x%" PRIx64
                   " 0x%" PRIx64 ": %s", call->device, name, call->nr,
                   call->id, call->arg[0], call->arg[1], call->arg[2],
                   call->result ? g_strerror(-call->result) : "ok");
}

void host_double_dump(HostDouble *hd)
{
    static const char *types[] = {
        [HD_DEVICE] = "device", [HD_IOAS] = "IOAS",
        [HD_HWPT_PAGING] = "paging HWPT", [HD_HWPT_NESTED] = "nested HWPT",
        [HD_VIOMMU] = "vIOMMU", [HD_VDEVICE] = "vDEVICE",
        [HD_VEVENTQ] = "vEVENTQ",
    };
    const unsigned max_calls = 40;
    HDShared *shm = hd->shm;
    /* The test may have failed with the lock held, by itself or by QEMU. */
    bool locked = hd_trylock(hd->shm);

    g_test_message("host double: objects");
    for (int i = 1; i < HD_MAX_OBJECTS; i++) {
        HDObject *obj = &shm->objects[i];

        if (obj->type != HD_FREE) {
            g_test_message("  %d: %s on %u, %u users, iommufd %d, SMMU %d, "
                           "device %d, data 0x%" PRIx64 " 0x%" PRIx64, i,
                           types[obj->type], obj->parent, obj->users,
                           obj->iommufd, obj->smmu, obj->device, obj->data[0],
                           obj->data[1]);
        }
    }
    g_test_message("host double: maps");
    for (int i = 0; i < HD_MAX_MAPS; i++) {
        HDMap *map = &shm->maps[i];

        if (map->ioas) {
            g_test_message("  IOAS %u: 0x%" PRIx64 " + 0x%" PRIx64 " at 0x%"
                           PRIx64 " of fd %d", map->ioas, map->iova,
                           map->length, map->start, map->fd);
        }
    }
    g_test_message("host double: devices");
    for (unsigned i = 0; i < hd->num_devices; i++) {
        HDDevice *dev = &shm->devices[i];

        g_test_message("  %u: ID %u, HWPT %u, interrupts %d", i, dev->id,
                       dev->hwpt, dev->irq_index);
        for (int v = 0; v < HD_MAX_VECTORS; v++) {
            if (dev->vectors[v].fd != HD_NONE) {
                g_test_message("    vector %d: eventfd %d", v,
                               dev->vectors[v].fd);
            }
        }
    }
    g_test_message("host double: last calls");
    for (uint64_t i = shm->num_calls - MIN(max_calls, shm->num_calls);
         i < shm->num_calls; i++) {
        dump_call(&shm->calls[i % HD_MAX_CALLS]);
    }
    if (locked) {
        hd_unlock(hd->shm);
    }
}
