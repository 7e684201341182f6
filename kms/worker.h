/*
 * worker.h - one worker: a process with one event loop that serves connections.  What its modules
 * share.
 */
#ifndef KMS_WORKER_H
#define KMS_WORKER_H

#include <event2/event.h>
#include <openssl/evp.h>
#include <stdint.h>

#include "kms/clock.h"
#include "kms/config.h"
#include "kms/shared.h"

struct channels;
struct db;
struct hsm;
struct orgs;
struct posts;
struct rate;
struct refusals;
struct req;
struct services;
struct state;
struct tokens;
struct web;

#define REQ_BUCKETS 4096

/*
 * The loop's priorities: everything has libevent's default of three, but for state.c's event that
 * gathers requests into calls: it waits until the loop has nothing else to do, as the calls then
 * carry more.  Strangers can keep the loop busy for as long as they like, so a timer of the default
 * priority does the same work a little later; nothing else may stand above or below.
 */
enum { PRIO_GATHER = 2, PRIO_N = 3 };

struct worker {
    struct event_base *base;
    struct config *cfg; /* owned; swapped by a reload */
    const char *config_path;
    struct shared *shared;
    struct shared_worker *own;
    struct db *db;
    struct hsm *hsm;
    struct tokens *tokens;
    struct web *web;
    struct state *state;
    struct channels *channels;
    struct orgs *orgs;
    struct refusals *refusals;
    struct posts *posts;
    struct services *services;
    struct rate *by_source, *by_subject, *by_service, *by_open;
    /* The static key as the world knows it, from its certificate. */
    char *cluster; /* "kms://DOMAIN" */
    char *static_kid;
    EVP_PKEY *static_public;
    char *cluster_answer; /* the body of GET /kms/{userId} */
    /* Requests under way, by id. */
    struct req *reqs[REQ_BUCKETS];
    uint64_t last_req;
    size_t n_reqs;
};

/* The worker process: never returns before it is told to stop.  Returns the exit status. */
int worker_main(struct config *cfg, struct shared *sh, unsigned number, int listen_fd,
                const char *config_path);

#endif
