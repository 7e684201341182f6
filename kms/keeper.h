/*
 * keeper.h - the one process beside the workers: administration, health and metrics, background
 * jobs.
 *
 * It serves no client.  It knows the database as role kms_keeper, asks hsmd for new wrapping keys,
 * and sees the workers only through the shared page.  When it dies nothing stops; its parent starts
 * it again.
 *
 * keeper.c has the loop and the jobs, admin.c the admin socket, metrics.c the pages.  What they
 * share is the struct below.
 */
#ifndef KMS_KEEPER_H
#define KMS_KEEPER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/uri.h"

struct admin;
struct audit;
struct config;
struct db;
struct destroyer;
struct event;
struct event_base;
struct hsm;
struct json_t;
struct main_keys;
struct metrics;
struct revoked;
struct rotator;
struct shared;

/*
 * Serves the inherited, listening admin_fd and metrics_fd (-1: no metrics) until SIGTERM.  SIGHUP
 * reads config_path again.  Returns an exit status.  cfg is borrowed.
 */
int keeper_main(const struct config *cfg, struct shared *sh, int admin_fd, int metrics_fd,
                const char *config_path);

/* --- for admin.c and metrics.c --- */

/* Statements of role kms_keeper; the table is in keeper.c. */
enum keeper_statement {
    KS_SERVER_CHECK,
    KS_STATS,
    KS_ROOT_GET,
    KS_ROOT_ADD,
    KS_SWEEP,
    KS_KEYS_DUE,
    KS_KEY_ADD,
    KS_ORG_ADD,
    KS_ORGS_LIST,
    KS_ORG_SHOW,
    KS_ORG_SET_STATE,
    KS_KEY_SHOW,
    KS_RESOURCE_SHOW,
    KS_AUDIT_TAIL,
    KS_ADMIN_RECORD,
    KS_CONTROL_ACT,
    KS_APPROVAL_LIST,
    KS_APPROVAL_SHOW,
    KS_APPROVAL_APPROVE,
    KS_APPROVAL_REJECT,
    KS_APPROVALS_EXPIRE,
    KS_PURPOSES_LIST,
    KS_SERVICES_LIST,
    KS_SERVICE_SHOW,
    KS_SETTINGS_LIST,
    KS_MATTER_LIST,
    KS_MATTER_SHOW,
    KS_CANARY_LIST,
    KS_CERTIFICATES_REVOKED,
    KS_MAIN_KEY_WORK,
    KS_MAIN_KEY_END,
    KS_MAIN_KEY_GONE,
    KS_MAIN_KEYS_LIST,
    KS_NODE_TURN,
    KS_NODE_ROOT,
    KS_ROTATION_PROBLEM,
    KS_ROOT_NAME,
    KS_ROOT_MADE,
    KS_ROOT_ADVANCE,
    KS_REWRAP_NEXT,
    KS_REWRAP_STORE,
    KS_CHECK_NEXT,
    KS_ROOT_END,
    KS_RESEAL_BEGIN,
    KS_RESEAL_NEXT,
    KS_RESEAL_STORE,
    KS_GENERATIONS_UNNEEDED,
    KS_ROOTS_LIST,
    KS_ROTATIONS_STATUS,
    KS_FREEZE_ACT,
    KS_FREEZE_PREVIEW,
    KS_FREEZES_LIST,
    KS_TOKEN_KEYS,
    KS_CLOCK_TICK,
    KS_CLOCK_SHOW,
    KS_DESTRUCTION_WAITING,
    KS_DESTROY_WORK,
    KS_PERIOD_MADE,
    KS_PERIOD_RENEW,
    KS_MONTH_KEY_ADD,
    KS_RESEAL_DONE,
    KS_NODE_FORGOT,
    KS_CERTIFICATE_SIGNED,
    KS_DESTRUCTIONS_DO,
    KS_DESTRUCTION_LIST,
    KS_CERTIFICATE_LIST,
    KS_CERTIFICATE_SHOW,
    KS_RETENTION_PREVIEW,
    KS_N
};

/*
 * Does this node's token hold the root key that the database was begun with?  A token that was
 * swapped or made anew must not become the root of new keys that no other node can open.
 */
enum root_state {
    ROOT_UNKNOWN, /* not asked yet: database or HSM away */
    ROOT_PROVEN,
    ROOT_WRONG
};

/* What the sweeper did since this process started. */
struct sweeper {
    uint64_t runs, failures;
    uint64_t channels, unbound_keys, resources, keys, recordings; /* removed */
    long long last;                                               /* seconds since 1970; 0: never */
    int64_t last_ms;                                              /* how long it took */
};

struct keeper {
    struct event_base *base;
    const struct config *cfg; /* borrowed: the parent's, or own */
    struct config *own;       /* owned; NULL until the first reload */
    const char *config_path;
    struct shared *sh;
    struct db *db;
    struct hsm *hsm;
    struct admin *admin;
    struct audit *audit;
    struct metrics *metrics; /* NULL: off */
    struct revoked *revoked;
    struct main_keys *main_keys;
    struct rotator *rotator;
    struct destroyer *destroyer;

    enum root_state root;
    struct uuid root_id; /* the active root that the database names; zero: none yet */
    struct sweeper sweeper;
    uint64_t rotations, rotation_failures; /* of wrapping keys */
    struct json_t *stats;                  /* owned; the last kms.stats(), NULL: never */
    struct json_t *server;                 /* owned; the last kms.server_check() */

    struct event *sweep_timer, *root_timer, *keys_timer, *stats_timer;
    bool sweeping, rooting, rotating, asking;
    int64_t sweep_started; /* ms, monotonic */
    struct rotation *rotation;
};

/* Fit to serve.  why: NULL, or told each reason that it is not, in a few words. */
bool keeper_ready(const struct keeper *k, void (*why)(void *ctx, const char *text), void *ctx);
/* "proven", "wrong", "unknown". */
const char *root_state_name(enum root_state s);
const char *worker_state_name(int state);
/* Resident bytes of a process; 0: gone. */
long long process_rss(long pid);
/* Asks again now whether the token holds the root: after hsm init. */
void keeper_check_root(struct keeper *k);
/* Looks now whether new wrapping keys are due. */
void keeper_make_keys(struct keeper *k);

#endif
