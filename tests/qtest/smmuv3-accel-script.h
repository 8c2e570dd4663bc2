/*
 * Scripts of random steps, for tests that compare QEMU with a model
 *
 * A script is played in a process of its own, so that its end tells of a QEMU
 * that crashes or hangs as well as of a difference that was found. One that
 * fails is reduced: steps are left out as long as the rest still fails.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QTEST_SMMUV3_ACCEL_SCRIPT_H
#define QTEST_SMMUV3_ACCEL_SCRIPT_H

#include "qemu/osdep.h"

enum {
    STEP_ARGS = 6,
    MAX_COUNTS = 16,
};

typedef struct World World;     /* what steps are applied to */

typedef struct StepKind {
    const char *name;
    unsigned weight;            /* how often it is picked */
    void (*apply)(World *w, const uint32_t *arg);
    uint32_t range[STEP_ARGS];  /* of each argument, which begin with 0 */
    bool unmasked;              /* it leaves the masks of vectors alone */
} StepKind;

typedef struct Step {
    const StepKind *kind;
    uint32_t arg[STEP_ARGS];
} Step;

typedef struct Script {
    const struct ScriptLanguage *language;
    unsigned machine;
    unsigned n;
    Step *step;
} Script;

/* What a run tells the process that started it, whatever becomes of it */
typedef struct ScriptResult {
    unsigned step;              /* the one that it is at */
    unsigned count[MAX_COUNTS]; /* of what the player likes to count */
    char why[4096];             /* it failed, or empty */
} ScriptResult;

typedef struct ScriptLanguage {
    const StepKind *kinds;
    unsigned num_kinds;
    const char *const *machines;
    unsigned num_machines;
    /*
     * Runs in a process of its own, which ends with it or before, and calls
     * script_at() for each step.
     */
    void (*play)(const Script *script, ScriptResult *result);
} ScriptLanguage;

/* Of @n steps, by g_test_rand_int() */
Script *script_random(const ScriptLanguage *language, unsigned machine,
                      unsigned n);

/* What script_run() prints; lines that begin with # are comments. */
Script *script_parse(const ScriptLanguage *language, const char *text);

void script_free(Script *script);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Script, script_free)

/* A step begins. */
void script_at(ScriptResult *result, unsigned step);

/*
 * Play @script. If it fails, the test fails.
 *
 * @reduce: print a script as short as possible that fails, too
 * @result: of the run
 */
void script_run(const Script *script, bool reduce, ScriptResult *result);

#endif /* QTEST_SMMUV3_ACCEL_SCRIPT_H */
