/*
 * server.c - the connections of hsmd's clients, and their requests until they are answered.
 *
 * A request is one frame.  Its answer is put together from whatever parts the pool brings back, and
 * leaves when it is complete or when its deadline comes, whichever is first.  A frame that is no
 * frame ends its connection; nobody else notices.
 */
#include "hsm/server.h"

#include <errno.h>
#include <event2/event.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hsm/frame.h"
#include "hsm/log.h"
#include "hsm/pool.h"
#include "hsm/wire.h"
#include "proto/err.h"

#define CLIENTS_MAX     256
#define MANAGING_MIN    16        /* of them: for those who come through the door */
#define REQUESTS_MAX    64        /* of a client; then nothing more of it is read */
#define BACKLOG_MAX     (1 << 20) /* bytes that a client does not fetch; likewise */
#define DEADLINE_MAX_MS 300000
#define REST_MS         100 /* the listener's, when there are no descriptors left */

struct client {
    LIST_ENTRY(client) entry;
    struct server *s;
    struct wire *wire;
    bool manages; /* came through the door */
    LIST_HEAD(, entry) requests;
    unsigned requests_n;
};

/* A request as the server keeps it.  It outlives its client while a custodian is at it. */
struct entry {
    LIST_ENTRY(entry) entry;
    struct request r;      /* what the pool knows of it */
    struct client *client; /* borrowed; NULL once it was answered or left */
    struct server *s;
    uint32_t seq;
    unsigned char *items; /* owned */
    size_t items_len;
    unsigned char *answer; /* owned until it is sent: a head and every item */
    size_t answer_len;
    unsigned left; /* items without an answer */
    struct event *deadline;
};

struct server {
    struct event_base *base;
    struct server_settings settings;
    struct event *accept, *door, *rest;
    struct pool *pool;
    LIST_HEAD(, client) clients;
    unsigned clients_n;
    struct entry *init; /* the hsm_init under way: one at a time */
    unsigned long items[FRAME_TYPES], timeouts, turned_away;
};

static struct entry *
entry_of(struct request *r)
{
    return (struct entry *)(void *)((char *)r - offsetof(struct entry, r));
}

static void
entry_free(struct entry *e)
{
    if (e->s->init == e)
        e->s->init = NULL;
    if (e->deadline != NULL)
        event_free(e->deadline);
    wire_frame_free(e->items, e->items_len);
    wire_frame_free(e->answer, e->answer_len);
    OPENSSL_free(e);
}

static void
released_cb(struct request *r)
{
    entry_free(entry_of(r));
}

/* Reads on, or not: whoever does not fetch its answers, or asks without end, waits. */
static void
throttle(struct client *c)
{
    wire_pause(c->wire, c->requests_n >= REQUESTS_MAX || wire_backlog(c->wire) >= BACKLOG_MAX);
}

/* The client has its answer, or is gone: nothing more of this request is of use. */
static void
entry_over(struct entry *e)
{
    struct client *c = e->client;

    LIST_REMOVE(e, entry);
    c->requests_n--;
    e->client = NULL;
    event_del(e->deadline);
    pool_drop(e->s->pool, &e->r);
}

/* Sends what there is. */
static void
entry_send(struct entry *e, const unsigned char *text, size_t text_len)
{
    struct client *c = e->client;
    struct frame_head h = {
        .type = (uint8_t)e->r.type, .count = (uint16_t)e->r.count, .seq = e->seq};
    unsigned char *frame = e->answer;
    size_t len = e->answer_len;

    e->answer = NULL;
    if (text_len > 0) {
        unsigned char *longer = wire_frame_new(len + text_len);

        if (longer != NULL) {
            memcpy(longer, frame, len);
            memcpy(longer + len, text, text_len);
            wire_frame_free(frame, len);
            frame = longer;
            len += text_len;
        }
    }
    h.len = (uint32_t)len;
    frame_head_put(&h, FRAME_ANSWER_WAY, frame);
    wire_send(c->wire, frame, len);
    entry_over(e);
    throttle(c);
}

/* Error answers start as they are made: whatever is not filled in later says `err`. */
static void
fill_errors(struct entry *e, unsigned first, unsigned count, int err)
{
    size_t size = frame_item_size(e->r.type, FRAME_ANSWER_WAY);

    for (unsigned i = first; i < first + count; i++)
        frame_error_put(e->r.type, err, e->answer + FRAME_HEAD_LEN + i * size);
}

static char *status_text(const struct server *s);

static void
answer_cb(struct request *r, unsigned first, unsigned count, int err, const unsigned char *p,
          const unsigned char *text, size_t text_len)
{
    struct entry *e = entry_of(r);
    size_t size = frame_item_size(r->type, FRAME_ANSWER_WAY);
    char *status;

    if (p == NULL)
        fill_errors(e, first, count, err);
    else
        memcpy(e->answer + FRAME_HEAD_LEN + first * size, p, count * size);
    e->s->items[r->type] += count;
    if ((e->left -= count) > 0)
        return;
    if (r->type == FRAME_INIT && p != NULL && p[0] == KMS_OK &&
        (status = status_text(e->s)) != NULL) {
        entry_send(e, (const unsigned char *)status, strlen(status));
        free(status);
        return;
    }
    if (r->type == FRAME_INIT && p == NULL) {
        text = (const unsigned char *)pool_state(e->s->pool);
        text_len = strlen(pool_state(e->s->pool));
    }
    entry_send(e, text, text_len);
}

static void
deadline_cb(evutil_socket_t fd, short what, void *arg)
{
    struct entry *e = arg;

    /* Items that were answered stay so; the others were filled with this code at the beginning. */
    e->s->timeouts += e->left;
    entry_send(e, NULL, 0);
}

static void
state_json(const struct server *s, json_t *j)
{
    const struct setup *setup = s->settings.setup;
    const struct frame_hello *hello = pool_hello(s->pool);

    json_object_set_new(j, "version", json_string(PACKAGE_VERSION));
    json_object_set_new(j, "state", json_string(pool_state(s->pool)));
    json_object_set_new(j, "ready", json_boolean(hello->ready));
    json_object_set_new(j, "module", json_string(setup->module));
    json_object_set_new(j, "token_label", json_string(setup->token));
    json_object_set_new(j, "custody", json_string(setup->custody_process ? "process" : "token"));
}

static void
counters_json(const struct server *s, json_t *j)
{
    static const char *const names[FRAME_TYPES] = {
        [FRAME_GENERATE] = "generate",
        [FRAME_WRAP] = "wrap",
        [FRAME_UNWRAP] = "unwrap",
        [FRAME_OAEP] = "oaep_open",
        [FRAME_PSS] = "sign_pss",
        [FRAME_AUDIT] = "sign_audit",
        [FRAME_RANDOM] = "random",
        [FRAME_WRAPPING_KEY] = "wrapping_key_new",
        [FRAME_INIT] = "init",
        [FRAME_KEY_NEW] = "key_new",
        [FRAME_KEY_DESTROY] = "key_destroy",
        [FRAME_FORGET] = "forget",
        [FRAME_LIST] = "list",
        [FRAME_IMPORT_PAIR] = "import_pair",
        [FRAME_IMPORT] = "import",
        [FRAME_WRAPPING_KEY_UNDER] = "wrapping_key_new_under",
        [FRAME_REWRAP] = "rewrap",
        [FRAME_RESEAL] = "reseal",
    };
    const struct pool_counters *n = pool_counters(s->pool);
    json_t *items = json_object();

    for (int type = 0; type < FRAME_TYPES; type++)
        if (names[type] != NULL)
            json_object_set_new(items, names[type], json_integer((json_int_t)s->items[type]));
    json_object_set_new(
        j, "sessions",
        json_pack("{s:i, s:i, s:i, s:i, s:i, s:i}", "wanted", (int)s->settings.custodians,
                  "working", (int)pool_working(s->pool), "started", (int)n->started, "died",
                  (int)n->died, "killed", (int)n->killed, "replaced", (int)n->replaced));
    json_object_set_new(j, "items", items);
    json_object_set_new(j, "queue",
                        json_pack("{s:i, s:i, s:i, s:i}", "waiting", (int)pool_waiting(s->pool),
                                  "timeouts", (int)s->timeouts, "refused", (int)n->refused,
                                  "turned_away", (int)s->turned_away));
}

/* The supervisor's view and the newest custodian's report in one object.  To be freed; NULL: no
 * memory. */
static char *
status_text(const struct server *s)
{
    json_t *j = json_object();
    json_t *token = json_loads(pool_text(s->pool), 0, NULL);
    char *text;

    state_json(s, j);
    if (token != NULL)
        json_object_update(j, token);
    json_decref(token);
    counters_json(s, j);
    text = json_dumps(j, JSON_INDENT(2));
    json_decref(j);
    return text;
}

/* An answer that needs no custodian. */
static void
answer_now(struct entry *e, int err, const char *text)
{
    fill_errors(e, 0, e->r.count, err);
    entry_send(e, (const unsigned char *)text, text != NULL ? strlen(text) : 0);
}

static struct entry *
entry_new(struct client *c, const struct frame_head *head, const unsigned char *body, size_t len)
{
    struct entry *e = OPENSSL_zalloc(sizeof(*e));
    uint32_t wait = head->deadline_ms < DEADLINE_MAX_MS ? head->deadline_ms : DEADLINE_MAX_MS;
    const struct timeval tv = {.tv_sec = wait / 1000, .tv_usec = wait % 1000 * 1000};

    if (e == NULL)
        return NULL;
    e->s = c->s;
    e->seq = head->seq;
    e->left = head->count;
    e->items_len = len;
    e->answer_len = FRAME_HEAD_LEN + head->count * frame_item_size(head->type, FRAME_ANSWER_WAY);
    e->items = wire_frame_new(e->items_len);
    e->answer = wire_frame_new(e->answer_len);
    e->deadline = evtimer_new(c->s->base, deadline_cb, e);
    if (e->items == NULL || e->answer == NULL || e->deadline == NULL) {
        entry_free(e);
        return NULL;
    }
    memcpy(e->items, body, len);
    e->r = (struct request){
        .type = (enum frame_type)head->type, .count = head->count, .items = e->items};
    fill_errors(e, 0, e->r.count, KMS_ERR_TIMEOUT);
    event_add(e->deadline, &tv);
    e->client = c;
    LIST_INSERT_HEAD(&c->requests, e, entry);
    c->requests_n++;
    return e;
}

static void
client_free(struct client *c)
{
    while (!LIST_EMPTY(&c->requests))
        entry_over(LIST_FIRST(&c->requests));
    wire_free(c->wire);
    LIST_REMOVE(c, entry);
    c->s->clients_n--;
    OPENSSL_free(c);
}

/* Each item is looked at before any custodian sees it. */
static bool
is_sound(const struct frame_head *head, const unsigned char *body)
{
    size_t size = frame_item_size(head->type, FRAME_REQUEST_WAY);
    union frame_request r;
    bool ok = true;

    for (unsigned i = 0; i < head->count && ok; i++)
        ok = frame_request_get(head->type, &r, body + i * size) == KMS_OK;
    OPENSSL_cleanse(&r, sizeof(r));
    return ok;
}

/* The one place that decides what a connection may ask for: named is what a worker needs. */
static bool
may_ask(const struct client *c, enum frame_type type)
{
    switch (type) {
    case FRAME_GENERATE:
    case FRAME_WRAP:
    case FRAME_UNWRAP:
    case FRAME_OAEP:
    case FRAME_PSS:
    case FRAME_RANDOM:
    case FRAME_STATUS:
        return true;
    default:
        return c->manages;
    }
}

static void
frame_cb(void *ctx, const struct frame_head *head, const unsigned char *body, size_t len)
{
    struct client *c = ctx;
    struct server *s = c->s;
    struct entry *e;
    char *text;
    int err;

    if (!is_sound(head, body)) {
        log_error("client: an item is not the protocol; its connection ends", "type%d",
                  (int)head->type, NULL);
        client_free(c);
        return;
    }
    if ((e = entry_new(c, head, body, len)) == NULL) {
        log_error("client: out of memory; its connection ends", NULL);
        client_free(c);
        return;
    }
    if (!may_ask(c, e->r.type)) {
        log_error("client: managing keys is not for this connection", "type%d", (int)head->type,
                  NULL);
        answer_now(e, KMS_ERR_DENIED, NULL);
        return;
    }
    if (head->type == FRAME_STATUS) {
        text = status_text(s);
        answer_now(e, text != NULL ? KMS_OK : KMS_ERR_NOMEM, text);
        free(text);
        return;
    }
    if (head->type == FRAME_INIT) {
        if (s->init != NULL) {
            answer_now(e, KMS_ERR_STATE, "keys are being made already");
            return;
        }
        s->init = e;
    }
    if ((err = pool_add(s->pool, &e->r)) != KMS_OK) {
        answer_now(e, err, head->type == FRAME_INIT ? pool_state(s->pool) : NULL);
        return;
    }
    throttle(c);
}

static void
closed_cb(void *ctx, int err)
{
    if (err == KMS_ERR_PROTOCOL)
        log_error("client: what it sent is not the protocol; its connection ends", NULL);
    client_free(ctx);
}

static void
greet(struct client *c)
{
    size_t len = FRAME_HEAD_LEN + frame_item_size(FRAME_HELLO, FRAME_ANSWER_WAY);
    struct frame_head h = {.len = (uint32_t)len, .type = FRAME_HELLO, .count = 1};
    unsigned char *frame = wire_frame_new(len);

    if (frame == NULL)
        return;
    frame_head_put(&h, FRAME_ANSWER_WAY, frame);
    frame_hello_put(pool_hello(c->s->pool), frame + FRAME_HEAD_LEN);
    wire_send(c->wire, frame, len);
}

static void
change_cb(void *ctx)
{
    struct server *s = ctx;
    struct client *c;

    if (s->settings.change != NULL)
        s->settings.change(pool_state(s->pool));
    LIST_FOREACH(c, &s->clients, entry)
    greet(c);
}

/* Decided by the user who connected, and by nothing that can change afterwards. */
static bool
may_connect(const struct server *s, int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
        return false;
    if (peer.uid == 0 || peer.uid == geteuid() || peer.uid == s->settings.allowed)
        return true;
    log_warn("client: this user may not connect; see allow_user", "uid%u",
             (unsigned long long)peer.uid, "peer_pid%d", (int)peer.pid, NULL);
    return false;
}

/* A connection that somebody wants, if he may have one; -1: not now, or not he. */
static int
accept_one(struct server *s, evutil_socket_t listener)
{
    /* A worker that fell must not keep the keeper out. */
    unsigned max = listener == s->settings.door ? CLIENTS_MAX : CLIENTS_MAX - MANAGING_MIN;
    const struct timeval rest = {.tv_usec = REST_MS * 1000};
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            log_error("clients: cannot accept", "error", strerror(errno), NULL);
            event_del(s->accept);
            event_del(s->door);
            event_add(s->rest, &rest);
        }
        return -1;
    }
    if (s->clients_n >= max || !may_connect(s, fd)) {
        s->turned_away++;
        close(fd);
        return -1;
    }
    return fd;
}

/* Takes fd. */
static void
client_new(struct server *s, int fd, bool manages)
{
    struct client *c = OPENSSL_zalloc(sizeof(*c));

    if (c == NULL) {
        s->turned_away++;
        close(fd);
        return;
    }
    c->s = s;
    c->manages = manages;
    LIST_INIT(&c->requests);
    if ((c->wire = wire_new(s->base, fd, FRAME_REQUEST_WAY, frame_cb, closed_cb, c)) == NULL) {
        close(fd);
        OPENSSL_free(c);
        return;
    }
    LIST_INSERT_HEAD(&s->clients, c, entry);
    s->clients_n++;
    greet(c);
}

static void
accept_cb(evutil_socket_t listener, short what, void *arg)
{
    int fd = accept_one(arg, listener);

    if (fd >= 0)
        client_new(arg, fd, false);
}

/*
 * Who knocks at the door is handed one end of a stream, and the door closes.  What makes it a door
 * is the kind of its socket, which a worker's system call filter lets nobody make: kernels check
 * that for each call, while user, path and anything that is said are the same for all of kmsd.
 */
static void
door_cb(evutil_socket_t listener, short what, void *arg)
{
    struct server *s = arg;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.space = {0}};
    struct iovec word = {.iov_base = (char[]){0}, .iov_len = 1};
    struct msghdr m = {.msg_iov = &word,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof(control.space)};
    int fd = accept_one(s, listener), ends[2];

    if (fd < 0)
        return;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
        log_error("clients: no pair of sockets", "error", strerror(errno), NULL);
        s->turned_away++;
        close(fd);
        return;
    }
    control.head = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &ends[1], sizeof(int));
    /* The first message into an empty queue does not wait. */
    if (sendmsg(fd, &m, MSG_NOSIGNAL) == 1)
        client_new(s, ends[0], true);
    else
        close(ends[0]);
    close(ends[1]);
    close(fd);
}

static void
rest_cb(evutil_socket_t fd, short what, void *arg)
{
    struct server *s = arg;

    event_add(s->accept, NULL);
    event_add(s->door, NULL);
}

struct server *
server_new(struct event_base *base, const struct server_settings *settings)
{
    struct server *s = OPENSSL_zalloc(sizeof(*s));
    const struct pool_settings pool = {
        .setup = settings->setup,
        .custodians = settings->custodians,
        .call_ms = settings->call_ms,
        .self_fd = settings->self_fd,
        .answer = answer_cb,
        .released = released_cb,
        .change = change_cb,
        .ctx = s,
    };

    if (s == NULL)
        return NULL;
    s->base = base;
    s->settings = *settings;
    LIST_INIT(&s->clients);
    s->accept = event_new(base, settings->listener, EV_READ | EV_PERSIST, accept_cb, s);
    s->door = event_new(base, settings->door, EV_READ | EV_PERSIST, door_cb, s);
    s->rest = evtimer_new(base, rest_cb, s);
    if (s->accept == NULL || s->door == NULL || s->rest == NULL ||
        (s->pool = pool_new(base, &pool)) == NULL || event_add(s->accept, NULL) != 0 ||
        event_add(s->door, NULL) != 0) {
        server_free(s);
        return NULL;
    }
    return s;
}

void
server_free(struct server *s)
{
    if (s == NULL)
        return;
    while (!LIST_EMPTY(&s->clients))
        client_free(LIST_FIRST(&s->clients));
    if (s->pool != NULL)
        pool_free(s->pool);
    if (s->accept != NULL)
        event_free(s->accept);
    if (s->door != NULL)
        event_free(s->door);
    if (s->rest != NULL)
        event_free(s->rest);
    OPENSSL_free(s);
}

void
server_renew(struct server *s)
{
    pool_renew(s->pool);
}
