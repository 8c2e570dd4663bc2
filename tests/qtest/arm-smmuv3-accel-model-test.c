/*
 * QTest for MSIs behind an accelerated SMMUv3: random steps and a model
 *
 * A script is a list of steps, each one thing that a guest, its devices or the
 * host does. After each step everything that can be seen has to be as the
 * model, see smmuv3-accel-model.h, and these rules say:
 *
 * - An interrupt becomes one message, which arrives where stage 1 takes it at
 *   that moment, or faults and leaves its event, and nothing else.
 * - The irqchip has a vector's message only if it led to a doorbell when it
 *   was looked at last, and it is looked at when the message, a mask or the
 *   stream's configuration changes, on TLB invalidations that cover the
 *   doorbell, and after a message from QEMU has reached one.
 * - What is attached on the host is what registers and STE said at the last
 *   command or register write that concerns the stream.
 *
 * "--seed" repeats a run. A script that fails is reduced to the steps that
 * matter and printed; the name of a file with it in SMMUV3_MODEL_SCRIPT makes
 * the test run that one only. SMMUV3_MODEL_STEPS is the number of steps for
 * each kind of machine.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include <sys/mman.h>
#include "smmuv3-accel-machine.h"
#include "smmuv3-accel-model.h"
#include "smmuv3-accel-script.h"

#define DEFAULT_STEPS   300
#define SCRIPT_STEPS    400     /* in one QEMU */

#define FILL            0xa5
#define CANARIES        4
#define LEVEL2_BLOCK    (2 * MiB)
#define HOLE            0x0b000000ull

/* The device behind a root port, whose bus has one of two numbers */
#define REMOTE          2
#define PORT            PCI_BUILD_BDF(8, 0)
#define BUS(n)          (9 + (n))
#define PORT_WINDOW     0x2000ull   /* as in PCI_MEMORY_BASE */

#define ITS_EVENTS      16

/* What happened, for the reader to see that much did */
enum {
    COUNT_INJECTED,         /* by the irqchip, */
    COUNT_STALE,            /* with a route that is right no more */
    COUNT_INTERRUPT,        /* from QEMU, */
    COUNT_RAM,
    COUNT_LOST,             /* in no register that takes messages */
    COUNT_DROPPED,
    COUNT_EVENT,
    COUNT_MASKED,           /* fired while masked */
    COUNT_RACE,             /* fired in the middle of a step */
    COUNT_FAILED,           /* a call to the irqchip or the host */
    COUNT_ROUTED,           /* a vector changed over */
    COUNT_UNROUTED,
    NUM_COUNTS,
};

static const char *const count_names[NUM_COUNTS] = {
    "injected", "of them stale", "interrupts from QEMU", "to RAM",
    "to nothing", "dropped", "events", "masked", "races", "failures",
    "to irqchip", "to QEMU",
};

typedef struct Route {
    bool routed;
    uint64_t gpa;
    uint32_t data;
} Route;

/* What is known of a vector beside what the guest has programmed */
typedef struct VectorState {
    Route route;            /* when the last step was over */
    bool check;             /* this step has it looked at */
    bool looked;            /* stage 1 translated it then, */
    ModelLeaf leaf;         /* with this */
    uint16_t asid;
    uint64_t address;
    unsigned refused;       /* by the irqchip, how often in a row */
    unsigned delivered;     /* messages from QEMU since */
} VectorState;

typedef struct WorldDevice {
    HDDevice *hd;
    QPCIDevice *pci;
    uint8_t msix_cap;
    uint64_t host_ste;      /* attached when the last step was over */
    bool check;             /* this step has it attached anew */
    VectorState vector[MODEL_VECTORS];
} WorldDevice;

/* What the stream table says of a number that a device may get */
typedef struct Stream {
    uint32_t sid;
    ModelSTE ste;
    unsigned domain;
} Stream;

typedef struct DomainTables {
    QSMMUDomain *domain;
    uint64_t table[MODEL_PAGES];    /* descriptor of the last level's table */
    uint8_t *level2[MODEL_PAGES];   /* the page's descriptors in RAM */
    uint8_t *level3[MODEL_PAGES];
} DomainTables;

typedef struct Command {
    unsigned smmu;
    uint32_t first, last;   /* streams whose configuration it invalidates, */
    bool ste;               /* with the STE, */
    bool tlb;               /* or else it is this */
    ModelTLBI tlbi;
} Command;

typedef struct SentMessage {
    uint64_t gpa;
    uint32_t data;
} SentMessage;

typedef struct ExpectedEvent {
    unsigned smmu;
    uint8_t type;
    uint32_t sid;
    uint64_t address;
} ExpectedEvent;

/* An interrupt that will come in the middle of what QEMU does in a step */
typedef struct Race {
    const char *call;       /* of the irqchip, */
    unsigned n;             /* at the n-th one of a step */
    unsigned dev, vector;
} Race;

struct World {
    const struct MachineKind *kind;
    ScriptResult *result;
    Machine *m;
    uint8_t *ram;
    Model model;
    WorldDevice dev[MODEL_DEVICES];
    Stream renumbered;      /* what REMOTE is not at present */
    DomainTables tables[MODEL_SMMUS][MODEL_DOMAINS];
    uint32_t evt_cons[MODEL_SMMUS];
    GArray *waiting;        /* Commands in a queue that is disabled */

    /* Of the irqchip, when the last step was over */
    uint64_t injected, updates, commits;
    GString *routes;

    /* Of this step */
    unsigned num_sent, num_events;
    SentMessage sent[MODEL_VECTORS + 1];
    ExpectedEvent event[MODEL_VECTORS + 1];
    uint64_t seen;          /* of what is read only once */
    uint64_t interrupts;    /* a bit for each SPI or LPI */
    unsigned num_injected;
    bool in_parts;          /* the guest sees it as several changes */
    const char *fails;      /* irqchip call that fails in the next step */
    bool failing;           /* one may fail in this step */
    Race race;              /* in a step to come */
    unsigned long host_fails;
    bool host_failing;
};

typedef struct MachineKind {
    const char *name;
    const char *gic;
    const char *args;
    bool its, irqchip;
} MachineKind;

static const MachineKind machines[] = {
    { "gicv2m-irqchip", "gic-version=2", "-accel qtest,irqchip=on ",
      .irqchip = true },
    { "its-irqchip", "gic-version=3", "-accel qtest,irqchip=on ",
      .its = true, .irqchip = true },
    { "gicv2m", "gic-version=2", "" },
    { "its", "gic-version=3", "", .its = true },
};

/* End this run because the world is not as it should be. */
static G_NORETURN void difference(World *w, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

static G_NORETURN void difference(World *w, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(w->result->why, sizeof(w->result->why), fmt, args);
    va_end(args);
    qtest_quit(w->m->qts);
    _exit(1);
}

static void count(World *w, bool happened, unsigned what)
{
    w->result->count[what] += happened;
}

/* Guest RAM, which the test shares with QEMU */

static uint8_t *ram(World *w, uint64_t gpa)
{
    g_assert_cmphex(gpa, >=, RAM_BASE);
    g_assert_cmphex(gpa, <, RAM_BASE + RAM_SIZE);
    return w->ram + gpa - RAM_BASE;
}

static bool is_ram(uint64_t gpa)
{
    return gpa >= RAM_BASE && gpa < RAM_BASE + RAM_SIZE;
}

/*
 * The first has its own place in its 2 MiB, the third one where page 0 is in
 * its block, so that a block may lead there.
 */
static uint64_t canary(unsigned i)
{
    static const uint64_t offset[CANARIES] = {
        0x40000, 0x91000, 0x1ff000, 0x40000
    };

    return RAM_BASE + 256 * MiB + i * LEVEL2_BLOCK + offset[i];
}

static uint64_t doorbell_page(World *w)
{
    return w->model.doorbell & ~0xfffull;
}

/* What steps do to the model and to the machine alike */

static ModelVector *model_vector(World *w, unsigned dev, unsigned vector)
{
    return &w->model.dev[dev].vector[vector];
}

static void check_device(World *w, unsigned dev)
{
    for (int v = 0; v < MODEL_VECTORS; v++) {
        w->dev[dev].vector[v].check = true;
    }
}

static void check_smmu(World *w, unsigned smmu)
{
    for (int i = 0; i < MODEL_DEVICES; i++) {
        if (w->model.dev[i].smmu == smmu) {
            check_device(w, i);
            w->dev[i].check = true;
        }
    }
}

static void command_done(World *w, const Command *c)
{
    for (int i = 0; i < MODEL_DEVICES; i++) {
        const ModelDevice *dev = &w->model.dev[i];

        if (dev->smmu != c->smmu) {
            continue;
        }
        if (!c->tlb && dev->sid >= c->first && dev->sid <= c->last) {
            check_device(w, i);
            w->dev[i].check |= c->ste;
        }
        for (int v = 0; c->tlb && v < MODEL_VECTORS; v++) {
            VectorState *vs = &w->dev[i].vector[v];

            vs->check |= vs->looked && model_tlbi_covers(&c->tlbi, &vs->leaf,
                                                         vs->asid,
                                                         vs->address);
        }
    }
}

static void commands_done(World *w, unsigned smmu)
{
    for (unsigned i = 0; i < w->waiting->len;) {
        Command *c = &g_array_index(w->waiting, Command, i);

        if (c->smmu == smmu) {
            command_done(w, c);
            g_array_remove_index(w->waiting, i);
        } else {
            i++;
        }
    }
}

/*
 * A command that fails because the host failed is in order when it is tried
 * again.
 */
static void check_command_queue(World *w, unsigned smmu)
{
    QSMMUGuest *g = &w->m->smmu[smmu];
    uint32_t cons = qtest_readl(w->m->qts, g->base + A_CMDQ_CONS);
    uint32_t gerror;

    if (w->host_failing && cons != g->cmdq_prod) {
        gerror = qtest_readl(w->m->qts, g->base + A_GERROR);
        qtest_writel(w->m->qts, g->base + A_GERRORN, gerror);
        cons = qtest_readl(w->m->qts, g->base + A_CMDQ_CONS);
        /* The error that the field reports is in the past. */
        cons &= MAKE_64BIT_MASK(0, 20);
    }
    if (cons != g->cmdq_prod) {
        difference(w, "SMMU %u: CMDQ_CONS is 0x%x, not 0x%x", smmu, cons,
                   g->cmdq_prod);
    }
}

static void issue(World *w, Command c, uint64_t word0, uint64_t word1)
{
    QSMMUGuest *g = &w->m->smmu[c.smmu];
    uint8_t *entry;

    if (w->waiting->len >= 64) {
        return; /* the queue will not be full */
    }
    entry = ram(w, g->cmdq + 16 * (g->cmdq_prod % 256));
    stq_le_p(entry, word0);
    stq_le_p(entry + 8, word1);
    g->cmdq_prod = (g->cmdq_prod + 1) % 512;
    qtest_writel(w->m->qts, g->base + A_CMDQ_PROD, g->cmdq_prod);
    if (w->model.smmu[c.smmu].cmdq) {
        command_done(w, &c);
        check_command_queue(w, c.smmu);
    } else {
        g_array_append_val(w->waiting, c);
    }
}

enum {
    CFGI_NONE,
    CFGI_STE,
    CFGI_CD,
    CFGI_CD_ALL,
    CFGI_RANGE,
    CFGI_ALL,
    CFGI_OTHER_STE,
    NUM_CFGI,
};

static void cfgi(World *w, unsigned i, unsigned kind)
{
    const ModelDevice *dev = &w->model.dev[i];
    uint64_t word0 = (uint64_t)dev->sid << 32;
    Command c = { .smmu = dev->smmu, .first = dev->sid, .last = dev->sid };

    switch (kind) {
    case CFGI_STE:
        c.ste = true;
        issue(w, c, word0 | SMMU_CMD_CFGI_STE, 1);
        break;
    case CFGI_CD:
        issue(w, c, word0 | SMMU_CMD_CFGI_CD, 1);
        break;
    case CFGI_CD_ALL:
        issue(w, c, word0 | SMMU_CMD_CFGI_CD_ALL, 0);
        break;
    case CFGI_RANGE:
        c.ste = true;
        c.first &= ~15u;
        c.last |= 15;
        issue(w, c, word0 | SMMU_CMD_CFGI_STE_RANGE, 3);
        break;
    case CFGI_ALL:
        c.ste = true;
        c.first = 0;
        c.last = UINT32_MAX;
        issue(w, c, SMMU_CMD_CFGI_STE_RANGE, 31);
        break;
    case CFGI_OTHER_STE:
        c.ste = true;
        c.first ^= 1;
        c.last = c.first;
        issue(w, c, (uint64_t)c.first << 32 | SMMU_CMD_CFGI_STE, 1);
        break;
    }
}

enum {
    TLBI_NONE,
    TLBI_VA,
    TLBI_VA_NEXT_PAGE,
    TLBI_VA_OTHER_ASID,
    TLBI_VAA,
    TLBI_ASID,
    TLBI_RANGE,
    TLBI_RANGE_BEHIND,
    TLBI_NH_ALL,
    TLBI_NSNH_ALL,
    NUM_TLBI,
};

static void tlbi(World *w, unsigned smmu, unsigned domain, unsigned page,
                 unsigned kind)
{
    uint64_t va = w->model.page[page];
    uint64_t asid = w->model.smmu[smmu].domain[domain].asid;
    uint64_t word0 = SMMU_CMD_TLBI_NH_VA, word1;
    Command c = { .smmu = smmu, .tlb = true, .tlbi.last = 0xfff };

    switch (kind) {
    case TLBI_NONE:
        return;
    case TLBI_VA_NEXT_PAGE:
        va ^= 0x1000;
        break;
    case TLBI_VA_OTHER_ASID:
        asid ^= 1;
        break;
    case TLBI_VAA:
        word0 = SMMU_CMD_TLBI_NH_VAA;
        c.tlbi.any_asid = true;
        asid = 0;
        break;
    case TLBI_ASID:
        word0 = SMMU_CMD_TLBI_NH_ASID;
        c.tlbi.keeps_global = true;
        c.tlbi.all_addresses = true;
        break;
    case TLBI_RANGE:
        va -= 0x1000;
        c.tlbi.last = 0x1fff;
        break;
    case TLBI_RANGE_BEHIND:
        va += 0x1000;
        c.tlbi.last = 0x1fff;
        break;
    case TLBI_NH_ALL:
    case TLBI_NSNH_ALL:
        word0 = kind == TLBI_NH_ALL ? SMMU_CMD_TLBI_NH_ALL
                                    : SMMU_CMD_TLBI_NSNH_ALL;
        c.tlbi.any_asid = true;
        c.tlbi.all_addresses = true;
        asid = 0;
        break;
    }
    c.tlbi.asid = asid;
    c.tlbi.first = va;
    c.tlbi.last += va;
    word0 |= asid << 48;
    word1 = c.tlbi.all_addresses ? 0 : va;
    if (kind == TLBI_RANGE || kind == TLBI_RANGE_BEHIND) {
        word0 |= 1 << 12;   /* NUM: two */
        word1 |= 1 << 10;   /* TG: pages of 4 KiB */
    }
    issue(w, c, word0, word1);
}

/* The bit of a message that is an interrupt */
static uint64_t interrupt_bit(World *w, unsigned i, uint32_t data)
{
    uint32_t sid = w->model.dev[i].sid;
    /* The ITS knows it as another device. */
    unsigned device = sid == PCI_BUILD_BDF(BUS(1), 0) ? MODEL_DEVICES : i;

    return 1ull << (w->kind->its ? device * ITS_EVENTS + data :
                    data - V2M_FIRST_SPI);
}

static bool leaves_event(World *w, const ModelDevice *dev,
                         const ModelOutcome *o)
{
    return o->kind == MODEL_FAULT && o->recorded &&
           w->model.smmu[dev->smmu].eventq;
}

static void expect_event(World *w, const ModelDevice *dev, uint8_t type,
                         uint64_t address)
{
    count(w, true, COUNT_EVENT);
    w->event[w->num_events++] = (ExpectedEvent) {
        .smmu = dev->smmu,
        .type = type,
        .sid = dev->sid,
        .address = address,
    };
}

/* What QEMU has to do with a vector's message when it sends it */
static void expect_message(World *w, unsigned i, unsigned v)
{
    const ModelDevice *dev = &w->model.dev[i];
    const ModelVector *vector = &dev->vector[v];
    VectorState *vs = &w->dev[i].vector[v];
    ModelOutcome o = model_translate(&w->model, dev, vector->address);
    uint32_t data = vector->data;

    if (vs->route.routed) {
        count(w, !model_is_interrupt(&w->model, &o, data) ||
                 o.gpa != vs->route.gpa || data != vs->route.data, COUNT_STALE);
        o = (ModelOutcome) { .kind = MODEL_SENT, .gpa = vs->route.gpa };
        data = vs->route.data;
        w->num_injected++;
    }
    count(w, vs->route.routed, COUNT_INJECTED);
    count(w, o.kind == MODEL_DROPPED, COUNT_DROPPED);
    if (leaves_event(w, dev, &o)) {
        expect_event(w, dev, o.event, vector->address);
    }
    if (o.kind != MODEL_SENT) {
        return;
    }
    if (is_ram(o.gpa)) {
        w->sent[w->num_sent++] = (SentMessage) { o.gpa, data };
        count(w, true, COUNT_RAM);
    } else if (model_is_interrupt(&w->model, &o, data)) {
        w->interrupts |= interrupt_bit(w, i, data);
        if (!vs->route.routed) {
            count(w, true, COUNT_INTERRUPT);
            vs->delivered++;
            /* An irqchip that refuses is asked after 0, 1, 3... messages. */
            vs->check |= !vs->refused ||
                         vs->delivered >= 1u << (vs->refused - 1);
        }
    } else {
        count(w, true, COUNT_LOST);
    }
}

/* Send what was pending, after a change of masks. */
static void expect_unmasked(World *w, unsigned i)
{
    for (int v = 0; v < MODEL_VECTORS; v++) {
        ModelVector *vector = model_vector(w, i, v);

        if (vector->pending && model_live(&w->model.dev[i], v)) {
            g_assert_false(w->dev[i].vector[v].route.routed);
            vector->pending = false;
            expect_message(w, i, v);
        }
    }
}

/* Steps */

static uint64_t msix_entry(World *w, unsigned i, unsigned v)
{
    return w->dev[i].pci->msix_table_off + v * PCI_MSIX_ENTRY_SIZE;
}

static void step_address(World *w, const uint32_t *arg)
{
    static const unsigned offsets[] = {
        0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x44, 0xffc,
    };
    unsigned i = arg[0], v = arg[1];
    uint64_t address = w->model.page[arg[2]] + offsets[arg[3]];
    uint64_t entry = msix_entry(w, i, v);
    QPCIDevice *pci = w->dev[i].pci;

    qpci_io_writel(pci, pci->msix_table_bar, entry, address);
    qpci_io_writel(pci, pci->msix_table_bar, entry + 4, address >> 32);
    w->dev[i].vector[v].check = model_vector(w, i, v)->address != address;
    model_vector(w, i, v)->address = address;
    w->in_parts = true;
}

static void step_data(World *w, const uint32_t *arg)
{
    static const uint32_t spis[16] = {
        80, 81, 82, 83, 84, 85, 86, 87, 88, 95, 96, 127, 143,
        79, 144, MSI_DATA,  /* none of the frame's */
    };
    unsigned i = arg[0], v = arg[1];
    uint32_t data = w->kind->its ? arg[2] : spis[arg[2]];
    QPCIDevice *pci = w->dev[i].pci;

    qpci_io_writel(pci, pci->msix_table_bar, msix_entry(w, i, v) + 8, data);
    w->dev[i].vector[v].check = model_vector(w, i, v)->data != data;
    model_vector(w, i, v)->data = data;
}

static void step_mask(World *w, const uint32_t *arg)
{
    unsigned i = arg[0], v = arg[1];
    ModelVector *vector = model_vector(w, i, v);
    bool masked = arg[2] == 0;

    mask_vector(w->dev[i].pci, v, masked);
    if (vector->masked != masked) {
        vector->masked = masked;
        w->dev[i].vector[v].check = true;
        expect_unmasked(w, i);
    }
}

static void write_msix_flags(World *w, unsigned i)
{
    ModelDevice *dev = &w->model.dev[i];

    qpci_config_writew(w->dev[i].pci, w->dev[i].msix_cap + PCI_MSIX_FLAGS,
                       (dev->enabled ? PCI_MSIX_FLAGS_ENABLE : 0) |
                       (dev->masked ? PCI_MSIX_FLAGS_MASKALL : 0));
}

static void disable_msix(World *w, unsigned i)
{
    w->model.dev[i].enabled = false;
    for (int v = 0; v < MODEL_VECTORS; v++) {
        model_vector(w, i, v)->pending = false;
    }
}

static void step_msix(World *w, const uint32_t *arg)
{
    unsigned i = arg[0];
    ModelDevice *dev = &w->model.dev[i];
    bool enabled = arg[1] > 0, masked = arg[1] == 1;

    if (dev->enabled == enabled && dev->masked == masked) {
        return;
    }
    if (!enabled) {
        disable_msix(w, i);
    }
    dev->enabled = enabled;
    dev->masked = masked;
    write_msix_flags(w, i);
    check_device(w, i);
    expect_unmasked(w, i);
}

static void step_master(World *w, const uint32_t *arg)
{
    unsigned i = arg[0];

    w->model.dev[i].master = arg[1] > 0;
    qpci_config_writew(w->dev[i].pci, PCI_COMMAND, PCI_COMMAND_MEMORY |
                       (arg[1] > 0 ? PCI_COMMAND_MASTER : 0));
}

static void step_map(World *w, const uint32_t *arg)
{
    static const ModelLeaf leaves[16] = {
        { MODEL_UNMAPPED },
        { MODEL_UNMAPPED },
        { MODEL_NO_TABLE },
        { MODEL_PAGE, .read_only = true },
        { MODEL_PAGE, .not_accessed = true },
        { MODEL_BLOCK },
        { MODEL_BLOCK, .not_global = true },
        { MODEL_PAGE }, { MODEL_PAGE }, { MODEL_PAGE }, { MODEL_PAGE },
        [11 ... 15] = { MODEL_PAGE, .not_global = true },
    };
    const uint64_t targets[8] = {
        canary(0), canary(3), HOLE, doorbell_page(w), doorbell_page(w),
        doorbell_page(w), doorbell_page(w), doorbell_page(w),
    };
    unsigned smmu = arg[0], domain = arg[1], page = arg[2];
    unsigned tables = w->model.smmu[smmu].domain[domain].tables;
    ModelLeaf *leaf = &w->model.smmu[smmu].leaf[tables][page];
    DomainTables *t = &w->tables[smmu][tables];
    uint64_t pte;

    *leaf = leaves[arg[3]];
    leaf->pa = targets[arg[4]];
    pte = leaf->pa | QSMMU_PTE_RW;
    pte |= leaf->not_global ? 1 << 11 : 0;
    pte |= leaf->read_only ? 1 << 7 : 0;
    pte &= leaf->not_accessed ? ~(1ull << 10) : ~0ull;

    switch (leaf->kind) {
    case MODEL_BLOCK:
        leaf->pa &= ~(LEVEL2_BLOCK - 1);
        pte &= ~MAKE_64BIT_MASK(12, 9) & ~2ull;
        stq_le_p(t->level2[page], pte);
        break;
    case MODEL_NO_TABLE:
        stq_le_p(t->level2[page], HOLE | 3);
        break;
    default:
        stq_le_p(t->level3[page], leaf->kind == MODEL_PAGE ? pte : 0);
        stq_le_p(t->level2[page], t->table[page]);
        break;
    }
    tlbi(w, smmu, domain, page, arg[5]);
}

static void step_tlbi(World *w, const uint32_t *arg)
{
    tlbi(w, arg[0], arg[1], arg[2], arg[3]);
}

/* The CD that the device's STE points to */
static uint64_t cd_of(World *w, unsigned i)
{
    const ModelDevice *dev = &w->model.dev[i];

    return dev->ste == MODEL_STE_S1_NO_CD ? HOLE :
           w->tables[dev->smmu][dev->domain].domain->cd;
}

static void write_ste(World *w, unsigned i)
{
    const ModelDevice *dev = &w->model.dev[i];
    static const uint64_t words[] = {
        [MODEL_STE_INVALID] = 0,
        [MODEL_STE_ABORT] = QSMMU_STE_ABORT,
        [MODEL_STE_BYPASS] = QSMMU_STE_BYPASS,
        [MODEL_STE_S1] = QSMMU_STE_S1,
        [MODEL_STE_S1_NO_CD] = QSMMU_STE_S1,
    };
    uint64_t word = words[dev->ste];

    if (word == QSMMU_STE_S1) {
        word |= cd_of(w, i);
    }
    stq_le_p(ram(w, w->m->smmu[dev->smmu].strtab + dev->sid * sizeof(STE)),
             word);
}

static void step_ste(World *w, const uint32_t *arg)
{
    static const struct {
        ModelSTE ste;
        unsigned domain;
    } states[16] = {
        { MODEL_STE_INVALID },
        { MODEL_STE_ABORT },
        { MODEL_STE_BYPASS },
        { MODEL_STE_BYPASS },
        { MODEL_STE_S1_NO_CD },
        [5 ... 9] = { MODEL_STE_S1, 0 },
        [10 ... 15] = { MODEL_STE_S1, 1 },
    };
    ModelDevice *dev = &w->model.dev[arg[0]];

    dev->ste = states[arg[1]].ste;
    dev->domain = states[arg[1]].domain;
    write_ste(w, arg[0]);
    cfgi(w, arg[0], arg[2]);
}

/* The domain of a device's STE: CD.V, CD.R and the tables */
static void step_cd(World *w, const uint32_t *arg)
{
    ModelDevice *dev = &w->model.dev[arg[0]];
    ModelDomain *d = &w->model.smmu[dev->smmu].domain[dev->domain];
    uint8_t *cd = ram(w, w->tables[dev->smmu][dev->domain].domain->cd);

    d->valid = arg[1] > 0;
    d->record = arg[2] > 0;
    d->tables = dev->domain ^ (arg[3] == 0);
    stq_le_p(cd + A_CD_2, w->tables[dev->smmu][d->tables].domain->ttb);
    stl_le_p(cd + A_CD_1, (ldl_le_p(cd + A_CD_1) & ~R_CD_1_R_MASK) |
             (d->record ? R_CD_1_R_MASK : 0));
    stl_le_p(cd, (ldl_le_p(cd) & ~R_CD_0_VALID_MASK) |
             (d->valid ? R_CD_0_VALID_MASK : 0));
    cfgi(w, arg[0], arg[4]);
}

static void step_cfgi(World *w, const uint32_t *arg)
{
    cfgi(w, arg[0], arg[1]);
}

static void write_cr0(World *w, unsigned smmu)
{
    ModelSMMU *s = &w->model.smmu[smmu];

    qtest_writel(w->m->qts, w->m->smmu[smmu].base + A_CR0,
                 (s->enabled ? R_CR0_SMMUEN_MASK : 0) |
                 (s->eventq ? R_CR0_EVENTQEN_MASK : 0) |
                 (s->cmdq ? R_CR0_CMDQEN_MASK : 0));
}

/* What may be written with SMMUEN = 0 only changes on the way. */
static void step_smmuen(World *w, const uint32_t *arg)
{
    unsigned smmu = arg[0];
    ModelSMMU *s = &w->model.smmu[smmu];
    uint64_t base = w->m->smmu[smmu].base;
    bool enabled = arg[1] > 0;

    if (s->enabled == enabled) {
        return;
    }
    if (enabled) {
        s->log2_streams = arg[2] > 0 ? 12 : 5;
        s->recinvsid = arg[3];
        qtest_writel(w->m->qts, base + A_STRTAB_BASE_CFG, s->log2_streams);
        qtest_writel(w->m->qts, base + A_CR2, s->recinvsid ? 2 : 0);
    }
    s->enabled = enabled;
    write_cr0(w, smmu);
    check_smmu(w, smmu);
}

static void step_queues(World *w, const uint32_t *arg)
{
    ModelSMMU *s = &w->model.smmu[arg[0]];
    bool had_cmdq = s->cmdq;

    s->cmdq = arg[1] > 0;
    s->eventq = arg[2] > 0;
    write_cr0(w, arg[0]);
    if (s->cmdq && !had_cmdq) {
        commands_done(w, arg[0]);
        check_command_queue(w, arg[0]);
    }
}

static void step_gbpa(World *w, const uint32_t *arg)
{
    ModelSMMU *s = &w->model.smmu[arg[0]];

    s->abort = arg[1];
    qtest_writel(w->m->qts, w->m->smmu[arg[0]].base + A_GBPA,
                 R_GBPA_UPDATE_MASK | (s->abort ? R_GBPA_ABORT_MASK : 0));
    if (!s->enabled) {
        check_smmu(w, arg[0]);
    }
}

static void step_fire(World *w, const uint32_t *arg)
{
    const unsigned index = VFIO_PCI_MSIX_IRQ_INDEX;
    unsigned i = arg[0], v = arg[1];
    WorldDevice *ds = &w->dev[i];
    ModelDevice *dev = &w->model.dev[i];

    /* No device that may not write to memory sends a message by itself. */
    if (ds->vector[v].route.routed && !dev->master) {
        return;
    }
    if (host_double_eventfd(w->m->hd, ds->hd, index, v) == HD_NONE) {
        /* It was never unmasked: the host keeps it. */
        return;
    }
    if (model_live(dev, v)) {
        expect_message(w, i, v);
    } else {
        dev->vector[v].pending = true;
        count(w, true, COUNT_MASKED);
    }
    g_assert_true(host_double_fire(w->m->hd, ds->hd, index, v));
    if (!host_double_wait(w->m->hd, ds->hd, index, v)) {
        difference(w, "nobody takes the interrupt of device %u vector %u", i,
                   v);
    }
    if (dev->vector[v].pending && !qpci_msix_pending(ds->pci, v)) {
        difference(w, "device %u vector %u is not pending", i, v);
    }
}

static void step_irqchip_fails(World *w, const uint32_t *arg)
{
    if (w->kind->irqchip) {
        w->fails = irqchip_calls[arg[0]];
        qtest_irqchip_fail(w->m->qts, w->fails, arg[1] + 1, ENOSPC);
    }
}

static void step_race(World *w, const uint32_t *arg)
{
    if (w->kind->irqchip) {
        w->race = (Race) { irqchip_calls[arg[0]], arg[1] + 1, arg[2], arg[3] };
    }
}

static void step_host_fails(World *w, const uint32_t *arg)
{
    static const unsigned long requests[] = {
        IOMMU_HWPT_ALLOC, VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    };

    w->host_fails = requests[arg[0]];
    host_double_fail(w->m->hd, w->host_fails, 1, ENOMEM);
}

static void write_bus_number(World *w, QPCIDevice *port)
{
    uint32_t bus = PCI_BUS_NUM(w->model.dev[REMOTE].sid);

    qpci_config_writel(port, PCI_PRIMARY_BUS, 8 | bus << 8 | bus << 16);
}

/* The root port of the second SMMU, with room for one device */
static void start_port(World *w)
{
    g_autofree QPCIDevice *port = find_pci(w->m, PORT);

    write_bus_number(w, port);
    qpci_config_writew(port, PCI_MEMORY_BASE, PORT_WINDOW);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, PORT_WINDOW);
}

static void step_renumber(World *w, const uint32_t *arg)
{
    g_autofree QPCIDevice *port = find_pci(w->m, PORT);
    ModelDevice *dev = &w->model.dev[REMOTE];
    Stream was = { dev->sid, dev->ste, dev->domain };

    dev->sid = w->renumbered.sid;
    dev->ste = w->renumbered.ste;
    dev->domain = w->renumbered.domain;
    w->renumbered = was;
    w->dev[REMOTE].pci->devfn = dev->sid;
    write_bus_number(w, port);
    w->dev[REMOTE].check = true;
    check_device(w, REMOTE);
}

static void start_devices(World *w)
{
    start_port(w);
    for (int i = 0; i < MODEL_DEVICES; i++) {
        ModelDevice *dev = &w->model.dev[i];
        QPCIDevice *pci = w->dev[i].pci;

        qpci_config_writel(pci, PCI_BASE_ADDRESS_0 + 4 * HD_BAR_MSIX,
                           pci->msix_table_bar.addr);
        dev->master = true;
        qpci_config_writew(pci, PCI_COMMAND,
                           PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        disable_msix(w, i);
        dev->masked = false;
        write_msix_flags(w, i);
        for (int v = 0; v < MODEL_VECTORS; v++) {
            dev->vector[v] = (ModelVector) { .masked = true };
            mask_vector(pci, v, true);
            write_message(pci, v, 0, 0);
        }
    }
}

/* What a driver does first: vector N sends through page N. */
static void start_driver(World *w)
{
    for (int i = 0; i < MODEL_DEVICES; i++) {
        for (uint32_t v = 0; v < MODEL_VECTORS; v++) {
            step_address(w, (uint32_t[]) { i, v, v, 0 });
            step_data(w, (uint32_t[]) { i, v, i * MODEL_VECTORS + v });
            step_mask(w, (uint32_t[]) { i, v, 1 });
        }
        step_msix(w, (uint32_t[]) { i, 2 });
    }
}

static void start_controller(World *w)
{
    if (w->kind->its) {
        its_start(w->m, w->model.dev[0].sid);
        its_add_device(w->m, w->model.dev[1].sid, 1);
        its_add_device(w->m, PCI_BUILD_BDF(BUS(0), 0), REMOTE);
        its_add_device(w->m, PCI_BUILD_BDF(BUS(1), 0), MODEL_DEVICES);
        return;
    }
    v2m_start(w->m);
}

/* Out of reset the SMMUs pass everything. */
static void start_smmus(World *w)
{
    g_array_set_size(w->waiting, 0);
    for (int i = 0; i < MODEL_SMMUS; i++) {
        ModelSMMU *s = &w->model.smmu[i];

        s->abort = false;
        s->recinvsid = false;
        s->log2_streams = 12;
        s->cmdq = s->eventq = s->enabled = true;
        w->evt_cons[i] = 0;
        qsmmu_guest_enable(&w->m->smmu[i]);
        check_smmu(w, i);
    }
}

static void step_reset(World *w, const uint32_t *arg)
{
    qtest_system_reset(w->m->qts);
    start_devices(w);
    start_controller(w);
    start_smmus(w);
    start_driver(w);
    w->in_parts = true;
}

static const StepKind kinds[] = {
    { "address", 60, step_address,
      { MODEL_DEVICES, MODEL_VECTORS, MODEL_PAGES, 8 }, true },
    { "data", 40, step_data, { MODEL_DEVICES, MODEL_VECTORS, 16 }, true },
    { "mask", 80, step_mask, { MODEL_DEVICES, MODEL_VECTORS, 4 } },
    { "msix", 60, step_msix, { MODEL_DEVICES, 8 } },
    { "master", 10, step_master, { MODEL_DEVICES, 8 } },
    { "map", 160, step_map,
      { MODEL_SMMUS, MODEL_DOMAINS, MODEL_PAGES, 16, 8, NUM_TLBI }, true },
    { "tlbi", 40, step_tlbi,
      { MODEL_SMMUS, MODEL_DOMAINS, MODEL_PAGES, NUM_TLBI }, true },
    { "ste", 50, step_ste, { MODEL_DEVICES, 16, NUM_CFGI }, true },
    { "cd", 40, step_cd, { MODEL_DEVICES, 8, 2, 4, NUM_CFGI }, true },
    { "cfgi", 20, step_cfgi, { MODEL_DEVICES, NUM_CFGI }, true },
    { "smmuen", 20, step_smmuen, { MODEL_SMMUS, 8, 4, 2 }, true },
    { "queues", 10, step_queues, { MODEL_SMMUS, 4, 4 } },
    { "gbpa", 10, step_gbpa, { MODEL_SMMUS, 2 }, true },
    { "fire", 300, step_fire, { MODEL_DEVICES, MODEL_VECTORS } },
    { "irqchip-fails", 30, step_irqchip_fails, { 3, 2 } },
    { "race", 60, step_race,
      { ARRAY_SIZE(irqchip_calls), 2, MODEL_DEVICES, MODEL_VECTORS } },
    { "host-fails", 5, step_host_fails, { 2 } },
    { "renumber", 10, step_renumber },
    { "reset", 1, step_reset },
};

/* What has to be seen after a step */

static bool is_event(const ExpectedEvent *e, const uint8_t *record)
{
    uint64_t word[3] = {
        ldq_le_p(record), ldq_le_p(record + 8), ldq_le_p(record + 16)
    };
    bool access = e->type >= MODEL_F_TRANSLATION;

    if (e->type != QSMMU_EVT_TYPE(word) || e->sid != QSMMU_EVT_SID(word)) {
        return false;
    }
    if (access && extract64(word[1], 40, 2) != 2 /* class IN */) {
        return false;
    }
    return !(access || e->type == MODEL_F_WALK_EABT) ||
           (e->address == QSMMU_EVT_ADDR(word) &&
            !extract64(word[1], 35, 1) /* a write */);
}

static void check_events(World *w)
{
    bool found[ARRAY_SIZE(w->event)] = { };

    for (unsigned s = 0; s < MODEL_SMMUS; s++) {
        QSMMUGuest *g = &w->m->smmu[s];
        uint64_t regs = g->base + 0x10000;
        uint32_t prod = qtest_readl(w->m->qts, regs + A_EVENTQ_PROD);

        for (; w->evt_cons[s] != prod;
             w->evt_cons[s] = (w->evt_cons[s] + 1) % 512) {
            uint8_t *record = ram(w, g->eventq + w->evt_cons[s] % 256 * 32);
            unsigned i;

            for (i = 0; i < w->num_events; i++) {
                if (!found[i] && w->event[i].smmu == s &&
                    is_event(&w->event[i], record)) {
                    break;
                }
            }
            if (i == w->num_events) {
                difference(w, "SMMU %u: unexpected event 0x%" PRIx64 " 0x%"
                           PRIx64 " 0x%" PRIx64, s, ldq_le_p(record),
                           ldq_le_p(record + 8), ldq_le_p(record + 16));
            }
            found[i] = true;
            qtest_writel(w->m->qts, regs + A_EVENTQ_CONS,
                         (w->evt_cons[s] + 1) % 512);
        }
    }
    for (unsigned i = 0; i < w->num_events; i++) {
        if (!found[i]) {
            difference(w, "SMMU %u: no event of type 0x%x, sid 0x%x, address "
                       "0x%" PRIx64, w->event[i].smmu, w->event[i].type,
                       w->event[i].sid, w->event[i].address);
        }
    }
}

static void check_ram(World *w)
{
    for (unsigned i = 0; i < w->num_sent; i++) {
        uint8_t *word = ram(w, w->sent[i].gpa);
        uint32_t data = ldl_le_p(word);
        bool ok = false;

        /* Of several messages the last one is seen. */
        for (unsigned j = 0; j < w->num_sent; j++) {
            ok |= w->sent[j].gpa == w->sent[i].gpa && w->sent[j].data == data;
        }
        if (!ok) {
            difference(w, "RAM at 0x%" PRIx64 " is 0x%x, not 0x%x",
                       w->sent[i].gpa, data, w->sent[i].data);
        }
    }
    for (unsigned i = 0; i < w->num_sent; i++) {
        memset(ram(w, w->sent[i].gpa), FILL, 4);
    }
    for (unsigned i = 0; i < CANARIES; i++) {
        const uint8_t *page = ram(w, canary(i));

        for (unsigned j = 0; j < 0x1000; j += 8) {
            if (ldq_he_p(page + j) != FILL * 0x0101010101010101ull) {
                difference(w, "RAM at 0x%" PRIx64 " has changed to 0x%" PRIx64,
                           canary(i) + j, ldq_le_p(page + j));
            }
        }
    }
}

/* Those that are pending, and none is after that */
static uint64_t read_interrupts(World *w)
{
    uint64_t seen = 0;

    if (w->kind->its) {
        uint8_t *lpis = ram(w, LPI_PENDING + FIRST_LPI / 8);

        /* An answer means that QEMU has done with the interrupt. */
        qtest_readl(w->m->qts, ITS_BASE);
        seen = ldq_le_p(lpis);
        stq_le_p(lpis, 0);
        return seen;
    }
    for (unsigned reg = 2; reg <= 4; reg++) {
        uint64_t addr = GICD_BASE + GICD_ISPENDR + reg * 4;
        uint64_t bits = qtest_readl(w->m->qts, addr);
        int shift = reg * 32 - V2M_FIRST_SPI;

        seen |= shift < 0 ? bits >> -shift : bits << shift;
        if (bits) {
            qtest_writel(w->m->qts, addr - GICD_ISPENDR + GICD_ICPENDR, bits);
        }
    }
    return seen;
}

static void check_interrupts(World *w)
{
    w->seen |= read_interrupts(w);
    if (w->seen != w->interrupts) {
        difference(w, "interrupts 0x%" PRIx64 ", not 0x%" PRIx64, w->seen,
                   w->interrupts);
    }
}

/*
 * Has this become of a message? If so, expect it, once. @silent: this leaves
 * no trace.
 */
static bool resolve_race(World *w, unsigned i, ModelOutcome o,
                         const ModelVector *message, bool *silent)
{
    const ModelDevice *dev = &w->model.dev[i];
    uint64_t bit;

    if (o.kind == MODEL_FAULT && o.recorded) {
        ExpectedEvent e = { dev->smmu, o.event, dev->sid, message->address };
        QSMMUGuest *g = &w->m->smmu[dev->smmu];
        uint32_t prod = qtest_readl(w->m->qts,
                                    g->base + 0x10000 + A_EVENTQ_PROD);

        if (prod != w->evt_cons[dev->smmu] &&
            is_event(&e, ram(w, g->eventq + (prod + 255) % 256 * 32))) {
            expect_event(w, dev, o.event, message->address);
            return true;
        }
        *silent |= !w->model.smmu[dev->smmu].eventq;
        return false;
    }
    if (o.kind == MODEL_SENT && is_ram(o.gpa)) {
        if (ldl_le_p(ram(w, o.gpa)) != message->data) {
            return false;
        }
        w->sent[w->num_sent++] = (SentMessage) { o.gpa, message->data };
        return true;
    }
    if (model_is_interrupt(&w->model, &o, message->data)) {
        bit = interrupt_bit(w, i, message->data);
        w->interrupts |= w->seen & bit;
        return w->seen & bit;
    }
    *silent = true; /* dropped, or for no register that takes messages */
    return false;
}

/*
 * An interrupt came while QEMU was about something that changed @before: it
 * goes the old way or the new one, with the message as it was then.
 */
static void check_race(World *w, const Race *race, const Model *before,
                       const Route *old)
{
    const unsigned i = race->dev, v = race->vector;
    const ModelVector *was = &before->dev[i].vector[v];
    const ModelVector *is = model_vector(w, i, v);
    const ModelVector messages[] = {
        *is, *was,
        /* half of its address written */
        { .address = deposit64(was->address, 0, 32, is->address),
          .data = is->data },
    };
    bool silent = false;

    if (!host_double_wait(w->m->hd, w->dev[i].hd, VFIO_PCI_MSIX_IRQ_INDEX, v)) {
        difference(w, "nobody takes the interrupt in flight");
    }
    count(w, true, COUNT_RACE);
    w->seen = read_interrupts(w);
    if (old->routed) {
        ModelOutcome o = { .kind = MODEL_SENT, .gpa = old->gpa };
        ModelVector message = { .data = old->data };

        if (resolve_race(w, i, o, &message, &silent)) {
            return;
        }
    }
    for (int m = 0; m < ARRAY_SIZE(messages); m++) {
        const Model *models[] = { &w->model, before };

        for (int j = 0; j < ARRAY_SIZE(models); j++) {
            ModelOutcome o = model_translate(models[j], &models[j]->dev[i],
                                             messages[m].address);

            if (resolve_race(w, i, o, &messages[m], &silent)) {
                return;
            }
        }
    }
    if (!silent) {
        difference(w, "the interrupt in flight of device %u vector %u is lost",
                   i, v);
    }
}

static bool same_route(const Route *a, const Route *b)
{
    return a->routed == b->routed &&
           (!a->routed || (a->gpa == b->gpa && a->data == b->data));
}

static void look(World *w, VectorState *vs, const ModelVector *vector,
                 const ModelOutcome *o)
{
    vs->looked = o->leaf;
    if (o->leaf) {
        vs->leaf = *o->leaf;
        vs->asid = o->asid;
        vs->address = vector->address;
    }
}

static void check_vector_route(World *w, unsigned i, unsigned v, Route route)
{
    const ModelDevice *dev = &w->model.dev[i];
    const ModelVector *vector = &dev->vector[v];
    VectorState *vs = &w->dev[i].vector[v];
    ModelDevice sender = *dev;
    ModelOutcome o;
    Route want = { };
    bool ok;

    if (!model_live(dev, v)) {
        vs->looked = false;
        vs->refused = 0;
        if (route.routed) {
            difference(w, "device %u vector %u is masked, but routed", i, v);
        }
        vs->route = route;
        return;
    }

    sender.master = true;
    o = model_translate(&w->model, &sender, vector->address);
    if (w->kind->irqchip && model_is_interrupt(&w->model, &o, vector->data)) {
        want = (Route) { true, o.gpa, vector->data };
    }

    ok = same_route(&route, &want);
    if (!ok && !route.routed) {
        /* The irqchip refused, or the device could not send it anyhow. */
        ok = w->failing || !dev->master;
    }
    if (!ok && !vs->check) {
        ok = same_route(&route, &vs->route);
    }
    if (!ok) {
        difference(w, "device %u vector %u is routed to 0x%" PRIx64 " 0x%x, "
                   "not 0x%" PRIx64 " 0x%x%s", i, v, route.gpa, route.data,
                   want.gpa, want.data, vs->check ? ", after a check" : "");
    }
    if (vs->check) {
        look(w, vs, vector, &o);
    }
    if (same_route(&route, &want)) {
        vs->refused = 0;
        vs->delivered = 0;
    } else if (w->failing && vs->check) {
        vs->refused++;
        vs->delivered = 0;
    }
    count(w, route.routed && !vs->route.routed, COUNT_ROUTED);
    count(w, !route.routed && vs->route.routed, COUNT_UNROUTED);
    vs->route = route;
}

static void check_routes(World *w)
{
    g_autofree QTestIrqRoute *routes = g_new(QTestIrqRoute, MAX_ROUTES);
    g_autoptr(GString) all = g_string_new(NULL);
    uint64_t injected = 0, updates, commits;
    bool changed = false;
    unsigned n, used = 0;

    n = w->kind->irqchip ? qtest_irqchip_routes(w->m->qts, routes,
                                                MAX_ROUTES) : 0;
    for (unsigned r = 0; r < n; r++) {
        used += routes[r].used;
        g_string_append_printf(all, " %u 0x%" PRIx64 " 0x%x 0x%x %d",
                               routes[r].gsi, routes[r].address,
                               routes[r].data, routes[r].devid,
                               routes[r].used);
        injected += routes[r].used ? routes[r].sent : 0;
        if (routes[r].lost) {
            difference(w, "route %u has lost a message", routes[r].gsi);
        }
    }
    if (used > MODEL_DEVICES * MODEL_VECTORS) {
        difference(w, "there are %u routes", used);
    }
    for (int i = 0; i < MODEL_DEVICES; i++) {
        ModelDevice *dev = &w->model.dev[i];

        for (unsigned r = 0; r < n; r++) {
            if (!dev->enabled && routes[r].used &&
                routes[r].devid == dev->sid) {
                difference(w, "device %u has a route, but no MSI-X", i);
            }
        }
        for (int v = 0; v < MODEL_VECTORS; v++) {
            int fd = host_double_eventfd(w->m->hd, w->dev[i].hd,
                                         VFIO_PCI_MSIX_IRQ_INDEX, v);
            Route route = { };

            if (fd == HD_NONE && model_live(dev, v)) {
                difference(w, "device %u vector %u has no eventfd", i, v);
            }
            for (unsigned r = 0; r < n; r++) {
                if (fd == HD_NONE || routes[r].fd != fd) {
                    continue;
                }
                if (!routes[r].used || !routes[r].committed ||
                    routes[r].devid != dev->sid) {
                    difference(w, "device %u vector %u: used %d, committed "
                               "%d, device ID 0x%x", i, v, routes[r].used,
                               routes[r].committed, routes[r].devid);
                }
                route = (Route) { true, routes[r].address, routes[r].data };
            }
            changed |= !same_route(&route, &w->dev[i].vector[v].route);
            check_vector_route(w, i, v, route);
        }
    }
    if (!w->kind->irqchip) {
        return;
    }

    /* The same routes: only messages were sent, and none was changed. */
    updates = qtest_irqchip_calls(w->m->qts, "update");
    commits = qtest_irqchip_calls(w->m->qts, "commit");
    if (!changed && g_string_equal(all, w->routes)) {
        if (!w->in_parts && injected != w->injected + w->num_injected) {
            difference(w, "the irqchip sent %" PRIu64 " messages, not %u",
                       injected - w->injected, w->num_injected);
        }
        if (!w->in_parts && !w->failing &&
            (updates != w->updates || commits != w->commits)) {
            difference(w, "calls to the irqchip for nothing");
        }
    }
    g_string_assign(w->routes, all->str);
    w->injected = injected;
    w->updates = updates;
    w->commits = commits;
}

static uint64_t nested_ste(World *w, unsigned i)
{
    HDObject *hwpt = &w->m->hd->shm->objects[w->dev[i].hd->hwpt];

    if (hwpt->type != HD_HWPT_NESTED) {
        difference(w, "device %u has an HWPT of type %u", i, hwpt->type);
    }
    return hwpt->data[0];
}

/* The host has to know the number that the guest's commands use. */
static void check_vdevice(World *w, unsigned i)
{
    for (int id = 1; id < HD_MAX_OBJECTS; id++) {
        HDObject *object = &w->m->hd->shm->objects[id];

        if (object->type == HD_VDEVICE && object->device == i &&
            object->data[0] != w->model.dev[i].sid) {
            difference(w, "device %u is 0x%" PRIx64 " on the host, not 0x%x",
                       i, object->data[0], w->model.dev[i].sid);
        }
    }
}

static void check_host(World *w)
{
    for (int i = 0; i < MODEL_DEVICES; i++) {
        const ModelDevice *dev = &w->model.dev[i];
        WorldDevice *ds = &w->dev[i];
        uint64_t ste = nested_ste(w, i);
        uint64_t want = model_host_ste(&w->model, dev, cd_of(w, i));

        if (ste != want && (ds->check || ste != ds->host_ste) &&
            !(w->host_failing && ste == QSMMU_STE_ABORT)) {
            difference(w, "device %u has STE 0x%" PRIx64 " on the host, not "
                       "0x%" PRIx64, i, ste, want);
        }
        if (ds->check && (ste & 0xf) == QSMMU_STE_S1) {
            check_vdevice(w, i);
        }
        ds->host_ste = ste;
    }
}

static void apply(World *w, const Step *step)
{
    const Race race = w->race;
    bool armed = race.call && step->kind->unmasked &&
                 model_live(&w->model.dev[race.dev], race.vector) &&
                 w->model.dev[race.dev].master;
    Route old = w->dev[race.dev].vector[race.vector].route;
    uint64_t calls = 0;
    Model before;
    const char *fails = w->fails;
    unsigned long host_fails = w->host_fails;

    w->num_sent = w->num_events = w->num_injected = 0;
    w->interrupts = w->seen = 0;
    w->in_parts = false;
    w->fails = NULL;
    w->failing = fails;
    w->host_fails = 0;
    w->host_failing = host_fails;
    count(w, fails || host_fails, COUNT_FAILED);
    for (int i = 0; i < MODEL_DEVICES; i++) {
        w->dev[i].check = false;
        for (int v = 0; v < MODEL_VECTORS; v++) {
            w->dev[i].vector[v].check = false;
        }
    }

    if (armed) {
        before = w->model;
        calls = qtest_irqchip_calls(w->m->qts, race.call);
        qtest_irqchip_signal(w->m->qts, race.call, race.n,
                             host_double_eventfd(w->m->hd,
                                                 w->dev[race.dev].hd,
                                                 VFIO_PCI_MSIX_IRQ_INDEX,
                                                 race.vector));
    }
    step->kind->apply(w, step->arg);
    if (armed) {
        if (qtest_irqchip_calls(w->m->qts, race.call) >= calls + race.n) {
            check_race(w, &race, &before, &old);
            w->race.call = NULL;
            w->in_parts = true;
        } else {
            qtest_irqchip_signal(w->m->qts, race.call, 0, 0);
        }
    }

    check_interrupts(w);
    check_ram(w);
    check_events(w);
    check_routes(w);
    check_host(w);
    if (fails && w->fails != fails) {
        qtest_irqchip_fail(w->m->qts, fails, 0, 0);
    }
    if (host_fails && w->host_fails != host_fails) {
        host_double_fail(w->m->hd, host_fails, 0, 0);
    }
}

/* Descriptors of page @page in RAM, for a table at each level */
static void find_descriptors(World *w, DomainTables *t, unsigned page)
{
    uint64_t va = w->model.page[page];
    uint64_t table = t->domain->ttb;

    for (int level = 0; level <= 3; level++) {
        unsigned index = extract64(va, 39 - 9 * level, 9);
        uint8_t *descriptor = ram(w, table + index * 8);

        if (level == 2) {
            t->level2[page] = descriptor;
            t->table[page] = ldq_le_p(descriptor);
        }
        t->level3[page] = descriptor;
        table = ldq_le_p(descriptor) & MAKE_64BIT_MASK(12, 36);
    }
}

static void start_tables(World *w)
{
    for (int s = 0; s < MODEL_SMMUS; s++) {
        for (int d = 0; d < MODEL_DOMAINS; d++) {
            DomainTables *t = &w->tables[s][d];
            uint8_t *cd;

            t->domain = qsmmu_domain_new(&w->m->smmu[s], 12, d + 2);
            cd = ram(w, t->domain->cd + A_CD_1);
            stl_le_p(cd, ldl_le_p(cd) & ~R_CD_1_AFFD_MASK);
            w->model.smmu[s].domain[d] = (ModelDomain) {
                .valid = true,
                .record = true,
                .asid = d + 2,
                .tables = d,
            };
            for (int page = 0; page < MODEL_PAGES; page++) {
                qsmmu_unmap(t->domain, w->model.page[page]);
                find_descriptors(w, t, page);
            }
        }
    }
}

static void world_start(World *w)
{
    static const struct {
        unsigned smmu;
        uint32_t sid;
        const char *where;
    } devices[MODEL_DEVICES] = {
        { 0, PCI_DEVFN(2, 0), "bus=pcie.0,addr=2.0" },
        { 0, PCI_DEVFN(5, 0), "bus=pcie.0,addr=5.0" },
        [REMOTE] = { 1, PCI_BUILD_BDF(BUS(0), 0), "bus=rp" },
    };
    int fd = memfd_create("guest-ram", 0);
    Model *model = &w->model;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, RAM_SIZE), ==, 0);
    w->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    g_assert_true(w->ram != MAP_FAILED);
    w->m = machine_new(w->kind->gic, "");
    g_string_append_printf(w->m->args,
                           "-object memory-backend-file,id=ram,size=512M,"
                           "mem-path=/proc/self/fd/%d,share=on "
                           "-machine memory-backend=ram "
                           "-device pxb-pcie,id=pxb,bus=pcie.0,addr=8.0,"
                           "bus_nr=8 "
                           "-device pcie-root-port,id=rp,bus=pxb,chassis=1 "
                           "-device arm-smmuv3,primary-bus=pxb,accel=on,"
                           "ril=on,ats=off,ssidsize=0,oas=44 %s", fd,
                           w->kind->args);
    for (int i = 0; i < MODEL_DEVICES; i++) {
        w->dev[i].hd = add_vfio(w->m, devices[i].smmu, devices[i].where);
        model->dev[i].smmu = devices[i].smmu;
        model->dev[i].sid = devices[i].sid;
    }
    machine_start(w->m);
    close(fd);

    model->doorbell = w->kind->its ? ITS_TRANSLATER : DOORBELL_GPA;
    model->first = w->kind->its ? 0 : V2M_FIRST_SPI;
    model->last = w->kind->its ? UINT32_MAX : V2M_FIRST_SPI + V2M_NUM_SPIS - 1;
    model->page[0] = 0xfffff000;    /* where Linux has it */
    model->page[1] = canary(0);     /* the number of a page of RAM */
    model->page[2] = canary(1);
    model->page[3] = doorbell_page(w);
    model->page[4] = 0x123400000 + (doorbell_page(w) & (LEVEL2_BLOCK - 1));
    model->page[5] = 0xffffffff000; /* the last that IDR5.OAS lets pass */
    for (int i = 0; i < CANARIES; i++) {
        memset(ram(w, canary(i)), FILL, 0x1000);
    }

    for (int i = 0; i < MODEL_DEVICES; i++) {
        WorldDevice *ds = &w->dev[i];

        if (i == REMOTE) {
            start_port(w);
            w->m->gbus.bus.mmio_alloc_ptr = PORT_WINDOW << 16;
        }
        ds->pci = find_pci(w->m, devices[i].sid);
        ds->msix_cap = qpci_find_capability(ds->pci, PCI_CAP_ID_MSIX, 0);
        qpci_msix_enable(ds->pci);
    }
    w->waiting = g_array_new(false, false, sizeof(Command));
    w->routes = g_string_new(NULL);
    start_tables(w);
    w->renumbered.sid = PCI_BUILD_BDF(BUS(1), 0);
    for (int i = 0; i < MODEL_DEVICES; i++) {
        model->dev[i].ste = MODEL_STE_S1;
        write_ste(w, i);
    }
    start_devices(w);
    start_controller(w);
    start_smmus(w);
    for (int s = 0; s < MODEL_SMMUS; s++) {
        for (uint32_t page = 0; page < 4; page++) {
            step_map(w, (uint32_t[]) { s, 0, page, 15, 7, TLBI_NONE });
        }
    }
    start_driver(w);
    w->in_parts = true;
    check_host(w);
    check_routes(w);
}

static void world_stop(World *w)
{
    for (int i = 0; i < MODEL_DEVICES; i++) {
        g_free(w->dev[i].pci);
    }
    for (int s = 0; s < MODEL_SMMUS; s++) {
        for (int d = 0; d < MODEL_DOMAINS; d++) {
            g_free(w->tables[s][d].domain);
        }
    }
    g_array_free(w->waiting, true);
    g_string_free(w->routes, true);
    machine_stop(w->m);
    munmap(w->ram, RAM_SIZE);
}

static void play(const Script *script, ScriptResult *result)
{
    World w = { .kind = &machines[script->machine], .result = result };

    world_start(&w);
    for (unsigned i = 0; i < script->n; i++) {
        script_at(result, i);
        apply(&w, &script->step[i]);
    }
    world_stop(&w);
}

static const char *machine_names[ARRAY_SIZE(machines)];

static const ScriptLanguage language = {
    .kinds = kinds,
    .num_kinds = ARRAY_SIZE(kinds),
    .machines = machine_names,
    .num_machines = ARRAY_SIZE(machines),
    .play = play,
};

static void test_random(gconstpointer opaque)
{
    const MachineKind *kind = opaque;
    const char *env = g_getenv("SMMUV3_MODEL_STEPS");
    unsigned left = env ? g_ascii_strtoull(env, NULL, 0) : DEFAULT_STEPS;
    unsigned total[NUM_COUNTS] = { };

    while (left && !g_test_failed()) {
        unsigned n = MIN(left, SCRIPT_STEPS);
        g_autoptr(Script) script = script_random(&language, kind - machines,
                                                 n);
        ScriptResult result;

        script_run(script, true, &result);
        left -= n;
        for (int i = 0; i < NUM_COUNTS; i++) {
            total[i] += result.count[i];
        }
    }
    for (int i = 0; i < NUM_COUNTS; i++) {
        g_test_message("%8u %s", total[i], count_names[i]);
    }
    if (!env) {
        /* Else nothing was compared. */
        g_assert_cmpuint(total[COUNT_INJECTED] + total[COUNT_INTERRUPT], >, 0);
        g_assert_cmpint(total[COUNT_ROUTED] > 0, ==, kind->irqchip);
    }
}

static void test_script(void)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) err = NULL;
    g_autoptr(Script) script = NULL;
    ScriptResult result;

    g_file_get_contents(g_getenv("SMMUV3_MODEL_SCRIPT"), &text, NULL, &err);
    g_assert_no_error(err);
    script = script_parse(&language, text);
    script_run(script, false, &result);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_machine("virt") || !qtest_has_device("arm-gicv3")) {
        g_test_message("virt machine with TCG GICv3 not available");
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(machines); i++) {
        g_autofree char *path = g_strdup_printf("/accel/model/%s",
                                                machines[i].name);

        machine_names[i] = machines[i].name;
        if (!g_getenv("SMMUV3_MODEL_SCRIPT")) {
            qtest_add_data_func(path, &machines[i], test_random);
        }
    }
    if (g_getenv("SMMUV3_MODEL_SCRIPT")) {
        qtest_add_func("/accel/model/script", test_script);
    }
    return g_test_run();
}
