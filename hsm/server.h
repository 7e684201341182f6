/*
 * server.h - hsmd's Unix socket: who may connect, whole frames, deadlines, answers.
 */
#ifndef HSM_SERVER_H
#define HSM_SERVER_H

#include <sys/types.h>

#include "hsm/setup.h"

struct event_base;
struct server;

struct server_settings {
    int listener;              /* bound and listening; stays the caller's */
    int door;                  /* likewise, SOCK_SEQPACKET: for who manages keys */
    uid_t allowed;             /* who may connect besides root and our own user */
    const struct setup *setup; /* borrowed */
    unsigned custodians;
    int call_ms;
    int self_fd;
    void (*change)(const char *state); /* NULL: nobody cares */
};

/* NULL: no memory. */
struct server *server_new(struct event_base *base, const struct server_settings *s);
/* Ends every connection, then the custodians. */
void server_free(struct server *s);
/* See pool_renew. */
void server_renew(struct server *s);

#endif
