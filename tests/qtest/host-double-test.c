/*
 * Does the host double keep what host-double.h promises?
 *
 * The double is not preloaded here: its ioctl() and close() are called
 * directly.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include "host-double.h"

#define PAGE        4096ull
#define STE0_S1     0x1000000bull /* valid, stage 1 */
#define SID         0x118

static HostDouble *hd;
static int (*double_ioctl)(int fd, unsigned long request, ...);
static int (*double_close)(int fd);

/* What the call returns, or negative errno */
static int call(int fd, unsigned long request, void *arg)
{
    int ret = double_ioctl(fd, request, arg);

    return ret < 0 ? -errno : ret;
}

static int iommufd(unsigned long request, void *arg)
{
    return call(hd->iommufd[0], request, arg);
}

static int destroy(uint32_t id)
{
    struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

    return iommufd(IOMMU_DESTROY, &cmd);
}

static uint32_t ioas_alloc(void)
{
    struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

    g_assert_cmpint(iommufd(IOMMU_IOAS_ALLOC, &cmd), ==, 0);
    return cmd.out_ioas_id;
}

static int map(uint32_t ioas, uint64_t iova, uint64_t length)
{
    struct iommu_ioas_map cmd = {
        .size = sizeof(cmd),
        .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
        .ioas_id = ioas,
        .user_va = 0x10000,
        .iova = iova,
        .length = length,
    };

    return iommufd(IOMMU_IOAS_MAP, &cmd);
}

static int unmap(uint32_t ioas, uint64_t iova, uint64_t length)
{
    struct iommu_ioas_unmap cmd = {
        .size = sizeof(cmd),
        .ioas_id = ioas,
        .iova = iova,
        .length = length,
    };

    return iommufd(IOMMU_IOAS_UNMAP, &cmd);
}

/* The functions that make something return a negative errno or its ID. */

static int bind_device(HDDevice *dev)
{
    struct vfio_device_bind_iommufd cmd = {
        .argsz = sizeof(cmd),
        .iommufd = hd->iommufd[0],
    };
    int ret = call(dev->fd, VFIO_DEVICE_BIND_IOMMUFD, &cmd);

    return ret ?: cmd.out_devid;
}

static int hwpt_alloc(uint32_t dev, uint32_t pt, uint32_t flags,
                      const uint64_t *ste)
{
    struct iommu_hwpt_alloc cmd = {
        .size = sizeof(cmd),
        .flags = flags,
        .dev_id = dev,
        .pt_id = pt,
        .data_type = ste ? IOMMU_HWPT_DATA_ARM_SMMUV3 : IOMMU_HWPT_DATA_NONE,
        .data_len = ste ? 2 * sizeof(*ste) : 0,
        .data_uptr = (uintptr_t)ste,
    };
    int ret = iommufd(IOMMU_HWPT_ALLOC, &cmd);

    return ret ?: cmd.out_hwpt_id;
}

static int viommu_alloc(uint32_t dev, uint32_t hwpt)
{
    struct iommu_viommu_alloc cmd = {
        .size = sizeof(cmd),
        .type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
        .dev_id = dev,
        .hwpt_id = hwpt,
    };
    int ret = iommufd(IOMMU_VIOMMU_ALLOC, &cmd);

    return ret ?: cmd.out_viommu_id;
}

static int vdevice_alloc(uint32_t dev, uint32_t viommu, uint64_t virt_id)
{
    struct iommu_vdevice_alloc cmd = {
        .size = sizeof(cmd),
        .viommu_id = viommu,
        .dev_id = dev,
        .virt_id = virt_id,
    };
    int ret = iommufd(IOMMU_VDEVICE_ALLOC, &cmd);

    return ret ?: cmd.out_vdevice_id;
}

static int attach(HDDevice *dev, uint32_t pt)
{
    struct vfio_device_attach_iommufd_pt cmd = {
        .argsz = sizeof(cmd),
        .pt_id = pt,
    };

    return call(dev->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
}

static int set_irqs(HDDevice *dev, unsigned index, uint32_t flags,
                    unsigned start, unsigned count, const int32_t *fds)
{
    size_t size = fds ? count * sizeof(*fds) : 0;
    g_autofree struct vfio_irq_set *set = g_malloc0(sizeof(*set) + size);

    set->argsz = sizeof(*set) + size;
    set->flags = flags;
    set->index = index;
    set->start = start;
    set->count = count;
    if (fds) {
        memcpy(set->data, fds, size);
    }
    return call(dev->fd, VFIO_DEVICE_SET_IRQS, set);
}

static int set_eventfd(HDDevice *dev, unsigned index, unsigned vector, int fd)
{
    return set_irqs(dev, index, VFIO_IRQ_SET_DATA_EVENTFD |
                    VFIO_IRQ_SET_ACTION_TRIGGER, vector, 1, &fd);
}

static int set_intx(HDDevice *dev, uint32_t action)
{
    return set_irqs(dev, VFIO_PCI_INTX_IRQ_INDEX,
                    VFIO_IRQ_SET_DATA_NONE | action, 0, 1, NULL);
}

static int disable_irqs(HDDevice *dev, unsigned index)
{
    return set_irqs(dev, index, VFIO_IRQ_SET_DATA_NONE |
                    VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, NULL);
}

/* Number of interrupts that an eventfd got since the last time */
static uint64_t received(int fd)
{
    uint64_t n;

    return read(fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

/* A device that has what a guest needs for nesting */
typedef struct Nesting {
    HDDevice *dev;
    int id, ioas, parent, viommu;
} Nesting;

static Nesting nesting_new(void)
{
    Nesting n = {
        .dev = host_double_add_device(hd, 0),
        .ioas = ioas_alloc(),
    };

    n.id = bind_device(n.dev);
    n.parent = hwpt_alloc(n.id, n.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT, NULL);
    n.viommu = viommu_alloc(n.id, n.parent);
    g_assert_cmpint(n.id, >, 0);
    g_assert_cmpint(n.ioas, >, 0);
    g_assert_cmpint(n.parent, >, 0);
    g_assert_cmpint(n.viommu, >, 0);
    return n;
}

static void release(HDDevice *dev)
{
    /* QEMU's descriptor, as it were; the test's own one stays. */
    int fd = dup(dev->fd);

    g_assert_cmpint(dup2(fd, dev->fd), ==, dev->fd);
    g_assert_cmpint(double_close(dev->fd), ==, 0);
    g_assert_cmpint(dup2(fd, dev->fd), ==, dev->fd);
    close(fd);
}

static void nesting_free(Nesting *n)
{
    g_assert_cmpint(destroy(n->viommu), ==, 0);
    g_assert_cmpint(destroy(n->parent), ==, 0);
    g_assert_cmpint(destroy(n->ioas), ==, 0);
    release(n->dev);
}

static void test_inert(void)
{
    struct iommu_destroy cmd = { .size = sizeof(cmd), .id = 1 };
    int fd = memfd_create("other", 0);
    uint64_t calls = hd->shm->num_calls;
    int n = 0;

    g_assert_cmpint(call(fd, IOMMU_DESTROY, &cmd), ==, -ENOTTY);
    g_assert_cmpint(call(-1, IOMMU_DESTROY, &cmd), ==, -EBADF);
    g_assert_cmpint(call(hd->request_fd, FIONREAD, &n), ==, 0);
    g_assert_cmpint(double_close(fd), ==, 0);
    g_assert_cmpint(double_close(fd), ==, -1);
    g_assert_cmpuint(hd->shm->num_calls, ==, calls);
}

static void test_sizes(void)
{
    struct {
        struct iommu_ioas_alloc cmd;
        uint32_t more;
    } arg = { };

    arg.cmd.size = sizeof(arg.cmd) - 1;
    g_assert_cmpint(iommufd(IOMMU_IOAS_ALLOC, &arg), ==, -EINVAL);
    arg.cmd.size = sizeof(arg);
    arg.more = 1;
    g_assert_cmpint(iommufd(IOMMU_IOAS_ALLOC, &arg), ==, -E2BIG);
    arg.more = 0;
    g_assert_cmpint(iommufd(IOMMU_IOAS_ALLOC, &arg), ==, 0);
    g_assert_cmpint(destroy(arg.cmd.out_ioas_id), ==, 0);
    g_assert_cmpint(destroy(arg.cmd.out_ioas_id), ==, -ENOENT);
}

static void test_maps(void)
{
    uint32_t ioas = ioas_alloc();

    g_assert_cmpint(map(ioas, PAGE, 4 * PAGE), ==, 0);
    g_assert_cmpint(map(ioas, 4 * PAGE, PAGE), ==, -EEXIST);
    g_assert_cmpint(map(ioas, 0, 2 * PAGE), ==, -EEXIST);
    g_assert_cmpint(map(ioas, 5 * PAGE, PAGE), ==, 0);
    g_assert_cmpint(map(ioas, 8 * PAGE + 1, PAGE), ==, -EINVAL);
    g_assert_cmpint(map(ioas, 8 * PAGE, PAGE + 1), ==, -EINVAL);
    g_assert_cmpint(map(ioas, 8 * PAGE, 0), ==, -EINVAL);
    g_assert_cmpint(map(ioas, -PAGE, 2 * PAGE), ==, -EOVERFLOW);
    g_assert_cmpint(map(ioas + 1000, 8 * PAGE, PAGE), ==, -ENOENT);

    g_assert_cmpint(unmap(ioas, 2 * PAGE, PAGE), ==, -ENOENT);
    g_assert_cmpint(unmap(ioas, 8 * PAGE, PAGE), ==, -ENOENT);
    g_assert_cmpint(unmap(ioas, 0, 5 * PAGE), ==, 0);
    g_assert_cmpint(map(ioas, PAGE, PAGE), ==, 0);
    g_assert_cmpint(unmap(ioas, 0, UINT64_MAX), ==, 0);
    g_assert_cmpint(unmap(ioas, 0, UINT64_MAX), ==, 0);
    g_assert_cmpint(map(ioas, PAGE, 6 * PAGE), ==, 0);
    g_assert_cmpint(destroy(ioas), ==, 0);
}

static void test_reserved(void)
{
    struct iommu_iova_range ranges[2];
    struct iommu_ioas_iova_ranges cmd = { .size = sizeof(cmd) };
    Nesting n = nesting_new();

    g_assert_cmpint(map(n.ioas, HD_RESERVED_BASE, PAGE), ==, 0);
    g_assert_cmpint(attach(n.dev, n.parent), ==, -EADDRINUSE);
    g_assert_cmpint(unmap(n.ioas, HD_RESERVED_BASE, PAGE), ==, 0);
    g_assert_cmpint(attach(n.dev, n.parent), ==, 0);
    g_assert_cmpint(map(n.ioas, HD_RESERVED_BASE, PAGE), ==, -EINVAL);
    g_assert_cmpint(map(n.ioas, 1ull << 48, PAGE), ==, -EINVAL);

    cmd.ioas_id = n.ioas;
    g_assert_cmpint(iommufd(IOMMU_IOAS_IOVA_RANGES, &cmd), ==, -EMSGSIZE);
    g_assert_cmpuint(cmd.num_iovas, ==, 2);
    cmd.allowed_iovas = (uintptr_t)ranges;
    g_assert_cmpint(iommufd(IOMMU_IOAS_IOVA_RANGES, &cmd), ==, 0);
    g_assert_cmphex(ranges[0].last, ==, HD_RESERVED_BASE - 1);
    g_assert_cmphex(ranges[1].start, ==, HD_RESERVED_BASE + HD_RESERVED_SIZE);
    g_assert_cmphex(ranges[1].last, ==, (1ull << 48) - 1);
    g_assert_cmphex(cmd.out_iova_alignment, ==, PAGE);
    release(n.dev);
    g_assert_cmpint(map(n.ioas, HD_RESERVED_BASE, PAGE), ==, 0);
    g_assert_cmpint(bind_device(n.dev), >, 0);
    nesting_free(&n);
}

static void test_references(void)
{
    const uint64_t ste[2] = { STE0_S1 };
    Nesting n = nesting_new();
    int vdevice = vdevice_alloc(n.id, n.viommu, SID);
    int nested = hwpt_alloc(n.id, n.viommu, 0, ste);

    g_assert_cmpint(vdevice, >, 0);
    g_assert_cmpint(nested, >, 0);
    g_assert_cmpint(attach(n.dev, nested), ==, 0);

    g_assert_cmpint(destroy(n.id), ==, -EBUSY);
    g_assert_cmpint(destroy(n.ioas), ==, -EBUSY);
    g_assert_cmpint(destroy(n.parent), ==, -EBUSY);
    g_assert_cmpint(destroy(n.viommu), ==, -EBUSY);
    g_assert_cmpint(destroy(nested), ==, -EBUSY);
    g_assert_cmpint(attach(n.dev, n.parent), ==, 0);
    g_assert_cmpint(destroy(nested), ==, 0);
    g_assert_cmpint(destroy(n.viommu), ==, -EBUSY);
    g_assert_cmpint(destroy(vdevice), ==, 0);
    g_assert_cmpint(destroy(n.viommu), ==, 0);
    g_assert_cmpint(destroy(n.parent), ==, -EBUSY);
    release(n.dev);
    g_assert_cmpint(destroy(n.parent), ==, 0);
    g_assert_cmpint(destroy(n.ioas), ==, 0);
}

static void test_two_smmus(void)
{
    const uint64_t ste[2] = { STE0_S1 };
    Nesting n = nesting_new();
    HDDevice *other = host_double_add_device(hd, 1);
    int id = bind_device(other);

    g_assert_cmpint(attach(other, n.parent), ==, -EINVAL);
    g_assert_cmpint(viommu_alloc(id, n.parent), ==, -EINVAL);
    g_assert_cmpint(vdevice_alloc(id, n.viommu, SID), ==, -EINVAL);
    g_assert_cmpint(hwpt_alloc(id, n.viommu, 0, ste), ==, -EINVAL);
    release(other);
    nesting_free(&n);
}

static void test_nesting(void)
{
    const uint64_t ste[2] = { STE0_S1 };
    const uint64_t abort[2] = { 1 };
    const uint64_t invalid[2] = { ~1ull, ~0ull };
    const uint64_t bad[][2] = {
        { STE0_S1 | 1ull << 55 }, { STE0_S1, 1ull << 30 },
        { 1 | 6 << 1 }, { STE0_S1, 3ull << 28 },
    };
    Nesting n = nesting_new();
    int plain = hwpt_alloc(n.id, n.ioas, 0, NULL);
    int nested, vdevice;

    g_assert_cmpint(viommu_alloc(n.id, plain), ==, -EINVAL);
    g_assert_cmpint(hwpt_alloc(n.id, n.parent, 0, ste), ==, -EOPNOTSUPP);
    g_assert_cmpint(hwpt_alloc(n.id, n.ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
                               NULL), ==, -EOPNOTSUPP);
    g_assert_cmpint(attach(n.dev, n.ioas + 1000), ==, -ENOENT);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_cmpint(hwpt_alloc(n.id, n.viommu, 0, bad[i]), ==, -EIO);
    }

    nested = hwpt_alloc(n.id, n.viommu, 0, ste);
    g_assert_cmpint(attach(n.dev, nested), ==, -ENOENT);
    vdevice = vdevice_alloc(n.id, n.viommu, SID);
    g_assert_cmpint(vdevice_alloc(n.id, n.viommu, SID + 1), ==, -EEXIST);
    g_assert_cmpint(attach(n.dev, nested), ==, 0);
    g_assert_cmpint(attach(n.dev, n.parent), ==, 0);
    g_assert_cmpint(destroy(nested), ==, 0);
    g_assert_cmpint(destroy(vdevice), ==, 0);

    /* These do not translate, so no vSID is wanted. */
    for (int i = 0; i < 2; i++) {
        nested = hwpt_alloc(n.id, n.viommu, 0, i ? abort : invalid);
        g_assert_cmpint(attach(n.dev, nested), ==, 0);
        g_assert_cmpint(attach(n.dev, n.parent), ==, 0);
        g_assert_cmpint(destroy(nested), ==, 0);
    }
    g_assert_cmpint(destroy(plain), ==, 0);
    release(n.dev);
    g_assert_cmpint(bind_device(n.dev), >, 0);
    nesting_free(&n);
}

static void test_invalidate(void)
{
    uint64_t cmds[3][2] = {
        { 0x12 /* TLBI_NH_VA */ },
        { 0x05 /* CFGI_CD */ | (uint64_t)SID << 32 },
        { 0x05 /* CFGI_CD */ | (uint64_t)(SID + 1) << 32 },
    };
    Nesting n = nesting_new();
    struct iommu_hwpt_invalidate cmd = {
        .size = sizeof(cmd),
        .hwpt_id = n.viommu,
        .data_uptr = (uintptr_t)cmds,
        .data_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
        .entry_len = sizeof(cmds[0]),
        .entry_num = 2,
    };
    int vdevice = vdevice_alloc(n.id, n.viommu, SID);

    g_assert_cmpint(iommufd(IOMMU_HWPT_INVALIDATE, &cmd), ==, 0);
    g_assert_cmpuint(cmd.entry_num, ==, 2);
    cmd.entry_num = 3;
    g_assert_cmpint(iommufd(IOMMU_HWPT_INVALIDATE, &cmd), ==, -EIO);
    g_assert_cmpuint(cmd.entry_num, ==, 2);
    cmds[0][0] = 0x03; /* CFGI_STE */
    g_assert_cmpint(iommufd(IOMMU_HWPT_INVALIDATE, &cmd), ==, -EIO);
    g_assert_cmpuint(cmd.entry_num, ==, 0);
    cmd.entry_num = 1;
    cmd.hwpt_id = n.ioas;
    g_assert_cmpint(iommufd(IOMMU_HWPT_INVALIDATE, &cmd), ==, -EINVAL);
    g_assert_cmpint(destroy(vdevice), ==, 0);
    nesting_free(&n);
}

static void test_events(void)
{
    const uint64_t event[4] = { 0x10, 1, 2, 3 };
    const uint64_t bypass[2] = { 0x9, 0 };
    struct {
        struct iommufd_vevent_header header;
        uint64_t event[4];
    } record;
    uint32_t sequence;
    Nesting n = nesting_new();
    struct iommu_veventq_alloc cmd = {
        .size = sizeof(cmd),
        .viommu_id = n.viommu,
        .type = IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
        .veventq_depth = 4,
    };
    int hwpt[2] = {
        hwpt_alloc(n.id, n.viommu, 0, bypass),
        hwpt_alloc(n.id, n.viommu, 0, bypass),
    };
    int vdevice;

    /* The ID of an event is the one that there was at the attachment. */
    g_assert_cmpint(attach(n.dev, hwpt[0]), ==, 0);
    vdevice = vdevice_alloc(n.id, n.viommu, SID);
    g_assert_cmpint(iommufd(IOMMU_VEVENTQ_ALLOC, &cmd), ==, 0);
    g_assert_cmpint(iommufd(IOMMU_VEVENTQ_ALLOC, &cmd), ==, -EEXIST);
    g_assert_cmpint(attach(n.dev, hwpt[0]), ==, 0);
    g_assert_false(host_double_post_event(hd, n.dev, event));
    g_assert_cmpint(attach(n.dev, hwpt[1]), ==, 0);
    g_assert_cmpint(destroy(vdevice), ==, 0);
    vdevice = vdevice_alloc(n.id, n.viommu, SID + 1);
    for (uint32_t i = 0; i < 2; i++) {
        g_assert_true(host_double_post_event(hd, n.dev, event));
        g_assert_cmpint(read(cmd.out_veventq_fd, &record, sizeof(record)), ==,
                        sizeof(record));
        g_assert_cmpuint(record.header.sequence, ==, i);
        g_assert_cmphex(record.event[0], ==, 0x10 | (uint64_t)SID << 32);
        g_assert_cmphex(record.event[3], ==, 3);
    }
    sequence = record.header.sequence;
    g_assert_true(host_double_post_lost(hd, n.dev));
    g_assert_cmpint(read(cmd.out_veventq_fd, &record, sizeof(record)), ==,
                    sizeof(record.header));
    g_assert_cmphex(record.header.flags, ==, IOMMU_VEVENTQ_FLAG_LOST_EVENTS);
    g_assert_cmpuint(record.header.sequence, ==, sequence + 1);

    g_assert_cmpint(destroy(cmd.out_veventq_id), ==, -EBUSY);
    close(cmd.out_veventq_fd);
    g_assert_cmpint(destroy(cmd.out_veventq_id), ==, 0);
    g_assert_cmpint(destroy(vdevice), ==, 0);
    g_assert_cmpint(attach(n.dev, n.parent), ==, 0);
    g_assert_false(host_double_post_event(hd, n.dev, event));
    g_assert_cmpint(destroy(hwpt[0]), ==, 0);
    g_assert_cmpint(destroy(hwpt[1]), ==, 0);
    release(n.dev);
    g_assert_cmpint(bind_device(n.dev), >, 0);
    nesting_free(&n);
}

static void test_hw_info(void)
{
    struct iommu_hw_info_arm_smmuv3 info[2];
    struct iommu_hw_info cmd = {
        .size = sizeof(cmd),
        .data_len = sizeof(info),
        .data_uptr = (uintptr_t)info,
    };
    HDDevice *dev = host_double_add_device(hd, 2);

    hd->shm->smmu[2].idr[3] = 0x1234;
    cmd.dev_id = bind_device(dev);
    memset(info, 0xff, sizeof(info));
    g_assert_cmpint(iommufd(IOMMU_GET_HW_INFO, &cmd), ==, 0);
    g_assert_cmpuint(cmd.out_data_type, ==, IOMMU_HW_INFO_TYPE_ARM_SMMUV3);
    g_assert_cmpuint(cmd.data_len, ==, sizeof(info[0]));
    g_assert_cmphex(info[0].idr[3], ==, 0x1234);
    g_assert_cmphex(info[1].idr[0], ==, 0);
    cmd.dev_id += 1000;
    g_assert_cmpint(iommufd(IOMMU_GET_HW_INFO, &cmd), ==, -ENOENT);
    release(dev);
}

static void test_msi(void)
{
    HDDevice *dev = host_double_add_device(hd, 0);
    int fd[2] = { eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK) };
    const unsigned msi = VFIO_PCI_MSI_IRQ_INDEX;
    const unsigned msix = VFIO_PCI_MSIX_IRQ_INDEX;

    dev->dynamic_msix = true;
    g_assert_cmpint(set_eventfd(dev, msix, 0, fd[0]), ==, -EINVAL);
    g_assert_cmpint(bind_device(dev), >, 0);
    g_assert_cmpint(bind_device(dev), ==, -EINVAL);

    g_assert_false(host_double_fire(hd, dev, msix, 0));
    g_assert_cmpint(set_eventfd(dev, msix, 0, fd[0]), ==, 0);
    g_assert_cmpint(set_eventfd(dev, msi, 0, fd[0]), ==, -EINVAL);
    g_assert_cmpint(set_eventfd(dev, msix, 8, fd[0]), ==, -EINVAL);
    g_assert_cmpint(set_eventfd(dev, msix, 1, hd->iommufd[0] + 1000), ==,
                    -EBADF);
    g_assert_true(host_double_fire(hd, dev, msix, 0));
    g_assert_cmpuint(received(fd[0]), ==, 1);
    g_assert_cmpint(set_eventfd(dev, msix, 0, fd[1]), ==, 0);
    g_assert_true(host_double_fire(hd, dev, msix, 0));
    g_assert_true(host_double_fire(hd, dev, msix, 0));
    g_assert_cmpuint(received(fd[0]), ==, 0);
    g_assert_cmpuint(received(fd[1]), ==, 2);
    g_assert_cmpint(host_double_eventfd(hd, dev, msix, 0), ==, fd[1]);
    g_assert_cmpint(set_eventfd(dev, msix, 0, -1), ==, 0);
    g_assert_false(host_double_fire(hd, dev, msix, 0));

    /* Dynamic MSI-X grows while it is enabled, MSI does not. */
    g_assert_cmpint(set_eventfd(dev, msix, 7, fd[0]), ==, 0);
    g_assert_cmpint(disable_irqs(dev, msix), ==, 0);
    g_assert_cmpint(disable_irqs(dev, msix), ==, -EINVAL);
    g_assert_cmpint(set_eventfd(dev, msi, 0, fd[0]), ==, 0);
    g_assert_cmpint(set_eventfd(dev, msi, 1, fd[1]), ==, -EINVAL);
    g_assert_true(host_double_fire(hd, dev, msi, 0));
    g_assert_cmpuint(received(fd[0]), ==, 1);
    release(dev);
    g_assert_cmpint(host_double_eventfd(hd, dev, msi, 0), ==, HD_NONE);

    /* Nor does MSI-X that is not dynamic. */
    dev->dynamic_msix = false;
    g_assert_cmpint(bind_device(dev), >, 0);
    g_assert_cmpint(set_eventfd(dev, msix, 1, fd[0]), ==, 0);
    g_assert_cmpint(set_eventfd(dev, msix, 0, fd[1]), ==, 0);
    g_assert_cmpint(set_eventfd(dev, msix, 2, fd[1]), ==, -EINVAL);

    /* What the device forgets, the host writes for each vector by itself. */
    host_double_clear_msix(hd, dev);
    g_assert_cmpint(set_eventfd(dev, msix, 0, fd[1]), ==, 0);
    g_assert_true(host_double_fire(hd, dev, msix, 0));
    g_assert_cmpuint(received(fd[1]), ==, 1);
    g_assert_false(host_double_fire(hd, dev, msix, 1));
    g_assert_cmpuint(received(fd[0]), ==, 0);
    release(dev);
    close(fd[0]);
    close(fd[1]);
}

static void test_intx(void)
{
    HDDevice *dev = host_double_add_device(hd, 0);
    int fd = eventfd(0, EFD_NONBLOCK);

    g_assert_cmpint(bind_device(dev), >, 0);
    g_assert_cmpint(set_intx(dev, VFIO_IRQ_SET_ACTION_MASK), ==, -EINVAL);
    g_assert_cmpint(set_eventfd(dev, VFIO_PCI_INTX_IRQ_INDEX, 0, fd), ==, 0);
    g_assert_true(host_double_fire(hd, dev, VFIO_PCI_INTX_IRQ_INDEX, 0));
    g_assert_cmpuint(received(fd), ==, 1);
    /* It masked itself. */
    g_assert_true(host_double_fire(hd, dev, VFIO_PCI_INTX_IRQ_INDEX, 0));
    g_assert_cmpuint(received(fd), ==, 0);
    g_assert_cmpint(set_intx(dev, VFIO_IRQ_SET_ACTION_UNMASK), ==, 0);
    g_assert_cmpuint(received(fd), ==, 1);
    host_double_deassert(hd, dev);
    g_assert_cmpint(set_intx(dev, VFIO_IRQ_SET_ACTION_UNMASK), ==, 0);
    g_assert_cmpuint(received(fd), ==, 0);
    g_assert_cmpint(disable_irqs(dev, VFIO_PCI_INTX_IRQ_INDEX), ==, 0);
    release(dev);
    close(fd);
}

static void test_release(void)
{
    Nesting n = nesting_new();
    int copy = dup(n.dev->fd);

    g_assert_cmpint(vdevice_alloc(n.id, n.viommu, SID), >, 0);
    g_assert_cmpint(attach(n.dev, n.parent), ==, 0);
    /* Another descriptor of the device holds nothing. */
    g_assert_cmpint(double_close(copy), ==, 0);
    g_assert_cmpuint(n.dev->hwpt, ==, n.parent);

    release(n.dev);
    g_assert_cmpuint(n.dev->hwpt, ==, 0);
    g_assert_cmpuint(host_double_objects(hd, HD_VDEVICE), ==, 0);
    g_assert_cmpint(bind_device(n.dev), >, 0);
    nesting_free(&n);
}

static void test_fail(void)
{
    host_double_fail(hd, IOMMU_IOAS_ALLOC, 2, ENOSPC);
    for (int i = 0; i < 3; i++) {
        struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

        g_assert_cmpint(iommufd(IOMMU_IOAS_ALLOC, &cmd), ==,
                        i == 1 ? -ENOSPC : 0);
        if (i != 1) {
            g_assert_cmpint(destroy(cmd.out_ioas_id), ==, 0);
        }
    }
    host_double_fail_forever(hd, IOMMU_IOAS_ALLOC, EIO);
    for (int i = 0; i < 3; i++) {
        struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

        g_assert_cmpint(iommufd(IOMMU_IOAS_ALLOC, &cmd), ==, -EIO);
    }
    host_double_fail_forever(hd, IOMMU_IOAS_ALLOC, 0);
    g_assert_cmpint(destroy(ioas_alloc()), ==, 0);
}

/* The device fires at a call, before or after it has been done. */
static void test_signal(void)
{
    const unsigned index = VFIO_PCI_MSIX_IRQ_INDEX;
    HDDevice *dev = host_double_add_device(hd, 0);
    int fds[] = { eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK) };

    g_assert_cmpint(bind_device(dev), >, 0);
    host_double_signal(hd, VFIO_DEVICE_SET_IRQS, 1, false, dev, index, 0);
    g_assert_cmpint(set_eventfd(dev, index, 0, fds[0]), ==, 0);
    g_assert_false(host_double_signalled(hd, VFIO_DEVICE_SET_IRQS));
    g_assert_cmpuint(received(fds[0]), ==, 0);

    for (int after = 0; after <= 1; after++) {
        host_double_signal(hd, VFIO_DEVICE_SET_IRQS, 2, after, dev, index, 0);
        for (int i = 0; i < 2; i++) {
            g_assert_false(host_double_signalled(hd, VFIO_DEVICE_SET_IRQS));
            g_assert_cmpint(set_eventfd(dev, index, 0, fds[!i]), ==, 0);
        }
        g_assert_true(host_double_signalled(hd, VFIO_DEVICE_SET_IRQS));
        g_assert_cmpuint(received(fds[after ? 0 : 1]), ==, 1);
        g_assert_cmpuint(received(fds[after ? 1 : 0]), ==, 0);
    }
    g_assert_cmpint(disable_irqs(dev, index), ==, 0);
    release(dev);
    close(fds[0]);
    close(fds[1]);
}

static void test_no_leak(void)
{
    for (HDType type = HD_DEVICE; type <= HD_VEVENTQ; type++) {
        g_assert_cmpuint(host_double_objects(hd, type), ==, 0);
    }
}

int main(int argc, char **argv)
{
    g_autofree char *fds = NULL;
    g_autofree char *path = NULL;
    void *lib;
    int ret;

    g_test_init(&argc, &argv, NULL);
    hd = host_double_new();
    fds = g_strdup_printf("%d,%d", hd->shm_fd, hd->peer_fd);
    g_setenv(HOST_DOUBLE_ENV, fds, true);
    path = host_double_path();
    lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        g_error("%s", dlerror());
    }
    double_ioctl = dlsym(lib, "ioctl");
    double_close = dlsym(lib, "close");

    g_test_add_func("/host-double/inert", test_inert);
    g_test_add_func("/host-double/sizes", test_sizes);
    g_test_add_func("/host-double/maps", test_maps);
    g_test_add_func("/host-double/reserved", test_reserved);
    g_test_add_func("/host-double/references", test_references);
    g_test_add_func("/host-double/two-smmus", test_two_smmus);
    g_test_add_func("/host-double/nesting", test_nesting);
    g_test_add_func("/host-double/invalidate", test_invalidate);
    g_test_add_func("/host-double/events", test_events);
    g_test_add_func("/host-double/hw-info", test_hw_info);
    g_test_add_func("/host-double/msi", test_msi);
    g_test_add_func("/host-double/intx", test_intx);
    g_test_add_func("/host-double/release", test_release);
    g_test_add_func("/host-double/fail", test_fail);
    g_test_add_func("/host-double/signal", test_signal);
    g_test_add_func("/host-double/no-leak", test_no_leak);
    ret = g_test_run();
    host_double_free(hd);
    return ret;
}
