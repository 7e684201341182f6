/*
 * kmsctl_cmk.c - customers' main keys for officers: what an administrator of the organisation can
 * do by the protocol (section 5), with the same rules and, where it opens up or destroys, several
 * officers.
 */
#include <ctype.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kms/kmsctl.h"
#include "kms/table.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"

#define FILE_MAX  4096 /* bytes of an encrypted main key, in base64 with line breaks */
#define LOOK_MS   200
#define HEX_BYTES 512

static json_t *
org_params(char **argv, int argc)
{
    json_t *params = json_pack("{s:s}", "org", argv[0]);

    if (argc > 1)
        json_object_set_new(params, "main_key", json_string(last_part(argv[1])));
    return params;
}

static const char *
why_of(const json_t *last)
{
    const char *why = json_string_value(json_object_get(last, "why"));

    return why != NULL ? why : "see the log";
}

static void
print_main_keys(const json_t *list)
{
    static const char *const columns[] = {"main_key", "state",   "source", "kcv",
                                          "created",  "updated", NULL};
    const json_t *last = json_object_get(list, "last");
    json_int_t locked = json_integer_value(json_object_get(list, "locked"));
    json_int_t jobs = json_integer_value(json_object_get(list, "jobs"));
    json_int_t verdict = json_integer_value(json_object_get(last, "verdict"));
    json_t *part = json_object();

    json_object_set(part, "org_name", json_object_get(list, "org_name"));
    json_object_set(part, "org", json_object_get(list, "org"));
    json_object_set_new(part, "locked",
                        locked == 0 ? json_string("no")
                                    : json_sprintf("users are told %" JSON_INTEGER_FORMAT, locked));
    if (jobs > 0)
        json_object_set_new(part, "hsm",
                            json_sprintf("%" JSON_INTEGER_FORMAT " to do; ask again", jobs));
    if (verdict != 0)
        json_object_set_new(part, "last",
                            json_sprintf("%s failed: %s (%" JSON_INTEGER_FORMAT ")",
                                         json_string_value(json_object_get(last, "action")),
                                         why_of(last), verdict));
    table_print_object(part, 0);
    putchar('\n');
    table_print(json_object_get(list, "main_keys"), columns);
    json_decref(part);
}

static int
run_cmk_list(struct ctl *ctl, int argc, char **argv)
{
    json_t *result;
    int status = ask(ctl, "cmk.list", org_params(argv, 1), &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        print_main_keys(result);
    json_decref(result);
    return EXIT_OK;
}

int
cmk_wait(struct ctl *ctl, const char *org, const char *job)
{
    static const struct timespec pause = {0, LOOK_MS * 1000000L};
    const json_t *last;
    json_t *list;
    const char *op;
    int status;

    /* Each look is a call of its own. */
    ctl->op = NULL;
    for (long long waited = 0;; waited += LOOK_MS) {
        if ((status = ask(ctl, "cmk.list", json_pack("{s:s}", "org", org), &list)) != 0)
            return status;
        last = json_object_get(list, "last");
        op = json_string_value(json_object_get(last, "op"));
        if ((op != NULL && strcmp(op, job) == 0) ||
            json_integer_value(json_object_get(list, "jobs")) == 0 || waited > ctl->timeout_ms)
            break;
        json_decref(list);
        nanosleep(&pause, NULL);
    }
    if (op != NULL && strcmp(op, job) == 0 &&
        json_integer_value(json_object_get(last, "verdict")) != 0) {
        complain("the HSM could not do it, nothing was changed: %s (%" JSON_INTEGER_FORMAT ")",
                 why_of(last), json_integer_value(json_object_get(last, "verdict")));
        status = EXIT_REFUSED;
    } else {
        putchar('\n');
        print_main_keys(list);
    }
    json_decref(list);
    return status;
}

/* Hexadecimal DER as PEM.  NULL: it is none. */
static char *
pem_of(const char *text)
{
    struct buf der = BUF_INIT, b64 = BUF_INIT, pem = BUF_INIT;
    unsigned char byte;
    unsigned n;
    char *out = NULL;
    int r = KMS_OK;

    for (; r == KMS_OK && sscanf(text, "%2x", &n) == 1; text += 2) {
        byte = (unsigned char)n;
        r = buf_put(&der, &byte, 1);
    }
    if (r == KMS_OK && der.len > 0 && b64_put(&b64, der.data, der.len) == KMS_OK) {
        r = buf_puts(&pem, "-----BEGIN PUBLIC KEY-----\n");
        for (size_t i = 0; r == KMS_OK && i < b64.len; i += 64)
            r = buf_putf(&pem, "%.64s\n", buf_str(&b64) + i);
        if (r == KMS_OK && buf_puts(&pem, "-----END PUBLIC KEY-----\n") == KMS_OK)
            out = strdup(buf_str(&pem));
    }
    buf_release(&pem);
    buf_release(&b64);
    buf_release(&der);
    return out;
}

/* The pair is made when it is asked for at first; that takes an HSM its time. */
static int
run_cmk_public_key(struct ctl *ctl, int argc, char **argv)
{
    static const struct timespec look = {0, LOOK_MS * 1000000L};
    json_t *result = NULL, *shown;
    char *pem = NULL;
    int status = ask(ctl, "cmk.public_key", org_params(argv, 1), &result);

    for (long long waited = 0; status == 0; waited += LOOK_MS) {
        const char *hex = json_string_value(json_object_get(result, "public_key"));
        const json_t *jobs = json_object_get(result, "jobs");

        if (hex != NULL) {
            pem = pem_of(hex);
            break;
        }
        if (json_is_integer(jobs) && json_integer_value(jobs) == 0) {
            complain("the HSM could not do it: %s", why_of(json_object_get(result, "last")));
            status = EXIT_REFUSED;
            break;
        }
        if (waited > ctl->timeout_ms) {
            complain("the HSM makes the pair; ask again later");
            status = EXIT_REFUSED;
            break;
        }
        json_decref(result);
        result = NULL;
        nanosleep(&look, NULL);
        status = ask(ctl, "cmk.list", org_params(argv, 1), &result);
    }
    json_decref(result);
    if (status != 0)
        return status;
    if (pem == NULL) {
        complain("the server's answer has no public key");
        return EXIT_REFUSED;
    }
    if (ctl->json) {
        shown = json_pack("{s:s}", "public_key", pem);
        print_json(shown);
        json_decref(shown);
    } else {
        fputs(pem, stdout);
    }
    free(pem);
    return EXIT_OK;
}

/* The encrypted main key in a file: its bytes, or base64.  As hexadecimal text; NULL: complained.
 */
static json_t *
read_ciphertext(const char *path)
{
    unsigned char raw[FILE_MAX];
    char text[FILE_MAX + 1], hex[2 * HEX_BYTES + 1];
    size_t n, i, m = 0;
    struct buf bytes = BUF_INIT;
    bool printable = true;
    FILE *f = fopen(path, "re");
    json_t *out = NULL;

    if (f == NULL) {
        complain("%s: cannot be read", path);
        return NULL;
    }
    n = fread(raw, 1, sizeof(raw), f);
    fclose(f);
    for (i = 0; i < n; i++) {
        if (isspace(raw[i]))
            continue;
        if (raw[i] >= 0x7f || !isgraph(raw[i]))
            printable = false;
        text[m++] = (char)raw[i];
    }
    text[m] = '\0';
    if (printable ? b64_get(&bytes, text, m) != KMS_OK : buf_put(&bytes, raw, n) != KMS_OK)
        buf_reset(&bytes);
    if (bytes.len == 0 || bytes.len > HEX_BYTES) {
        complain("%s: not the main key encrypted to kmsctl cmk public-key, in base64 or as it is",
                 path);
    } else {
        for (i = 0; i < bytes.len; i++)
            snprintf(hex + 2 * i, 3, "%02x", bytes.data[i]);
        out = json_string(hex);
    }
    buf_release(&bytes);
    return out;
}

static int
run_cmk_import(struct ctl *ctl, int argc, char **argv)
{
    json_t *ciphertext = read_ciphertext(argv[1]), *params;

    if (ciphertext == NULL)
        return EXIT_USAGE;
    params = org_params(argv, 1);
    json_object_set_new(params, "ciphertext", ciphertext);
    return ask_and_tell(ctl, "cmk.import", params);
}

static int
run_cmk_activate(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.activate", org_params(argv, argc));
}

static int
run_cmk_disable(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.disable", org_params(argv, argc));
}

static int
run_cmk_revoke(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.revoke", org_params(argv, argc));
}

static int
run_cmk_deactivate(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.deactivate", org_params(argv, argc));
}

static int
run_cmk_retire(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.retire", org_params(argv, argc));
}

static int
run_cmk_delete(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.delete", org_params(argv, argc));
}

static int
run_cmk_default(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "cmk.default", org_params(argv, argc));
}

const struct command cmk_commands[] = {
    {"cmk list", "ORG", 1, 1, "", "main keys of an organisation, and what an HSM is doing for them",
     run_cmk_list},
    {"cmk public-key", "ORG", 1, 1, "", "the RSA key that a main key is to be encrypted to",
     run_cmk_public_key},
    {"cmk import", "ORG FILE", 2, 2, "",
     "import a main key, encrypted by RSA-OAEP with SHA-256 (needs approval)", run_cmk_import},
    {"cmk activate", "ORG ID", 2, 2, "",
     "wrap everything of the organisation under it, or open it again (needs approval)",
     run_cmk_activate},
    {"cmk disable", "ORG [ID]", 1, 2, "", "release none of its keys for a while, at once",
     run_cmk_disable},
    {"cmk revoke", "ORG [ID]", 1, 2, "",
     "release none of its keys until it is activated again, at once", run_cmk_revoke},
    {"cmk deactivate", "ORG [ID]", 1, 2, "", "go back to the root (needs approval)",
     run_cmk_deactivate},
    {"cmk retire", "ORG ID", 2, 2, "",
     "keep one that is deactivated, for old backups (needs approval)", run_cmk_retire},
    {"cmk delete", "ORG [ID]", 1, 2, "",
     "destroy one in the HSM, or all, the active one after going back to the root (needs approval)",
     run_cmk_delete},
    {"cmk default", "ORG", 1, 1, "", "go back to the root, whatever is active (needs approval)",
     run_cmk_default},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
