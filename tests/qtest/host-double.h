/*
 * A host for VFIO devices behind physical SMMUv3s, made for qtest
 *
 * host-double.so is preloaded into QEMU. It answers the ioctls of an iommufd
 * and of vfio-pci devices whose file descriptors the test made and passed to
 * QEMU; for everything else it is not there. Without any hardware a test thus
 * sees what QEMU asks of the host, makes devices send interrupts and events,
 * and makes the host fail.
 *
 * What it promises
 * ----------------
 * - It accepts and refuses what Linux does, with the same errno, as far as
 *   objects and their references, IOVA ranges, HWPTs, physical SMMUs and
 *   interrupts go:
 *     - an object that something refers to is not destroyed (EBUSY)
 *     - maps must be aligned, not overlap (EEXIST) and stay out of reserved
 *       IOVAs (EINVAL); a map is only unmapped as a whole (ENOENT)
 *     - an HWPT can be attached to devices of its own physical SMMU (EINVAL),
 *       and be a nesting parent only if made as one (EINVAL)
 *     - a nested STE has no bits but those that a guest may have (EIO), and
 *       one that translates wants a vDEVICE of the device (ENOENT)
 *     - invalidation commands are checked, their vSID too (EIO)
 *     - an event has the vSID that the device had when an HWPT was attached
 *       last; to attach the one that is attached changes nothing
 *     - one kind of interrupt is enabled at a time (EINVAL), and only vectors
 *       that were allocated can be used, unless MSI-X is dynamic
 * - A device sends an interrupt to the eventfd that it was given last, and to
 *   none if it has none. A table of MSI-X that the device has cleared is filled
 *   as eventfds are given to vectors. INTx masks itself and fires again when it
 *   is unmasked while it is still asserted.
 * - Regions of a device are memory: read(), write() and mmap() work on the
 *   file descriptor itself.
 * - All state is in memory that the test shares, and changes under a lock. Its
 *   layout is the same for all 64-bit machines, so that QEMU may be another
 *   machine's, run by qemu-user.
 *
 * Where it differs from Linux
 * ---------------------------
 * - Nothing is translated and no memory is pinned. The address behind a map is
 *   not looked at. No page is ever dirty.
 * - Configuration space is plain memory: nothing in it is read-only or has a
 *   side effect. A bind restores it.
 * - A device is released by close() of the descriptor it is bound through, even
 *   if the test has another one of it. Closing an iommufd frees nothing.
 * - An interrupt is sent whatever HWPT is attached, also one that aborts; and
 *   vectors are allocated while nothing is attached (EOPNOTSUPP in Linux).
 * - Declined: attachment to an IOAS or of a PASID, fault and hardware queues,
 *   maps without a fixed IOVA, dirty tracking, IOMMU_IOAS_COPY and
 *   IOMMU_IOAS_ALLOW_IOVAS, IOMMU_OPTION, IOMMU_VFIO_IOAS,
 *   VFIO_DEVICE_IOEVENTFD, all features but DMA-BUF.
 * - Each device is an IOMMU group of its own. The ID of a vDEVICE is free again
 *   when its device is released, not only when it is destroyed as well.
 * - A vEVENTQ holds more than its depth; the test posts lost events itself.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_HOST_DOUBLE_H
#define TESTS_QTEST_HOST_DOUBLE_H

#include <sched.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

/* Names the descriptors of the shared memory and the request socket. */
#define HOST_DOUBLE_ENV         "QTEST_HOST_DOUBLE"

#define HD_MAX_IOMMUFDS         4
#define HD_MAX_SMMUS            4
#define HD_MAX_DEVICES          1024
#define HD_MAX_OBJECTS          4096
#define HD_MAX_MAPS             4096
#define HD_MAX_CALLS            65536
#define HD_MAX_MSIX             2048

/* Region @index of a device starts here in its file. */
#define HD_REGION_OFFSET(index) ((uint64_t)(index) << 32)
#define HD_BAR_DATA             0
#define HD_BAR_MSIX             2
#define HD_BAR_MSIX_SIZE        0x10000
#define HD_MSIX_PBA             0x8000

/* The sysfs path of a mediated device; there is no more of it than the path. */
#define HD_MEDIATED             "/host-double/mediated"

/* What Linux reserves for MSIs of devices behind an SMMU */
#define HD_RESERVED_BASE        0x8000000
#define HD_RESERVED_SIZE        0x100000

/* All vectors of a device: one INTx, 32 MSI, HD_MAX_MSIX MSI-X, one ERR, REQ */
#define HD_MAX_VECTORS          (1 + 32 + HD_MAX_MSIX + 2)

/* Stands for "no device", "no interrupt" and the like */
#define HD_NONE                 (-1)

typedef enum HDType {
    HD_FREE,
    HD_DEVICE,
    HD_IOAS,
    HD_HWPT_PAGING,
    HD_HWPT_NESTED,
    HD_VIOMMU,
    HD_VDEVICE,
    HD_VEVENTQ,
} HDType;

/* An iommufd object. Its ID is its index. */
typedef struct HDObject {
    uint32_t type;
    uint32_t users;         /* what refers to it, its ID included */
    int32_t iommufd;
    int32_t smmu;           /* the physical one of an HWPT or vIOMMU */
    int32_t device;         /* of a device or vDEVICE */
    uint32_t parent;        /* ID of what it was made on, 0 if none */
    uint32_t flags;         /* of an HWPT */
    uint32_t sequence;      /* number of the last event of a vEVENTQ */
    int32_t fd;             /* the double's end of a vEVENTQ */
    uint64_t data[2];       /* STE of a nested HWPT, virtual ID of a vDEVICE */
} HDObject;

typedef struct HDMap {
    uint32_t ioas;          /* 0 if this entry is free */
    uint32_t flags;
    int32_t fd;             /* HD_NONE if @start is an address of QEMU's */
    uint64_t iova;
    uint64_t length;
    uint64_t start;
} HDMap;

/* A physical SMMU, as the test wants it */
typedef struct HDSMMU {
    uint32_t idr[6];
    bool nesting;
    bool ats;
} HDSMMU;

typedef struct HDVector {
    int32_t fd;             /* the eventfd as QEMU knows it, or HD_NONE */
    int32_t own_fd;         /* the same eventfd, kept by the double */
    bool no_message;        /* the device has forgotten its own */
} HDVector;

typedef struct HDDevice {
    /* As the test wants it; not to be changed while bound */
    int32_t fd;             /* for QEMU */
    uint64_t st_dev;
    uint64_t st_ino;
    int32_t smmu;
    uint32_t bar_size;      /* of HD_BAR_DATA, 0 if it has none */
    uint16_t num_msi;
    uint16_t num_msix;
    bool intx;
    bool dynamic_msix;

    /* As QEMU has it */
    int32_t bound_fd;       /* HD_NONE if it is not bound */
    int32_t iommufd;
    uint32_t id;            /* of the device as an iommufd object */
    uint32_t hwpt;          /* what is attached, 0 if nothing */
    int64_t vsid;           /* of events, HD_NONE if there is none */
    int32_t irq_index;      /* what is enabled of INTx, MSI and MSI-X */
    uint32_t num_vectors;   /* allocated in the host */
    uint32_t resets;
    bool intx_masked;
    bool intx_asserted;
    HDVector vectors[HD_MAX_VECTORS];
} HDDevice;

/* One call; what @id and @arg hold is for each kind in host-double.c. */
typedef struct HDCall {
    uint32_t nr;            /* _IOC_NR() of the request */
    int32_t device;         /* HD_NONE if it was made on an iommufd */
    int32_t result;         /* negative errno if it failed */
    uint32_t id;
    uint64_t arg[3];
} HDCall;

typedef struct HDShared {
    uint32_t locked;

    struct {
        uint64_t st_dev;
        uint64_t st_ino;
    } iommufd[HD_MAX_IOMMUFDS];
    HDSMMU smmu[HD_MAX_SMMUS];

    /* Let the n-th call from now of a kind fail, or all from it on */
    struct {
        uint32_t n;         /* 0 if none fails */
        int32_t err;
        bool forever;
    } fail[256];

    /* Let a device fire at the n-th call from now of a kind, if n is not 0 */
    struct {
        uint32_t n;
        bool after;
        bool sent;          /* it has, and there was an eventfd to signal */
        int32_t device;
        uint32_t index;
        uint32_t vector;
    } signal[256];

    HDObject objects[HD_MAX_OBJECTS];
    HDMap maps[HD_MAX_MAPS];
    HDDevice devices[HD_MAX_DEVICES];
    uint64_t num_calls;     /* also of those that are forgotten */
    HDCall calls[HD_MAX_CALLS];
} HDShared;

/* No mutex: those of two machines differ. It is never held for long. */
static inline bool hd_trylock(HDShared *hd)
{
    return !__atomic_exchange_n(&hd->locked, 1, __ATOMIC_ACQUIRE);
}

static inline void hd_lock(HDShared *hd)
{
    while (!hd_trylock(hd)) {
        sched_yield();
    }
}

static inline void hd_unlock(HDShared *hd)
{
    __atomic_store_n(&hd->locked, 0, __ATOMIC_RELEASE);
}

/* What the test asks the double to do in QEMU's process */
typedef struct HDRequest {
    enum {
        HD_FIRE,            /* interrupt @vector of @index of @device */
        HD_PENDING,         /* has nobody read that interrupt's eventfd? */
        HD_DEASSERT,        /* INTx of @device */
        HD_POST_EVENT,      /* @event for the guest that has @device */
        HD_POST_LOST,       /* tell this guest that events were lost */
    } type;
    int32_t device;
    uint32_t index;
    uint32_t vector;
    uint64_t event[4];
} HDRequest;

/* Index of a vector in HDDevice.vectors */
static inline unsigned hd_vector(unsigned index, unsigned vector)
{
    static const unsigned first[VFIO_PCI_NUM_IRQS] = {
        [VFIO_PCI_INTX_IRQ_INDEX] = 0,
        [VFIO_PCI_MSI_IRQ_INDEX] = 1,
        [VFIO_PCI_MSIX_IRQ_INDEX] = 1 + 32,
        [VFIO_PCI_ERR_IRQ_INDEX] = 1 + 32 + HD_MAX_MSIX,
        [VFIO_PCI_REQ_IRQ_INDEX] = 1 + 32 + HD_MAX_MSIX + 1,
    };

    return first[index] + vector;
}

/* The test's side: host-double-client.c */

typedef struct QTestState QTestState;

typedef struct HostDouble {
    HDShared *shm;
    int shm_fd;
    int request_fd;         /* ours, and the other end for QEMU */
    int peer_fd;
    int iommufd[HD_MAX_IOMMUFDS];
    unsigned num_iommufds;
    unsigned num_devices;
    bool dump_on_abort;
} HostDouble;

/**
 * host_double_path - where the double was built; to be freed
 */
char *host_double_path(void);

/**
 * host_double_new - make a host with one iommufd and no device
 *
 * All its SMMUs have what QEMU's has, and nesting.
 */
HostDouble *host_double_new(void);
void host_double_free(HostDouble *hd);

/**
 * host_double_add_iommufd - make another iommufd
 *
 * Returns: its index in @hd->iommufd, where the descriptor for QEMU is
 */
unsigned host_double_add_iommufd(HostDouble *hd);

/**
 * host_double_add_device - make a device behind physical SMMU @smmu
 *
 * It has INTx, 8 MSI and 8 MSI-X vectors, which are not dynamic: Linux has none
 * such on Arm. The caller may change that before QEMU has it.
 */
HDDevice *host_double_add_device(HostDouble *hd, int smmu);

/**
 * host_double_qtest_init - start QEMU on this host
 *
 * QEMU has the same numbers for the descriptors. From now on a failed
 * assertion prints host_double_dump().
 */
QTestState *host_double_qtest_init(HostDouble *hd, const char *args);

/**
 * host_double_run - start QEMU on this host and have it quit
 *
 * @output: all that it writes, to be freed
 *
 * Returns: its wait status. What it had of the host then is still there.
 */
int host_double_run(HostDouble *hd, const char *args, char **output);

/**
 * host_double_fire - let a device send an interrupt
 *
 * @index: VFIO_PCI_MSIX_IRQ_INDEX and the like
 *
 * Returns: whether there was an eventfd to signal. QEMU has yet to see it.
 */
bool host_double_fire(HostDouble *hd, HDDevice *dev, unsigned index,
                      unsigned vector);

/**
 * host_double_wait - wait until somebody has read a vector's eventfd
 *
 * If it was QEMU's main loop, it handles the interrupt before the next command
 * of the test.
 *
 * Returns: false if nobody does for five seconds
 */
bool host_double_wait(HostDouble *hd, HDDevice *dev, unsigned index,
                      unsigned vector);
void host_double_deassert(HostDouble *hd, HDDevice *dev);

/**
 * host_double_clear_msix - let a device lose the messages of its MSI-X table
 *
 * As by a reset that its driver asks it for, and the host does not see.
 */
void host_double_clear_msix(HostDouble *hd, HDDevice *dev);

/**
 * host_double_post_event - let the SMMU report an event for a device's stream
 *
 * The stream ID in @event is replaced by the virtual one.
 *
 * Returns: whether there was a vEVENTQ to take it
 */
bool host_double_post_event(HostDouble *hd, HDDevice *dev,
                            const uint64_t event[4]);
bool host_double_post_lost(HostDouble *hd, HDDevice *dev);

/**
 * host_double_fail - let the @n-th call from now of a kind fail with @err
 *
 * @request: VFIO_DEVICE_SET_IRQS, IOMMU_IOAS_MAP and the like
 */
void host_double_fail(HostDouble *hd, unsigned long request, unsigned n,
                      int err);

/**
 * host_double_fail_forever - let all calls of a kind fail, or none if @err is 0
 */
void host_double_fail_forever(HostDouble *hd, unsigned long request, int err);

/**
 * host_double_signal - let a device fire at the @n-th call from now of a kind
 *
 * @request: VFIO_DEVICE_SET_IRQS, IOMMU_IOAS_MAP and the like
 * @n: which one, or 0 for none any more
 * @after: when the call has been done, else before
 */
void host_double_signal(HostDouble *hd, unsigned long request, unsigned n,
                        bool after, HDDevice *dev, unsigned index,
                        unsigned vector);

/**
 * host_double_signalled - has host_double_signal() sent an interrupt?
 */
bool host_double_signalled(HostDouble *hd, unsigned long request);

/**
 * host_double_calls - count the calls of a kind, failed ones included
 */
unsigned host_double_calls(HostDouble *hd, unsigned long request);

/**
 * host_double_forget_calls - begin anew with HDShared.calls
 */
void host_double_forget_calls(HostDouble *hd);

/**
 * host_double_objects - count the objects of a kind, all if HD_FREE
 */
unsigned host_double_objects(HostDouble *hd, HDType type);

/**
 * host_double_eventfd - the eventfd that a vector signals, as QEMU knows it
 *
 * Returns: a descriptor of QEMU's, or HD_NONE
 */
int host_double_eventfd(HostDouble *hd, HDDevice *dev, unsigned index,
                        unsigned vector);

/**
 * host_double_dump - print maps, objects, devices and the last calls
 */
void host_double_dump(HostDouble *hd);

#endif /* TESTS_QTEST_HOST_DOUBLE_H */
