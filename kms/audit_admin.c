/*
 * audit_admin.c - the log on the admin socket: tiles, entries, checkpoints; cosignatures; erasing a
 * person.
 *
 * What is handed out are the resources of a C2SP tlog-tiles log; kmsctl makes files, proofs and
 * checks of them.  A log is named by its organisation's id ("log"), as audit.log tells it.
 */
#include <stdlib.h>
#include <string.h>

#include "kms/admin_call.h"
#include "kms/audit.h"
#include "kms/config.h"
#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/b64.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/merkle.h"
#include "proto/msg.h"
#include "proto/note.h"

#define HASHES_MAX  65536 /* in one answer */
#define ENTRIES_MAX 2048
#define NOTES_MAX   1000
#define WITNESSES   64

static void
ask(struct call *c, enum audit_statement s, struct db_params *p, db_cb *cb)
{
    if (db_call(audit_db(c->k->audit), (int)s, p, cb, c) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
}

/* false: refused. */
static bool
get_log(struct call *c, struct uuid *org)
{
    const char *text;

    if (kms_json_str(c->params, "log", UUID_TEXT, &text) == KMS_OK &&
        uuid_parse(org, text, strlen(text)) == KMS_OK)
        return true;
    call_refuse(c, RPC_PARAMS, "log: a UUID");
    return false;
}

static bool
get_number(struct call *c, const char *name, long long min, long long max, long long *out)
{
    char why[96];

    if (kms_json_int(c->params, name, min, max, out) == KMS_OK)
        return true;
    snprintf(why, sizeof(why), "%s: a number from %lld to %lld", name, min, max);
    call_refuse(c, RPC_PARAMS, why);
    return false;
}

/* The name of an organisation, or none for the installation's own log. */
static bool
get_org_name(struct call *c)
{
    int r = kms_json_str(c->params, "org", CALL_NAME_MAX, &c->name);

    if (r == KMS_OK || r == KMS_ERR_NOT_FOUND)
        return true;
    call_refuse(c, RPC_PARAMS, "org: a string");
    return false;
}

/* --- audit.log: what there is --- */

static void
log_shown(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    struct buf vkey = BUF_INIT;
    struct note_key key;
    struct uuid org;
    const char *id;
    json_t *j;

    if (!call_got(c, err))
        return;
    if (PQntuples(res) != 1) {
        call_refuse(c, RPC_INTERNAL, "the database's answer is malformed");
        return;
    }
    if (!call_json(c, res, 0, 0, &j))
        return;
    if (j == NULL) {
        call_refuse(c, KMS_CODE_NOT_FOUND, "no organisation of this name");
        return;
    }
    id = json_string_value(json_object_get(j, "org"));
    if (id != NULL && uuid_parse(&org, id, strlen(id)) == KMS_OK &&
        audit_key(c->k->audit, &org, &key) && note_key_put(&vkey, &key) == KMS_OK) {
        json_object_set_new(j, "origin", json_string(key.name));
        json_object_set_new(j, "key", json_string(buf_str(&vkey)));
    }
    buf_release(&vkey);
    call_answer(c, j);
}

static void
log_run(struct call *c)
{
    struct db_params p;

    if (!get_org_name(c))
        return;
    db_params_init(&p);
    db_text(&p, c->name);
    ask(c, AS_SHOW, &p, log_shown);
}

/* --- audit.notes --- */

static void
notes_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    json_t *list;

    if (!call_got(c, err))
        return;
    list = json_array();
    for (int i = 0; i < PQntuples(res); i++) {
        int64_t size = 0;

        db_get_int8(res, i, 0, &size);
        json_array_append_new(list,
                              json_pack("{s:I, s:s?, s:s?}", "size", (json_int_t)size, "note",
                                        db_get_text(res, i, 1), "key", db_get_text(res, i, 2)));
    }
    call_answer(c, json_pack("{s:o}", "notes", list));
}

static void
notes_run(struct call *c)
{
    struct db_params p;
    struct uuid org;
    long long after;

    if (!get_log(c, &org) || !get_number(c, "after", -1, INT64_MAX, &after))
        return;
    db_params_init(&p);
    db_uuid(&p, &org);
    db_int8(&p, after);
    db_int4(&p, NOTES_MAX);
    ask(c, AS_NOTES, &p, notes_got);
}

/* --- audit.tiles: hashes of a level, from one on, as many as there are without a gap --- */

static void
answer_hashes(struct call *c, const struct buf *hashes)
{
    struct buf text = BUF_INIT;

    if (b64_put(&text, hashes->data, hashes->len) != KMS_OK)
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
    else
        call_answer(c, json_pack("{s:s}", "hashes", buf_str(&text)));
    buf_release(&text);
}

static void
leaves_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    struct buf all = BUF_INIT;
    int64_t at = json_integer_value(json_object_get(c->params, "first"));
    int64_t end = at + json_integer_value(json_object_get(c->params, "limit"));
    int r = KMS_OK;

    if (!call_got(c, err))
        return;
    for (int i = 0; r == KMS_OK && i < PQntuples(res); i++) {
        int64_t first, n = PQgetlength(res, i, 1) / MERKLE_LEN, take;

        if (!db_get_int8(res, i, 0, &first) || first > at || first + n <= at)
            break;
        take = (first + n < end ? first + n : end) - at;
        r = buf_put(&all, PQgetvalue(res, i, 1) + (at - first) * MERKLE_LEN,
                    (size_t)take * MERKLE_LEN);
        at += take;
    }
    answer_hashes(c, &all);
    buf_release(&all);
}

static void
nodes_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    struct buf all = BUF_INIT;
    int64_t at = json_integer_value(json_object_get(c->params, "first"));

    if (!call_got(c, err))
        return;
    for (int i = 0; i < PQntuples(res); i++, at++) {
        int64_t index;

        if (!db_get_int8(res, i, 0, &index) || index != at ||
            PQgetlength(res, i, 1) != MERKLE_LEN ||
            buf_put(&all, PQgetvalue(res, i, 1), MERKLE_LEN) != KMS_OK)
            break;
    }
    answer_hashes(c, &all);
    buf_release(&all);
}

static void
tiles_run(struct call *c)
{
    long long level, first, limit;
    struct db_params p;
    struct uuid org;

    if (!get_log(c, &org) || !get_number(c, "level", 0, 7, &level) ||
        !get_number(c, "first", 0, INT64_MAX / 2, &first) ||
        !get_number(c, "limit", 1, HASHES_MAX, &limit))
        return;
    db_params_init(&p);
    db_uuid(&p, &org);
    if (level > 0)
        db_int4(&p, (int32_t)level);
    db_int8(&p, first);
    db_int4(&p, (int32_t)limit);
    ask(c, level > 0 ? AS_NODES : AS_HASHES, &p, level > 0 ? nodes_got : leaves_got);
}

/* --- audit.entries: leaves as the database has them now; one that is gone is null --- */

static void
entries_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    int64_t at = json_integer_value(json_object_get(c->params, "first"));
    json_t *ids, *leaves;

    if (!call_got(c, err))
        return;
    ids = json_array();
    leaves = json_array();
    for (int i = 0; i < PQntuples(res); i++) {
        const char *leaf = db_get_text(res, i, 2);
        int64_t id = 0, index = at;

        db_get_int8(res, i, 0, &index);
        db_get_int8(res, i, 1, &id);
        /* Whoever takes a run of leaves out does not move the others. */
        for (; at < index && json_array_size(leaves) < ENTRIES_MAX; at++) {
            json_array_append_new(ids, json_null());
            json_array_append_new(leaves, json_null());
        }
        at++;
        json_array_append_new(ids, json_integer(id));
        json_array_append_new(leaves, leaf != NULL ? json_string(leaf) : json_null());
    }
    call_answer(c, json_pack("{s:o, s:o}", "entries", ids, "leaves", leaves));
}

static void
entries_run(struct call *c)
{
    long long first, limit;
    struct db_params p;
    struct uuid org;

    if (!get_log(c, &org) || !get_number(c, "first", 0, INT64_MAX / 2, &first) ||
        !get_number(c, "limit", 1, ENTRIES_MAX, &limit))
        return;
    db_params_init(&p);
    db_uuid(&p, &org);
    db_int8(&p, first);
    db_int4(&p, (int32_t)limit);
    ask(c, AS_ENTRIES, &p, entries_got);
}

/* --- audit.find, audit.strays --- */

static void
found(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    int64_t index;

    if (!call_got(c, err))
        return;
    if (PQntuples(res) != 1 || !db_get_int8(res, 0, 0, &index) || index < 0)
        call_refuse(c, KMS_CODE_NOT_FOUND, "that log has no such entry, or not yet");
    else
        call_answer(c, json_pack("{s:I}", "index", (json_int_t)index));
}

static void
find_run(struct call *c)
{
    struct db_params p;
    struct uuid org;
    long long entry;

    if (!get_log(c, &org) || !get_number(c, "entry", 0, INT64_MAX, &entry))
        return;
    db_params_init(&p);
    db_uuid(&p, &org);
    db_int8(&p, entry);
    ask(c, AS_FIND, &p, found);
}

static void
strays_got(void *ctx, int err, const PGresult *res, const char *sqlstate)
{
    struct call *c = ctx;
    json_t *list;

    if (!call_got(c, err))
        return;
    list = json_array();
    for (int i = 0; i < PQntuples(res); i++) {
        int64_t id = 0;

        db_get_int8(res, i, 0, &id);
        json_array_append_new(list, json_integer(id));
    }
    call_answer(c, json_pack("{s:o}", "entries", list));
}

static void
strays_run(struct call *c)
{
    struct db_params p;
    struct uuid org;

    if (!get_log(c, &org))
        return;
    db_params_init(&p);
    db_uuid(&p, &org);
    db_int4(&p, NOTES_MAX);
    ask(c, AS_STRAYS, &p, strays_got);
}

/* --- audit.cosign --- */

/* The witnesses that the configuration's file names, one verifier key a line. */
static size_t
read_witnesses(const char *path, struct note_key *keys, size_t max)
{
    char *line = NULL;
    size_t cap = 0, n = 0;
    FILE *f;

    if (path == NULL || path[0] == '\0' || (f = fopen(path, "re")) == NULL)
        return 0;
    while (n < max && getline(&line, &cap, f) >= 0) {
        line[strcspn(line, " \t\r\n")] = '\0';
        if (note_key_parse(&keys[n], line, strlen(line)) == KMS_OK &&
            keys[n].type == NOTE_COSIGNATURE)
            n++;
    }
    free(line);
    fclose(f);
    return n;
}

static void
cosign_run(struct call *c)
{
    static struct note_key witnesses[WITNESSES];
    static struct note note;
    struct checkpoint checkpoint;
    struct buf vkey = BUF_INIT;
    struct note_key key;
    struct db_params p;
    struct uuid org;
    const char *text;
    uint64_t when = 0;
    size_t n, i;
    int r = KMS_ERR_NOT_FOUND;

    if (!get_log(c, &org))
        return;
    if (kms_json_str(c->params, "note", NOTE_MAX, &text) != KMS_OK) {
        call_refuse(c, RPC_PARAMS, "note: a checkpoint with a witness's cosignature");
        return;
    }
    if (!audit_key(c->k->audit, &org, &key)) {
        call_refuse(c, KMS_CODE_HSM, "the HSM has not told its audit key");
        return;
    }
    if (note_parse(&note, text, strlen(text)) != KMS_OK ||
        checkpoint_parse(&checkpoint, note.text, note.text_len) != KMS_OK ||
        strcmp(checkpoint.origin, key.name) != 0) {
        call_refuse(c, KMS_CODE_MEMBER, "this is no checkpoint of that log");
        return;
    }
    if (note_verify(&note, &key, NULL) != KMS_OK) {
        call_refuse(c, KMS_CODE_MEMBER, "the log's own signature is missing or wrong");
        return;
    }
    n = read_witnesses(c->k->cfg->audit_witnesses, witnesses, WITNESSES);
    for (i = 0; i < n; i++) {
        if ((r = note_verify(&note, &witnesses[i], &when)) != KMS_ERR_NOT_FOUND)
            break;
    }
    if (r != KMS_OK) {
        call_refuse(c, KMS_CODE_MEMBER,
                    r == KMS_ERR_CRYPTO ? "a witness's cosignature is wrong"
                    : n == 0            ? "no witness is configured; see [audit] witnesses"
                                        : "no cosignature is by a configured witness");
        return;
    }
    if (note_key_put(&vkey, &witnesses[i]) != KMS_OK) {
        call_refuse(c, KMS_CODE_OVERLOADED, "out of memory");
        return;
    }
    db_params_init(&p);
    db_uuid(&p, &c->op);
    db_uuid(&p, &org);
    db_int8(&p, (int64_t)checkpoint.size);
    db_text(&p, buf_str(&vkey));
    db_int8(&p, (int64_t)(when <= INT64_MAX / 1000 ? when * 1000 : 0));
    db_text(&p, text);
    db_text(&p, c->peer.actor);
    buf_release(&vkey);
    ask(c, AS_COSIGN, &p, call_judged);
}

/* --- person.erase --- */

static void
erase_run(struct call *c)
{
    struct db_params p;
    const char *subject;

    if (!get_org_name(c))
        return;
    if (kms_json_str(c->params, "subject", 256, &subject) != KMS_OK || subject[0] == '\0') {
        call_refuse(c, RPC_PARAMS, "subject: whom to erase");
        return;
    }
    db_params_init(&p);
    db_uuid(&p, &c->op);
    db_text(&p, c->name);
    db_text(&p, subject);
    db_text(&p, c->peer.actor);
    ask(c, AS_PERSON_ERASE, &p, call_judged);
}

const struct method audit_methods[] = {
    {"audit.log", ROLE_ANY, log_run, RECORD_CALL},
    {"audit.notes", ROLE_LOG, notes_run, RECORD_PAGES},
    {"audit.tiles", ROLE_LOG, tiles_run, RECORD_PAGES},
    {"audit.entries", ROLE_LOG, entries_run, RECORD_PAGES},
    {"audit.find", ROLE_LOG, find_run, RECORD_CALL},
    {"audit.strays", ROLE_LOG, strays_run, RECORD_CALL},
    {"audit.cosign", ROLE_AUDITOR, cosign_run, RECORD_SQL},
    {"person.erase", ROLE_OFFICER, erase_run, RECORD_SQL},
    {NULL, 0, NULL, RECORD_CALL},
};
