/*
 * kmsctl_backup.c - backup: what must be kept together of database and token, and how; with
 * --check, whether the token at hand holds all that the database needs of it.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/hsm.h"
#include "hsm/log.h"
#include "kms/kmsctl.h"
#include "kms/table.h"
#include "proto/err.h"
#include "proto/uri.h"

static const struct {
    const char *name;
    enum hsm_kind kind;
} kinds[] = {
    {"root", HSM_ROOT}, {"main", HSM_MAIN}, {"period", HSM_PERIOD}, {"import", HSM_IMPORT}};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

struct look {
    struct event_base *base;
    struct hsm *hsm;
    json_t *keys; /* borrowed: what the database needs; each gets "token" */
    const char *kind;
    bool busy, more;
    unsigned char last[HSM_ID_LEN];
    int err;
};

static void
changed(void *ctx, bool ready)
{
    struct look *l = ctx;

    event_base_loopbreak(l->base);
}

static void
listed(void *ctx, uint64_t id, int err, const struct hsm_listed *keys, size_t n, bool more)
{
    struct look *l = ctx;
    json_t *k;
    size_t i;

    l->err = err;
    l->more = err == KMS_OK && more && n > 0;
    for (size_t at = 0; err == KMS_OK && at < n; at++) {
        char text[UUID_TEXT + 1], kcv[2 * HSM_KCV_LEN + 1];
        struct uuid u;

        memcpy(u.b, keys[at].id, UUID_LEN);
        uuid_format(text, &u);
        for (size_t b = 0; b < HSM_KCV_LEN; b++)
            snprintf(kcv + 2 * b, 3, "%02x", keys[at].kcv[b]);
        json_array_foreach(l->keys, i, k)
        {
            const char *want = json_string_value(json_object_get(k, "kcv"));
            const char *kind = json_string_value(json_object_get(k, "kind"));
            const char *name = json_string_value(json_object_get(k, "id"));

            if (kind == NULL || name == NULL || strcmp(kind, l->kind) != 0 ||
                strcmp(name, text) != 0)
                continue;
            json_object_set_new(k, "token",
                                json_string(!keys[at].fit ? "DOES NOT WORK"
                                            : want != NULL && strcmp(want, kcv) != 0 ? "ANOTHER KEY"
                                                                                     : "there"));
        }
    }
    if (n > 0 && keys != NULL)
        memcpy(l->last, keys[n - 1].id, HSM_ID_LEN);
    l->busy = false;
    event_base_loopbreak(l->base);
}

/* Looks for all of them in the token.  0, or an exit status after complaining. */
static int
look_in_token(struct ctl *ctl, const char *path, json_t *keys, bool *whole)
{
    struct timeval limit = {ctl->timeout_ms / 1000, (ctl->timeout_ms % 1000) * 1000};
    struct look l = {.keys = keys};
    const char *missing = "MISSING";
    json_t *k;
    size_t i;
    int r = KMS_ERR_NOMEM;

    log_set_level(LOG_ERROR_);
    if ((l.base = event_base_new()) != NULL &&
        (l.hsm = hsm_new(l.base, path, HSM_MANAGE, (int)ctl->timeout_ms)) != NULL) {
        hsm_on_change(l.hsm, changed, &l);
        event_base_loopexit(l.base, &limit);
        event_base_dispatch(l.base);
        r = hsm_ready(l.hsm) ? KMS_OK : KMS_ERR_UNAVAILABLE;
    }
    for (i = 0; r == KMS_OK && i < KINDS; i++) {
        l.kind = kinds[i].name;
        l.more = false;
        do {
            l.busy = true;
            r = hsm_list(l.hsm, kinds[i].kind, l.more ? l.last : NULL, listed, &l, 0);
            while (r == KMS_OK && l.busy)
                event_base_dispatch(l.base);
            if (r == KMS_OK)
                r = l.err;
        } while (r == KMS_OK && l.more);
    }
    if (r == KMS_OK) {
        const struct hsm_info *info = hsm_get_info(l.hsm);

        json_array_append_new(keys, json_pack("{s:s, s:s}", "kind", "static", "token",
                                              info->static_n_len > 0 ? "there" : missing));
        json_array_append_new(keys, json_pack("{s:s, s:s}", "kind", "audit", "token",
                                              info->has_audit ? "there" : missing));
        json_array_foreach(keys, i, k)
        {
            if (json_object_get(k, "token") == NULL)
                json_object_set_new(k, "token", json_string(missing));
            if (strcmp(json_string_value(json_object_get(k, "token")), "there") != 0)
                *whole = false;
        }
    } else {
        complain("hsmd at %s: %s", path, kms_strerror(r));
    }
    hsm_free(l.hsm);
    if (l.base != NULL)
        event_base_free(l.base);
    return r == KMS_OK ? 0 : r == KMS_ERR_UNAVAILABLE ? EXIT_UNREACHABLE : EXIT_REFUSED;
}

static const char how[] =
    "\n"
    "Neither is of use without the other.  In this order, so that whatever the database's copy\n"
    "names is in the token's:\n"
    "\n"
    "1. The database, while everything runs:\n"
    "     pg_dump -Fc -f kms-$(date +%F).dump DATABASE      or pg_basebackup -D DIRECTORY\n"
    "   Its rows are wrapped, but they say who talks to whom: keep it encrypted.\n"
    "2. The token, whenever a key came to it: after hsm init, root rotate, cmk import, and each\n"
    "   month with keys that expire.\n";
static const char how_softhsm[] =
    "   SoftHSM: the directory that directories.tokendir of hsmd's softhsm2.conf names.  With\n"
    "   hsmd stopped:\n"
    "     systemctl stop hsmd && cp -a TOKENDIR COPY && systemctl start hsmd\n"
    "   or while it runs, until two copies are alike, for SoftHSM writes files in place:\n"
    "     cp -a TOKENDIR COPY && diff -r TOKENDIR COPY\n"
    "   The copy and the PIN are the keys: keep them apart from each other and from the\n"
    "   database's, under other people.\n";
static const char how_hsm[] =
    "   This HSM: by its vendor's means (a backup HSM, a cloned partition, wrapped export under\n"
    "   cards).  Files of this machine do not hold its keys.  Keep the PIN and the cards apart\n"
    "   from the database's copy, under other people.\n";
static const char how_more[] =
    "3. /etc/kms: the configuration and certificates; the PIN elsewhere.\n"
    "4. Try it, each month and after each change of the token:\n"
    "     kmsctl backup --check\n"
    "     kmsctl restore check --backup kms-DATE.dump --out report-DATE\n"
    "\n"
    "Copies of the token from before a destruction can open what was destroyed: when a month's\n"
    "keys are gone (kmsctl certificate list), destroy the older copies.\n";

static int
run_backup(struct ctl *ctl, int argc, char **argv)
{
    static const char *const head[] = {"database",      "bytes",         "postgresql", "migration",
                                       "organisations", "wrapping_keys", NULL};
    static const char *const columns[] = {"kind",          "id",    "state", "org_name", "kcv",
                                          "wrapping_keys", "token", NULL};
    json_t *db = NULL, *token = NULL, *part = json_object();
    char *socket = NULL, *domain = NULL;
    const char *maker;
    bool whole = true;
    int status;

    if ((status = ask(ctl, "backup.keys", json_object(), &db)) != 0 ||
        (status = ask(ctl, "hsm.status", json_object(), &token)) != 0)
        goto out;
    if (ctl->check) {
        if ((status = find_hsmd(ctl, &socket, &domain)) != 0 ||
            (status = look_in_token(ctl, socket, json_object_get(db, "keys"), &whole)) != 0)
            goto out;
    }
    json_object_set(db, "module", json_object_get(token, "module"));
    json_object_set(db, "token", json_object_get(token, "token"));
    maker = json_string_value(json_object_get(json_object_get(token, "token"), "manufacturer"));
    if (ctl->json) {
        if (ctl->check)
            json_object_set_new(db, "whole", json_boolean(whole));
        print_json(db);
    } else {
        puts("This installation is a database and a token.\n");
        for (size_t i = 0; head[i] != NULL; i++)
            json_object_set(part, head[i], json_object_get(db, head[i]));
        json_object_set(part, "module", json_object_get(db, "module"));
        json_object_set(part, "token", json_object_get(db, "token"));
        table_print_object(part, 0);
        puts("\nThe token must have, beside the static and the audit key:\n");
        table_print(json_object_get(db, "keys"), columns);
        if (ctl->check)
            printf("\n%s\n", whole ? "all of them are there"
                                   : "NOT ALL OF THEM ARE THERE: do not destroy any older copy");
        fputs(how, stdout);
        fputs(maker != NULL && strncmp(maker, "SoftHSM", 7) == 0 ? how_softhsm : how_hsm, stdout);
        fputs(how_more, stdout);
    }
    if (!whole)
        status = EXIT_REFUSED;
out:
    free(socket);
    free(domain);
    json_decref(part);
    json_decref(token);
    json_decref(db);
    return status;
}

const struct command backup_commands[] = {
    {"backup", "", 0, 0, "Zs",
     "what must be kept together of database and token, and how; --check: is it there", run_backup},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
