/*
 * A host for VFIO devices behind physical SMMUv3s, made for qtest
 *
 * See host-double.h for what it promises. This is what is preloaded into QEMU.
 * It must work in any process, so it uses neither QEMU's code nor GLib's.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include "standard-headers/linux/pci_regs.h"
#include "host-double.h"

/* What QEMU calls. The C libraries do not agree on the type of @request. */
int preloaded_ioctl(int fd, unsigned long request, ...) __asm__("ioctl");
int preloaded_close(int fd) __asm__("close");
char *preloaded_realpath(const char *path, char *resolved) __asm__("realpath");

#define PAGE            4096ull
#define STE0_V          1ull
#define STE0_CFG(x)     (((x) >> 1) & 7)
#define STE_CFG_ABORT   0
#define STE_CFG_BYPASS  4
#define STE_CFG_S1      5
#define STE0_ALLOWED    0xf80fffffffffffffull /* V, Config, S1: Fmt, ptr, max */
#define STE1_ALLOWED    0x00000000380000ffull /* S1DSS, CIR, COR, CSH, STALLD */
#define STE1_EATS(x)    (((x) >> 28) & 3)
#define STE_EATS_TRANS  1

#define CMD_OP(x)       ((x) & 0xff)
#define CMD_SID(x)      ((x) >> 32)

static HDShared *hd;
static pid_t pid; /* of the process that has the devices, not of its children */
static int request_fd = -1;
static pthread_once_t found = PTHREAD_ONCE_INIT, started = PTHREAD_ONCE_INIT;

static int (*real_ioctl)(int fd, unsigned long request, ...);
static int (*real_close)(int fd);
static char *(*real_realpath)(const char *path, char *resolved);

static void lock(void)
{
    hd_lock(hd);
}

static void unlock(void)
{
    hd_unlock(hd);
}

/* Objects */

static HDObject *get_object(int iommufd, uint32_t id, HDType type)
{
    HDObject *obj = id && id < HD_MAX_OBJECTS ? &hd->objects[id] : NULL;

    if (!obj || obj->type == HD_FREE || obj->iommufd != iommufd ||
        (type != HD_FREE && obj->type != type)) {
        return NULL;
    }
    return obj;
}

static uint32_t new_object(int iommufd, HDType type, uint32_t parent)
{
    for (uint32_t id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *obj = &hd->objects[id];

        if (obj->type == HD_FREE) {
            *obj = (HDObject) {
                .type = type,
                .users = 1,
                .iommufd = iommufd,
                .smmu = HD_NONE,
                .device = HD_NONE,
                .parent = parent,
                .fd = HD_NONE,
            };
            if (parent) {
                hd->objects[parent].users++;
            }
            return id;
        }
    }
    return 0;
}

static void free_object(uint32_t id)
{
    HDObject *obj = &hd->objects[id];

    if (obj->parent) {
        hd->objects[obj->parent].users--;
    }
    if (obj->fd != HD_NONE) {
        real_close(obj->fd);
    }
    if (obj->type == HD_IOAS) {
        for (int i = 0; i < HD_MAX_MAPS; i++) {
            if (hd->maps[i].ioas == id) {
                hd->maps[i].ioas = 0;
            }
        }
    }
    *obj = (HDObject) { .type = HD_FREE };
}

/* Has QEMU closed its end of a vEVENTQ? The descriptor keeps the object. */
static void update_veventq(HDObject *obj)
{
    struct pollfd pfd = { .fd = obj->fd };

    if (obj->type == HD_VEVENTQ && obj->fd != HD_NONE &&
        poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLHUP)) {
        real_close(obj->fd);
        obj->fd = HD_NONE;
        obj->users--;
    }
}

static HDDevice *device_of(HDObject *obj)
{
    return &hd->devices[obj->device];
}

/* The HWPT that maps the IOAS below a paging or nested one */
static uint32_t paging_hwpt(uint32_t id)
{
    while (id && hd->objects[id].type != HD_HWPT_PAGING) {
        id = hd->objects[id].parent;
    }
    return id;
}

static uint32_t vdevice_of(HDDevice *dev, uint32_t viommu)
{
    for (uint32_t id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *obj = &hd->objects[id];

        if (obj->type == HD_VDEVICE && device_of(obj) == dev &&
            (!viommu || obj->parent == viommu)) {
            return id;
        }
    }
    return 0;
}

static uint32_t vdevice_of_sid(uint32_t viommu, uint64_t sid)
{
    for (uint32_t id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *obj = &hd->objects[id];

        if (obj->type == HD_VDEVICE && obj->parent == viommu &&
            obj->data[0] == sid) {
            return id;
        }
    }
    return 0;
}

/* IOVA ranges */

/* The first IOVA that an HWPT of this physical SMMU cannot map */
static uint64_t aperture_end(int smmu)
{
    static const uint8_t bits[] = { 32, 36, 40, 42, 44, 48, 52, 56 };

    return 1ull << bits[hd->smmu[smmu].idr[5] & 7];
}

static uint64_t ioas_end(uint32_t ioas)
{
    uint64_t end = UINT64_MAX;

    for (uint32_t id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *obj = &hd->objects[id];

        if (obj->type == HD_HWPT_PAGING && obj->parent == ioas) {
            uint64_t other = aperture_end(obj->smmu);

            end = other < end ? other : end;
        }
    }
    return end;
}

/* Devices reserve IOVAs as long as they are attached. */
static bool ioas_has_reserved(uint32_t ioas)
{
    for (int i = 0; i < HD_MAX_DEVICES; i++) {
        uint32_t hwpt = paging_hwpt(hd->devices[i].hwpt);

        if (hwpt && hd->objects[hwpt].parent == ioas) {
            return true;
        }
    }
    return false;
}

static bool overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
    return a <= b + (blen - 1) && b <= a + (alen - 1);
}

static HDMap *find_map(uint32_t ioas, uint64_t iova, uint64_t length)
{
    HDMap *first = NULL;

    for (int i = 0; i < HD_MAX_MAPS; i++) {
        HDMap *map = &hd->maps[i];

        if (map->ioas == ioas && overlap(map->iova, map->length, iova, length)
            && (!first || map->iova < first->iova)) {
            first = map;
        }
    }
    return first;
}

static int check_iova(uint32_t ioas, uint64_t iova, uint64_t length)
{
    if (!length || ((iova | length) & (PAGE - 1))) {
        return -EINVAL;
    }
    if (iova + (length - 1) < iova) {
        return -EOVERFLOW;
    }
    if (iova + (length - 1) >= ioas_end(ioas) ||
        (ioas_has_reserved(ioas) &&
         overlap(iova, length, HD_RESERVED_BASE, HD_RESERVED_SIZE))) {
        return -EINVAL;
    }
    return find_map(ioas, iova, length) ? -EEXIST : 0;
}

static int add_map(HDMap map)
{
    for (int i = 0; i < HD_MAX_MAPS; i++) {
        if (!hd->maps[i].ioas) {
            hd->maps[i] = map;
            return 0;
        }
    }
    return -ENOMEM;
}

/* The iommufd's ioctls: each has @cmd as long as it knows it. */

typedef struct Call {
    HDCall log;
    int iommufd;
} Call;

/* id: the object */
static int do_destroy(Call *c, void *p)
{
    struct iommu_destroy *cmd = p;
    HDObject *obj = get_object(c->iommufd, cmd->id, HD_FREE);

    c->log.id = cmd->id;
    if (!obj) {
        return -ENOENT;
    }
    update_veventq(obj);
    if (obj->users != 1) {
        return -EBUSY;
    }
    free_object(cmd->id);
    return 0;
}

/* id: the new IOAS */
static int do_ioas_alloc(Call *c, void *p)
{
    struct iommu_ioas_alloc *cmd = p;

    if (cmd->flags) {
        return -EOPNOTSUPP;
    }
    cmd->out_ioas_id = c->log.id = new_object(c->iommufd, HD_IOAS, 0);
    return cmd->out_ioas_id ? 0 : -ENOMEM;
}

/* id: the IOAS */
static int do_ioas_iova_ranges(Call *c, void *p)
{
    struct iommu_ioas_iova_ranges *cmd = p;
    struct iommu_iova_range *out = (void *)(uintptr_t)cmd->allowed_iovas;
    struct iommu_iova_range ranges[2];
    uint32_t max = cmd->num_iovas;
    uint64_t last;

    c->log.id = cmd->ioas_id;
    if (cmd->__reserved) {
        return -EOPNOTSUPP;
    }
    if (!get_object(c->iommufd, cmd->ioas_id, HD_IOAS)) {
        return -ENOENT;
    }
    last = ioas_end(cmd->ioas_id);
    last -= last != UINT64_MAX;
    cmd->num_iovas = 1;
    cmd->out_iova_alignment = PAGE;
    ranges[0] = (struct iommu_iova_range) { 0, last };
    if (ioas_has_reserved(cmd->ioas_id)) {
        cmd->num_iovas = 2;
        ranges[0].last = HD_RESERVED_BASE - 1;
        ranges[1].start = HD_RESERVED_BASE + HD_RESERVED_SIZE;
        ranges[1].last = last;
    }
    for (uint32_t i = 0; i < cmd->num_iovas && i < max; i++) {
        out[i] = ranges[i];
    }
    return cmd->num_iovas > max ? -EMSGSIZE : 0;
}

static int do_map(Call *c, uint32_t flags, HDMap map)
{
    int ret;

    c->log.id = map.ioas;
    c->log.arg[0] = map.iova;
    c->log.arg[1] = map.length;
    c->log.arg[2] = map.start;
    if (flags & ~(IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE |
                  IOMMU_IOAS_MAP_READABLE) ||
        !(flags & IOMMU_IOAS_MAP_FIXED_IOVA)) {
        return -EOPNOTSUPP;
    }
    if (map.iova == UINT64_MAX || map.length == UINT64_MAX) {
        return -EOVERFLOW;
    }
    if (!(flags & (IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE))) {
        return -EINVAL;
    }
    if (!get_object(c->iommufd, map.ioas, HD_IOAS)) {
        return -ENOENT;
    }
    if (map.start & (PAGE - 1)) {
        return -EINVAL;
    }
    ret = check_iova(map.ioas, map.iova, map.length);
    map.flags = flags;
    return ret ?: add_map(map);
}

/* id: the IOAS, arg: IOVA, length, address */
static int do_ioas_map(Call *c, void *p)
{
    struct iommu_ioas_map *cmd = p;
    HDMap map = {
        .ioas = cmd->ioas_id,
        .fd = HD_NONE,
        .iova = cmd->iova,
        .length = cmd->length,
        .start = cmd->user_va,
    };

    return cmd->__reserved ? -EOPNOTSUPP : do_map(c, cmd->flags, map);
}

/* id: the IOAS, arg: IOVA, length, offset in the file */
static int do_ioas_map_file(Call *c, void *p)
{
    struct iommu_ioas_map_file *cmd = p;
    HDMap map = {
        .ioas = cmd->ioas_id,
        .fd = cmd->fd,
        .iova = cmd->iova,
        .length = cmd->length,
        .start = cmd->start,
    };

    return fcntl(cmd->fd, F_GETFD) < 0 ? -EBADF : do_map(c, cmd->flags, map);
}

/* id: the IOAS, arg: IOVA, length */
static int do_ioas_unmap(Call *c, void *p)
{
    struct iommu_ioas_unmap *cmd = p;
    bool all = cmd->iova == 0 && cmd->length == UINT64_MAX;
    uint64_t last = cmd->iova + (cmd->length - 1);
    uint64_t unmapped = 0;
    HDMap *map;

    c->log.id = cmd->ioas_id;
    c->log.arg[0] = cmd->iova;
    c->log.arg[1] = cmd->length;
    if (!get_object(c->iommufd, cmd->ioas_id, HD_IOAS)) {
        return -ENOENT;
    }
    if (!all && (cmd->iova == UINT64_MAX || cmd->length == UINT64_MAX ||
                 last < cmd->iova)) {
        return -EOVERFLOW;
    }
    if (!cmd->length) {
        return -EINVAL;
    }
    while ((map = find_map(cmd->ioas_id, cmd->iova, cmd->length))) {
        if (!all && (map->iova < cmd->iova ||
                     map->iova + (map->length - 1) > last)) {
            return -ENOENT;
        }
        unmapped += map->length;
        map->ioas = 0;
    }
    cmd->length = unmapped;
    return all || unmapped ? 0 : -ENOENT;
}

static int do_ioas_change_process(Call *c, void *p)
{
    struct iommu_ioas_change_process *cmd = p;

    return cmd->__reserved ? -EOPNOTSUPP : 0;
}

/* id: the device, arg: type asked for */
static int do_get_hw_info(Call *c, void *p)
{
    struct iommu_hw_info *cmd = p;
    HDObject *obj = get_object(c->iommufd, cmd->dev_id, HD_DEVICE);
    struct iommu_hw_info_arm_smmuv3 info = { };
    char *data = (void *)(uintptr_t)cmd->data_uptr;
    HDSMMU *smmu;

    c->log.id = cmd->dev_id;
    c->log.arg[0] = cmd->in_data_type;
    if ((cmd->flags & ~IOMMU_HW_INFO_FLAG_INPUT_TYPE) || cmd->__reserved[0] ||
        cmd->__reserved[1] || cmd->__reserved[2]) {
        return -EOPNOTSUPP;
    }
    if (!obj) {
        return -ENOENT;
    }
    if ((cmd->flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE) &&
        cmd->in_data_type != IOMMU_HW_INFO_TYPE_DEFAULT &&
        cmd->in_data_type != IOMMU_HW_INFO_TYPE_ARM_SMMUV3) {
        return -EOPNOTSUPP;
    }
    smmu = &hd->smmu[device_of(obj)->smmu];
    memcpy(info.idr, smmu->idr, sizeof(info.idr));
    memset(data, 0, cmd->data_len);
    memcpy(data, &info, MIN(cmd->data_len, sizeof(info)));
    cmd->data_len = sizeof(info);
    cmd->out_data_type = IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
    cmd->out_max_pasid_log2 = 0;
    cmd->out_capabilities =
        smmu->ats ? 0 : IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED;
    return 0;
}

static int alloc_paging(Call *c, struct iommu_hwpt_alloc *cmd, int smmu)
{
    uint64_t end = aperture_end(smmu);

    switch (cmd->flags) {
    case 0:
    case IOMMU_HWPT_ALLOC_PASID:
        break;
    case IOMMU_HWPT_ALLOC_NEST_PARENT:
        if (!hd->smmu[smmu].nesting) {
            return -EOPNOTSUPP;
        }
        break;
    default:
        return -EOPNOTSUPP;
    }
    if (cmd->data_len) {
        return -EOPNOTSUPP;
    }
    if (find_map(cmd->pt_id, end, UINT64_MAX - end)) {
        return -EADDRINUSE;
    }
    cmd->out_hwpt_id = new_object(c->iommufd, HD_HWPT_PAGING, cmd->pt_id);
    return cmd->out_hwpt_id ? 0 : -ENOMEM;
}

static int alloc_nested(Call *c, struct iommu_hwpt_alloc *cmd)
{
    struct iommu_hwpt_arm_smmuv3 data;
    uint64_t ste[2];
    HDObject *obj;

    if (cmd->flags) {
        return -EOPNOTSUPP;
    }
    if (cmd->data_type != IOMMU_HWPT_DATA_ARM_SMMUV3 ||
        cmd->data_len < sizeof(data)) {
        return cmd->data_len ? -EINVAL : -EOPNOTSUPP;
    }
    memcpy(&data, (void *)(uintptr_t)cmd->data_uptr, sizeof(data));
    ste[0] = le64toh(data.ste[0]);
    ste[1] = le64toh(data.ste[1]);
    if (!(ste[0] & STE0_V)) {
        ste[0] = ste[1] = 0;
    } else {
        uint64_t eats = STE1_EATS(ste[1]);

        if ((ste[0] & ~STE0_ALLOWED) || (ste[1] & ~STE1_ALLOWED) ||
            (STE0_CFG(ste[0]) != STE_CFG_ABORT &&
             STE0_CFG(ste[0]) != STE_CFG_BYPASS &&
             STE0_CFG(ste[0]) != STE_CFG_S1) ||
            (eats && eats != STE_EATS_TRANS)) {
            return -EIO;
        }
    }
    cmd->out_hwpt_id = new_object(c->iommufd, HD_HWPT_NESTED, cmd->pt_id);
    if (!cmd->out_hwpt_id) {
        return -ENOMEM;
    }
    obj = &hd->objects[cmd->out_hwpt_id];
    obj->data[0] = ste[0];
    obj->data[1] = ste[1];
    return 0;
}

/* id: the new HWPT, arg: what it is made on, flags, device */
static int do_hwpt_alloc(Call *c, void *p)
{
    struct iommu_hwpt_alloc *cmd = p;
    HDObject *dev = get_object(c->iommufd, cmd->dev_id, HD_DEVICE);
    HDObject *pt = get_object(c->iommufd, cmd->pt_id, HD_FREE);
    int smmu, ret;

    c->log.arg[0] = cmd->pt_id;
    c->log.arg[1] = cmd->flags;
    c->log.arg[2] = cmd->dev_id;
    if (cmd->__reserved) {
        return -EOPNOTSUPP;
    }
    if ((cmd->data_type == IOMMU_HWPT_DATA_NONE) != !cmd->data_len) {
        return -EINVAL;
    }
    if (!dev) {
        return -ENOENT;
    }
    smmu = device_of(dev)->smmu;
    switch (pt ? pt->type : HD_FREE) {
    case HD_IOAS:
        ret = alloc_paging(c, cmd, smmu);
        break;
    case HD_HWPT_PAGING:
        /* The SMMU's driver makes nested HWPTs on a vIOMMU only. */
        ret = -EOPNOTSUPP;
        break;
    case HD_VIOMMU:
        ret = pt->smmu == smmu ? alloc_nested(c, cmd) : -EINVAL;
        break;
    default:
        ret = -EINVAL;
    }
    if (!ret) {
        c->log.id = cmd->out_hwpt_id;
        hd->objects[cmd->out_hwpt_id].smmu = smmu;
        hd->objects[cmd->out_hwpt_id].flags = cmd->flags;
    }
    return ret;
}

static int check_command(uint32_t viommu, uint64_t cmd)
{
    switch (CMD_OP(cmd)) {
    case 0x10: /* TLBI_NH_ALL */
    case 0x11: /* TLBI_NH_ASID */
    case 0x12: /* TLBI_NH_VA */
    case 0x13: /* TLBI_NH_VAA */
    case 0x30: /* TLBI_NSNH_ALL */
        return 0;
    case 0x05: /* CFGI_CD */
    case 0x06: /* CFGI_CD_ALL */
    case 0x40: /* ATC_INV */
        return vdevice_of_sid(viommu, CMD_SID(cmd)) ? 0 : -EIO;
    default:
        return -EIO;
    }
}

/* id: the vIOMMU, arg: number of commands done, the last of them */
static int do_hwpt_invalidate(Call *c, void *p)
{
    struct iommu_hwpt_invalidate *cmd = p;
    HDObject *obj = get_object(c->iommufd, cmd->hwpt_id, HD_FREE);
    uint32_t n = cmd->entry_num;
    char *data = (void *)(uintptr_t)cmd->data_uptr;
    int ret = 0;

    c->log.id = cmd->hwpt_id;
    cmd->entry_num = 0;
    if (cmd->__reserved) {
        return -EOPNOTSUPP;
    }
    if (n && (!data || !cmd->entry_len)) {
        return -EINVAL;
    }
    if (!obj) {
        return -ENOENT;
    }
    if (obj->type == HD_HWPT_NESTED) {
        return -EOPNOTSUPP;
    }
    if (obj->type != HD_VIOMMU || !n ||
        cmd->data_type != IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 ||
        cmd->entry_len != sizeof(struct iommu_viommu_arm_smmuv3_invalidate)) {
        return -EINVAL;
    }
    while (cmd->entry_num < n && !ret) {
        uint64_t command[2];

        memcpy(command, data + cmd->entry_num * sizeof(command),
               sizeof(command));
        ret = check_command(cmd->hwpt_id, le64toh(command[0]));
        c->log.arg[1] = le64toh(command[0]);
        c->log.arg[2] = le64toh(command[1]);
        cmd->entry_num += !ret;
    }
    c->log.arg[0] = cmd->entry_num;
    return ret;
}

/* id: the new vIOMMU, arg: HWPT, device */
static int do_viommu_alloc(Call *c, void *p)
{
    struct iommu_viommu_alloc *cmd = p;
    HDObject *dev = get_object(c->iommufd, cmd->dev_id, HD_DEVICE);
    HDObject *hwpt = get_object(c->iommufd, cmd->hwpt_id, HD_HWPT_PAGING);
    int smmu;

    c->log.arg[0] = cmd->hwpt_id;
    c->log.arg[1] = cmd->dev_id;
    if (cmd->flags || cmd->type == IOMMU_VIOMMU_TYPE_DEFAULT) {
        return -EOPNOTSUPP;
    }
    if (!dev) {
        return -ENOENT;
    }
    smmu = device_of(dev)->smmu;
    if (cmd->type != IOMMU_VIOMMU_TYPE_ARM_SMMUV3 || !hd->smmu[smmu].nesting) {
        return -EOPNOTSUPP;
    }
    if (!hwpt) {
        return -ENOENT;
    }
    if (!(hwpt->flags & IOMMU_HWPT_ALLOC_NEST_PARENT) || hwpt->smmu != smmu) {
        return -EINVAL;
    }
    cmd->out_viommu_id = c->log.id =
        new_object(c->iommufd, HD_VIOMMU, cmd->hwpt_id);
    if (!cmd->out_viommu_id) {
        return -ENOMEM;
    }
    hd->objects[cmd->out_viommu_id].smmu = smmu;
    return 0;
}

/* id: the new vDEVICE, arg: vIOMMU, device, virtual ID */
static int do_vdevice_alloc(Call *c, void *p)
{
    struct iommu_vdevice_alloc *cmd = p;
    HDObject *viommu = get_object(c->iommufd, cmd->viommu_id, HD_VIOMMU);
    HDObject *dev = get_object(c->iommufd, cmd->dev_id, HD_DEVICE);
    HDObject *obj;

    c->log.arg[0] = cmd->viommu_id;
    c->log.arg[1] = cmd->dev_id;
    c->log.arg[2] = cmd->virt_id;
    if (!viommu || !dev) {
        return -ENOENT;
    }
    if (viommu->smmu != device_of(dev)->smmu) {
        return -EINVAL;
    }
    if (vdevice_of(device_of(dev), 0) ||
        vdevice_of_sid(cmd->viommu_id, cmd->virt_id)) {
        return -EEXIST;
    }
    cmd->out_vdevice_id = c->log.id =
        new_object(c->iommufd, HD_VDEVICE, cmd->viommu_id);
    if (!cmd->out_vdevice_id) {
        return -ENOMEM;
    }
    obj = &hd->objects[cmd->out_vdevice_id];
    obj->device = dev->device;
    obj->data[0] = cmd->virt_id;
    return 0;
}

static uint32_t veventq_of(uint32_t viommu)
{
    for (uint32_t id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *obj = &hd->objects[id];

        if (obj->type == HD_VEVENTQ && obj->parent == viommu) {
            return id;
        }
    }
    return 0;
}

/* id: the new vEVENTQ, arg: vIOMMU, depth */
static int do_veventq_alloc(Call *c, void *p)
{
    struct iommu_veventq_alloc *cmd = p;
    HDObject *obj;
    int fds[2];

    c->log.arg[0] = cmd->viommu_id;
    c->log.arg[1] = cmd->veventq_depth;
    if (cmd->flags || cmd->__reserved ||
        cmd->type == IOMMU_VEVENTQ_TYPE_DEFAULT) {
        return -EOPNOTSUPP;
    }
    if (!cmd->veventq_depth || cmd->veventq_depth > (1U << 19)) {
        return -EINVAL;
    }
    if (!get_object(c->iommufd, cmd->viommu_id, HD_VIOMMU)) {
        return -ENOENT;
    }
    if (veventq_of(cmd->viommu_id)) {
        return -EEXIST;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
        return -errno;
    }
    cmd->out_veventq_id = c->log.id =
        new_object(c->iommufd, HD_VEVENTQ, cmd->viommu_id);
    if (!cmd->out_veventq_id) {
        real_close(fds[0]);
        real_close(fds[1]);
        return -ENOMEM;
    }
    obj = &hd->objects[cmd->out_veventq_id];
    obj->fd = fds[0];
    obj->users++;
    cmd->out_veventq_fd = fds[1];
    return 0;
}

typedef struct IommufdOp {
    size_t size;
    size_t min_size;
    int (*fn)(Call *c, void *cmd);
} IommufdOp;

#define MAX_OP_SIZE 128
#define SIZE_OF(type) (sizeof(struct type) + \
    QEMU_BUILD_BUG_ON_ZERO(sizeof(struct type) > MAX_OP_SIZE))
#define END_OF(type, field) \
    (offsetof(struct type, field) + sizeof(((struct type *)0)->field))
#define OP(nr, fn, type, last) \
    [nr - IOMMUFD_CMD_BASE] = { SIZE_OF(type), END_OF(type, last), fn }

static const IommufdOp iommufd_ops[] = {
    OP(IOMMUFD_CMD_DESTROY, do_destroy, iommu_destroy, id),
    OP(IOMMUFD_CMD_IOAS_ALLOC, do_ioas_alloc, iommu_ioas_alloc, out_ioas_id),
    OP(IOMMUFD_CMD_IOAS_IOVA_RANGES, do_ioas_iova_ranges,
       iommu_ioas_iova_ranges, out_iova_alignment),
    OP(IOMMUFD_CMD_IOAS_MAP, do_ioas_map, iommu_ioas_map, iova),
    OP(IOMMUFD_CMD_IOAS_UNMAP, do_ioas_unmap, iommu_ioas_unmap, length),
    OP(IOMMUFD_CMD_HWPT_ALLOC, do_hwpt_alloc, iommu_hwpt_alloc, __reserved),
    OP(IOMMUFD_CMD_GET_HW_INFO, do_get_hw_info, iommu_hw_info, __reserved),
    OP(IOMMUFD_CMD_HWPT_INVALIDATE, do_hwpt_invalidate,
       iommu_hwpt_invalidate, __reserved),
    OP(IOMMUFD_CMD_IOAS_MAP_FILE, do_ioas_map_file, iommu_ioas_map_file, iova),
    OP(IOMMUFD_CMD_VIOMMU_ALLOC, do_viommu_alloc,
       iommu_viommu_alloc, out_viommu_id),
    OP(IOMMUFD_CMD_VDEVICE_ALLOC, do_vdevice_alloc,
       iommu_vdevice_alloc, virt_id),
    OP(IOMMUFD_CMD_IOAS_CHANGE_PROCESS, do_ioas_change_process,
       iommu_ioas_change_process, __reserved),
    OP(IOMMUFD_CMD_VEVENTQ_ALLOC, do_veventq_alloc,
       iommu_veventq_alloc, out_veventq_fd),
};

static int iommufd_ioctl(Call *c, unsigned nr, void *arg)
{
    const IommufdOp *op;
    union {
        uint32_t size;
        char data[MAX_OP_SIZE];
    } cmd = { };
    uint32_t size;
    int ret;

    if (nr < IOMMUFD_CMD_BASE ||
        nr - IOMMUFD_CMD_BASE >= ARRAY_SIZE(iommufd_ops)) {
        return -ENOTTY;
    }
    op = &iommufd_ops[nr - IOMMUFD_CMD_BASE];
    if (!op->fn) {
        return -EOPNOTSUPP;
    }
    memcpy(&size, arg, sizeof(size));
    if (size < op->min_size) {
        return -EINVAL;
    }
    /* What is unknown must be 0. */
    for (uint32_t i = op->size; i < size; i++) {
        if (((char *)arg)[i]) {
            return -E2BIG;
        }
    }
    memcpy(cmd.data, arg, MIN(size, op->size));
    ret = op->fn(c, cmd.data);
    /* Of those that fail, only these two tell how far they came. */
    if (!ret || ret == -EMSGSIZE || nr == IOMMUFD_CMD_HWPT_INVALIDATE) {
        memcpy(arg, cmd.data, MIN(size, op->size));
    }
    return ret;
}

/* Interrupts of a device */

static unsigned num_vectors(HDDevice *dev, unsigned index)
{
    switch (index) {
    case VFIO_PCI_INTX_IRQ_INDEX:
        return dev->intx;
    case VFIO_PCI_MSI_IRQ_INDEX:
        return dev->num_msi;
    case VFIO_PCI_MSIX_IRQ_INDEX:
        return dev->num_msix;
    default:
        return 1;
    }
}

static void signal_vector(HDVector *v)
{
    uint64_t one = 1;

    if (write(v->own_fd, &one, sizeof(one)) < 0) {
        perror("host-double: write to an eventfd");
    }
}

static void clear_vector(HDVector *v)
{
    if (v->own_fd != HD_NONE) {
        real_close(v->own_fd);
    }
    v->fd = v->own_fd = HD_NONE;
}

/* Linux needs none of QEMU's descriptors to keep an eventfd. */
static int keep_fd(int fd)
{
    struct rlimit limit, high;
    int own_fd, err;

    getrlimit(RLIMIT_NOFILE, &limit);
    high = (struct rlimit) { limit.rlim_max, limit.rlim_max };
    setrlimit(RLIMIT_NOFILE, &high);
    own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    err = errno;
    setrlimit(RLIMIT_NOFILE, &limit);
    return own_fd < 0 ? -err : own_fd;
}

static int set_vector(HDVector *v, int fd)
{
    int own_fd = HD_NONE;

    clear_vector(v);
    if (fd >= 0) {
        own_fd = keep_fd(fd);
        if (own_fd < 0) {
            return own_fd;
        }
        v->no_message = false;
    }
    v->fd = fd >= 0 ? fd : HD_NONE;
    v->own_fd = own_fd;
    return 0;
}

static void update_intx(HDDevice *dev)
{
    HDVector *v = &dev->vectors[hd_vector(VFIO_PCI_INTX_IRQ_INDEX, 0)];

    if (dev->irq_index == VFIO_PCI_INTX_IRQ_INDEX && dev->intx_asserted &&
        !dev->intx_masked && v->own_fd != HD_NONE) {
        dev->intx_masked = true;
        signal_vector(v);
    }
}

static void disable_irqs(HDDevice *dev)
{
    if (dev->irq_index != HD_NONE) {
        for (unsigned i = 0; i < num_vectors(dev, dev->irq_index); i++) {
            clear_vector(&dev->vectors[hd_vector(dev->irq_index, i)]);
        }
    }
    dev->irq_index = HD_NONE;
    dev->num_vectors = 0;
    dev->intx_masked = false;
}

static int set_intx(HDDevice *dev, struct vfio_irq_set *set)
{
    uint32_t data = set->flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    bool on = dev->irq_index == VFIO_PCI_INTX_IRQ_INDEX;
    int32_t fd = HD_NONE;
    int ret;

    if (data == VFIO_IRQ_SET_DATA_EVENTFD) {
        memcpy(&fd, set->data, sizeof(fd));
    }

    switch (set->flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
    case VFIO_IRQ_SET_ACTION_MASK:
    case VFIO_IRQ_SET_ACTION_UNMASK:
        if (!on || set->count != 1) {
            return -EINVAL;
        }
        if (data == VFIO_IRQ_SET_DATA_EVENTFD) {
            return set->flags & VFIO_IRQ_SET_ACTION_MASK ? -ENOTTY : 0;
        }
        if (data == VFIO_IRQ_SET_DATA_NONE || set->data[0]) {
            dev->intx_masked = set->flags & VFIO_IRQ_SET_ACTION_MASK;
        }
        update_intx(dev);
        return 0;
    case VFIO_IRQ_SET_ACTION_TRIGGER:
        if (on && !set->count && data == VFIO_IRQ_SET_DATA_NONE) {
            disable_irqs(dev);
            return 0;
        }
        if ((!on && dev->irq_index != HD_NONE) || set->count != 1 ||
            (!on && data != VFIO_IRQ_SET_DATA_EVENTFD)) {
            return -EINVAL;
        }
        if (data == VFIO_IRQ_SET_DATA_EVENTFD) {
            ret = set_vector(&dev->vectors[hd_vector(set->index, 0)], fd);
            if (ret) {
                return ret;
            }
            dev->irq_index = VFIO_PCI_INTX_IRQ_INDEX;
            update_intx(dev);
        } else if (data == VFIO_IRQ_SET_DATA_NONE || set->data[0]) {
            dev->intx_asserted = true;
            update_intx(dev);
        }
        return 0;
    default:
        return -ENOTTY;
    }
}

static int set_msi(HDDevice *dev, struct vfio_irq_set *set)
{
    uint32_t data = set->flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    bool on = dev->irq_index == set->index;
    bool dynamic = set->index == VFIO_PCI_MSIX_IRQ_INDEX && dev->dynamic_msix;
    unsigned i;
    int ret = 0;

    if (!(set->flags & VFIO_IRQ_SET_ACTION_TRIGGER)) {
        return -ENOTTY;
    }
    if (on && !set->count && data == VFIO_IRQ_SET_DATA_NONE) {
        disable_irqs(dev);
        return 0;
    }
    if ((!on && dev->irq_index != HD_NONE) ||
        (!on && data != VFIO_IRQ_SET_DATA_EVENTFD)) {
        return -EINVAL;
    }
    if (!on) {
        dev->irq_index = set->index;
        dev->num_vectors = set->start + set->count;
    }
    for (i = 0; i < set->count && !ret; i++) {
        HDVector *v = &dev->vectors[hd_vector(set->index, set->start + i)];
        int32_t fd;

        if (data == VFIO_IRQ_SET_DATA_EVENTFD) {
            memcpy(&fd, set->data + i * sizeof(fd), sizeof(fd));
            ret = fd >= 0 && set->start + i >= dev->num_vectors && !dynamic ?
                  -EINVAL : set_vector(v, fd);
        } else if (v->own_fd != HD_NONE &&
                   (data == VFIO_IRQ_SET_DATA_NONE || set->data[i])) {
            signal_vector(v);
        }
    }
    if (ret) {
        while (i--) {
            clear_vector(&dev->vectors[hd_vector(set->index, set->start + i)]);
        }
        if (!on) {
            disable_irqs(dev);
        }
    }
    return ret;
}

static int set_single(HDDevice *dev, struct vfio_irq_set *set)
{
    HDVector *v = &dev->vectors[hd_vector(set->index, 0)];
    int32_t fd;

    if (!(set->flags & VFIO_IRQ_SET_ACTION_TRIGGER)) {
        return -ENOTTY;
    }
    switch (set->flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case VFIO_IRQ_SET_DATA_EVENTFD:
        if (!set->count) {
            return -EINVAL;
        }
        memcpy(&fd, set->data, sizeof(fd));
        return fd < -1 ? -EINVAL : set_vector(v, fd);
    case VFIO_IRQ_SET_DATA_NONE:
        if (v->own_fd == HD_NONE) {
            return -EINVAL;
        }
        if (set->count) {
            signal_vector(v);
        } else {
            clear_vector(v);
        }
        return 0;
    default:
        return -EINVAL;
    }
}

/* The vfio-pci device's ioctls */

/* id: kind of interrupt, arg: flags, first vector, number of vectors */
static int do_set_irqs(Call *c, HDDevice *dev, void *arg)
{
    struct vfio_irq_set *set = arg;
    size_t size = 0;

    if (set->argsz < END_OF(vfio_irq_set, count) ||
        set->index >= VFIO_PCI_NUM_IRQS ||
        (set->flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK |
                        VFIO_IRQ_SET_ACTION_TYPE_MASK)) ||
        set->start >= num_vectors(dev, set->index) ||
        set->count > num_vectors(dev, set->index) - set->start) {
        return -EINVAL;
    }
    c->log.id = set->index;
    c->log.arg[0] = set->flags;
    c->log.arg[1] = set->start;
    c->log.arg[2] = set->count;

    switch (set->flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case VFIO_IRQ_SET_DATA_NONE:
        break;
    case VFIO_IRQ_SET_DATA_BOOL:
        size = 1;
        break;
    case VFIO_IRQ_SET_DATA_EVENTFD:
        size = sizeof(int32_t);
        break;
    default:
        return -EINVAL;
    }
    if (set->argsz - END_OF(vfio_irq_set, count) < size * set->count) {
        return -EINVAL;
    }

    switch (set->index) {
    case VFIO_PCI_INTX_IRQ_INDEX:
        return set_intx(dev, set);
    case VFIO_PCI_MSI_IRQ_INDEX:
    case VFIO_PCI_MSIX_IRQ_INDEX:
        return set_msi(dev, set);
    default:
        return set_single(dev, set);
    }
}

static int do_get_info(HDDevice *dev, void *arg)
{
    struct vfio_device_info *info = arg;

    if (info->argsz < END_OF(vfio_device_info, num_irqs)) {
        return -EINVAL;
    }
    info->flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
    info->num_regions = VFIO_PCI_NUM_REGIONS;
    info->num_irqs = VFIO_PCI_NUM_IRQS;
    return 0;
}

/* id: the region */
static int do_get_region_info(Call *c, HDDevice *dev, void *arg)
{
    struct vfio_region_info *info = arg;
    struct vfio_info_cap_header cap = {
        .id = VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
        .version = 1,
    };

    if (info->argsz < END_OF(vfio_region_info, offset) ||
        info->index >= VFIO_PCI_VGA_REGION_INDEX) {
        return -EINVAL;
    }
    c->log.id = info->index;
    info->cap_offset = 0;
    info->offset = HD_REGION_OFFSET(info->index);
    info->size = 0;
    info->flags = 0;
    switch (info->index) {
    case HD_BAR_DATA:
        info->size = dev->bar_size;
        break;
    case HD_BAR_MSIX:
        info->size = dev->num_msix ? HD_BAR_MSIX_SIZE : 0;
        break;
    case VFIO_PCI_CONFIG_REGION_INDEX:
        info->size = PCI_CFG_SPACE_EXP_SIZE;
        break;
    }
    if (!info->size) {
        return 0;
    }
    info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    if (info->index == VFIO_PCI_CONFIG_REGION_INDEX) {
        return 0;
    }
    info->flags |= VFIO_REGION_INFO_FLAG_MMAP;
    if (info->index == HD_BAR_MSIX) {
        info->flags |= VFIO_REGION_INFO_FLAG_CAPS;
        if (info->argsz < sizeof(*info) + sizeof(cap)) {
            info->argsz = sizeof(*info) + sizeof(cap);
        } else {
            memcpy(info + 1, &cap, sizeof(cap));
            info->cap_offset = sizeof(*info);
        }
    }
    return 0;
}

/* id: kind of interrupt */
static int do_get_irq_info(Call *c, HDDevice *dev, void *arg)
{
    struct vfio_irq_info *info = arg;

    if (info->argsz < END_OF(vfio_irq_info, count) ||
        info->index >= VFIO_PCI_NUM_IRQS) {
        return -EINVAL;
    }
    c->log.id = info->index;
    info->flags = VFIO_IRQ_INFO_EVENTFD;
    info->count = num_vectors(dev, info->index);
    if (info->index == VFIO_PCI_INTX_IRQ_INDEX) {
        info->flags |= VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
    } else if (info->index != VFIO_PCI_MSIX_IRQ_INDEX || !dev->dynamic_msix) {
        info->flags |= VFIO_IRQ_INFO_NORESIZE;
    }
    return 0;
}

static int do_get_hot_reset_info(HDDevice *dev, void *arg)
{
    struct vfio_pci_hot_reset_info *info = arg;
    uint32_t room = info->argsz;

    if (room < END_OF(vfio_pci_hot_reset_info, count)) {
        return -EINVAL;
    }
    info->flags = 0;
    info->count = 1;
    if (room < sizeof(*info) + sizeof(info->devices[0])) {
        return -ENOSPC;
    }
    /* Each device has a slot of its own. */
    info->flags = VFIO_PCI_HOT_RESET_FLAG_DEV_ID |
                  VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
    info->devices[0] = (struct vfio_pci_dependent_device) {
        .devid = dev->id,
        .bus = dev - hd->devices,
    };
    return 0;
}

static void write_config(HDDevice *dev, unsigned at, uint32_t value,
                         unsigned size)
{
    value = htole32(value);
    if (pwrite(dev->bound_fd, &value, size,
               HD_REGION_OFFSET(VFIO_PCI_CONFIG_REGION_INDEX) + at) != size) {
        perror("host-double: write to configuration space");
    }
}

/* An endpoint with PCIe, MSI and MSI-X capabilities */
static void init_config(HDDevice *dev)
{
    const unsigned exp = 0x40, msi = 0x80, msix = 0xa0;
    unsigned next = PCI_CAPABILITY_LIST;

    for (unsigned i = 0; i < PCI_CFG_SPACE_EXP_SIZE; i += 4) {
        write_config(dev, i, 0, 4);
    }
    write_config(dev, PCI_VENDOR_ID, 0x1b36, 2); /* Red Hat */
    write_config(dev, PCI_DEVICE_ID, 0x00ff, 2);
    write_config(dev, PCI_STATUS, PCI_STATUS_CAP_LIST, 2);
    write_config(dev, PCI_CLASS_REVISION, 0xff000000, 4);
    write_config(dev, PCI_INTERRUPT_PIN, dev->intx, 1);

    write_config(dev, next, exp, 1);
    write_config(dev, exp, PCI_CAP_ID_EXP, 1);
    write_config(dev, exp + PCI_EXP_FLAGS, 2 | PCI_EXP_TYPE_ENDPOINT << 4, 2);
    write_config(dev, exp + PCI_EXP_DEVCAP,
                 PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_FLR, 4);
    write_config(dev, exp + PCI_EXP_LNKCAP,
                 PCI_EXP_LNKCAP_SLS_2_5GB | 1 << 4, 4);
    write_config(dev, exp + PCI_EXP_LNKSTA, PCI_EXP_LNKSTA_CLS_2_5GB | 1 << 4,
                 2);
    next = exp + PCI_CAP_LIST_NEXT;

    if (dev->num_msi) {
        write_config(dev, next, msi, 1);
        write_config(dev, msi, PCI_CAP_ID_MSI, 1);
        write_config(dev, msi + PCI_MSI_FLAGS,
                     PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT |
                     __builtin_ctz(dev->num_msi) << 1, 2);
        next = msi + PCI_CAP_LIST_NEXT;
    }
    if (dev->num_msix) {
        write_config(dev, next, msix, 1);
        write_config(dev, msix, PCI_CAP_ID_MSIX, 1);
        write_config(dev, msix + PCI_MSIX_FLAGS, dev->num_msix - 1, 2);
        write_config(dev, msix + PCI_MSIX_TABLE, HD_BAR_MSIX, 4);
        write_config(dev, msix + PCI_MSIX_PBA, HD_BAR_MSIX | HD_MSIX_PBA, 4);
    }
}

static void reset_bars(HDDevice *dev)
{
    fallocate(dev->bound_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              HD_REGION_OFFSET(VFIO_PCI_BAR0_REGION_INDEX),
              HD_REGION_OFFSET(VFIO_PCI_ROM_REGION_INDEX));
}

static int same_file(int fd, uint64_t st_dev, uint64_t st_ino)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_dev == st_dev && st.st_ino == st_ino;
}

static int find_iommufd(int fd)
{
    for (int i = 0; i < HD_MAX_IOMMUFDS; i++) {
        if (hd->iommufd[i].st_ino &&
            same_file(fd, hd->iommufd[i].st_dev, hd->iommufd[i].st_ino)) {
            return i;
        }
    }
    return HD_NONE;
}

static bool is_device(int i, const struct stat *st)
{
    return hd->devices[i].st_ino == st->st_ino &&
           hd->devices[i].st_dev == st->st_dev;
}

static HDDevice *find_device(int fd)
{
    /* What was found last: no search for each call when there are many. */
    static int last[4 * HD_MAX_DEVICES];
    int *guess = &last[fd % ARRAY_SIZE(last)];
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        return NULL;
    }
    if (is_device(*guess, &st)) {
        return &hd->devices[*guess];
    }
    for (int i = 0; i < HD_MAX_DEVICES && hd->devices[i].st_ino; i++) {
        if (is_device(i, &st)) {
            *guess = i;
            return &hd->devices[i];
        }
    }
    return NULL;
}

/* id: the new device */
static int do_bind(Call *c, HDDevice *dev, int fd, void *arg)
{
    struct vfio_device_bind_iommufd *bind = arg;
    int iommufd;

    if (bind->argsz < END_OF(vfio_device_bind_iommufd, out_devid) ||
        bind->flags || bind->iommufd < 0 || dev->bound_fd != HD_NONE) {
        return -EINVAL;
    }
    if (fcntl(bind->iommufd, F_GETFD) < 0) {
        return -EBADF;
    }
    iommufd = find_iommufd(bind->iommufd);
    if (iommufd == HD_NONE) {
        return -EBADFD;
    }
    dev->id = new_object(iommufd, HD_DEVICE, 0);
    if (!dev->id) {
        return -ENOMEM;
    }
    /* The user cannot destroy it. */
    hd->objects[dev->id].users++;
    hd->objects[dev->id].device = dev - hd->devices;
    dev->bound_fd = fd;
    dev->iommufd = iommufd;
    init_config(dev);
    reset_bars(dev);
    bind->out_devid = c->log.id = dev->id;
    return 0;
}

static void detach(HDDevice *dev)
{
    if (dev->hwpt) {
        hd->objects[dev->hwpt].users--;
        dev->hwpt = 0;
        dev->vsid = HD_NONE;
    }
}

/* id: what to attach */
static int do_attach(Call *c, HDDevice *dev, void *arg)
{
    struct vfio_device_attach_iommufd_pt *attach = arg;
    HDObject *hwpt = get_object(dev->iommufd, attach->pt_id, HD_FREE);
    uint32_t vdevice, ioas;

    if (attach->argsz < END_OF(vfio_device_attach_iommufd_pt, pt_id)) {
        return -EINVAL;
    }
    c->log.id = attach->pt_id;
    if (attach->flags) {
        return attach->flags & ~VFIO_DEVICE_ATTACH_PASID ? -EINVAL
                                                         : -EOPNOTSUPP;
    }
    if (!hwpt) {
        return -ENOENT;
    }
    if (attach->pt_id == dev->hwpt) {
        return 0;
    }
    switch (hwpt->type) {
    case HD_HWPT_PAGING:
    case HD_HWPT_NESTED:
        break;
    case HD_IOAS:
        return -EOPNOTSUPP;
    default:
        return -EINVAL;
    }
    if (hwpt->smmu != dev->smmu) {
        return -EINVAL;
    }
    vdevice = hwpt->type == HD_HWPT_NESTED ? vdevice_of(dev, hwpt->parent) : 0;
    if (hwpt->type == HD_HWPT_NESTED && STE0_CFG(hwpt->data[0]) == STE_CFG_S1
        && !vdevice) {
        return -ENOENT;
    }
    ioas = hd->objects[paging_hwpt(attach->pt_id)].parent;
    if (find_map(ioas, HD_RESERVED_BASE, HD_RESERVED_SIZE)) {
        return -EADDRINUSE;
    }
    hwpt->users++;
    detach(dev);
    dev->hwpt = attach->pt_id;
    dev->vsid = vdevice ? hd->objects[vdevice].data[0] : HD_NONE;
    return 0;
}

static int do_detach(HDDevice *dev, void *arg)
{
    struct vfio_device_detach_iommufd_pt *cmd = arg;

    if (cmd->argsz < END_OF(vfio_device_detach_iommufd_pt, flags)) {
        return -EINVAL;
    }
    if (cmd->flags) {
        return cmd->flags & ~VFIO_DEVICE_DETACH_PASID ? -EINVAL : -EOPNOTSUPP;
    }
    detach(dev);
    return 0;
}

/* id: flags */
static int do_feature(Call *c, HDDevice *dev, void *arg)
{
    struct vfio_device_feature *feature = arg;
    struct vfio_device_feature_dma_buf *buf = (void *)feature->data;
    uint64_t size, offset;

    c->log.id = feature->flags;
    if ((feature->flags & VFIO_DEVICE_FEATURE_MASK) !=
        VFIO_DEVICE_FEATURE_DMA_BUF) {
        return -ENOTTY;
    }
    if (feature->flags & VFIO_DEVICE_FEATURE_PROBE) {
        return 0;
    }
    if (!(feature->flags & VFIO_DEVICE_FEATURE_GET) || buf->flags ||
        !buf->nr_ranges ||
        feature->argsz < sizeof(*feature) + sizeof(*buf) +
                         buf->nr_ranges * sizeof(buf->dma_ranges[0])) {
        return -EINVAL;
    }
    switch (buf->region_index) {
    case HD_BAR_DATA:
        size = dev->bar_size;
        break;
    case HD_BAR_MSIX:
        size = HD_BAR_MSIX_SIZE;
        break;
    default:
        return -EINVAL;
    }
    for (uint32_t i = 0; i < buf->nr_ranges; i++) {
        offset = buf->dma_ranges[i].offset;
        if (!buf->dma_ranges[i].length ||
            (offset | buf->dma_ranges[i].length) & (PAGE - 1) ||
            offset >= size || buf->dma_ranges[i].length > size - offset) {
            return -EINVAL;
        }
    }
    return fcntl(dev->bound_fd, F_DUPFD_CLOEXEC, 0);
}

static void unbind(HDDevice *dev)
{
    uint32_t vdevice = vdevice_of(dev, 0);

    disable_irqs(dev);
    clear_vector(&dev->vectors[hd_vector(VFIO_PCI_ERR_IRQ_INDEX, 0)]);
    clear_vector(&dev->vectors[hd_vector(VFIO_PCI_REQ_IRQ_INDEX, 0)]);
    if (vdevice) {
        free_object(vdevice);
    }
    detach(dev);
    free_object(dev->id);
    dev->id = 0;
    dev->bound_fd = HD_NONE;
    dev->iommufd = HD_NONE;
}

static int device_ioctl(Call *c, HDDevice *dev, int fd, unsigned nr, void *arg)
{
    if (nr == _IOC_NR(VFIO_DEVICE_BIND_IOMMUFD)) {
        return do_bind(c, dev, fd, arg);
    }
    if (dev->bound_fd == HD_NONE) {
        return -EINVAL;
    }
    switch (nr) {
    case _IOC_NR(VFIO_DEVICE_ATTACH_IOMMUFD_PT):
        return do_attach(c, dev, arg);
    case _IOC_NR(VFIO_DEVICE_DETACH_IOMMUFD_PT):
        return do_detach(dev, arg);
    case _IOC_NR(VFIO_DEVICE_FEATURE):
        return do_feature(c, dev, arg);
    case _IOC_NR(VFIO_DEVICE_GET_INFO):
        return do_get_info(dev, arg);
    case _IOC_NR(VFIO_DEVICE_GET_REGION_INFO):
        return do_get_region_info(c, dev, arg);
    case _IOC_NR(VFIO_DEVICE_GET_IRQ_INFO):
        return do_get_irq_info(c, dev, arg);
    case _IOC_NR(VFIO_DEVICE_SET_IRQS):
        return do_set_irqs(c, dev, arg);
    case _IOC_NR(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO):
        return do_get_hot_reset_info(dev, arg);
    case _IOC_NR(VFIO_DEVICE_RESET):
    case _IOC_NR(VFIO_DEVICE_PCI_HOT_RESET):
        dev->resets++;
        reset_bars(dev);
        return 0;
    default:
        return -ENOTTY;
    }
}

/* What the test asks for */

static int fire(HDDevice *dev, unsigned index, unsigned vector)
{
    HDVector *v;

    if (index >= VFIO_PCI_NUM_IRQS || vector >= num_vectors(dev, index)) {
        return -EINVAL;
    }
    v = &dev->vectors[hd_vector(index, vector)];
    if (index == VFIO_PCI_INTX_IRQ_INDEX) {
        dev->intx_asserted = true;
        update_intx(dev);
    } else if (v->own_fd != HD_NONE && !v->no_message) {
        signal_vector(v);
    }
    return v->own_fd == HD_NONE || v->no_message ? -ENOENT : 0;
}

/* 0 if the vector's eventfd was read since it was signalled */
static int pending(HDDevice *dev, unsigned index, unsigned vector)
{
    struct pollfd pfd = {
        .fd = dev->vectors[hd_vector(index, vector)].own_fd,
        .events = POLLIN,
    };

    return poll(&pfd, 1, 0) == 1 ? -ENOENT : 0;
}

static int post_event(HDDevice *dev, const uint64_t *event)
{
    struct {
        struct iommufd_vevent_header header;
        struct iommu_vevent_arm_smmuv3 event;
    } record = { };
    size_t size = sizeof(record.header);
    uint32_t veventq;
    HDObject *q;

    if (dev->vsid == HD_NONE) {
        return -ENOENT;
    }
    veventq = veventq_of(hd->objects[dev->hwpt].parent);
    if (!veventq) {
        return -ENOENT;
    }
    q = &hd->objects[veventq];
    /* Lost events have a number, too. */
    record.header.sequence = q->sequence;
    q->sequence = (q->sequence + 1) & INT_MAX;
    if (event) {
        size = sizeof(record);
        for (int i = 0; i < 4; i++) {
            record.event.evt[i] = htole64(event[i]);
        }
        record.event.evt[0] =
            htole64((uint32_t)event[0] | (uint64_t)dev->vsid << 32);
    } else {
        record.header.flags = IOMMU_VEVENTQ_FLAG_LOST_EVENTS;
    }
    return send(q->fd, &record, size, MSG_DONTWAIT | MSG_NOSIGNAL) == size ?
           0 : -EIO;
}

static int handle_request(const HDRequest *req)
{
    HDDevice *dev = &hd->devices[req->device];

    switch (req->type) {
    case HD_FIRE:
        return fire(dev, req->index, req->vector);
    case HD_PENDING:
        return pending(dev, req->index, req->vector);
    case HD_DEASSERT:
        dev->intx_asserted = false;
        return 0;
    case HD_POST_EVENT:
        return post_event(dev, req->event);
    case HD_POST_LOST:
        return post_event(dev, NULL);
    default:
        return -EINVAL;
    }
}

static void *request_thread(void *opaque)
{
    HDRequest req;
    int32_t ret;

    while (recv(request_fd, &req, sizeof(req), 0) == sizeof(req)) {
        lock();
        ret = handle_request(&req);
        unlock();
        if (send(request_fd, &ret, sizeof(ret), MSG_NOSIGNAL) < 0) {
            break;
        }
    }
    return NULL;
}

static void find_real(void)
{
    real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    real_close = dlsym(RTLD_NEXT, "close");
    real_realpath = dlsym(RTLD_NEXT, "realpath");
}

static void start(void)
{
    const char *env = getenv(HOST_DOUBLE_ENV);
    sigset_t all, old;
    pthread_t thread;
    int shm_fd;
    void *shm;

    if (!env || sscanf(env, "%d,%d", &shm_fd, &request_fd) != 2) {
        return;
    }
    shm = mmap(NULL, sizeof(*hd), PROT_READ | PROT_WRITE, MAP_SHARED, shm_fd,
               0);
    if (shm == MAP_FAILED) {
        perror("host-double: mmap");
        return;
    }
    /* Signals are for QEMU's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid = getpid();
    hd = shm;
    if (pthread_create(&thread, NULL, request_thread, NULL)) {
        perror("host-double: pthread_create");
        hd = NULL;
    } else {
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void log_call(const HDCall *call)
{
    hd->calls[hd->num_calls++ % HD_MAX_CALLS] = *call;
}

/* Is this call the one that the test wants to fail? */
static int injected_error(unsigned nr)
{
    if (!hd->fail[nr].n || --hd->fail[nr].n) {
        return 0;
    }
    hd->fail[nr].n = hd->fail[nr].forever;
    return -hd->fail[nr].err;
}

static void injected_interrupt(unsigned nr)
{
    HDDevice *dev = &hd->devices[hd->signal[nr].device];

    hd->signal[nr].sent = fire(dev, hd->signal[nr].index,
                               hd->signal[nr].vector) == 0;
}

static int double_ioctl(int fd, unsigned nr, void *arg, int iommufd,
                        HDDevice *dev)
{
    bool signal = hd->signal[nr].n && --hd->signal[nr].n == 0;
    Call c = {
        .iommufd = iommufd,
        .log = {
            .nr = nr,
            .device = dev ? dev - hd->devices : HD_NONE,
        },
    };
    int ret;

    if (signal && !hd->signal[nr].after) {
        injected_interrupt(nr);
    }
    ret = injected_error(nr);
    if (!ret) {
        ret = dev ? device_ioctl(&c, dev, fd, nr, arg)
                  : iommufd_ioctl(&c, nr, arg);
    }
    if (signal && hd->signal[nr].after) {
        injected_interrupt(nr);
    }
    c.log.result = MIN(ret, 0);
    log_call(&c.log);
    return ret;
}

int preloaded_ioctl(int fd, unsigned long request, ...)
{
    int iommufd = HD_NONE;
    HDDevice *dev = NULL;
    va_list ap;
    void *arg;
    int ret;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);

    pthread_once(&found, find_real);
    /* iommufd and VFIO have the same type. */
    if (_IOC_TYPE(request) != VFIO_TYPE) {
        return real_ioctl(fd, request, arg);
    }
    pthread_once(&started, start);
    if (!hd) {
        return real_ioctl(fd, request, arg);
    }

    lock();
    iommufd = find_iommufd(fd);
    dev = iommufd == HD_NONE ? find_device(fd) : NULL;
    if (!dev && iommufd == HD_NONE) {
        unlock();
        return real_ioctl(fd, request, arg);
    }
    ret = double_ioctl(fd, _IOC_NR(request), arg, iommufd, dev);
    unlock();
    if (ret < 0) {
        errno = -ret;
        return -1;
    }
    return ret;
}

int preloaded_close(int fd)
{
    pthread_once(&found, find_real);
    if (hd && fd >= 0 && pid == getpid()) {
        HDDevice *dev;

        lock();
        dev = find_device(fd);
        if (dev && dev->bound_fd == fd) {
            unbind(dev);
        }
        unlock();
    }
    return real_close(fd);
}

char *preloaded_realpath(const char *path, char *resolved)
{
    pthread_once(&found, find_real);
    if (!strcmp(path, HD_MEDIATED "/subsystem") && getenv(HOST_DOUBLE_ENV)) {
        return strdup("/sys/bus/mdev");
    }
    return real_realpath(path, resolved);
}
