/*
 * What VFIO devices behind an accelerated SMMUv3 cost QEMU
 *
 * Not a test: it prints figures, a name and a number a line, and whoever runs
 * it compares those of two QEMUs or of two machines. Times of operations are
 * the processor time of the QEMU process, which load of the host hardly
 * changes, less what the same qtest commands take when they do nothing. What
 * the host does is a double's, see host-double.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"

#define MAX_BUSES       4
#define BUS_DEVICES     200
#define BUS_TABLES_SIZE (8 * MiB)
#define SLOT_DEVICES    8
#define FIRST_SLOT      2
#define PORT            PCI_DEVFN(1, 0)
#define TLBIS           100000
#define CMDQ_ENTRIES    256     /* of QSMMUGuest */

typedef struct Kind {
    const char *name;
    const char *machine;    /* arguments, or NULL for an accelerated SMMU */
} Kind;

static const Kind kinds[] = {
    { "accel", NULL },
    { "emulated", "-device arm-smmuv3,primary-bus=pcie.0 " },
    { "none", "" },
};

typedef struct Bench {
    const Kind *kind;
    Machine *m;
    unsigned bus_devices;   /* on each root complex but the last */
    QSMMUGuest smmu[MAX_BUSES];
    QSMMUDomain *domain[MAX_BUSES];
} Bench;

static bool accelerated(Bench *b)
{
    return !b->kind->machine;
}

/* In seconds: of the wall clock, and of QEMU's processor time */
typedef struct Stamp {
    double wall, cpu;
} Stamp;

static Stamp stamp(Bench *b)
{
    struct timespec ts;
    clockid_t clock;
    Stamp s;

    g_assert_cmpint(clock_getcpuclockid(qtest_pid(b->m->qts), &clock), ==, 0);
    g_assert_cmpint(clock_gettime(clock, &ts), ==, 0);
    s.cpu = ts.tv_sec + ts.tv_nsec / 1e9;
    s.wall = g_get_monotonic_time() / 1e6;
    return s;
}

static double cpu_since(Bench *b, Stamp start)
{
    return stamp(b).cpu - start.cpu;
}

static void report(const char *name, double value)
{
    printf("%s %.9g\n", name, value);
    fflush(stdout);
}

/* VmHWM or the like, in bytes */
static double memory(Bench *b, const char *what)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            qtest_pid(b->m->qts));
    g_autofree char *text = NULL;
    const char *line;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    line = strstr(text, what);
    g_assert_nonnull(line);
    return g_ascii_strtoull(line + strlen(what) + 1, NULL, 10) * KiB;
}

static void bench_init(Bench *b, const Kind *kind, const char *gic)
{
    *b = (Bench) { .kind = kind, .m = machine_new(gic, "") };
    if (kind->machine) {
        g_string_printf(b->m->args, "-machine virt,%s -cpu max -smp 1 -m 512 "
                        "-net none -object iommufd,id=iommufd0,fd=%d %s ",
                        gic, b->m->hd->iommufd[0], kind->machine);
    }
}

static void bench_start(Bench *b)
{
    Machine *m = b->m;

    m->qts = host_double_qtest_init(m->hd, m->args->str);
    qpci_init_generic(&m->gbus, m->qts, NULL, false);
}

static void bench_stop(Bench *b)
{
    for (int i = 0; i < MAX_BUSES; i++) {
        g_free(b->domain[i]);
    }
    machine_stop(b->m);
}

/* Enable the SMMU of a bus, with a domain that maps the doorbell. */
static void enable_smmu(Bench *b, int bus, uint64_t doorbell, uint64_t target)
{
    QSMMUGuest *g = &b->smmu[bus];

    qsmmu_guest_init(g, b->m->qts, SMMU_BASE(bus),
                     RAM_BASE + 128 * MiB + bus * BUS_TABLES_SIZE,
                     BUS_TABLES_SIZE);
    qsmmu_two_level_strtab(g, 8, 16);
    qsmmu_guest_enable(g);
    b->domain[bus] = qsmmu_domain_new(g, 12, 1);
    qsmmu_map(b->domain[bus], doorbell & ~0xfffull, target);
}

/* A domain of its own, but for the tables: guest RAM is not to be counted. */
static void attach_stream(Bench *b, int bus, uint32_t sid, uint16_t asid)
{
    QSMMUGuest *g = &b->smmu[bus];
    uint64_t cd = qsmmu_guest_alloc(g, sizeof(CD));

    for (int i = 0; i < sizeof(CD); i += 8) {
        qtest_writeq(g->qts, cd + i,
                     qtest_readq(g->qts, b->domain[bus]->cd + i));
    }
    qsmmu_modify(g, cd, 0xffffull << 48, (uint64_t)asid << 48);
    qsmmu_set_ste(g, sid, QSMMU_STE_S1 | cd, 0);
    qsmmu_cfgi_ste(g, sid);
}

/* Size and place BARs, then enable the device, as an operating system does. */
static QPCIDevice *enumerate(Bench *b, int bdf)
{
    QPCIDevice *pci = qpci_device_find(&b->m->gbus.bus, bdf);

    g_assert_nonnull(pci);
    qpci_iomap(pci, HD_BAR_DATA, NULL);
    pci->msix_table_bar = qpci_iomap(pci, HD_BAR_MSIX, NULL);
    qpci_device_enable(pci);
    return pci;
}

static void enable_msix(QPCIDevice *pci)
{
    change_msix(pci, 0, PCI_MSIX_FLAGS_ENABLE);
    pci->msix_enabled = true;
}

/*
 * Where device @i is: the first are on pcie.0, the others in the slots of root
 * ports, eight functions a slot, of further root complexes.
 */
static int device_bus(Bench *b, unsigned i)
{
    return i / b->bus_devices;
}

static int root_bus_nr(int bus)
{
    return bus * 32;
}

static int port_bdf(int bus, unsigned port)
{
    return root_bus_nr(bus) << 8 | PCI_DEVFN(port + 1, 0);
}

static int device_bdf(Bench *b, unsigned i)
{
    int bus = device_bus(b, i);
    unsigned n = i % b->bus_devices;

    if (bus == 0) {
        return FIRST_SLOT * SLOT_DEVICES + n;
    }
    return (root_bus_nr(bus) + 1 + n / SLOT_DEVICES) << 8 | n % SLOT_DEVICES;
}

static void add_root_complex(Bench *b, int bus)
{
    GString *args = b->m->args;

    /* It uses a slot that no device has. */
    g_string_append_printf(args, "-device pxb-pcie,id=pcie.%d,bus=pcie.0,"
                           "addr=%x,bus_nr=%d ", bus, 28 + bus,
                           root_bus_nr(bus));
    if (accelerated(b)) {
        g_string_append_printf(args, "-device arm-smmuv3,accel=on,ril=on,"
                               "ats=off,ssidsize=0,oas=44,"
                               "primary-bus=pcie.%d ", bus);
    }
    for (unsigned port = 0; port < BUS_DEVICES / SLOT_DEVICES; port++) {
        g_string_append_printf(args, "-device pcie-root-port,id=rp%d.%u,"
                               "bus=pcie.%d,addr=%x.0,chassis=%d,slot=%u ",
                               bus, port, bus, port + 1, 1 + bus, port);
    }
}

static void add_devices(Bench *b, unsigned n)
{
    for (int bus = 1; bus <= device_bus(b, n - 1); bus++) {
        add_root_complex(b, bus);
    }
    g_string_append(b->m->args, ROOT_PORT);
    for (unsigned i = 0; i < n; i++) {
        int bus = device_bus(b, i), devfn = device_bdf(b, i) & 0xff;
        g_autofree char *on = bus ? g_strdup_printf("rp%d.%u", bus,
                                                    i % b->bus_devices /
                                                    SLOT_DEVICES)
                                  : g_strdup("pcie.0");
        g_autofree char *where =
            g_strdup_printf("bus=%s,addr=%x.%d,multifunction=on", on,
                            PCI_SLOT(devfn), PCI_FUNC(devfn));

        add_vfio(b->m, 0, where);
    }
}

/* Give a root port its bus, and a window where BARs are placed next. */
static void enumerate_port(Bench *b, int bus, unsigned port)
{
    QPCIBus *pci = &b->m->gbus.bus;
    QPCIDevice *dev = qpci_device_find(pci, port_bdf(bus, port));
    uint8_t nr = root_bus_nr(bus) + 1 + port;
    uint16_t window;

    g_assert_nonnull(dev);
    pci->mmio_alloc_ptr = ROUND_UP(pci->mmio_alloc_ptr, MiB);
    window = pci->mmio_alloc_ptr >> 16;
    qpci_config_writeb(dev, PCI_PRIMARY_BUS, root_bus_nr(bus));
    qpci_config_writeb(dev, PCI_SECONDARY_BUS, nr);
    qpci_config_writeb(dev, PCI_SUBORDINATE_BUS, nr);
    qpci_config_writew(dev, PCI_MEMORY_BASE, window);
    qpci_config_writew(dev, PCI_MEMORY_LIMIT, window);
    qpci_device_enable(dev);
    g_free(dev);
}

/* One change of a bridge's window: the memory map is rendered anew. */
static double topology_change(Bench *b, QPCIDevice *port, unsigned times)
{
    Stamp start = stamp(b);
    double nothing;

    for (unsigned i = 0; i < times; i++) {
        qpci_config_writew(port, PCI_INTERRUPT_LINE, i & 1);
    }
    nothing = cpu_since(b, start);
    start = stamp(b);
    for (unsigned i = 0; i < times; i++) {
        qpci_config_writew(port, PCI_MEMORY_LIMIT, i & 1 ? 0x3ef0 : 0x3ee0);
    }
    return (cpu_since(b, start) - nothing) / times;
}

/* Seconds for TLBIS commands; they name @pages pages from @va on */
static double tlbi_storm(Bench *b, uint64_t va, unsigned pages, unsigned asids)
{
    QSMMUGuest *g = &b->smmu[0];
    uint64_t queue[CMDQ_ENTRIES][2];
    double start;

    for (unsigned i = 0; i < CMDQ_ENTRIES; i++) {
        queue[i][0] = cpu_to_le64(SMMU_CMD_TLBI_NH_VA |
                                  (1ull + i % asids) << 48);
        queue[i][1] = cpu_to_le64(va + (i % pages) * 4096ull);
    }
    qtest_memwrite(g->qts, g->cmdq, queue, sizeof(queue));
    start = stamp(b).cpu;
    for (unsigned left = TLBIS; left;) {
        unsigned n = MIN(left, CMDQ_ENTRIES - 1);

        g->cmdq_prod = (g->cmdq_prod + n) % (2 * CMDQ_ENTRIES);
        g_assert_cmphex(qsmmu_issue_queued(g), ==, g->cmdq_prod);
        left -= n;
    }
    return stamp(b).cpu - start;
}

/* From device_add to its reply */
static Stamp hot_plug(Bench *b, QPCIDevice *port, HDDevice *dev)
{
    Stamp start = stamp(b), end;

    plug(b->m, dev, port);
    end = stamp(b);
    return (Stamp) { end.wall - start.wall, end.cpu - start.cpu };
}

static void report_host(Bench *b)
{
    HDShared *shm = b->m->hd->shm;
    unsigned maps = 0;
    double bytes = 0;

    for (int i = 0; i < HD_MAX_MAPS; i++) {
        if (shm->maps[i].ioas) {
            maps++;
            bytes += shm->maps[i].length;
        }
    }
    report("ioas", host_double_objects(b->m->hd, HD_IOAS));
    report("paging_hwpts", host_double_objects(b->m->hd, HD_HWPT_PAGING));
    report("maps", maps);
    report("map_calls", host_double_calls(b->m->hd, IOMMU_IOAS_MAP) +
                        host_double_calls(b->m->hd, IOMMU_IOAS_MAP_FILE));
    report("mapped_bytes", bytes);
}

/* @n devices on @buses root complexes, each with a live doorbell */
static void bench_devices(const Kind *kind, unsigned n, unsigned buses)
{
    g_autofree QPCIDevice **pci = g_new(QPCIDevice *, n);
    uint64_t doorbell = V2M_DOORBELL;
    QPCIDevice *port;
    HDDevice *hot;
    double wall;
    Stamp start;
    Bench b;

    g_assert_cmpuint(buses, <=, MAX_BUSES);
    g_assert_cmpuint(n, <=, buses * BUS_DEVICES);
    bench_init(&b, kind, "gic-version=2");
    b.bus_devices = DIV_ROUND_UP(n, buses);
    g_string_append(b.m->args, "-accel qtest,irqchip=on ");
    add_devices(&b, n);
    hot = host_double_add_device(b.m->hd, 0);

    wall = g_get_monotonic_time() / 1e6;
    bench_start(&b);
    start = stamp(&b);
    report("start_wall", start.wall - wall);
    report("start_cpu", start.cpu);
    report("start_peak", memory(&b, "VmHWM"));

    port = enable_port(b.m, PORT);
    qpci_config_writew(port, PCI_MEMORY_BASE, 0x3e00);
    start = stamp(&b);
    for (unsigned i = 0; i < n; i++) {
        int bus = device_bus(&b, i);
        unsigned nr = i % b.bus_devices;

        if (bus && nr % SLOT_DEVICES == 0) {
            enumerate_port(&b, bus, nr / SLOT_DEVICES);
        }
        pci[i] = enumerate(&b, device_bdf(&b, i));
    }
    report("enumerate_cpu", cpu_since(&b, start));

    if (accelerated(&b)) {
        for (int bus = 0; bus <= device_bus(&b, n - 1); bus++) {
            enable_smmu(&b, bus, doorbell, V2M_BASE);
        }
        for (unsigned i = 0; i < n; i++) {
            attach_stream(&b, device_bus(&b, i), device_bdf(&b, i),
                          1 + i % b.bus_devices);
        }
    } else {
        doorbell = V2M_BASE + V2M_SETSPI_NS;
    }
    start = stamp(&b);
    for (unsigned i = 0; i < n; i++) {
        enable_msix(pci[i]);
        set_vector(pci[i], 0, doorbell, SPI);
    }
    report("doorbell_cpu", cpu_since(&b, start) / n);
    g_assert_cmpuint(count_routes(b.m), ==, n);

    report("peak", memory(&b, "VmHWM"));
    report_host(&b);
    report("topology_cpu", topology_change(&b, port, n < 100 ? 2000 : 500));
    report("changed_peak", memory(&b, "VmHWM"));

    if (accelerated(&b)) {
        unsigned asids = MIN(n, b.bus_devices);

        report("tlbi_cpu", tlbi_storm(&b, 0x80000000, CMDQ_ENTRIES, asids));
        report("tlbi_doorbell_cpu",
               tlbi_storm(&b, doorbell & ~0xfffull, 1, asids));
    }
    start = hot_plug(&b, port, hot);
    report("hot_plug_wall", start.wall);
    report("hot_plug_cpu", start.cpu);

    for (unsigned i = 0; i < n; i++) {
        g_free(pci[i]);
    }
    g_free(port);
    bench_stop(&b);
}

static void write_masks(QPCIDevice *pci, unsigned n, bool masked)
{
    for (unsigned v = 0; v < n; v++) {
        mask_vector(pci, v, masked);
    }
}

/* @n vectors of one device, on @pages doorbell pages */
static void bench_vectors(const Kind *kind, unsigned n, unsigned pages)
{
    uint64_t doorbell = V2M_DOORBELL - (pages - 1) * 4096ull;
    HDDevice *dev;
    QPCIDevice *pci;
    double nothing;
    Stamp start;
    Bench b;

    bench_init(&b, kind, "gic-version=2");
    g_string_append(b.m->args, "-accel qtest,irqchip=on ");
    dev = add_one_device(b.m);
    dev->num_msix = n;
    bench_start(&b);
    pci = enumerate(&b, ONE_SID);
    if (accelerated(&b)) {
        enable_smmu(&b, 0, doorbell, V2M_BASE);
        for (unsigned i = 1; i < pages; i++) {
            qsmmu_map(b.domain[0], (doorbell & ~0xfffull) + i * 4096ull,
                      V2M_BASE);
        }
        attach_stream(&b, 0, ONE_SID, 1);
    } else {
        doorbell = V2M_BASE + V2M_SETSPI_NS;
        pages = 1;
    }

    enable_msix(pci);
    for (unsigned v = 0; v < n; v++) {
        write_message(pci, v, doorbell + (v % pages) * 4096ull, SPI);
    }
    start = stamp(&b);
    write_masks(pci, n, true);
    nothing = cpu_since(&b, start);
    start = stamp(&b);
    write_masks(pci, n, false);
    report("unmask_cpu", (cpu_since(&b, start) - nothing) / n);
    g_assert_cmpuint(count_routes(b.m), ==, n);
    start = stamp(&b);
    write_masks(pci, n, true);
    report("mask_cpu", (cpu_since(&b, start) - nothing) / n);
    write_masks(pci, n, false);

    start = stamp(&b);
    change_msix(pci, PCI_MSIX_FLAGS_ENABLE, 0);
    report("disable_cpu", cpu_since(&b, start) / n);
    start = stamp(&b);
    change_msix(pci, 0, PCI_MSIX_FLAGS_ENABLE);
    report("enable_cpu", cpu_since(&b, start) / n);
    g_assert_cmpuint(count_routes(b.m), ==, n);
    g_free(pci);
    bench_stop(&b);
}

/* Enable all vectors of @pci, each with a doorbell page of its own. */
static void enable_all(Bench *b, QPCIDevice *pci, unsigned n, uint64_t first)
{
    g_autofree uint32_t *table = g_new0(uint32_t, n * 4);
    Stamp start;

    for (unsigned v = 0; v < n; v++) {
        uint64_t doorbell = accelerated(b) ? first + v * 4096ull :
                            V2M_BASE + V2M_SETSPI_NS;

        table[v * 4] = cpu_to_le32(doorbell);
        table[v * 4 + 1] = cpu_to_le32(doorbell >> 32);
        table[v * 4 + 2] = cpu_to_le32(SPI);
    }
    qtest_memwrite(b->m->qts, pci->msix_table_bar.addr + pci->msix_table_off,
                   table, n * PCI_MSIX_ENTRY_SIZE);
    start = stamp(b);
    enable_msix(pci);
    report("all_enable_cpu", cpu_since(b, start));
}

/*
 * The longest that a guest can hold up QEMU: @n devices have all their vectors,
 * each on a page of its own, more than the irqchip has routes.
 */
static void bench_limits(const Kind *kind, unsigned n)
{
    const unsigned vectors = HD_MAX_MSIX;
    const uint64_t first = 0x100000000040ull;
    g_autofree QPCIDevice **pci = g_new(QPCIDevice *, n);
    double before;
    Stamp start;
    Bench b;

    bench_init(&b, kind, "gic-version=2");
    g_string_append(b.m->args, "-accel qtest,irqchip=on ");
    b.bus_devices = BUS_DEVICES;
    for (unsigned i = 0; i < n; i++) {
        g_autofree char *where = g_strdup_printf("bus=pcie.0,addr=%x.0", i + 2);

        add_vfio(b.m, 0, where)->num_msix = vectors;
    }
    bench_start(&b);
    for (unsigned i = 0; i < n; i++) {
        pci[i] = enumerate(&b, PCI_DEVFN(i + 2, 0));
    }
    if (accelerated(&b)) {
        enable_smmu(&b, 0, first, V2M_BASE);
        for (unsigned v = 0; v < n * vectors; v++) {
            qsmmu_map(b.domain[0], (first & ~0xfffull) + v * 4096ull, V2M_BASE);
        }
        for (unsigned i = 0; i < n; i++) {
            attach_stream(&b, 0, PCI_DEVFN(i + 2, 0), 1);
        }
    }

    before = memory(&b, "VmRSS");
    for (unsigned i = 0; i < n; i++) {
        enable_all(&b, pci[i], vectors, first + i * vectors * 4096ull);
    }
    report("vector_memory", (memory(&b, "VmRSS") - before) / (n * vectors));
    report("routes", count_routes(b.m));

    if (accelerated(&b)) {
        before = memory(&b, "VmRSS");
        for (unsigned i = 0; i < 20; i++) {
            start = stamp(&b);
            qsmmu_command(&b.smmu[0], SMMU_CMD_TLBI_NSNH_ALL, 0);
            report("all_tlbi_cpu", cpu_since(&b, start));
        }
        report("grown", memory(&b, "VmRSS") - before);
        start = stamp(&b);
        qsmmu_cfgi_ste(&b.smmu[0], PCI_DEVFN(2, 0));
        report("cfgi_cpu", cpu_since(&b, start));
    }
    for (unsigned i = 0; i < n; i++) {
        g_free(pci[i]);
    }
    bench_stop(&b);
}

/* A hot-plug event that is pending: each change of HPIE sends a message. */
static void toggle_hpie(QPCIDevice *port, unsigned times)
{
    uint64_t sltctl = qpci_find_capability(port, PCI_CAP_ID_EXP, 0) +
                      PCI_EXP_SLTCTL;
    uint16_t ctl = qpci_config_readw(port, sltctl) | PCI_EXP_SLTCTL_PDCE |
                   PCI_EXP_SLTCTL_ABPE;

    for (unsigned i = 0; i < times; i++) {
        ctl ^= PCI_EXP_SLTCTL_HPIE;
        qpci_config_writew(port, sltctl, ctl);
    }
}

/*
 * Messages that QEMU sends for a root port, to guest RAM. One takes too little
 * time for a clock: run QEMU by a tool that counts instructions.
 */
static void bench_message(const Kind *kind, unsigned times)
{
    uint64_t doorbell = DOORBELL;
    QPCIDevice *port;
    Bench b;

    bench_init(&b, kind, "gic-version=3");
    g_string_append(b.m->args, ROOT_PORT);
    bench_start(&b);
    port = find_pci(b.m, PORT);
    qtest_qmp_device_add(b.m->qts, "pcie-pci-bridge", "br", "{'bus': 'rp'}");
    if (kind->machine && !*kind->machine) {
        doorbell = TARGET(0) + (DOORBELL & 0xfff);
    } else {
        enable_smmu(&b, 0, doorbell, TARGET(0));
        attach_stream(&b, 0, PORT, 1);
    }

    set_vector(port, 0, doorbell, MSI_DATA);
    toggle_hpie(port, times);
    g_assert_cmphex(take(b.m, TARGET(0), DOORBELL), ==, MSI_DATA);
    g_free(port);
    bench_stop(&b);
}

/* Likewise, commands of an NVMe: DMA reads and writes, and a message each */
static void bench_nvme(const Kind *kind, unsigned times)
{
    const uint64_t sq = RAM_BASE + 16 * MiB, cq = sq + MiB, buffer = cq + MiB;
    const unsigned entries = 64;
    QPCIDevice *pci;
    QTestState *qts;
    QPCIBar bar;
    Bench b;

    bench_init(&b, kind, "gic-version=3");
    g_string_append(b.m->args, "-device nvme,serial=1,addr=2.0 ");
    bench_start(&b);
    qts = b.m->qts;
    pci = find_pci(b.m, PCI_DEVFN(2, 0));
    bar = qpci_iomap(pci, 0, NULL);
    pci->msix_table_bar = bar;
    pci->msix_table_off = qpci_config_readl(
        pci, qpci_find_capability(pci, PCI_CAP_ID_MSIX, 0) + PCI_MSIX_TABLE) &
        ~PCI_MSIX_FLAGS_BIRMASK;
    enable_msix(pci);
    set_vector(pci, 0, TARGET(0), MSI_DATA);

    for (unsigned i = 0; i < entries; i++) {
        qtest_writel(qts, sq + i * 64, 0x06 /* identify */);
        qtest_writeq(qts, sq + i * 64 + 24, buffer);
        qtest_writel(qts, sq + i * 64 + 40, 1 /* the controller */);
    }
    qtest_memset(qts, cq, 0, entries * 16);
    qpci_io_writel(pci, bar, 0x24 /* AQA */, (entries - 1) * 0x10001);
    qpci_io_writeq(pci, bar, 0x28 /* ASQ */, sq);
    qpci_io_writeq(pci, bar, 0x30 /* ACQ */, cq);
    qpci_io_writel(pci, bar, 0x14 /* CC */, 1 | 6 << 16 | 4 << 20);
    g_assert_cmphex(qpci_io_readl(pci, bar, 0x1c /* CSTS */), ==, 1);

    for (unsigned i = 1; i <= times; i++) {
        uint64_t done = cq + (i - 1) % entries * 16 + 14;
        bool phase = ((i - 1) / entries & 1) == 0;

        qpci_io_writel(pci, bar, 0x1000 /* SQ0TDBL */, i % entries);
        while ((qtest_readw(qts, done) & 1) != phase) {
            g_usleep(10);
        }
        g_assert_cmphex(qtest_readw(qts, done) & ~1, ==, 0);
        qpci_io_writel(pci, bar, 0x1004 /* CQ0HDBL */, i % entries);
    }
    g_assert_cmphex(qtest_readl(qts, TARGET(0)), ==, MSI_DATA);
    g_free(pci);
    bench_stop(&b);
}

static unsigned number(int argc, char **argv, int i)
{
    unsigned n = i < argc ? g_ascii_strtoull(argv[i], NULL, 10) : 0;

    if (!n) {
        fprintf(stderr, "usage: arm-smmuv3-accel-bench KIND ROW NUMBER...\n"
                "KIND is accel, emulated or none; ROW is\n"
                "devices N BUSES | vectors N PAGES | limits N |\n"
                "message TIMES | nvme TIMES\n");
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    const Kind *kind = NULL;
    const char *row;
    unsigned n;

    g_test_init(&argc, &argv, NULL);
    n = number(argc, argv, 3);
    row = argv[2];
    for (int i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (!strcmp(argv[1], kinds[i].name)) {
            kind = &kinds[i];
        }
    }
    if (!kind) {
        number(0, NULL, 0);
    } else if (!strcmp(row, "devices")) {
        bench_devices(kind, n, number(argc, argv, 4));
    } else if (!strcmp(row, "vectors")) {
        bench_vectors(kind, n, number(argc, argv, 4));
    } else if (!strcmp(row, "limits")) {
        bench_limits(kind, n);
    } else if (!strcmp(row, "message")) {
        bench_message(kind, n);
    } else if (!strcmp(row, "nvme")) {
        bench_nvme(kind, n);
    } else {
        number(0, NULL, 0);
    }
    return 0;
}
