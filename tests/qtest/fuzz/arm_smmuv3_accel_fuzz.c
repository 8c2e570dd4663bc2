/*
 * Fuzzing target: devices behind accelerated SMMUv3s
 *
 * An input is a script: what a guest does to two SMMUs, their tables, and the
 * PCI functions behind them, when interrupts fire, and how the host misbehaves.
 * Each step takes a few bytes, mostly picks from short lists, so that tables
 * that lead somewhere are likely; raw values are mixed in. The host is the
 * double of the qtests, see host-double.h. It is linked into the fuzzer: the
 * sanitizers' wrappers are in the program, where no preloaded library can
 * replace them.
 *
 * Beside what the sanitizers and QEMU's assertions find, there must be
 *
 * - no change of what the host maps, but for BARs that move;
 * - no write to a page that the guest did not map, see "Canaries";
 * - no route that leads elsewhere than the tables say, or not to a doorbell.
 *
 * A device is plugged and unplugged, and the monitor asks for all devices.
 *
 * Each input begins after a system reset in the same process, and the host's
 * part is put back, too: what outlives a reset would be found as well.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "hw/core/boards.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_bridge.h"
#include "hw/pci/pci_device.h"
#include "monitor/qdev.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-misc-arm.h"
#include "qobject/qdict.h"
#include "system/address-spaces.h"
#include "system/memory.h"
#include "system/runstate.h"
#include "../smmuv3-accel-machine.h"
#include "fuzz.h"

/*
 * Canaries
 *
 * Tables say where a message may go, and raw values in them may say anything.
 * So no word that an SMMU can take for a descriptor or the address of a table
 * ever has the bit HIGH. It is above the largest block, so it cannot come from
 * the input address either: to RAM at HIGH no message gets but one that is not
 * translated. Such a message is lawful as well, while an SMMU is disabled or a
 * stream bypasses it, and therefore each input is of one of two kinds:
 *
 * - strict: nothing bypasses an SMMU, and a message may have any address;
 * - else no message has an address with HIGH.
 *
 * Queues are at HIGH, because commands and events hold addresses.
 */
#define HIGH            (1ull << 32)
#define CANARY          0xa5

static const uint64_t canaries[] = {
    HIGH, HIGH + 0x20000000, HIGH + 0x30000000, HIGH + 0x3ffff000,
};

#define EVENTQ(s)       (HIGH + 0x8000000 + (s) * 0x1000000)
#define CMDQ(s)         (HIGH + 0x10000000 + (s) * 0x1000000)
#define CMDQ_LOG2SIZE   4

/* Tables: all of them are where any granule can have them. */
#define POOL            (RAM_BASE + 0x10000000)
#define SLOT            0x10000ull
#define STRTAB(s)       (POOL + (s) * 2 * SLOT)
#define STRTAB_LOG2SIZE 11
#define STES(s)         (POOL + (4 + (s)) * SLOT)   /* of the second level */
#define CDS(d)          (POOL + 6 * SLOT + (d) * 0x4000)
#define L1CDS(d)        (CDS(d) + 0x2000)
#define TABLE(d, level) (POOL + (7 + (d) * 4 + (level)) * SLOT)
#define POOL_SIZE       (23 * SLOT)

enum {
    NUM_SMMUS = 2,
    NUM_DOMAINS = 4,
    NUM_VFIO = 4,
    HOT = 3,            /* this one is plugged into rp1 */
    MAX_STEPS = 256,
    IRQCHIP_CAN_FAIL = 3,   /* the first of irqchip_calls[] */
};

/* A PCI function: a root port if it has a second bus, else a vfio-pci device */
typedef struct Function {
    const char *id;
    uint16_t bdf;
    uint8_t bus;
    uint64_t bar[2];    /* with registers, and with MSI-X */
    bool hotplug;       /* the second bus is for a device that comes and goes */
    PCIDevice *pdev;    /* NULL: it is not there */
} Function;

static Function functions[] = {
    { "vfio0", 0x0010, 0, { 0x10100000, 0x10110000 } },
    { "vfio1", 0x0100, 0, { 0x10200000, 0x10210000 } },
    { "vfio2", 0x0500, 0, { 0x10300000, 0x10310000 } },
    { "vfio3", 0x0200, 0, { 0x10500000, 0x10510000 } },
    { "rp0", 0x0008, 1, { 0, 0x10010000 } },
    { "rp1", 0x0018, 2, { 0, 0x10020000 }, true },
    { "rp2", 0x0400, 5, { 0, 0x10400000 } },
};

static const uint16_t sids[] = {
    0x0010, 0x0100, 0x0500, 0x0008, 0x0018, 0x0400, 0x0200, 0x07ff,
};

static struct {
    Machine *m;
    uint8_t *ram;
    HDMap *maps;                    /* after a reset */
    unsigned num_maps;
    unsigned objects[HD_VEVENTQ];   /* of the host's iommufd, then, by type */
    uint8_t config[HOT][PCI_CFG_SPACE_EXP_SIZE];

    /* The input */
    const uint8_t *data;
    size_t size;
    bool strict;
    bool irqs_failed;               /* the host's calls for interrupts */
    bool was_reset;
    unsigned plugged;               /* how often */
    uint32_t prod[NUM_SMMUS];
    unsigned split[NUM_SMMUS];      /* of the stream table, 0 if it is linear */
    unsigned granule[NUM_DOMAINS];
} f;

static void G_GNUC_PRINTF(1, 2) G_NORETURN fail(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vreport(fmt, ap);
    va_end(ap);
    abort();
}

/* The input */

static uint64_t get(unsigned bytes)
{
    uint8_t buf[8] = { };
    unsigned n = MIN(bytes, f.size);

    memcpy(buf, f.data, n);
    f.data += n;
    f.size -= n;
    return ldq_le_p(buf);
}

static unsigned pick(unsigned n)
{
    return get(1) % n;
}

#define PICK(array) ((array)[pick(ARRAY_SIZE(array))])

static Function *pick_function(void)
{
    Function *fn = &PICK(functions);

    return fn->pdev ? fn : &functions[0];
}

/* Rules for words, see "Canaries" */

static uint64_t descriptor(uint64_t value)
{
    value &= ~HIGH;
    if (f.strict) {
        value &= ~MAKE_64BIT_MASK(59, 5);   /* no STE.S1CDMax, so no S1DSS */
        if ((value & 0xf) == 0x9) {         /* a bypassing STE */
            value |= 0x2;
        }
    }
    return value;
}

/*
 * Of a message's data and the lower half of its address: a write of it, maybe
 * to where a table, or a register of an SMMU, or another message is, must not
 * break the rules. It is at a multiple of 8 and leaves EVENTQ_BASE alone; bit 3
 * makes no STE bypass.
 */
static uint32_t message_word(uint32_t value)
{
    value &= ~0xc;
    return (value & 0xff8) == A_EVENTQ_BASE ? value ^ 0x100 : value;
}

static uint32_t message_high_word(uint32_t value)
{
    return f.strict ? value : value & ~(HIGH >> 32);
}

/* What may be found at an address, and what may have it */

static uint64_t get_giova(void)
{
    static const uint64_t giovas[] = {
        0xfffff040,                             /* as Linux has it */
        HIGH + 0x3ffff040, HIGH + 0x20000040,   /* canaries */
        DOORBELL_GPA,
        0xffff000000400040, 0x5a00000000fff040,
        TARGET(0) + 0x40,
    };
    unsigned n = pick(ARRAY_SIZE(giovas) + 1);
    uint64_t giova = n < ARRAY_SIZE(giovas) ? giovas[n] : get(8);

    return (uint64_t)message_high_word(giova >> 32) << 32 |
           message_word(giova);
}

static uint64_t get_target(void)
{
    static const uint64_t targets[] = {
        V2M_BASE, TARGET(0), TARGET(1), SMMU_BASE(0), SMMU_BASE(1), GICD_BASE,
        POOL, TABLE(0, 3), 0x10110000, 0x10300000, RAM_BASE, 0,
    };
    unsigned n = pick(ARRAY_SIZE(targets) + 1);

    return n < ARRAY_SIZE(targets) ? targets[n] : get(8);
}

static void write_table(uint64_t addr, uint64_t value)
{
    stq_le_p(f.ram + (addr - RAM_BASE), descriptor(value));
}

static uint64_t read_table(uint64_t addr)
{
    return ldq_le_p(f.ram + (addr - RAM_BASE));
}

/* What the guest does to an SMMU */

static void write_register(unsigned smmu, unsigned reg, unsigned size,
                           uint64_t value)
{
    uint64_t addr = SMMU_BASE(smmu) + reg;

    switch (reg & 0xfff8) {
    case A_STRTAB_BASE:
        value = size == 8 ? descriptor(value) : value & ~1;
        break;
    case A_EVENTQ_BASE:
        value = EVENTQ(smmu) | (value & 0x1f);
        size = 8;
        break;
    case A_GBPA & ~7:
        value |= f.strict ? R_GBPA_ABORT_MASK : 0;
        size = 4;
        break;
    }
    switch (size) {
    case 1:
        qtest_writeb(f.m->qts, addr, value);
        break;
    case 2:
        qtest_writew(f.m->qts, addr, value);
        break;
    case 4:
        qtest_writel(f.m->qts, addr, value);
        break;
    case 8:
        qtest_writeq(f.m->qts, addr, value);
        break;
    }
}

static void step_register(void)
{
    static const struct {
        uint16_t reg, size;
    } regs[] = {
        { A_CR0, 4 }, { A_CR1, 4 }, { A_CR2, 4 }, { A_GBPA, 4 },
        { A_IRQ_CTRL, 4 }, { A_GERRORN, 4 }, { A_STRTAB_BASE, 8 },
        { A_STRTAB_BASE_CFG, 4 }, { A_CMDQ_BASE, 8 }, { A_CMDQ_PROD, 4 },
        { A_CMDQ_CONS, 4 }, { A_EVENTQ_BASE, 8 }, { A_EVENTQ_PROD, 4 },
        { A_EVENTQ_CONS, 4 }, { A_EVENTQ_IRQ_CFG0, 8 },
        { A_GERROR_IRQ_CFG0, 8 }, { A_EVENTQ_IRQ_CFG1, 4 },
    };
    unsigned smmu = pick(NUM_SMMUS);
    unsigned n = pick(ARRAY_SIZE(regs) + 1);
    unsigned reg, size;

    if (n < ARRAY_SIZE(regs)) {
        reg = regs[n].reg;
        size = regs[n].size;
    } else {
        reg = get(2) & 0x1ffff;
        size = 1 << pick(4);
        reg &= -size;
    }
    write_register(smmu, reg, size, get(size));
}

/* A driver's start, or that of another one after it */
static void step_enable(void)
{
    static const unsigned splits[] = { 0, 6, 8, 10 };
    unsigned smmu = pick(NUM_SMMUS);
    unsigned split = f.split[smmu] = PICK(splits);
    uint64_t base = SMMU_BASE(smmu);
    QTestState *qts = f.m->qts;

    qtest_writel(qts, base + A_CR0, 0);
    qtest_writeq(qts, base + A_CMDQ_BASE, CMDQ(smmu) | CMDQ_LOG2SIZE);
    qtest_writel(qts, base + A_CMDQ_PROD, 0);
    qtest_writel(qts, base + A_CMDQ_CONS, 0);
    qtest_writel(qts, base + A_GERRORN, qtest_readl(qts, base + A_GERROR));
    f.prod[smmu] = 0;
    qtest_writeq(qts, base + A_EVENTQ_BASE, EVENTQ(smmu) | 5);
    qtest_writel(qts, base + A_EVENTQ_PROD, 0);
    qtest_writel(qts, base + A_EVENTQ_CONS, 0);
    qtest_writel(qts, base + A_STRTAB_BASE_CFG, STRTAB_LOG2SIZE |
                 split << R_STRTAB_BASE_CFG_SPLIT_SHIFT |
                 !!split << R_STRTAB_BASE_CFG_FMT_SHIFT);
    qtest_writeq(qts, base + A_STRTAB_BASE, STRTAB(smmu));
    qtest_writel(qts, base + A_IRQ_CTRL, R_IRQ_CTRL_EVENTQ_IRQEN_MASK |
                 R_IRQ_CTRL_GERROR_IRQEN_MASK);
    qtest_writel(qts, base + A_CR0, R_CR0_CMDQEN_MASK | R_CR0_EVENTQEN_MASK |
                 R_CR0_SMMUEN_MASK);
}

static uint64_t ste_address(unsigned smmu, uint16_t sid)
{
    unsigned split = f.split[smmu];

    sid &= MAKE_64BIT_MASK(0, STRTAB_LOG2SIZE);
    return split ? STES(smmu) + (sid & ((1 << split) - 1)) * sizeof(STE)
                 : STRTAB(smmu) + sid * sizeof(STE);
}

static uint64_t l1std_address(unsigned smmu, uint16_t sid)
{
    sid &= MAKE_64BIT_MASK(0, STRTAB_LOG2SIZE);
    return STRTAB(smmu) + (sid >> (f.split[smmu] ?: 6)) * sizeof(STEDesc);
}

static void step_ste(void)
{
    unsigned smmu = pick(NUM_SMMUS);
    uint16_t sid = PICK(sids);
    uint64_t addr = ste_address(smmu, sid);
    unsigned how = get(1), domain = (how >> 3) % NUM_DOMAINS;
    uint64_t word0;

    if (f.split[smmu]) {
        write_table(l1std_address(smmu, sid),
                    STES(smmu) | (f.split[smmu] + 1));
    }
    switch (how & 7) {
    case 0:
        word0 = 0;
        break;
    case 1:
        word0 = QSMMU_STE_ABORT;
        break;
    case 2:
        word0 = QSMMU_STE_BYPASS;
        break;
    case 3:
        word0 = get(8);
        break;
    case 4: /* substreams */
        how = get(1);
        word0 = QSMMU_STE_S1 | (uint64_t)(how & 15) << 59 |
                ((how & 0x30) ? L1CDS(domain) : CDS(domain)) | (how & 0x30);
        write_table(addr + 8, how >> 6);
        break;
    default:
        word0 = QSMMU_STE_S1 | CDS(domain);
        break;
    }
    write_table(addr, word0);
}

static void step_cd(void)
{
    static const struct {
        uint8_t shift, tg0, tg1;
    } granules[] = { { 12, 0, 2 }, { 14, 2, 1 }, { 16, 1, 3 } };
    unsigned domain = pick(NUM_DOMAINS), how = get(1);
    unsigned g = (how & 3) % 3, substream = how >> 2 & 3;
    unsigned shift = f.granule[domain] = granules[g].shift;
    unsigned first = shift == 16;
    uint64_t addr = CDS(domain) + substream * sizeof(CD);
    uint64_t word0 = 1ull << 31 | 1ull << 41 | 1ull << 46 | 1ull << 45 |
                     (uint64_t)domain << 48 | 4ull << 32;

    if (how & 0x10) { /* anything but V and AA64 */
        word0 ^= get(8) & ~(1ull << 31 | 1ull << 41);
    } else {
        word0 |= 16 | 16 << 16 | granules[g].tg0 << 6 | granules[g].tg1 << 22 |
                 (uint64_t)(how & 0x20 ? 3 : 0) << 38;
    }
    write_table(addr, word0);
    write_table(addr + 8, TABLE(domain, first));
    write_table(addr + 16, TABLE(domain, first));
    write_table(L1CDS(domain), CDS(domain) | 1);
}

static uint64_t pte_address(unsigned domain, unsigned level, uint64_t giova)
{
    unsigned shift = f.granule[domain];
    uint64_t index = (giova & MAKE_64BIT_MASK(0, 48)) >>
                     (shift + (3 - level) * (shift - 3));

    return TABLE(domain, level) +
           (index & MAKE_64BIT_MASK(0, shift - 3)) * sizeof(uint64_t);
}

static void step_map(void)
{
    unsigned domain = pick(NUM_DOMAINS), how = get(1);
    unsigned leaf = how & 7 ? 3 : 1 + (how >> 3 & 1);
    uint64_t giova = get_giova();

    for (unsigned level = f.granule[domain] == 16; level < leaf; level++) {
        write_table(pte_address(domain, level, giova),
                    TABLE(domain, level + 1) | 3);
    }
    write_table(pte_address(domain, leaf, giova), how & 0x80 ? get(8) :
                get_target() | (how & 0x40 ? QSMMU_PTE_NG : 0) |
                (leaf == 3 ? QSMMU_PTE_RW : QSMMU_PTE_RW & ~2));
}

/* Change one bit of what is there. */
static void step_flip(void)
{
    unsigned n = pick(NUM_DOMAINS), smmu = n % NUM_SMMUS;
    uint64_t addr;

    switch (pick(5)) {
    case 0:
        addr = ste_address(smmu, PICK(sids)) + pick(8) * 8;
        break;
    case 1:
        addr = l1std_address(smmu, PICK(sids));
        break;
    case 2:
        addr = CDS(n) + pick(8) * 8;
        break;
    case 3:
        addr = L1CDS(n);
        break;
    default:
        addr = pte_address(n, pick(4), get_giova());
        break;
    }
    write_table(addr, read_table(addr) ^ 1ull << pick(64));
}

static void step_poke(void)
{
    uint64_t addr = POOL + (get(3) * 8) % POOL_SIZE;

    write_table(addr, pick(2) ? get(8) :
                (POOL + pick(POOL_SIZE / SLOT) * SLOT) | get(1));
}

static void queue_command(unsigned smmu, uint64_t word0, uint64_t word1)
{
    uint64_t addr = CMDQ(smmu) + f.prod[smmu] % (1 << CMDQ_LOG2SIZE) * 16;

    stq_le_p(f.ram + (addr - RAM_BASE), word0);
    stq_le_p(f.ram + (addr - RAM_BASE) + 8, word1);
    f.prod[smmu] = (f.prod[smmu] + 1) % (2 << CMDQ_LOG2SIZE);
}

static void issue(unsigned smmu)
{
    qtest_writel(f.m->qts, SMMU_BASE(smmu) + A_CMDQ_PROD, f.prod[smmu]);
}

static void step_command(void)
{
    static const uint8_t types[] = {
        SMMU_CMD_CFGI_STE, SMMU_CMD_CFGI_STE_RANGE, SMMU_CMD_CFGI_CD,
        SMMU_CMD_CFGI_CD_ALL, SMMU_CMD_TLBI_NH_ALL, SMMU_CMD_TLBI_NH_ASID,
        SMMU_CMD_TLBI_NH_VA, SMMU_CMD_TLBI_NH_VAA, SMMU_CMD_TLBI_NSNH_ALL,
        SMMU_CMD_SYNC, SMMU_CMD_PREFETCH_CONFIG, SMMU_CMD_PREFETCH_ADDR,
        SMMU_CMD_RESUME, SMMU_CMD_STALL_TERM, SMMU_CMD_ATC_INV,
        SMMU_CMD_PRI_RESP, SMMU_CMD_TLBI_S12_VMALL, SMMU_CMD_TLBI_S2_IPA,
        SMMU_CMD_TLBI_EL2_ALL, SMMU_CMD_TLBI_EL2_VA,
    };
    unsigned smmu = pick(NUM_SMMUS), how = get(1);
    unsigned n = pick(ARRAY_SIZE(types) + 1);
    uint64_t word0 = n < ARRAY_SIZE(types) ? types[n] : get(8);
    uint64_t word1 = 1;

    switch (word0 & 0xff) {
    case SMMU_CMD_CFGI_STE ... SMMU_CMD_CFGI_CD_ALL:
        word0 |= (uint64_t)PICK(sids) << 32;
        word1 = how & 2 ? 31 : 1 | (how >> 3);
        break;
    case SMMU_CMD_TLBI_NH_ASID ... SMMU_CMD_TLBI_NH_VAA:
        word0 |= (uint64_t)pick(NUM_DOMAINS + 1) << 48;
        word1 = get_giova() & ~0xfffull;
        if (how & 2) { /* a range: TG, SCALE, NUM, TTL, Leaf */
            word0 |= (get(3) & 0x1fff) << 12;
            word1 |= get(2) & 0xf01;
        }
        break;
    default:
        word1 = how & 2 ? get(8) : 0;
        break;
    }
    queue_command(smmu, word0, word1);
    if (how & 1) {
        issue(smmu);
    }
}

/* What it does to PCI functions */

static void write_sized(uint64_t addr, unsigned size, uint64_t value)
{
    uint8_t buf[8];

    stq_le_p(buf, value);
    qtest_memwrite(f.m->qts, addr, buf, size);
}

static void write_config(Function *fn, unsigned at, unsigned size,
                         uint32_t value)
{
    PCIDevice *pdev = fn->pdev;
    unsigned slot = pdev->exp.exp_cap + PCI_EXP_SLTCTL;

    /* A slot without power loses its device for good. */
    if (fn->bus && !fn->hotplug && at < slot + 2 && at + size > slot) {
        return;
    }
    /* Words of a message have rules. */
    if (pdev->msi_cap && at + size > pdev->msi_cap + PCI_MSI_ADDRESS_LO &&
        at < pdev->msi_cap + PCI_MSI_MASK_64) {
        at = pdev->msi_cap + (at & 0xc);
        size = 4;
        if (at == pdev->msi_cap + PCI_MSI_ADDRESS_HI) {
            value = message_high_word(value);
        } else if (at != pdev->msi_cap) {
            value = message_word(value);
        }
    }
    write_sized(ECAM_BASE + (fn->bdf << 12) + at, size, value);
}

static void step_config(void)
{
    Function *fn = pick_function();
    PCIDevice *pdev = fn->pdev;
    const struct {
        uint16_t at, size;
    } regs[] = {
        { PCI_COMMAND, 2 }, { PCI_BASE_ADDRESS_0, 4 },
        { PCI_BASE_ADDRESS_2, 4 }, { PCI_PRIMARY_BUS, 1 },
        { PCI_SECONDARY_BUS, 1 }, { PCI_SUBORDINATE_BUS, 1 },
        { PCI_MEMORY_BASE, 4 }, { PCI_BRIDGE_CONTROL, 2 },
        { pdev->msi_cap + PCI_MSI_FLAGS, 2 },
        { pdev->msi_cap + PCI_MSI_MASK_64, 4 },
        { pdev->msix_cap + PCI_MSIX_FLAGS, 2 },
        { pdev->exp.exp_cap + PCI_EXP_DEVCTL, 2 },
        { pdev->exp.exp_cap + PCI_EXP_SLTCTL, 2 },
    };
    unsigned n = pick(ARRAY_SIZE(regs) + 1);
    unsigned at, size;

    if (n < ARRAY_SIZE(regs)) {
        at = regs[n].at;
        size = regs[n].size;
    } else {
        size = 1 << pick(3);
        at = get(2) & (PCI_CFG_SPACE_EXP_SIZE - size);
    }
    if (pick(8) == 0) {
        qtest_readl(f.m->qts, ECAM_BASE + (fn->bdf << 12) + (at & ~3));
    }
    write_config(fn, at, size, get(size));
}

static void step_msi(void)
{
    Function *fn = pick_function();
    unsigned cap = fn->pdev->msi_cap, how = get(1);
    uint64_t giova;

    if (!cap) {
        return;
    }
    if (how & 1) {
        giova = get_giova();
        write_config(fn, cap + PCI_MSI_ADDRESS_LO, 4, giova);
        write_config(fn, cap + PCI_MSI_ADDRESS_HI, 4, giova >> 32);
    }
    if (how & 2) {
        write_config(fn, cap + PCI_MSI_DATA_64, 4, V2M_FIRST_SPI + get(1));
    }
    if (how & 4) {
        write_config(fn, cap + PCI_MSI_MASK_64, 4, get(1));
    }
    write_config(fn, cap + PCI_MSI_FLAGS, 2, (how >> 3 & 1) | (how & 0x30));
}

/* The entry of a vector, in whatever order and size */
static void step_msix(void)
{
    Function *fn = pick_function();
    unsigned vector = pick(8), how = get(1), cap = fn->pdev->msix_cap;
    uint64_t entry = fn->bar[1] + vector * PCI_MSIX_ENTRY_SIZE;
    uint64_t giova;

    if (how & 1) {
        write_config(fn, cap + PCI_MSIX_FLAGS, 2, (how >> 1 & 3) << 14);
    }
    if (how & 8) {
        giova = get_giova();
        if (how & 0x80) {
            write_sized(entry, 8, giova);
        } else {
            write_sized(entry, 4, giova);
            write_sized(entry + 4, 4, giova >> 32);
        }
    }
    if (how & 0x10) {
        write_sized(entry + PCI_MSIX_ENTRY_DATA, 4,
                    message_word(pick(4) ? V2M_FIRST_SPI + get(1) : get(4)));
    }
    if (how & 0x20) {
        write_sized(entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 4, how >> 6 & 1);
    }
}

/* The BARs, where words at a multiple of 8 may be those of a message */
static void step_bar(void)
{
    uint64_t addr = pick_function()->bar[pick(2)];
    unsigned size = 1 << pick(4);
    uint64_t at = get(2), value = get(size);

    if (!addr) {
        return;
    }
    if (size < 4) {
        value &= ~0xfd; /* in each byte of a word */
        at &= -size;
    } else {
        value = (uint64_t)message_high_word(message_word(value >> 32)) << 32 |
                message_high_word(message_word(value));
        at &= ~3;
    }
    write_sized(addr + at, size, value);
    qtest_readl(f.m->qts, addr + (at & ~3));
}

/* What the host does */

static HDDevice *pick_device(void)
{
    return &f.m->hd->shm->devices[pick(NUM_VFIO)];
}

static unsigned pick_vector(HDDevice *dev, unsigned *index)
{
    static const unsigned indexes[] = {
        VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
        VFIO_PCI_INTX_IRQ_INDEX,
    };
    unsigned n = get(1);

    *index = indexes[(n & 3) % 3];
    switch (*index) {
    case VFIO_PCI_MSIX_IRQ_INDEX:
        return (n >> 2) % dev->num_msix;
    case VFIO_PCI_MSI_IRQ_INDEX:
        return (n >> 2) % dev->num_msi;
    default:
        return 0;
    }
}

static void step_fire(void)
{
    HDDevice *dev = pick_device();
    unsigned index, vector = pick_vector(dev, &index);

    host_double_fire(f.m->hd, dev, index, vector);
    if (index == VFIO_PCI_INTX_IRQ_INDEX && pick(2)) {
        host_double_deassert(f.m->hd, dev);
    }
}

static void step_event(void)
{
    HDDevice *dev = pick_device();
    uint64_t event[4];

    if (pick(4) == 0) {
        host_double_post_lost(f.m->hd, dev);
        return;
    }
    for (int i = 0; i < 4; i++) {
        event[i] = get(8);
    }
    host_double_post_event(f.m->hd, dev, event);
}

static const unsigned long host_calls[] = {
    VFIO_DEVICE_SET_IRQS, IOMMU_HWPT_ALLOC, VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    IOMMU_HWPT_INVALIDATE, IOMMU_VDEVICE_ALLOC, IOMMU_VEVENTQ_ALLOC,
    VFIO_DEVICE_RESET, VFIO_DEVICE_FEATURE, IOMMU_IOAS_MAP,
    IOMMU_IOAS_MAP_FILE,
};

/* Calls that free something do not fail: the kernel's do not either. */
static void step_fail(void)
{
    static const int errs[] = { EINVAL, ENOMEM, EIO, ENOSPC, EBUSY, ENOENT };
    unsigned n = pick(ARRAY_SIZE(host_calls) + IRQCHIP_CAN_FAIL);
    unsigned in = 1 + pick(4);
    int err = PICK(errs);

    if (n < ARRAY_SIZE(host_calls)) {
        host_double_fail(f.m->hd, host_calls[n], in, err);
        f.irqs_failed |= host_calls[n] == VFIO_DEVICE_SET_IRQS;
    } else {
        qtest_irqchip_fail(f.m->qts, irqchip_calls[n - ARRAY_SIZE(host_calls)],
                           in, err);
    }
}

/* An interrupt in the middle of a call */
static void step_signal(void)
{
    HDDevice *dev = pick_device();
    unsigned index, vector = pick_vector(dev, &index);

    host_double_signal(f.m->hd, PICK(host_calls), 1 + pick(4), pick(2), dev,
                       index, vector);
}

static void step_reset(void)
{
    Function *fn = pick_function();

    if (pick(4) || f.strict || f.was_reset) {
        device_cold_reset(DEVICE(fn->pdev));
    } else {
        fuzz_reset(f.m->qts);
        f.was_reset = true; /* it is slow */
    }
}

/* As firmware leaves it */
static void start_function(const Function *fn)
{
    uint64_t at = ECAM_BASE + (fn->bdf << 12);

    write_sized(at + PCI_BASE_ADDRESS_0, 4, fn->bar[0]);
    write_sized(at + PCI_BASE_ADDRESS_2, 4, fn->bar[1]);
    write_sized(at + PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

/* Plug the device, or ask the guest to let it go. */
static void step_plug(void)
{
    Function *fn = &functions[HOT];
    Error *err = NULL;

    if (fn->pdev) {
        qdev_unplug(DEVICE(fn->pdev), &err);
    } else if (f.plugged++ < 2) { /* it is slow */
        int fd = dup(f.m->hd->shm->devices[HOT].fd);
        g_autofree char *name = g_strdup_printf("%d", fd);
        QDict *opts = qdict_new();
        DeviceState *dev;

        g_assert_cmpint(fd, >=, 0);
        qdict_put_str(opts, "driver", "vfio-pci");
        qdict_put_str(opts, "id", fn->id);
        qdict_put_str(opts, "fd", name);
        qdict_put_str(opts, "iommufd", "iommufd0");
        qdict_put_str(opts, "rombar", "0");
        qdict_put_str(opts, "bus", "rp1");
        dev = qdev_device_add_from_qdict(opts, false, &err);
        qobject_unref(opts);
        if (dev) {
            fn->pdev = PCI_DEVICE(dev);
            object_unref(dev);
            start_function(fn);
        }
    }
    error_free(err);
}

/* The guest may have let it go. */
static void look_for_hot_device(void)
{
    Function *fn = &functions[HOT];

    if (fn->pdev && pci_qdev_find_device(fn->id, &fn->pdev) < 0) {
        fn->pdev = NULL;
    }
}

static void remove_hot_device(void)
{
    DeviceState *dev = DEVICE(functions[HOT].pdev);

    functions[HOT].pdev = NULL;
    if (dev) {
        hotplug_handler_unplug(qdev_get_hotplug_handler(dev), dev,
                               &error_abort);
        object_unparent(OBJECT(dev));
    }
    if (f.plugged) {
        drain_call_rcu(); /* the host's part is given back then */
    }
}

/* It must change nothing, and name each device that is there. */
static void step_query(void)
{
    uint64_t calls = f.m->hd->shm->num_calls;
    ArmSMMUv3AccelInfoList *list = qmp_query_arm_smmuv3_accel(&error_abort);
    unsigned n = 0, devices = 0;

    for (ArmSMMUv3AccelInfoList *item = list; item; item = item->next) {
        n++;
    }
    for (int d = 0; d < NUM_VFIO; d++) {
        devices += !!functions[d].pdev;
    }
    if (n != devices || f.m->hd->shm->num_calls != calls) {
        fail("a query has %u of %u devices and called the host %" PRIu64
             " times", n, devices, f.m->hd->shm->num_calls - calls);
    }
    qapi_free_ArmSMMUv3AccelInfoList(list);
}

static void (*const steps[])(void) = {
    step_register, step_enable, step_ste, step_cd, step_map, step_flip,
    step_poke, step_command, step_config, step_msi, step_msix, step_bar,
    step_fire, step_event, step_fail, step_signal, step_reset, step_plug,
    step_query,
};

/* What has to be true */

static bool same_map(const HDMap *a, const HDMap *b)
{
    return a->ioas == b->ioas && a->iova == b->iova &&
           a->length == b->length && a->start == b->start &&
           a->flags == b->flags && a->fd == b->fd;
}

static bool find_map(const HDMap *maps, unsigned n, const HDMap *map)
{
    for (unsigned i = 0; i < n; i++) {
        if (same_map(&maps[i], map)) {
            return true;
        }
    }
    return false;
}

/* Is this range of system memory, and no more, where the host has it? */
static void check_map(const HDMap *map)
{
    MemoryRegionSection s = memory_region_find(get_system_memory(), map->iova,
                                               map->length + 1);

    if (!s.mr || !memory_region_is_ram(s.mr) ||
        s.offset_within_address_space != map->iova ||
        int128_getlo(s.size) != map->length) {
        fail("0x%" PRIx64 " + 0x%" PRIx64 " is mapped, but no RAM", map->iova,
             map->length);
    }
    if (map->fd == HD_NONE &&
        (uintptr_t)memory_region_get_ram_ptr(s.mr) +
        s.offset_within_region != map->start) {
        fail("0x%" PRIx64 " is mapped to other memory", map->iova);
    }
    memory_region_unref(s.mr);
}

static void check_maps(bool after_reset)
{
    const HDMap *maps = f.m->hd->shm->maps;
    unsigned n = 0;

    for (unsigned i = 0; i < HD_MAX_MAPS; i++) {
        if (maps[i].ioas) {
            n++;
            check_map(&maps[i]);
        }
    }
    for (unsigned i = 0; i < f.num_maps; i++) {
        if (!find_map(maps, HD_MAX_MAPS, &f.maps[i])) {
            fail("0x%" PRIx64 " is not mapped as it was", f.maps[i].iova);
        }
    }
    if (after_reset && n != f.num_maps) {
        fail("%u ranges are mapped after a reset, not %u", n, f.num_maps);
    }
}

static unsigned count_objects(HDType type)
{
    const HDObject *objects = f.m->hd->shm->objects;
    unsigned n = 0;

    for (int i = 0; i < HD_MAX_OBJECTS; i++) {
        n += objects[i].type == type;
    }
    return n;
}

/* What comes with the first use of a stream or event queue stays. */
static void check_objects(void)
{
    for (HDType type = HD_DEVICE; type <= HD_VEVENTQ; type++) {
        unsigned n = count_objects(type);

        if (type == HD_VDEVICE ? n > HOT :
            type == HD_VEVENTQ ? n > NUM_SMMUS : n != f.objects[type]) {
            fail("the host has %u objects of type %d after a reset", n, type);
        }
    }
}

static void check_canaries(void)
{
    for (int i = 0; i < ARRAY_SIZE(canaries); i++) {
        uint8_t *page = f.ram + (canaries[i] - RAM_BASE);

        for (unsigned at = 0; at < 4096; at++) {
            if (page[at] != CANARY) {
                fail("a write to 0x%" PRIx64, canaries[i] + at);
            }
        }
    }
}

/* Which vector of whom has this eventfd? */
static PCIDevice *find_vector(int fd, unsigned *index, unsigned *vector)
{
    for (int d = 0; d < NUM_VFIO; d++) {
        HDDevice *dev = &f.m->hd->shm->devices[d];

        for (unsigned i = 0; i < dev->num_msi + dev->num_msix; i++) {
            bool msi = i < dev->num_msi;

            *index = msi ? VFIO_PCI_MSI_IRQ_INDEX : VFIO_PCI_MSIX_IRQ_INDEX;
            *vector = msi ? i : i - dev->num_msi;
            if (functions[d].pdev &&
                dev->vectors[hd_vector(*index, *vector)].fd == fd) {
                return functions[d].pdev;
            }
        }
    }
    return NULL;
}

/* Where would a message go now? Nowhere is -1. */
static uint64_t translate(PCIDevice *pdev, uint64_t address)
{
    AddressSpace *as = pci_device_iommu_address_space(pdev);
    IOMMUTLBEntry entry;

    RCU_READ_LOCK_GUARD();
    entry = address_space_get_iotlb_entry(as, address, true,
                                          (MemTxAttrs) { .debug = true });
    return entry.perm & IOMMU_WO ?
           entry.translated_addr | (address & entry.addr_mask) : -1;
}

/* @synced: all that the tables say is invalidated. Messages need not be. */
static void check_routes(bool synced)
{
    static QTestIrqRoute routes[MAX_ROUTES];
    unsigned n = qtest_irqchip_routes(f.m->qts, routes, MAX_ROUTES);

    for (unsigned i = 0; i < n; i++) {
        QTestIrqRoute *route = &routes[i];
        unsigned index, vector;
        MSIMessage msg;
        PCIDevice *pdev;

        if (!route->used) { /* and not committed yet */
            if (route->fd >= 0) {
                fail("GSI %u has an irqfd, but is released", route->gsi);
            }
            continue;
        }
        if (route->address != DOORBELL_GPA || route->data < V2M_FIRST_SPI) {
            fail("GSI %u is routed to 0x%" PRIx64 " 0x%x", route->gsi,
                 route->address, route->data);
        }
        if (route->fd < 0 || f.irqs_failed) {
            continue; /* the host may have an old eventfd of the same number */
        }
        pdev = find_vector(route->fd, &index, &vector);
        if (!pdev) {
            fail("GSI %u has the irqfd %d of no vector", route->gsi,
                 route->fd);
        }
        if (index == VFIO_PCI_MSIX_IRQ_INDEX) {
            if (msix_is_masked(pdev, vector)) {
                continue;
            }
            msg = msix_get_message(pdev, vector);
        } else {
            msg = msi_get_message(pdev, vector);
        }
        if ((synced && translate(pdev, msg.address) != route->address) ||
            msg.data != route->data ||
            route->devid != pci_requester_id(pdev)) {
            fail("GSI %u has an old route of vector %u of %s", route->gsi,
                 vector, pdev->qdev.id);
        }
    }
}

/* Have both SMMUs look at all tables again. */
static void invalidate_all(void)
{
    QTestState *qts = f.m->qts;

    for (unsigned smmu = 0; smmu < NUM_SMMUS; smmu++) {
        uint64_t base = SMMU_BASE(smmu);
        uint32_t cr0 = qtest_readl(qts, base + A_CR0) & ~R_CR0_CMDQEN_MASK;

        qtest_writel(qts, base + A_CR0, cr0);
        qtest_writeq(qts, base + A_CMDQ_BASE, CMDQ(smmu) | CMDQ_LOG2SIZE);
        qtest_writel(qts, base + A_CMDQ_PROD, 0);
        qtest_writel(qts, base + A_CMDQ_CONS, 0);
        qtest_writel(qts, base + A_GERRORN,
                     qtest_readl(qts, base + A_GERROR));
        f.prod[smmu] = 0;
        qtest_writel(qts, base + A_CR0, cr0 | R_CR0_CMDQEN_MASK);
        queue_command(smmu, SMMU_CMD_CFGI_STE_RANGE, 31);
        queue_command(smmu, SMMU_CMD_TLBI_NSNH_ALL, 0);
        issue(smmu);
    }
}

/* Also a call that disables interrupts may have failed: make up for it. */
static void forget_interrupts(HDDevice *dev)
{
    for (int i = 0; i < hd_vector(VFIO_PCI_ERR_IRQ_INDEX, 0); i++) {
        HDVector *v = &dev->vectors[i];

        if (v->own_fd != HD_NONE) {
            close(v->own_fd);
        }
        *v = (HDVector) { HD_NONE, HD_NONE };
    }
    dev->irq_index = HD_NONE;
    dev->num_vectors = 0;
    dev->intx_masked = dev->intx_asserted = false;
}

static void stop_failing(void)
{
    HDShared *hd = f.m->hd->shm;

    hd_lock(hd);
    memset(hd->fail, 0, sizeof(hd->fail));
    memset(hd->signal, 0, sizeof(hd->signal));
    hd_unlock(hd);
    for (int i = 0; i < IRQCHIP_CAN_FAIL; i++) {
        qtest_irqchip_fail(f.m->qts, irqchip_calls[i], 0, 0);
    }
}

/* Before and after an input */

static void start_pci(void)
{
    for (int i = NUM_VFIO; i < ARRAY_SIZE(functions); i++) {
        Function *port = &functions[i];
        uint64_t at = ECAM_BASE + (port->bdf << 12);

        write_sized(at + PCI_PRIMARY_BUS, 4, port->bdf >> 8 |
                    port->bus << 8 | port->bus << 16);
        write_sized(at + PCI_BASE_ADDRESS_0, 4, port->bar[1]);
        write_sized(at + PCI_MEMORY_BASE, 4,
                    port->bus == 1 ? 0x10201020 :
                    port->bus == 2 ? 0x10501050 : 0x10301030);
        write_sized(at + PCI_COMMAND, 2,
                    PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    }
    for (int i = 0; i < HOT; i++) {
        start_function(&functions[i]);
    }
}

static void start_input(const uint8_t *data, size_t size)
{
    f.data = data;
    f.size = size;
    f.strict = pick(2);
    f.irqs_failed = f.was_reset = false;
    f.plugged = 0;
    memset(f.prod, 0, sizeof(f.prod));
    memset(f.split, 0, sizeof(f.split));
    for (int d = 0; d < NUM_DOMAINS; d++) {
        f.granule[d] = 12;
    }
    memset(f.ram + (POOL - RAM_BASE), 0, POOL_SIZE);
    for (int s = 0; s < NUM_SMMUS; s++) {
        memset(f.ram + (CMDQ(s) - RAM_BASE), 0, 16 << CMDQ_LOG2SIZE);
        write_register(s, A_GBPA, 4, R_GBPA_UPDATE_MASK);
    }
    /* One change of the memory map, which is the slow part of it */
    memory_region_transaction_begin();
    start_pci();
    memory_region_transaction_commit();
}

static void end_input(void)
{
    flush_events(f.m->qts);
    stop_failing();
    check_routes(false);
    invalidate_all();
    flush_events(f.m->qts);
    check_canaries();
    check_routes(true);
    check_maps(false);

    remove_hot_device();
    if (f.m->hd->shm->devices[HOT].bound_fd != HD_NONE) {
        fail("the host's device is still in use after it was unplugged");
    }

    for (int d = 0; d < NUM_VFIO && f.irqs_failed; d++) {
        forget_interrupts(&f.m->hd->shm->devices[d]);
    }
    memory_region_transaction_begin();
    qemu_system_reset(SHUTDOWN_CAUSE_GUEST_RESET);
    memory_region_transaction_commit();
    flush_events(f.m->qts);
    for (int d = 0; d < HOT; d++) {
        HDDevice *dev = &f.m->hd->shm->devices[d];
        ssize_t ret = pwrite(dev->fd, f.config[d], sizeof(f.config[d]),
                             HD_REGION_OFFSET(VFIO_PCI_CONFIG_REGION_INDEX));

        g_assert(ret == sizeof(f.config[d]));
        dev->intx_asserted = false;
    }
    check_maps(true);
    check_objects();
}

static void arm_smmuv3_accel_fuzz(QTestState *s, const unsigned char *data,
                                  size_t size)
{
    start_input(data, size);
    for (int i = 0; i < MAX_STEPS && f.size; i++) {
        steps[pick(ARRAY_SIZE(steps))]();
        flush_events(s);
        look_for_hot_device();
    }
    end_input();
}

/* The machine */

static GString *arm_smmuv3_accel_cmdline(FuzzTarget *t)
{
    Machine *m = f.m = machine_new_irqchip();
    g_autofree char *fds = NULL;
    GString *args;

    g_string_append(m->args, "-m 4G -display none -nodefaults "
                    "-device pxb-pcie,id=pxb,bus=pcie.0,addr=4.0,bus_nr=4 "
                    "-device arm-smmuv3,primary-bus=pxb,accel=on,ril=on,"
                    "ats=off,ssidsize=8,oas=44 "
                    "-device pcie-root-port,id=rp0,bus=pcie.0,addr=1.0,"
                    "chassis=1,hotplug=off "
                    "-device pcie-root-port,id=rp1,bus=pcie.0,addr=3.0,"
                    "chassis=2 "
                    "-device pcie-root-port,id=rp2,bus=pxb,addr=0.0,"
                    "chassis=3,hotplug=off ");
    add_vfio(m, 0, "bus=pcie.0,addr=2.0");
    add_vfio(m, 0, "bus=rp0");
    add_vfio(m, 1, "bus=rp2");
    host_double_add_device(m->hd, 0);
    for (int i = 0; i < NUM_VFIO; i++) {
        m->hd->shm->devices[i].num_msi = 4;
    }
    m->hd->shm->devices[1].dynamic_msix = true;

    fds = g_strdup_printf("%d,%d", m->hd->shm_fd, m->hd->peer_fd);
    g_setenv(HOST_DOUBLE_ENV, fds, true);
    args = g_string_new(TARGET_NAME " ");
    g_string_append(args, m->args->str);
    return args;
}

static void arm_smmuv3_accel_start(QTestState *s)
{
    HDShared *hd = f.m->hd->shm;

    f.m->qts = s;
    f.ram = memory_region_get_ram_ptr(current_machine->ram);
    for (int i = 0; i < ARRAY_SIZE(canaries); i++) {
        memset(f.ram + (canaries[i] - RAM_BASE), CANARY, 4096);
    }
    for (int i = 0; i < ARRAY_SIZE(functions); i++) {
        if (i != HOT &&
            pci_qdev_find_device(functions[i].id, &functions[i].pdev) < 0) {
            fail("there is no %s", functions[i].id);
        }
    }
    for (int d = 0; d < HOT; d++) {
        ssize_t ret = pread(hd->devices[d].fd, f.config[d],
                            sizeof(f.config[d]),
                            HD_REGION_OFFSET(VFIO_PCI_CONFIG_REGION_INDEX));

        g_assert(ret == sizeof(f.config[d]));
    }

    fuzz_reset(s);
    f.maps = g_new(HDMap, HD_MAX_MAPS);
    for (int i = 0; i < HD_MAX_MAPS; i++) {
        if (hd->maps[i].ioas) {
            f.maps[f.num_maps++] = hd->maps[i];
        }
    }
    g_assert(f.num_maps > 0);
    for (HDType type = HD_DEVICE; type < HD_VEVENTQ; type++) {
        f.objects[type] = count_objects(type);
    }
}

static void register_arm_smmuv3_accel_fuzz(void)
{
    fuzz_add_target(&(FuzzTarget) {
        .name = "arm-smmuv3-accel",
        .description = "Fuzz devices behind accelerated SMMUv3s",
        .get_init_cmdline = arm_smmuv3_accel_cmdline,
        .pre_fuzz = arm_smmuv3_accel_start,
        .fuzz = arm_smmuv3_accel_fuzz,
    });
}

fuzz_target_init(register_arm_smmuv3_accel_fuzz);
