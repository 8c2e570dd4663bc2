/*
 * Scripts of random steps, for tests that compare QEMU with a model
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include "smmuv3-accel-script.h"

#define STEP_SECONDS    20      /* after that QEMU hangs */
#define REDUCE_SECONDS  60      /* for a script that is short enough */

void script_free(Script *script)
{
    g_free(script->step);
    g_free(script);
}

static unsigned count_args(const StepKind *kind)
{
    unsigned n = 0;

    while (n < STEP_ARGS && kind->range[n]) {
        n++;
    }
    return n;
}

static Step random_step(const ScriptLanguage *language)
{
    const StepKind *kind = language->kinds;
    Step step = { };
    unsigned total = 0, pick;

    for (unsigned i = 0; i < language->num_kinds; i++) {
        total += kind[i].weight;
    }
    pick = g_test_rand_int_range(0, total);
    while (pick >= kind->weight) {
        pick -= kind->weight;
        kind++;
    }
    step.kind = kind;
    for (unsigned i = 0; i < count_args(kind); i++) {
        step.arg[i] = g_test_rand_int_range(0, kind->range[i]);
    }
    return step;
}

Script *script_random(const ScriptLanguage *language, unsigned machine,
                      unsigned n)
{
    Script *script = g_new0(Script, 1);

    *script = (Script) {
        .language = language,
        .machine = machine,
        .n = n,
        .step = g_new(Step, n),
    };
    for (unsigned i = 0; i < n; i++) {
        script->step[i] = random_step(language);
    }
    return script;
}

static char *script_text(const Script *script)
{
    GString *text = g_string_new(NULL);

    g_string_append_printf(text, "machine %s\n",
                           script->language->machines[script->machine]);
    for (unsigned i = 0; i < script->n; i++) {
        const Step *step = &script->step[i];

        g_string_append(text, step->kind->name);
        for (unsigned j = 0; j < count_args(step->kind); j++) {
            g_string_append_printf(text, " %u", step->arg[j]);
        }
        g_string_append_c(text, '\n');
    }
    return g_string_free(text, false);
}

static Step parse_step(const ScriptLanguage *language, char **words)
{
    Step step = { };

    for (unsigned i = 0; i < language->num_kinds; i++) {
        if (!strcmp(words[0], language->kinds[i].name)) {
            step.kind = &language->kinds[i];
        }
    }
    if (!step.kind) {
        g_error("no step is called %s", words[0]);
    }
    for (unsigned i = 0; i < count_args(step.kind); i++) {
        if (!words[i + 1]) {
            g_error("%s needs more arguments", words[0]);
        }
        step.arg[i] = g_ascii_strtoull(words[i + 1], NULL, 0);
        g_assert_cmpuint(step.arg[i], <, step.kind->range[i]);
    }
    return step;
}

Script *script_parse(const ScriptLanguage *language, const char *text)
{
    Script *script = g_new0(Script, 1);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    script->language = language;
    script->step = g_new(Step, g_strv_length(lines));
    for (char **line = lines; *line; line++) {
        g_auto(GStrv) words = g_strsplit(g_strstrip(*line), " ", -1);

        if (!words[0] || words[0][0] == '#' || !words[0][0]) {
            continue;
        }
        if (strcmp(words[0], "machine")) {
            script->step[script->n++] = parse_step(language, words);
            continue;
        }
        while (g_strcmp0(words[1], language->machines[script->machine])) {
            if (++script->machine == language->num_machines) {
                g_error("no machine is called %s", words[1]);
            }
        }
    }
    return script;
}

void script_at(ScriptResult *result, unsigned step)
{
    result->step = step;
    alarm(STEP_SECONDS);
}

/*
 * Run a script in a process of its own, which QEMU may take down with it.
 *
 * Returns: true if there was no difference
 */
static bool run(const Script *script, ScriptResult *result, bool verbose)
{
    int status;
    pid_t pid;

    memset(result, 0, sizeof(*result));
    fflush(stdout);
    pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        if (!verbose) {
            int null = open("/dev/null", O_WRONLY);

            dup2(null, STDOUT_FILENO);
            dup2(null, STDERR_FILENO);
        }
        alarm(2 * STEP_SECONDS); /* to start */
        script->language->play(script, result);
        fflush(stdout);
        _exit(0);
    }
    g_assert_cmpint(RETRY_ON_EINTR(waitpid(pid, &status, 0)), ==, pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return true;
    }
    if (!result->why[0]) {
        snprintf(result->why, sizeof(result->why), WIFSIGNALED(status) &&
                 WTERMSIG(status) == SIGALRM ? "QEMU hangs" : "QEMU crashes");
    }
    return false;
}

static Script *script_without(const Script *script, unsigned first, unsigned n)
{
    Script *part = g_new(Script, 1);

    first = MIN(first, script->n);
    n = MIN(n, script->n - first);
    *part = *script;
    part->n -= n;
    part->step = g_new(Step, part->n);
    memcpy(part->step, script->step, first * sizeof(Step));
    memcpy(part->step + first, script->step + first + n,
           (part->n - first) * sizeof(Step));
    return part;
}

/* Leave out steps, ever smaller parts of them, as long as the rest fails. */
static Script *reduce(const Script *script, ScriptResult *result)
{
    Script *best = script_without(script, result->step + 1, script->n);
    gint64 end = g_get_monotonic_time() + REDUCE_SECONDS * G_USEC_PER_SEC;

    for (unsigned part = MAX(best->n / 2, 1); part; part /= 2) {
        bool shorter = false;

        for (unsigned first = best->n;
             first && g_get_monotonic_time() < end;) {
            g_autoptr(Script) trial = NULL;

            first -= MIN(first, part);
            trial = script_without(best, first, part);
            if (!run(trial, result, false)) {
                script_free(best);
                best = script_without(trial, result->step + 1, trial->n);
                first = MIN(first, best->n);
                shorter = true;
            }
        }
        if (part == 1 && shorter) {
            part = 2; /* once more */
        }
    }
    return best;
}

static void print_lines(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (char **line = lines; *line; line++) {
        g_test_message("%s", *line);
    }
}

static void run_reduced(const Script *script, ScriptResult *result)
{
    g_autoptr(Script) reduced = reduce(script, result);
    g_autofree char *text = script_text(reduced);

    if (run(reduced, result, true)) {
        g_test_message("the script fails now and then only");
    }
    g_test_message("script of %u steps, %s:", reduced->n, result->why);
    print_lines(text);
}

void script_run(const Script *script, bool reduced, ScriptResult *result)
{
    ScriptResult *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    g_assert_true(shared != MAP_FAILED);
    if (!run(script, shared, !reduced || g_test_verbose())) {
        g_test_message("step %u of %u: %s", shared->step, script->n,
                       shared->why);
        if (reduced) {
            run_reduced(script, shared);
        }
        g_test_fail();
    }
    *result = *shared;
    munmap(shared, sizeof(*shared));
}
