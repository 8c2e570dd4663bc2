/*
 * A virt machine with VFIO devices behind accelerated SMMUv3s, for qtests
 *
 * The host is a double, see host-double.h: its devices send interrupts when
 * the test says so, and it tells what QEMU did to it. The doorbell of most
 * tests is in guest RAM by its number, and maps to another page of RAM, so
 * that a message that goes astray is seen as well as one that arrives.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QTEST_SMMUV3_ACCEL_MACHINE_H
#define QTEST_SMMUV3_ACCEL_MACHINE_H

#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/pci.h"
#include "libqos/generic-pcihost.h"
#include "libqos/smmuv3-guest.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_regs.h"
#include "host-double.h"

/* What else may be attached than a nested HWPT, see attached() */
#define STAGE_2         0x1000ull
#define BLOCKED         0x2000ull

#define NO_VSID         UINT64_MAX

/* Devices on the virt machine's platform bus, in the order they are made */
#define SMMU_BASE(n)    (0x0c000000ull + (n) * 0x20000)

#define RAM_BASE        0x40000000ull
#define RAM_SIZE        (512 * MiB)
#define TABLES_SIZE     (32 * MiB)
#define TABLES(n)       (RAM_BASE + 128 * MiB + (n) * TABLES_SIZE)

#define DOORBELL        (RAM_BASE + 0xf001040)  /* a gIOVA */
#define TARGET(n)       (RAM_BASE + 0xe800000 + (n) * 0x10000)
#define MSI_DATA        0x1234abcd

#define ECAM_BASE       0x4010000000ull

/* "rp", an argument */
#define ROOT_PORT \
    "-device pcie-root-port,id=rp,bus=pcie.0,addr=1.0,chassis=1 "

#define GICD_BASE       0x08000000ull
#define GICD_ISPENDR    0x200
#define GICD_ICPENDR    0x280
#define GICD_ICFGR      0xc00
#define ITS_BASE        0x08080000ull
#define ITS_TRANSLATER  (ITS_BASE + 0x10040)
#define ITS_TABLES      (RAM_BASE + 64 * MiB)
#define LPI_PENDING     (ITS_TABLES + 0x50000)
#define FIRST_LPI       8192
#define V2M_BASE        0x08020000ull
#define V2M_SETSPI_NS   0x40
#define V2M_FIRST_SPI   80
#define V2M_NUM_SPIS    64

#define V2M_DOORBELL    (0xfffff000 + V2M_SETSPI_NS)  /* as Linux has it */
#define DOORBELL_GPA    (V2M_BASE + V2M_SETSPI_NS)
#define MAX_ROUTES      4096    /* of the irqchip */
#define IRQCHIP_CALLS   6
#define SPI             (V2M_FIRST_SPI + 5)

/* The machine that a test has, built up until it is started */
typedef struct Machine {
    HostDouble *hd;
    GString *args;
    QTestState *qts;
    QGenericPCIBus gbus;
    QSMMUGuest smmu[2];
    char *log;              /* of machine_trace() */
    off_t log_mark;
} Machine;

/* A machine with one device at 02.0, which has a domain that maps nothing */
typedef struct OneDevice {
    Machine *m;
    HDDevice *dev;
    QPCIDevice *pci;
    QSMMUDomain *domain;
} OneDevice;

#define ONE_SID PCI_DEVFN(2, 0)

typedef struct AccelTest {
    const char *path;
    void (*fn)(void);
    bool vcpus;         /* whether it needs vCPUs that run, so TCG */
} AccelTest;

/*
 * A virt machine of @gic (a machine option), whose accelerated SMMU has
 * @properties and no device behind it yet
 */
Machine *machine_new(const char *gic, const char *properties);

/* With an SMMUv3 that is not accelerated, and @args more */
Machine *machine_new_emulated(const char *args);

/* With a GICv3 and its ITS */
Machine *machine_new_default(void);

/* With a GICv2m, and an irqchip in the accelerator */
Machine *machine_new_irqchip(void);

/* Have a device of physical SMMU @smmu at @where on the command line. */
HDDevice *add_vfio(Machine *m, int smmu, const char *where);

/*
 * Can QEMU open what @routes routed vectors need? If not, the test is skipped.
 * QEMU raises its limit to the hard one.
 */
bool enough_fds(unsigned routes);

/*
 * Trace @events, a list as -d has it. Before the machine is started, and only
 * if machine_can_trace().
 */
void machine_trace(Machine *m, const char *events);

/* Can traces be counted in this build? */
bool machine_can_trace(void);

/* How many lines with @what were traced since trace_mark() */
unsigned traced(Machine *m, const char *what);
void trace_mark(Machine *m);

void machine_start(Machine *m);

/* With a root port "rp" at 01.0, which is returned as by enable_port() */
QPCIDevice *machine_start_with_port(Machine *m);

/*
 * With two SMMUs: @dev[0] is at 02.0 behind the first one, @dev[1], which the
 * host has behind @second_host_smmu, behind the other. That is below a root
 * port, 01.0 on bus 8.
 */
void start_two_smmus(Machine *m, HDDevice *dev[2], int second_host_smmu);

void machine_stop(Machine *m);

/* The device at @bdf, enabled */
QPCIDevice *find_pci(Machine *m, int bdf);

void mask_vector(QPCIDevice *pci, unsigned vector, bool masked);

void write_message(QPCIDevice *pci, unsigned vector, uint64_t address,
                   uint32_t data);

/* As a driver does: MSI-X is enabled, then the vector is set up. */
void set_vector(QPCIDevice *pci, unsigned vector, uint64_t address,
                uint32_t data);

/* Clear and set bits of Message Control. */
void change_msix(QPCIDevice *pci, uint16_t clear, uint16_t set);

/* Enable 2^@log_vectors MSI vectors. */
void enable_msi(QPCIDevice *pci, uint64_t address, uint16_t data,
                unsigned log_vectors);

/*
 * The path of a file in memory, which is gone with this process at the latest
 */
char *memory_file_new(const char *name, uint64_t size);
void memory_file_free(char *path);

/* Have QEMU's messages go to such a file from when it starts. */
char *catch_messages(Machine *m);

/* How many messages have @what in them, since the last time */
unsigned take_messages(const char *path, const char *what);
void assert_no_message(const char *path);

/* Wait until RCU callbacks have run: what was unplugged is freed then. */
void drain_rcu(Machine *m);

/* How many file descriptors QEMU has open */
unsigned count_fds(Machine *m);

/*
 * Fire and wait until QEMU has taken the interrupt. QEMU handles it at once
 * then, before the next command of this test.
 */
void fire_irq(Machine *m, HDDevice *dev, unsigned index, unsigned vector);

/* Have QEMU handle all that has been signalled to it. */
void settle(Machine *m);

/* fire_irq() for an MSI-X vector */
void fire(Machine *m, HDDevice *dev, unsigned vector);

/* The word that a message to @giova on page @page leaves, and set it to 0 */
uint32_t take(Machine *m, uint64_t page, uint64_t giova);

/* Nothing was written to guest RAM at the number of the gIOVA. */
void assert_ram_intact(Machine *m);

/* The message arrived on @page, nowhere else, and without an event. */
void assert_delivered(Machine *m, uint64_t page);

/* The message is neither at TARGET(0) nor in the RAM of its number. */
void assert_dropped(Machine *m);

void assert_one_event(Machine *m, uint8_t type, uint32_t sid);

/* The only object of a kind, or 0 */
uint32_t only_object(Machine *m, HDType type);

/* All of guest RAM is mapped one to one, writable, and from one block. */
void assert_ram_mapped(Machine *m, uint32_t ioas);

/* How many ranges are mapped */
unsigned count_maps(Machine *m, uint32_t ioas);

/* @m must not have been started. */
OneDevice one_device_start(Machine *m);

/* The same in two steps, so that the device can be changed in between */
HDDevice *add_one_device(Machine *m);
OneDevice one_device_start_with(Machine *m, HDDevice *dev);

void one_device_stop(OneDevice *t);

/* Make all SPIs of the GICv2m edge triggered: a pulse stays pending. */
void v2m_start(Machine *m);

/* one_device_start() and v2m_start() */
OneDevice irqchip_start(Machine *m);
OneDevice irqchip_start_with(Machine *m, HDDevice *dev);

/* Map the page of V2M_DOORBELL. */
void map_v2m(OneDevice *t);

/* Was this SPI raised since the last time? */
bool take_spi(Machine *m, unsigned spi);

/* What qtest_irqchip_calls() counts; the first three can fail. */
extern const char *const irqchip_calls[IRQCHIP_CALLS];

/* All calls of the irqchip together */
uint64_t count_irqchip_calls(Machine *m);

/* Routes in use; none may have an irqfd without. */
unsigned count_routes(Machine *m);

/* The route of a vector that the irqchip injects, in @route */
bool find_route(OneDevice *t, unsigned index, unsigned vector,
                QTestIrqRoute *route);

void assert_routed_index(OneDevice *t, unsigned index, unsigned vector,
                         uint64_t address, uint32_t data);

/* The same for MSI-X vectors */
void assert_routed(OneDevice *t, unsigned vector, uint64_t address,
                   uint32_t data);
void assert_not_routed(OneDevice *t, unsigned vector);

/* How many messages the irqchip has injected; none is lost. */
uint64_t injected(OneDevice *t);

/*
 * Have the ITS take events 0 to 15 of device @devid to LPIs that are not
 * enabled, so that they stay in the pending table.
 */
void its_start(Machine *m, uint32_t devid);

/* Likewise for one more device, the @n-th after that one */
void its_add_device(Machine *m, uint32_t devid, unsigned n);

/*
 * Did this event arrive since the last time? Those of the @n-th device begin
 * with 16 * @n.
 */
bool take_lpi(Machine *m, unsigned event);

/* Give a root port a bus and all of PCI's memory. */
QPCIDevice *enable_port(Machine *m, int bdf);

/* Of the slot below a root port */
void set_slot_power(QPCIDevice *port, bool on);

/* Hot plug @dev as "hot" into root port "rp". */
void plug(Machine *m, HDDevice *dev, QPCIDevice *port);

/* Have what is in the slot of @port removed, with the guest's consent. */
void remove_from_slot(Machine *m, const char *id, QPCIDevice *port);

/*
 * device_add of @dev as "hot" on @bus. Returns: NULL, or what the error says,
 * to be freed
 */
char *try_plug(Machine *m, HDDevice *dev, const char *bus);
char *try_plug_with(Machine *m, HDDevice *dev, const char *bus,
                    const char *iommufd);

/* Wait until QEMU has closed the device. */
void wait_unbound(HDDevice *dev);

/* The guest gives up what it was asked for. */
void complete_unplug(Machine *m, HDDevice *dev, QPCIDevice *port);

/* With the guest's consent. The last reference goes with an RCU callback. */
void unplug(Machine *m, HDDevice *dev, QPCIDevice *port);

/*
 * The first 64 bits of the STE of the HWPT that is attached to a device, or
 * one of STAGE_2 and BLOCKED
 */
uint64_t attached(Machine *m, HDDevice *dev);

/* The virtual ID of a device's vDEVICE, or NO_VSID */
uint64_t vsid(Machine *m, HDDevice *dev);

/* Write a bridge's secondary and subordinate bus numbers. */
void set_buses(Machine *m, int bridge, uint8_t secondary, uint8_t subordinate);

/* What main() does */
int accel_tests_run(int argc, char **argv, const AccelTest *tests, unsigned n);

#endif /* QTEST_SMMUV3_ACCEL_MACHINE_H */
