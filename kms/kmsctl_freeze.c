/*
 * kmsctl_freeze.c - freeze: releases of a resource, to a user or service, for a purpose or of an
 * organisation are refused for a while; thaw ends that.  The report of what it keeps back comes
 * first.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kms/kmsctl.h"
#include "kms/table.h"
#include "proto/err.h"

#define LONGEST_MS (90 * INT64_C(86400000))

/* NULL: after complaining. */
static json_t *
frozen_params(struct ctl *ctl, const char *scope, const char *target)
{
    const char *org = opt_text(ctl, "org");
    json_t *params;

    if (strcmp(scope, "user") == 0 && org == NULL) {
        complain("whose user is that?  Add --org NAME");
        return NULL;
    }
    params = json_pack("{s:s, s:s}", "scope", scope, "target",
                       strcmp(scope, "resource") == 0 ? last_part(target) : target);
    if (params == NULL)
        complain("\"%s\" is no text in UTF-8", target);
    else if (org != NULL)
        json_object_set_new(params, "org", json_string(org));
    return params;
}

static bool
sure(void)
{
    char line[16];

    fputs("\nfreeze this? [y/N] ", stdout);
    fflush(stdout);
    return fgets(line, sizeof(line), stdin) != NULL && (line[0] == 'y' || line[0] == 'Y');
}

/* What a freeze would keep back.  *report is the caller's. */
static int
look(struct ctl *ctl, const json_t *params, json_t **report)
{
    json_t *shown;
    int status = ask(ctl, "freeze.preview", json_deep_copy(params), report);

    if (status != 0 || ctl->json)
        return status;
    shown = json_copy(*report);
    json_object_del(shown, "impact");
    table_print_object(shown, 0);
    puts("\nimpact");
    table_print_object(json_object_get(*report, "impact"), 2);
    fflush(stdout);
    json_decref(shown);
    return EXIT_OK;
}

static int
freeze(struct ctl *ctl, const char *scope, const char *target)
{
    const char *length = opt_text(ctl, "for");
    json_t *params, *report = NULL, *result = NULL;
    int64_t ms;
    int status;

    if (length == NULL || parse_duration(length, &ms) != KMS_OK || ms < 1000 || ms > LONGEST_MS) {
        complain("freeze needs --for, how long: 30m, 2h, 7d; at most 90d");
        return EXIT_USAGE;
    }
    if ((params = frozen_params(ctl, scope, target)) == NULL)
        return EXIT_USAGE;
    json_object_set_new(params, "until", json_integer((json_int_t)time(NULL) * 1000 + ms));
    if ((status = look(ctl, params, &report)) != 0)
        goto out;
    if (ctl->dry_run) {
        if (ctl->json)
            print_json(report);
        goto out;
    }
    if (!ctl->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && !sure()) {
        complain("not frozen");
        status = EXIT_REFUSED;
        goto out;
    }
    if ((status = ask(ctl, "freeze", json_incref(params), &result)) != 0)
        goto out;
    if (ctl->json) {
        json_object_set(result, "impact", json_object_get(report, "impact"));
        print_json(result);
    } else {
        putchar('\n');
        table_print_object(result, 0);
        printf("\nfrozen on every node; to end it: kmsctl thaw %s %s%s%s\n", scope, target,
               opt_text(ctl, "org") != NULL ? " --org " : "",
               opt_text(ctl, "org") != NULL ? opt_text(ctl, "org") : "");
    }
out:
    json_decref(result);
    json_decref(report);
    json_decref(params);
    return status;
}

static int
thaw(struct ctl *ctl, const char *scope, const char *target)
{
    json_t *params = frozen_params(ctl, scope, target);

    return params != NULL ? ask_and_show(ctl, "thaw", params) : EXIT_USAGE;
}

#define SCOPE(scope)                                                                               \
    static int run_freeze_##scope(struct ctl *ctl, int argc, char **argv)                          \
    {                                                                                              \
        return freeze(ctl, #scope, argv[0]);                                                       \
    }                                                                                              \
    static int run_thaw_##scope(struct ctl *ctl, int argc, char **argv)                            \
    {                                                                                              \
        return thaw(ctl, #scope, argv[0]);                                                         \
    }
SCOPE(resource)
SCOPE(user)
SCOPE(purpose)
SCOPE(service)
SCOPE(org)

static int
run_freeze_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {"scope",      "target",  "org_name", "until",
                                          "created_by", "created", NULL};
    json_t *params = json_object(), *result;
    int status;

    if (argc > 0)
        json_object_set_new(params, "org", json_string(argv[0]));
    if ((status = ask(ctl, "freeze.list", params, &result)) != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else if (json_array_size(result) == 0)
        puts("nothing is frozen");
    else
        table_print(result, columns);
    json_decref(result);
    return EXIT_OK;
}

const struct command freeze_commands[] = {
    {"freeze resource", "ID --for LENGTH", 1, 1, "gOD",
     "release no key of a resource for a while (405006), at once on every node",
     run_freeze_resource},
    {"freeze user", "ID --org NAME --for LENGTH", 1, 1, "gOD",
     "release no key to a user for a while", run_freeze_user},
    {"freeze purpose", "PURPOSE --for LENGTH", 1, 1, "gOD",
     "release no key to services for a purpose, in --org or everywhere", run_freeze_purpose},
    {"freeze service", "NAME --for LENGTH", 1, 1, "gOD",
     "release no key to a service, of --org or at all", run_freeze_service},
    {"freeze org", "NAME --for LENGTH", 1, 1, "OD", "release no key of an organisation to anybody",
     run_freeze_org},
    {"freeze list", "[ORG]", 0, 1, "", "what is frozen now", run_freeze_list},
    {"thaw resource", "ID", 1, 1, "g", "end the freeze of a resource, at once", run_thaw_resource},
    {"thaw user", "ID --org NAME", 1, 1, "g", "end the freeze of a user, at once", run_thaw_user},
    {"thaw purpose", "PURPOSE", 1, 1, "g",
     "end the freeze of a purpose, at once; --org as it was frozen", run_thaw_purpose},
    {"thaw service", "NAME", 1, 1, "g",
     "end the freeze of a service, at once; --org as it was frozen", run_thaw_service},
    {"thaw org", "NAME", 1, 1, "", "end the freeze of an organisation, at once", run_thaw_org},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
