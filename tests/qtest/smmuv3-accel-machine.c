/*
 * A virt machine with VFIO devices behind accelerated SMMUv3s, for qtests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qobject/qdict.h"
#include "smmuv3-accel-machine.h"

#define MARKER          0x5a5a5a5a

#define GICR_BASE       0x080a0000ull

char *memory_file_new(const char *name, uint64_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    return g_strdup_printf("/proc/%d/fd/%d", getpid(), fd);
}

void memory_file_free(char *path)
{
    close(atoi(strrchr(path, '/') + 1));
    g_free(path);
}

Machine *machine_new(const char *gic, const char *properties)
{
    Machine *m = g_new0(Machine, 1);

    m->hd = host_double_new();
    m->args = g_string_new(NULL);
    /* accel=on wants firmware, a qtest runs none. */
    g_string_printf(m->args,
                    "-machine virt,%s -cpu max -smp 1 -m 512 -net none "
                    "-bios /dev/null -object iommufd,id=iommufd0,fd=%d "
                    "-device arm-smmuv3,primary-bus=pcie.0,accel=on,ril=on,"
                    "ats=off,ssidsize=0,oas=44%s ",
                    gic, m->hd->iommufd[0], properties);
    return m;
}

Machine *machine_new_emulated(const char *args)
{
    Machine *m = g_new0(Machine, 1);

    m->hd = host_double_new();
    m->args = g_string_new(NULL);
    g_string_printf(m->args, "-machine virt,gic-version=3 "
                    "-cpu max -smp 1 -m 512 -net none "
                    "-device arm-smmuv3,primary-bus=pcie.0 %s", args);
    return m;
}

Machine *machine_new_default(void)
{
    return machine_new("gic-version=3", "");
}

Machine *machine_new_irqchip(void)
{
    Machine *m = machine_new("gic-version=2", "");

    g_string_append(m->args, "-accel qtest,irqchip=on ");
    return m;
}

HDDevice *add_vfio(Machine *m, int smmu, const char *where)
{
    HDDevice *dev = host_double_add_device(m->hd, smmu);

    g_string_append_printf(m->args, "-device vfio-pci,id=vfio%u,fd=%d,"
                           "iommufd=iommufd0,rombar=0,%s ",
                           m->hd->num_devices - 1, dev->fd, where);
    return dev;
}

bool enough_fds(unsigned routes)
{
    const rlim_t need = routes * 4 + 512;
    struct rlimit limit;

    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    if (limit.rlim_max < need) {
        g_test_skip("too few file descriptors, see ulimit -Hn");
        return false;
    }
    return true;
}

bool machine_can_trace(void)
{
#ifdef CONFIG_TRACE_LOG
    return true;
#else
    return false;
#endif
}

void machine_trace(Machine *m, const char *events)
{
    m->log = memory_file_new("log", 0);
    g_string_append_printf(m->args, "-D %s -d %s ", m->log, events);
}

unsigned traced(Machine *m, const char *what)
{
    g_autofree char *text = NULL;
    unsigned n = 0;

    g_assert_true(g_file_get_contents(m->log, &text, NULL, NULL));
    for (const char *p = text + m->log_mark; (p = strstr(p, what)); p++) {
        n++;
    }
    return n;
}

void trace_mark(Machine *m)
{
    struct stat st;

    g_assert_cmpint(stat(m->log, &st), ==, 0);
    m->log_mark = st.st_size;
}

void machine_start(Machine *m)
{
    m->qts = host_double_qtest_init(m->hd, m->args->str);
    qpci_init_generic(&m->gbus, m->qts, NULL, false);
    for (int i = 0; i < ARRAY_SIZE(m->smmu); i++) {
        qsmmu_guest_init(&m->smmu[i], m->qts, SMMU_BASE(i), TABLES(i),
                         TABLES_SIZE);
    }
    qtest_writel(m->qts, DOORBELL, MARKER);
}

QPCIDevice *machine_start_with_port(Machine *m)
{
    g_string_append(m->args, ROOT_PORT);
    machine_start(m);
    return enable_port(m, PCI_DEVFN(1, 0));
}

void start_two_smmus(Machine *m, HDDevice *dev[2], int second_host_smmu)
{
    g_string_append(m->args,
                    "-device pxb-pcie,id=pxb,bus=pcie.0,addr=4.0,bus_nr=8 "
                    "-device arm-smmuv3,primary-bus=pxb,accel=on,ril=on,"
                    "ats=off,ssidsize=0,oas=44 "
                    "-device pcie-root-port,id=rp,bus=pxb,addr=1.0,chassis=1 ");
    dev[0] = add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    dev[1] = add_vfio(m, second_host_smmu, "bus=rp");
    machine_start(m);
}

void machine_stop(Machine *m)
{
    if (m->qts) {
        qtest_quit(m->qts);
    }
    if (m->log) {
        memory_file_free(m->log);
    }
    g_string_free(m->args, true);
    host_double_free(m->hd);
    g_free(m);
}

QPCIDevice *find_pci(Machine *m, int bdf)
{
    QPCIDevice *pci = qpci_device_find(&m->gbus.bus, bdf);

    g_assert_nonnull(pci);
    qpci_device_enable(pci);
    return pci;
}

static uint64_t msix_entry(QPCIDevice *pci, unsigned vector)
{
    return pci->msix_table_off + vector * PCI_MSIX_ENTRY_SIZE;
}

void mask_vector(QPCIDevice *pci, unsigned vector, bool masked)
{
    qpci_io_writel(pci, pci->msix_table_bar,
                   msix_entry(pci, vector) + PCI_MSIX_ENTRY_VECTOR_CTRL,
                   masked);
}

void write_message(QPCIDevice *pci, unsigned vector, uint64_t address,
                   uint32_t data)
{
    uint64_t entry = msix_entry(pci, vector);
    QPCIBar bar = pci->msix_table_bar;

    qpci_io_writel(pci, bar, entry + PCI_MSIX_ENTRY_LOWER_ADDR, address);
    qpci_io_writel(pci, bar, entry + PCI_MSIX_ENTRY_UPPER_ADDR, address >> 32);
    qpci_io_writel(pci, bar, entry + PCI_MSIX_ENTRY_DATA, data);
}

void set_vector(QPCIDevice *pci, unsigned vector, uint64_t address,
                uint32_t data)
{
    if (!pci->msix_enabled) {
        qpci_msix_enable(pci);
    }
    write_message(pci, vector, address, data);
    mask_vector(pci, vector, false);
}

void change_msix(QPCIDevice *pci, uint16_t clear, uint16_t set)
{
    uint8_t cap = qpci_find_capability(pci, PCI_CAP_ID_MSIX, 0);
    uint16_t flags = qpci_config_readw(pci, cap + PCI_MSIX_FLAGS);

    qpci_config_writew(pci, cap + PCI_MSIX_FLAGS, (flags & ~clear) | set);
}

void enable_msi(QPCIDevice *pci, uint64_t address, uint16_t data,
                unsigned log_vectors)
{
    uint8_t cap = qpci_find_capability(pci, PCI_CAP_ID_MSI, 0);
    uint16_t flags = qpci_config_readw(pci, cap + PCI_MSI_FLAGS);

    flags = (flags & ~PCI_MSI_FLAGS_QSIZE) | log_vectors << 4;
    qpci_config_writel(pci, cap + PCI_MSI_ADDRESS_LO, address);
    qpci_config_writel(pci, cap + PCI_MSI_ADDRESS_HI, address >> 32);
    qpci_config_writew(pci, cap + PCI_MSI_DATA_64, data);
    qpci_config_writew(pci, cap + PCI_MSI_FLAGS, flags | PCI_MSI_FLAGS_ENABLE);
}

char *catch_messages(Machine *m)
{
    char *path = memory_file_new("messages", 0);

    g_string_append_printf(m->args, "2>>%s ", path);
    return path;
}

unsigned take_messages(const char *path, const char *what)
{
    g_autofree char *text = NULL;
    unsigned n = 0;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    for (char *p = text; (p = strstr(p, what)); p++) {
        n++;
    }
    if (!n && *text) {
        g_test_message("QEMU: %s", text);
    }
    g_assert_cmpint(truncate(path, 0), ==, 0);
    return n;
}

void assert_no_message(const char *path)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpstr(text, ==, "");
}

void drain_rcu(Machine *m)
{
    /* A device_add that fails does so. A callback may have queued another. */
    for (int i = 0; i < 2; i++) {
        qobject_unref(qtest_qmp(m->qts, "{ 'execute': 'device_add', "
                                "'arguments': { 'driver': 'no-such' } }"));
    }
}

unsigned count_fds(Machine *m)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", qtest_pid(m->qts));
    GDir *dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    g_dir_close(dir);
    return n;
}

void fire_irq(Machine *m, HDDevice *dev, unsigned index, unsigned vector)
{
    g_assert_true(host_double_fire(m->hd, dev, index, vector));
    g_assert_true(host_double_wait(m->hd, dev, index, vector));
}

void settle(Machine *m)
{
    /*
     * Each command comes in a turn of the main loop of its own, which also
     * sees what was signalled before. What it does may signal another.
     */
    for (int i = 0; i < 4; i++) {
        qtest_readl(m->qts, RAM_BASE);
    }
}

void fire(Machine *m, HDDevice *dev, unsigned vector)
{
    fire_irq(m, dev, VFIO_PCI_MSIX_IRQ_INDEX, vector);
}

uint32_t take(Machine *m, uint64_t page, uint64_t giova)
{
    uint64_t addr = page + (giova & 0xfff);
    uint32_t data = qtest_readl(m->qts, addr);

    qtest_writel(m->qts, addr, 0);
    return data;
}

void assert_ram_intact(Machine *m)
{
    g_assert_cmphex(qtest_readl(m->qts, DOORBELL), ==, MARKER);
}

void assert_delivered(Machine *m, uint64_t page)
{
    g_assert_cmphex(take(m, page, DOORBELL), ==, MSI_DATA);
    assert_ram_intact(m);
    g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 0);
}

void assert_dropped(Machine *m)
{
    g_assert_cmphex(take(m, TARGET(0), DOORBELL), ==, 0);
    assert_ram_intact(m);
}

void assert_one_event(Machine *m, uint8_t type, uint32_t sid)
{
    uint64_t event[4];

    g_assert_cmpuint(qsmmu_events(&m->smmu[0]), ==, 1);
    qsmmu_event(&m->smmu[0], 0, event);
    g_assert_cmphex(QSMMU_EVT_TYPE(event), ==, type);
    g_assert_cmphex(QSMMU_EVT_SID(event), ==, sid);
}

uint32_t only_object(Machine *m, HDType type)
{
    uint32_t found = 0;

    for (int id = 1; id < HD_MAX_OBJECTS; id++) {
        if (m->hd->shm->objects[id].type == type) {
            g_assert_cmpuint(found, ==, 0);
            found = id;
        }
    }
    return found;
}

void assert_ram_mapped(Machine *m, uint32_t ioas)
{
    uint64_t iova = RAM_BASE, va = 0;

    while (iova < RAM_BASE + RAM_SIZE) {
        HDMap *found = NULL;

        for (int i = 0; i < HD_MAX_MAPS; i++) {
            HDMap *map = &m->hd->shm->maps[i];

            if (map->ioas == ioas && map->iova <= iova &&
                iova - map->iova < map->length) {
                found = map;
            }
        }
        g_assert_nonnull(found);
        g_assert_true(found->flags & IOMMU_IOAS_MAP_WRITEABLE);
        if (!va) {
            va = found->start - found->iova;
        }
        g_assert_cmphex(found->start - found->iova, ==, va);
        iova = found->iova + found->length;
    }
}

unsigned count_maps(Machine *m, uint32_t ioas)
{
    unsigned n = 0;

    for (int i = 0; i < HD_MAX_MAPS; i++) {
        n += m->hd->shm->maps[i].ioas == ioas;
    }
    return n;
}

OneDevice one_device_start(Machine *m)
{
    return one_device_start_with(m, add_one_device(m));
}

HDDevice *add_one_device(Machine *m)
{
    return add_vfio(m, 0, "bus=pcie.0,addr=2.0");
}

OneDevice one_device_start_with(Machine *m, HDDevice *dev)
{
    OneDevice t = { .m = m, .dev = dev };

    machine_start(m);
    t.pci = find_pci(m, ONE_SID);
    qsmmu_guest_enable(&m->smmu[0]);
    t.domain = qsmmu_domain_new(&m->smmu[0], 12, 1);
    qsmmu_attach(&m->smmu[0], ONE_SID, t.domain);
    return t;
}

void one_device_stop(OneDevice *t)
{
    g_free(t->domain);
    g_free(t->pci);
    machine_stop(t->m);
}

OneDevice irqchip_start(Machine *m)
{
    return irqchip_start_with(m, add_one_device(m));
}

void v2m_start(Machine *m)
{
    for (int spi = V2M_FIRST_SPI; spi < V2M_FIRST_SPI + V2M_NUM_SPIS;
         spi += 16) {
        qtest_writel(m->qts, GICD_BASE + GICD_ICFGR + spi / 16 * 4,
                     0xaaaaaaaa);
    }
}

OneDevice irqchip_start_with(Machine *m, HDDevice *dev)
{
    OneDevice t = one_device_start_with(m, dev);

    v2m_start(m);
    return t;
}

void map_v2m(OneDevice *t)
{
    qsmmu_map(t->domain, V2M_DOORBELL & ~0xfffull, V2M_BASE);
}

bool take_spi(Machine *m, unsigned spi)
{
    uint64_t reg = spi / 32 * 4;
    uint32_t bit = 1u << (spi % 32);
    bool pending = qtest_readl(m->qts, GICD_BASE + GICD_ISPENDR + reg) & bit;

    qtest_writel(m->qts, GICD_BASE + GICD_ICPENDR + reg, bit);
    return pending;
}

const char *const irqchip_calls[IRQCHIP_CALLS] = {
    "add", "update", "attach", "commit", "detach", "release",
};

uint64_t count_irqchip_calls(Machine *m)
{
    uint64_t n = 0;

    for (int i = 0; i < IRQCHIP_CALLS; i++) {
        n += qtest_irqchip_calls(m->qts, irqchip_calls[i]);
    }
    return n;
}

unsigned count_routes(Machine *m)
{
    g_autofree QTestIrqRoute *routes = g_new(QTestIrqRoute, MAX_ROUTES);
    unsigned n = qtest_irqchip_routes(m->qts, routes, MAX_ROUTES);
    unsigned used = 0;

    for (unsigned i = 0; i < n; i++) {
        used += routes[i].used;
        g_assert_true(routes[i].used || routes[i].fd < 0);
    }
    return used;
}

bool find_route(OneDevice *t, unsigned index, unsigned vector,
                QTestIrqRoute *route)
{
    int fd = host_double_eventfd(t->m->hd, t->dev, index, vector);
    g_autofree QTestIrqRoute *routes = g_new(QTestIrqRoute, MAX_ROUTES);
    unsigned n = qtest_irqchip_routes(t->m->qts, routes, MAX_ROUTES);

    g_assert_cmpint(fd, !=, HD_NONE); /* else the interrupt is lost */
    for (unsigned i = 0; i < n; i++) {
        if (routes[i].fd == fd) {
            *route = routes[i];
            return true;
        }
    }
    return false;
}

void assert_routed_index(OneDevice *t, unsigned index, unsigned vector,
                         uint64_t address, uint32_t data)
{
    QTestIrqRoute route;

    g_assert_true(find_route(t, index, vector, &route));
    g_assert_true(route.used);
    g_assert_true(route.committed);
    g_assert_cmphex(route.address, ==, address);
    g_assert_cmphex(route.data, ==, data);
    g_assert_cmphex(route.devid, ==, ONE_SID);
}

void assert_routed(OneDevice *t, unsigned vector, uint64_t address,
                   uint32_t data)
{
    assert_routed_index(t, VFIO_PCI_MSIX_IRQ_INDEX, vector, address, data);
}

void assert_not_routed(OneDevice *t, unsigned vector)
{
    QTestIrqRoute route;

    g_assert_false(find_route(t, VFIO_PCI_MSIX_IRQ_INDEX, vector, &route));
}

uint64_t injected(OneDevice *t)
{
    g_autofree QTestIrqRoute *routes = g_new(QTestIrqRoute, MAX_ROUTES);
    unsigned n = qtest_irqchip_routes(t->m->qts, routes, MAX_ROUTES);
    uint64_t sum = 0;

    for (unsigned i = 0; i < n; i++) {
        sum += routes[i].sent;
    }
    g_assert_cmpuint(qtest_irqchip_calls(t->m->qts, "lost"), ==, 0);
    return sum;
}

static void its_command(Machine *m, uint64_t word0, uint64_t word1,
                        uint64_t word2)
{
    uint64_t next = qtest_readq(m->qts, ITS_BASE + 0x88 /* CWRITER */);
    uint64_t addr = ITS_TABLES + next;

    qtest_writeq(m->qts, addr, word0);
    qtest_writeq(m->qts, addr + 8, word1);
    qtest_writeq(m->qts, addr + 16, word2);
    qtest_writeq(m->qts, addr + 24, 0);
    next += 32;
    qtest_writeq(m->qts, ITS_BASE + 0x88, next);
    g_assert_cmphex(qtest_readq(m->qts, ITS_BASE + 0x90 /* CREADR */), ==,
                    next);
}

void its_add_device(Machine *m, uint32_t devid, unsigned n)
{
    const uint64_t valid = 1ull << 63, dev = (uint64_t)devid << 32;

    its_command(m, 0x08 /* MAPD */ | dev, 3,
                valid | (ITS_TABLES + 0x30000 + n * 0x1000));
    for (uint64_t event = 0; event < 16; event++) {
        its_command(m, 0x0a /* MAPTI */ | dev,
                    event | (FIRST_LPI + n * 16 + event) << 32, 0);
    }
}

void its_start(Machine *m, uint32_t devid)
{
    const uint64_t valid = 1ull << 63;

    qtest_memset(m->qts, ITS_TABLES, 0, 0x80000);
    qtest_writeq(m->qts, GICR_BASE + 0x70 /* PROPBASER */,
                 (ITS_TABLES + 0x40000) | 15);
    qtest_writeq(m->qts, GICR_BASE + 0x78 /* PENDBASER */, LPI_PENDING);
    qtest_writel(m->qts, GICR_BASE, 1 /* EnableLPIs */);

    qtest_writeq(m->qts, ITS_BASE + 0x80 /* CBASER */, valid | ITS_TABLES);
    qtest_writeq(m->qts, ITS_BASE + 0x100 /* BASER: devices */,
                 valid | (ITS_TABLES + 0x10000) | 15);
    qtest_writeq(m->qts, ITS_BASE + 0x108 /* BASER: collections */,
                 valid | (ITS_TABLES + 0x20000));
    qtest_writel(m->qts, ITS_BASE, 1 /* enabled */);
    its_command(m, 0x09 /* MAPC */, 0, valid);
    its_add_device(m, devid, 0);
}

bool take_lpi(Machine *m, unsigned event)
{
    uint64_t addr = LPI_PENDING + (FIRST_LPI + event) / 8;
    uint8_t bit = 1 << event % 8;
    uint8_t pending = qtest_readb(m->qts, addr);

    qtest_writeb(m->qts, addr, pending & ~bit);
    return pending & bit;
}

QPCIDevice *enable_port(Machine *m, int bdf)
{
    QPCIDevice *port = find_pci(m, bdf);

    g_assert_cmpint(qpci_secondary_buses_init(&m->gbus.bus), ==, 1);
    qpci_config_writew(port, PCI_MEMORY_BASE, 0x1000);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, 0x3ef0);
    return port;
}

void set_slot_power(QPCIDevice *port, bool on)
{
    uint8_t cap = qpci_find_capability(port, PCI_CAP_ID_EXP, 0);

    qpci_config_writew(port, cap + PCI_EXP_SLTCTL,
                       on ? PCI_EXP_SLTCTL_PWR_IND_ON
                          : PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PWR_IND_OFF);
}

char *try_plug(Machine *m, HDDevice *dev, const char *bus)
{
    return try_plug_with(m, dev, bus, "iommufd0");
}

char *try_plug_with(Machine *m, HDDevice *dev, const char *bus,
                    const char *iommufd)
{
    int fd = dev->fd;
    char *error = NULL;
    QDict *rsp;

    qtest_qmp_fds_assert_success(m->qts, &fd, 1, "{ 'execute': 'getfd', "
                                 "'arguments': { 'fdname': 'hotplug' } }");
    rsp = qtest_qmp(m->qts, "{ 'execute': 'device_add', 'arguments': {"
                    "'driver': 'vfio-pci', 'id': 'hot', 'fd': 'hotplug', "
                    "'iommufd': %s, 'rombar': 0, 'bus': %s } }", iommufd, bus);
    if (qdict_haskey(rsp, "error")) {
        error = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
    return error;
}

void wait_unbound(HDDevice *dev)
{
    gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;

    while (qatomic_read(&dev->bound_fd) != HD_NONE) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

void plug(Machine *m, HDDevice *dev, QPCIDevice *port)
{
    g_autofree char *error = try_plug(m, dev, "rp");

    g_assert_cmpstr(error, ==, NULL);
    set_slot_power(port, true);
}

void remove_from_slot(Machine *m, const char *id, QPCIDevice *port)
{
    qtest_qmp_device_del_send(m->qts, id);
    set_slot_power(port, false);
    qtest_qmp_eventwait(m->qts, "DEVICE_DELETED");
}

void complete_unplug(Machine *m, HDDevice *dev, QPCIDevice *port)
{
    set_slot_power(port, false);
    qtest_qmp_eventwait(m->qts, "DEVICE_DELETED");
    wait_unbound(dev);
}

void unplug(Machine *m, HDDevice *dev, QPCIDevice *port)
{
    qtest_qmp_device_del_send(m->qts, "hot");
    complete_unplug(m, dev, port);
}

uint64_t attached(Machine *m, HDDevice *dev)
{
    HDObject *hwpt = &m->hd->shm->objects[dev->hwpt];

    if (!dev->hwpt) {
        return BLOCKED;
    }
    return hwpt->type == HD_HWPT_NESTED ? hwpt->data[0] : STAGE_2;
}

uint64_t vsid(Machine *m, HDDevice *dev)
{
    int index = dev - m->hd->shm->devices;

    for (int id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *obj = &m->hd->shm->objects[id];

        if (obj->type == HD_VDEVICE && obj->device == index) {
            return obj->data[0];
        }
    }
    return NO_VSID;
}

void set_buses(Machine *m, int bridge, uint8_t secondary, uint8_t subordinate)
{
    QPCIDevice *pci = find_pci(m, bridge);

    qpci_config_writew(pci, PCI_SECONDARY_BUS, secondary | subordinate << 8);
    g_free(pci);
}

int accel_tests_run(int argc, char **argv, const AccelTest *tests, unsigned n)
{
    /* First of all: the questions below write what they do to the TAP output */
    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_machine("virt") || !qtest_has_device("arm-gicv3")) {
        /* A build with KVM only: qtest uses the TCG GICv3. */
        g_test_message("virt machine with TCG GICv3 not available");
        return 0;
    }
    for (unsigned i = 0; i < n; i++) {
        if (!tests[i].vcpus || qtest_has_accel("tcg")) {
            qtest_add_func(tests[i].path, tests[i].fn);
        }
    }
    return g_test_run();
}
