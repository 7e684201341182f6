/*
 * admin_call.h - a call of the admin socket, for the files that have methods: admin.c and those
 * that it lists.
 *
 * A method's function ends its call, now or from a callback, with exactly one of call_answer and
 * call_refuse.
 */
#ifndef KMS_ADMIN_CALL_H
#define KMS_ADMIN_CALL_H

#include <jansson.h>
#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kms/db.h"
#include "kms/keeper.h"
#include "proto/buf.h"
#include "proto/uri.h"

struct admin;
struct call;

#define ACTOR_MAX     96
#define CALL_NAME_MAX 128 /* of an organisation */
#define CALL_PAGE_MAX 224

/* JSON-RPC 2.0 section 5.1 */
#define RPC_PARSE    (-32700)
#define RPC_REQUEST  (-32600)
#define RPC_METHOD   (-32601)
#define RPC_PARAMS   (-32602)
#define RPC_INTERNAL (-32603)

/* Bits: somebody may have several roles, and a method may be open to several. */
enum role {
    ROLE_OPERATOR = 1, /* runs the server */
    ROLE_OFFICER = 2,  /* decides who gets keys, and what is destroyed */
    ROLE_AUDITOR = 4,  /* reads the log */
    ROLE_LOG = ROLE_OFFICER | ROLE_AUDITOR,
    ROLE_ANY = ROLE_OPERATOR | ROLE_OFFICER | ROLE_AUDITOR
};

struct peer {
    uid_t uid;
    gid_t gid;
    unsigned roles;        /* of the call under way */
    char actor[ACTOR_MAX]; /* for entries and logs: "name(uid)" */
};

/*
 * Who writes the entry that every call has.  A call that is refused before its SQL function has
 * answered gets it from admin.c in any case.
 */
enum method_record {
    RECORD_CALL,  /* admin.c; the answer waits for it */
    RECORD_SQL,   /* its SQL function, in the transaction of what it does */
    RECORD_PAGES, /* admin.c, once a connection and log: one export is many calls */
    RECORD_LATER  /* admin.c, without waiting: it must work while the database is away */
};

struct method {
    const char *name;
    unsigned roles; /* any of these will do */
    void (*run)(struct call *c);
    enum method_record record;
};

/* A call under way; owned by itself, freed where it ends. */
struct call {
    struct admin *a;
    struct keeper *k;
    uint64_t conn;               /* whom to answer; may be gone by then */
    const struct method *method; /* NULL: not known yet */
    json_t *request;             /* owned */
    const json_t *id;            /* borrowed from it; NULL: a notification, answered by nothing */
    const json_t *params;        /* borrowed from it; NULL: none */
    struct uuid op;
    struct peer peer;
    const char *name;         /* of an organisation; borrowed from params */
    bool recorded;            /* the entry is written: by its SQL function */
    json_t *answer;           /* owned: a whole line, while its entry is being written */
    int verdict;              /* what it ended with: 0 or an errorCode */
    char page[CALL_PAGE_MAX]; /* RECORD_PAGES: of what; else empty */
};

/* Takes result over; NULL: no memory. */
void call_answer(struct call *c, json_t *result);
/* why: NULL for the code's own text. */
void call_refuse(struct call *c, int code, const char *why);
/* True when the call's SQL function gave a result; else the call was refused. */
bool call_got(struct call *c, int err);
/* A jsonb column as a tree; *out NULL for SQL NULL.  false: malformed, the call was refused. */
bool call_json(struct call *c, const PGresult *res, int row, int col, json_t **out);
/* The name in params, checked for its length only.  false: the call was refused. */
bool call_name(struct call *c);

/* Callbacks for db_call: one row with one jsonb, where SQL NULL is 404001; one row of verdict and
 * result. */
void call_shown(void *ctx, int err, const PGresult *res, const char *sqlstate);
void call_judged(void *ctx, int err, const PGresult *res, const char *sqlstate);

/* An id in params ("approval", ...).  false: the call was refused. */
bool call_uuid(struct call *c, const char *member, struct uuid *id);
/* A string in params that may be absent (*out NULL).  false: the call was refused. */
bool call_text(struct call *c, const char *member, size_t max, const char **out);

/* Calls the SQL function with p, and cb with its answer; or refuses the call. */
void call_ask(struct call *c, enum keeper_statement s, struct db_params *p, db_cb *cb);
/* The params as JSON text, without what is the call's own.  The caller releases text.  false: the
 * call was refused. */
bool call_arguments(struct call *c, struct buf *text);
/* Whole calls whose answer is what the SQL function shows: of nothing in particular; of the id in
 * that member; of the organisation in "org", or of all where there is none. */
void call_show(struct call *c, enum keeper_statement s);
void call_show_one(struct call *c, const char *member, enum keeper_statement s);
void call_list_of_org(struct call *c, enum keeper_statement s);

/* What officers do or propose (kms.control_act): the method's name is the action's, and params are
 * its arguments.  control_admin.c has it. */
void call_act(struct call *c);

/* The methods of other files, each list ended by a NULL name; admin.c has the list of lists. */
extern const struct method audit_methods[];    /* audit_admin.c */
extern const struct method control_methods[];  /* control_admin.c */
extern const struct method explain_methods[];  /* explain_admin.c */
extern const struct method rotation_methods[]; /* rotation_admin.c */
extern const struct method backup_methods[];   /* backup_admin.c */
extern const struct method freeze_methods[];   /* freeze_admin.c */
extern const struct method destroy_methods[];  /* destroy_admin.c */

#endif
