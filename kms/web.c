/*
 * web.c - HTTPS connections: accept, TLS, one request at a time, one answer.
 *
 * A connection is a phase.  libevent's callbacks change nothing: they note what happened and put
 * the connection in the queue of the turn; when the loop has run the callbacks that were ready,
 * turn_cb takes each connection one step (conn_run), then frees those that are over.  So no
 * bufferevent is touched or freed inside its own callback, where bufferevent_openssl holds space
 * reserved in the input buffer and calls back before it has committed it.
 *
 *     HANDSHAKE -> IDLE -> HEAD -> BODY -> ANSWER -> WRITE -> IDLE ...
 *                                                      \----> LINGER -> DEAD
 *
 * Where there is no room the listener rests, rather than accept and refuse: what waits in the
 * kernel's backlog costs us nothing, may be taken by another worker on the same socket, and is
 * served as soon as there is room.  Only what is one source's fault (too many connections) is
 * accepted and closed at once, as it would otherwise stand in everybody's way.
 */
#include "kms/web.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hsm/log.h"
#include "kms/clock.h"
#include "kms/shared.h"
#include "proto/err.h"

#define ACCEPT_BATCH      8  /* connections a wake: workers that share the socket share the load */
#define ACCEPT_PAUSE_MS   50 /* after EMFILE; doubles up to .. */
#define ACCEPT_PAUSE_MAX  5000 /* .. this */
#define SOURCE_BUCKETS    4096
#define LINGER_SECONDS    5 /* for a client that still sends to read why it was refused */
#define DRAIN_SECONDS     1 /* for the last request of a connection that idles when a drain begins */
#define LINGER_BODIES     8     /* so many times body_max are read and thrown away meanwhile */
#define BODY_SMALL        16384 /* a body up to this is always taken in .. */
#define BODY_TOTAL_BODIES 32    /* .. of larger ones at most so many times body_max at once */
#define ANSWER_COPY_MAX   16384 /* up to here head and body go out as one TLS record */
#define HANDSHAKE_MS      1000  /* an unfinished handshake is left this when others wait */
#define SLOTS_MIN         64
#define SLOT_NONE         UINT32_MAX

enum phase {
    PH_HANDSHAKE, /* TLS is not up yet */
    PH_IDLE,      /* between requests: nothing has come of the next one */
    PH_HEAD,      /* some of the head has come */
    PH_BODY,      /* the head is whole, the body is not */
    PH_ANSWER,    /* the handler has the request; no deadline of ours, the handler's ends it */
    PH_WRITE,     /* the answer is on its way */
    PH_LINGER,    /* we have said all; reading and throwing away until the client closes */
    PH_DEAD       /* waits for turn_cb to free it */
};

/*
 * Who connects: one address, or one IPv6 /64, which is what one customer gets.
 * Lives as long as it has connections.
 */
struct source {
    struct source *next; /* in its bucket */
    unsigned char key[9];
    unsigned connections;
};

struct conn {
    TAILQ_ENTRY(conn) phase_entry; /* w->shaking, while PH_HANDSHAKE; w->idle, while PH_IDLE */
    TAILQ_ENTRY(conn) ready_entry; /* w->ready, while queued; then w->dead */
    struct web *w;
    struct source *source;   /* counted there until dead */
    struct bufferevent *bev; /* owned; owns the SSL and the descriptor */
    SSL *ssl;                /* borrowed from bev; NULL: plain */
    struct event deadline;   /* of the phase; absolute, unlike bufferevent's own */
    int64_t began;           /* milliseconds, monotonic */
    uint32_t slot;
    unsigned char addr[16];
    sa_family_t family;
    unsigned char phase; /* enum phase */
    bool queued;         /* in w->ready */
    bool connected;      /* the handshake ended well */
    bool eof;            /* the client sends no more; it may still read */
    bool broken;         /* neither way */
    bool paused;         /* reading is suspended: bytes came while a request is under way */
    bool close;          /* after this answer */
    bool head;           /* the request was HEAD: the answer has no body */
    bool large;          /* its body is counted in w->bodies */
    bool bye;            /* close_notify was sent */
    size_t seen;         /* http_parse's */
    size_t need;         /* PH_BODY, PH_ANSWER: length of head and body */
    size_t discarded;    /* PH_LINGER */
};

TAILQ_HEAD(conns, conn);

struct slot {
    struct conn *conn; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
};

struct web {
    struct event_base *base;
    SSL_CTX *tls; /* owned reference; NULL: plain */
    struct web_limits limits;
    web_handler *handler;
    void *ctx;
    int listen_fd; /* borrowed */
    struct event *listener;
    struct event *resume; /* ends a pause of accepting */
    struct event *crowd;  /* when the oldest unfinished handshake has had its time */
    struct event *turn;
    bool accepting; /* listener is added */
    bool pausing;   /* out of descriptors or memory: until resume, or until a connection is freed */
    bool draining;
    unsigned pause_ms;
    struct slot *slots;
    uint32_t n_slots;
    uint32_t free_slot, free_last; /* oldest first, so that an id comes back as late as can be */
    size_t open; /* connections, those that are dead and not yet freed among them */
    size_t live;
    size_t handshakes;
    size_t bodies;        /* bytes promised to large bodies under way */
    struct conns shaking; /* the oldest first */
    struct conns idle;    /* the one that idles longest first */
    struct conns ready, dead;
    struct source *sources[SOURCE_BUCKETS];
    uint64_t seed; /* of the sources' hash: a stranger must not choose his bucket */
};

static void conn_run(struct conn *c);
static void conn_kill(struct conn *c);
static void accept_update(struct web *w);

/* Sources */

static unsigned
source_bucket(const struct web *w, const unsigned char key[9])
{
    uint64_t h = w->seed;
    size_t i;

    for (i = 0; i < 9; i++) {
        h = (h ^ key[i]) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
    }
    return (unsigned)((h >> 32) % SOURCE_BUCKETS);
}

static void
source_key(unsigned char key[9], sa_family_t family, const unsigned char addr[16])
{
    memset(key, 0, 9);
    key[0] = (unsigned char)family;
    memcpy(key + 1, addr, family == AF_INET ? 4 : 8);
}

/* Counts a connection in.  NULL: no memory. */
static struct source *
source_join(struct web *w, sa_family_t family, const unsigned char addr[16])
{
    unsigned char key[9];
    struct source **head, *s;

    source_key(key, family, addr);
    head = &w->sources[source_bucket(w, key)];
    for (s = *head; s != NULL; s = s->next)
        if (memcmp(s->key, key, sizeof(key)) == 0) {
            s->connections++;
            return s;
        }
    if ((s = calloc(1, sizeof(*s))) == NULL)
        return NULL;
    memcpy(s->key, key, sizeof(key));
    s->connections = 1;
    s->next = *head;
    *head = s;
    return s;
}

/* Counts a connection out. */
static void
source_leave(struct web *w, struct source *s)
{
    struct source **p;

    if (--s->connections > 0)
        return;
    for (p = &w->sources[source_bucket(w, s->key)]; *p != s; p = &(*p)->next)
        ;
    *p = s->next;
    free(s);
}

/* Names: the slot's number below, its generation above, so that a name outlives its connection and
 * means nobody else */

static bool
slots_grow(struct web *w)
{
    uint32_t n = w->n_slots == 0 ? SLOTS_MIN : w->n_slots * 2, i;
    struct slot *s = realloc(w->slots, n * sizeof(*s));

    if (s == NULL)
        return false;
    w->slots = s;
    for (i = w->n_slots; i < n; i++) {
        s[i].conn = NULL;
        s[i].generation = 1;
        s[i].next_free = i + 1 < n ? i + 1 : SLOT_NONE;
    }
    w->free_slot = w->n_slots;
    w->free_last = n - 1;
    w->n_slots = n;
    return true;
}

static bool
slot_take(struct web *w, struct conn *c)
{
    if (w->free_slot == SLOT_NONE && !slots_grow(w))
        return false;
    c->slot = w->free_slot;
    w->free_slot = w->slots[c->slot].next_free;
    w->slots[c->slot].conn = c;
    return true;
}

static void
slot_give(struct web *w, uint32_t slot)
{
    w->slots[slot].conn = NULL;
    w->slots[slot].generation++;
    w->slots[slot].next_free = SLOT_NONE;
    if (w->free_slot == SLOT_NONE)
        w->free_slot = slot;
    else
        w->slots[w->free_last].next_free = slot;
    w->free_last = slot;
}

static uint64_t
conn_id(const struct conn *c)
{
    return (uint64_t)c->w->slots[c->slot].generation << 32 | c->slot;
}

/* NULL: it is gone. */
static struct conn *
conn_find(const struct web *w, uint64_t id)
{
    uint32_t slot = (uint32_t)id;

    if (slot >= w->n_slots || w->slots[slot].conn == NULL ||
        w->slots[slot].generation != (uint32_t)(id >> 32))
        return NULL;
    return w->slots[slot].conn->phase == PH_DEAD ? NULL : w->slots[slot].conn;
}

/* The turn */

/* Has conn_run look at it when the callbacks that are ready now have run. */
static void
conn_wake(struct conn *c)
{
    if (c->queued || c->phase == PH_DEAD)
        return;
    c->queued = true;
    TAILQ_INSERT_TAIL(&c->w->ready, c, ready_entry);
    event_active(c->w->turn, EV_TIMEOUT, 0);
}

/* One way: we tell that this is the end, and do not wait to be told so. */
static void
conn_bye(struct conn *c)
{
    if (c->ssl == NULL || !c->connected || c->broken || c->bye)
        return;
    ERR_clear_error();
    (void)SSL_shutdown(c->ssl);
    ERR_clear_error();
    c->bye = true;
}

static void
conn_free(struct conn *c)
{
    struct web *w = c->w;

    conn_bye(c);
    bufferevent_free(c->bev);
    slot_give(w, c->slot);
    free(c);
    w->open--;
    count_sub(CT_CONNECTIONS_OPEN, 1);
}

static void
turn_cb(evutil_socket_t fd, short what, void *arg)
{
    struct web *w = arg;
    struct conn *c;
    bool freed = false;

    while ((c = TAILQ_FIRST(&w->ready)) != NULL) {
        TAILQ_REMOVE(&w->ready, c, ready_entry);
        c->queued = false;
        conn_run(c);
    }
    while ((c = TAILQ_FIRST(&w->dead)) != NULL) {
        TAILQ_REMOVE(&w->dead, c, ready_entry);
        conn_free(c);
        freed = true;
    }
    if (freed) {
        /* Its descriptor may be the one that was missing. */
        if (w->pausing) {
            w->pausing = false;
            event_del(w->resume);
        }
        accept_update(w);
    }
}

static void
read_cb(struct bufferevent *bev, void *arg)
{
    conn_wake(arg);
}

static void
write_cb(struct bufferevent *bev, void *arg)
{
    conn_wake(arg);
}

static void
event_cb(struct bufferevent *bev, short what, void *arg)
{
    struct conn *c = arg;

    if (what & BEV_EVENT_CONNECTED)
        c->connected = true;
    else if (what & BEV_EVENT_EOF)
        c->eof = true;
    else
        c->broken = true;
    conn_wake(c);
}

/* Phases */

static void
conn_set_phase(struct conn *c, enum phase phase, long long seconds)
{
    struct web *w = c->w;
    struct timeval tv = {.tv_sec = (time_t)seconds};

    if (c->phase == PH_IDLE && phase != PH_IDLE)
        TAILQ_REMOVE(&w->idle, c, phase_entry);
    if (c->phase == PH_HANDSHAKE && phase != PH_HANDSHAKE) {
        TAILQ_REMOVE(&w->shaking, c, phase_entry);
        w->handshakes--;
    }
    if (c->phase != PH_IDLE && phase == PH_IDLE)
        TAILQ_INSERT_TAIL(&w->idle, c, phase_entry);
    c->phase = (unsigned char)phase;
    if (seconds > 0)
        event_add(&c->deadline, &tv);
    else
        event_del(&c->deadline);
    if (phase == PH_IDLE && !w->accepting)
        accept_update(w); /* a handshake less, and one that is idle can give way to a new one */
}

static void
conn_body_done(struct conn *c)
{
    if (c->large)
        c->w->bodies -= c->need;
    c->large = false;
}

static void
conn_kill(struct conn *c)
{
    struct web *w = c->w;

    if (c->phase == PH_DEAD)
        return;
    if (c->phase == PH_HANDSHAKE)
        count_add(CT_HANDSHAKES_FAILED, 1);
    conn_body_done(c);
    conn_set_phase(c, PH_DEAD, 0);
    if (c->queued)
        TAILQ_REMOVE(&w->ready, c, ready_entry);
    c->queued = false;
    bufferevent_setcb(c->bev, NULL, NULL, NULL, NULL);
    bufferevent_disable(c->bev, EV_READ | EV_WRITE);
    source_leave(w, c->source);
    c->source = NULL;
    w->live--;
    TAILQ_INSERT_TAIL(&w->dead, c, ready_entry);
    event_active(w->turn, EV_TIMEOUT, 0);
}

/*
 * We are done, but closing with bytes unread would reset the connection, and with it the answer
 * that the client has not read yet.  So: end our half, read on for a while, close when the client
 * does.
 */
static void
conn_linger(struct conn *c)
{
    if (c->eof) {
        conn_kill(c);
        return;
    }
    conn_bye(c);
    shutdown(bufferevent_getfd(c->bev), SHUT_WR);
    conn_set_phase(c, PH_LINGER, LINGER_SECONDS);
    bufferevent_enable(c->bev, EV_READ);
    conn_wake(c); /* for what is in the buffer already */
}

static void
conn_discard(struct conn *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    size_t len = evbuffer_get_length(in);

    evbuffer_drain(in, len);
    c->discarded += len;
    if (c->eof || c->discarded / LINGER_BODIES > c->w->limits.body_max)
        conn_kill(c);
}

static void
body_unref(const void *data, size_t len, void *arg)
{
    struct buf *b = arg;

    buf_release(b);
    free(b);
}

/* Puts the answer into the output buffer; takes the body over. */
static int
conn_put_answer(struct conn *c, int status, const char *type, struct buf *body, int retry_after)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    struct buf head = BUF_INIT, *kept = NULL;
    int r;

    if ((r = http_put_head(&head, status, type, body->len, !c->close, retry_after)) != KMS_OK)
        goto out;
    if (c->head)
        buf_release(body);
    r = KMS_ERR_NOMEM;
    if (body->len <= ANSWER_COPY_MAX) {
        if (evbuffer_expand(out, head.len + body->len) != 0 ||
            evbuffer_add(out, head.data, head.len) != 0 ||
            evbuffer_add(out, body->data, body->len) != 0)
            goto out;
    } else {
        if ((kept = malloc(sizeof(*kept))) == NULL || evbuffer_add(out, head.data, head.len) != 0)
            goto out;
        *kept = *body;
        if (evbuffer_add_reference(out, kept->data, kept->len, body_unref, kept) != 0)
            goto out;
        kept = NULL; /* the buffer's now */
        buf_init(body);
    }
    r = KMS_OK;
out:
    free(kept);
    buf_release(&head);
    return r;
}

static void
conn_answer(struct conn *c, int status, const char *type, struct buf *body, int retry_after)
{
    if (status / 100 == 4)
        count_add(CT_HTTP_REFUSED, 1);
    else if (status == 503)
        count_add(CT_HTTP_OVERLOADED, 1);
    if (conn_put_answer(c, status, type, body, retry_after) != KMS_OK) {
        conn_kill(c);
        return;
    }
    conn_set_phase(c, PH_WRITE, c->w->limits.answer_timeout);
    /* The end of the client's half stopped both ways of a TLS bufferevent. */
    if (c->eof)
        bufferevent_enable(c->bev, EV_WRITE);
}

/* An answer of our own, to what never becomes a request; the connection's last. */
static void
conn_refuse(struct conn *c, int status, int retry_after)
{
    struct buf body = BUF_INIT;

    c->close = true;
    conn_body_done(c);
    if (buf_putf(&body, "{\"message\":\"%s\",\"errorCode\":%d}", http_reason(status),
                 status * 1000 + 1) == KMS_OK)
        conn_answer(c, status, "application/json", &body, retry_after);
    else
        conn_kill(c);
    buf_release(&body);
}

static void
conn_address(const struct conn *c, char *text, socklen_t len)
{
    if ((c->family != AF_INET && c->family != AF_INET6) ||
        inet_ntop(c->family, c->addr, text, len) == NULL)
        snprintf(text, len, "local");
}

/* Hands a whole request out.  data: head and body, in one piece. */
static void
conn_request(struct conn *c, const struct http_request *req, const char *data)
{
    char peer[INET6_ADDRSTRLEN];
    size_t used = req->head_len + req->content_length;

    count_add(CT_HTTP_REQUESTS, 1);
    conn_body_done(c);
    conn_set_phase(c, PH_ANSWER, 0);
    c->close = !req->keep_alive;
    c->head = http_is(req->method, "HEAD");
    c->need = used;
    conn_address(c, peer, sizeof(peer));
    c->w->handler(c->w->ctx, conn_id(c), req, data + req->head_len, req->content_length, peer,
                  c->ssl == NULL ? NULL : SSL_get0_verified_chain(c->ssl));
    if (c->phase == PH_DEAD)
        return;
    evbuffer_drain(bufferevent_get_input(c->bev), used);
    c->need = 0;
    c->seen = 0;
}

/* The head is whole, the body is not. */
static void
conn_want_body(struct conn *c, const struct http_request *req, size_t have)
{
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct web *w = c->w;

    c->need = req->head_len + req->content_length;
    if (req->content_length > BODY_SMALL) {
        if (c->need > w->limits.body_max * BODY_TOTAL_BODIES - w->bodies) {
            conn_refuse(c, 503, 1);
            return;
        }
        c->large = true;
        w->bodies += c->need;
    }
    conn_set_phase(c, PH_BODY, w->limits.body_timeout);
    if (req->expect_continue && have == req->head_len)
        bufferevent_write(c->bev, go_on, sizeof(go_on) - 1);
}

/* Bytes of a request are there, or the client's half has ended. */
static void
conn_input(struct conn *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    size_t have = evbuffer_get_length(in), n;
    struct http_request req;
    const char *data;
    int status, r;

    if (have == 0 || (c->phase == PH_BODY && have < c->need)) {
        if (c->eof)
            conn_kill(c);
        return;
    }
    if (c->phase == PH_IDLE)
        conn_set_phase(c, PH_HEAD, c->w->limits.head_timeout);
    n = c->phase == PH_BODY ? c->need : have > HTTP_HEAD_MAX ? HTTP_HEAD_MAX + 1 : have;
    if ((data = (const char *)evbuffer_pullup(in, (ev_ssize_t)n)) == NULL) {
        conn_kill(c);
        return;
    }
    if (c->phase == PH_BODY)
        c->seen = 0; /* the head was read where the buffer had it then: read it again */
    r = http_parse(&req, data, n, c->w->limits.body_max, &c->seen, &status);
    if (r == KMS_ERR_AGAIN) {
        if (c->eof)
            conn_kill(c);
        else if (n > HTTP_HEAD_MAX)
            conn_refuse(c, 431, 0);
        return;
    }
    if (r != KMS_OK) {
        conn_refuse(c, status, 0);
        return;
    }
    if (have < req.head_len + req.content_length) {
        if (c->eof) {
            conn_kill(c);
            return;
        }
        c->seen = 0;
        conn_want_body(c, &req, have);
        return;
    }
    if (n < req.head_len + req.content_length &&
        (data = (const char *)evbuffer_pullup(
             in, (ev_ssize_t)(req.head_len + req.content_length))) == NULL) {
        conn_kill(c);
        return;
    }
    if (n < req.head_len + req.content_length) {
        /* The bytes may have moved, and req points to where they were. */
        c->seen = 0;
        if (http_parse(&req, data, req.head_len, c->w->limits.body_max, &c->seen, &status) !=
            KMS_OK) {
            conn_kill(c);
            return;
        }
    }
    conn_request(c, &req, data);
}

/* The answer is with the kernel. */
static void
conn_answered(struct conn *c)
{
    if (c->close || c->w->draining) {
        conn_linger(c);
        return;
    }
    conn_set_phase(c, PH_IDLE, c->w->limits.idle_timeout);
    if (c->paused) {
        c->paused = false;
        if (!c->eof)
            bufferevent_enable(c->bev, EV_READ);
    }
    conn_input(c); /* the next one may be in the buffer already */
}

static void
conn_log_handshake(const struct conn *c)
{
    char peer[INET6_ADDRSTRLEN];
    unsigned long e = bufferevent_get_openssl_error(c->bev);

    conn_address(c, peer, sizeof(peer));
    log_debug("TLS handshake failed", "peer", peer, "reason",
              e == 0 ? "connection lost" : ERR_reason_error_string(e), NULL);
}

static void
conn_run(struct conn *c)
{
    if (c->broken) {
        if (c->phase == PH_HANDSHAKE)
            conn_log_handshake(c);
        conn_kill(c);
        return;
    }
    switch ((enum phase)c->phase) {
    case PH_HANDSHAKE:
        if (!c->connected) {
            if (c->eof)
                conn_kill(c);
            break;
        }
        conn_set_phase(c, PH_IDLE, c->w->draining ? DRAIN_SECONDS : c->w->limits.idle_timeout);
        conn_input(c);
        break;
    case PH_IDLE:
    case PH_HEAD:
    case PH_BODY:
        conn_input(c);
        break;
    case PH_ANSWER:
    case PH_WRITE:
        if (c->phase == PH_WRITE && evbuffer_get_length(bufferevent_get_output(c->bev)) == 0) {
            conn_answered(c);
            break;
        }
        /* One request at a time: what comes meanwhile stays with the kernel, but for the record
         * that brought it here. */
        if (!c->paused && evbuffer_get_length(bufferevent_get_input(c->bev)) > c->need) {
            c->paused = true;
            bufferevent_disable(c->bev, EV_READ);
        }
        if (c->eof && c->phase == PH_WRITE)
            bufferevent_enable(c->bev, EV_WRITE);
        break;
    case PH_LINGER:
        conn_discard(c);
        break;
    case PH_DEAD:
        break;
    }
}

static void
deadline_cb(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;

    switch ((enum phase)c->phase) {
    case PH_HEAD:
    case PH_BODY:
        conn_refuse(c, 408, 0);
        break;
    case PH_WRITE:
        c->broken = true; /* no close_notify behind half an answer */
        conn_kill(c);
        break;
    default:
        conn_kill(c);
        break;
    }
}

/* Accepting */

static void
conn_set_address(struct conn *c, const struct sockaddr_storage *ss)
{
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)ss;

    c->family = ss->ss_family;
    if (c->family == AF_INET) {
        memcpy(c->addr, &((const struct sockaddr_in *)ss)->sin_addr, 4);
    } else if (c->family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
        c->family = AF_INET;
        memcpy(c->addr, in6->sin6_addr.s6_addr + 12, 4);
    } else if (c->family == AF_INET6) {
        memcpy(c->addr, &in6->sin6_addr, 16);
    }
}

static bool
is_full(const struct web *w)
{
    return w->limits.connections > 0 && w->live >= (size_t)w->limits.connections;
}

static bool
is_crowded(const struct web *w)
{
    return w->tls != NULL && w->limits.handshakes > 0 &&
           w->handshakes >= (size_t)w->limits.handshakes;
}

/* Milliseconds until the oldest unfinished handshake may be given up for another one. */
static int64_t
crowd_left(const struct web *w)
{
    return TAILQ_FIRST(&w->shaking)->began + HANDSHAKE_MS - now_ms();
}

/*
 * Room for one more?  Where all connections are taken the one that idles longest gives way, as a
 * client whose connection was closed between requests connects again, and one that is never
 * accepted has nowhere to go.  Where too many handshakes are unfinished the oldest gives way when
 * it has had its time: who means it is done within a round trip or two.
 */
static bool
has_room(const struct web *w)
{
    if (w->draining || w->pausing || (is_crowded(w) && crowd_left(w) > 0))
        return false;
    return !is_full(w) || is_crowded(w) || !TAILQ_EMPTY(&w->idle);
}

static void
make_room(struct web *w)
{
    if (is_crowded(w))
        conn_kill(TAILQ_FIRST(&w->shaking));
    if (is_full(w) && !TAILQ_EMPTY(&w->idle))
        conn_kill(TAILQ_FIRST(&w->idle));
}

/* The descriptor is c->bev's if that is set, else still the caller's. */
static int
conn_start(struct web *w, struct conn *c, int fd)
{
    if (w->tls == NULL) {
        c->bev = bufferevent_socket_new(w->base, fd, BEV_OPT_CLOSE_ON_FREE);
        if (c->bev == NULL)
            return KMS_ERR_NOMEM;
    } else {
        if ((c->ssl = SSL_new(w->tls)) == NULL)
            return KMS_ERR_NOMEM;
        c->bev = bufferevent_openssl_socket_new(w->base, fd, c->ssl, BUFFEREVENT_SSL_ACCEPTING,
                                                BEV_OPT_CLOSE_ON_FREE);
        if (c->bev == NULL) {
            SSL_free(c->ssl);
            return KMS_ERR_NOMEM;
        }
    }
    bufferevent_setcb(c->bev, read_cb, write_cb, event_cb, c);
    return bufferevent_enable(c->bev, EV_READ | EV_WRITE) == 0 ? KMS_OK : KMS_ERR_NOMEM;
}

/* Takes fd over. */
static void
conn_new(struct web *w, int fd, const struct sockaddr_storage *ss)
{
    struct conn *c;
    int one = 1;

    count_add(CT_CONNECTIONS_TOTAL, 1);
    if ((c = calloc(1, sizeof(*c))) == NULL)
        goto fail;
    c->w = w;
    conn_set_address(c, ss);
    if ((c->source = source_join(w, c->family, c->addr)) == NULL)
        goto fail;
    if (w->limits.connections_source > 0 &&
        c->source->connections > (unsigned long long)w->limits.connections_source) {
        count_add(CT_CONNECTIONS_REFUSED, 1);
        goto fail;
    }
    make_room(w);
    if (!slot_take(w, c))
        goto fail;
    if (ss->ss_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (conn_start(w, c, fd) != KMS_OK) {
        if (c->bev != NULL) {
            bufferevent_free(c->bev);
            fd = -1;
        }
        slot_give(w, c->slot);
        goto fail;
    }
    evtimer_assign(&c->deadline, w->base, deadline_cb, c);
    w->open++;
    w->live++;
    count_add(CT_CONNECTIONS_OPEN, 1);
    /* Plain or not, it starts as a handshake: conn_set_phase undoes what a phase leaves. */
    c->phase = PH_HANDSHAKE;
    c->began = now_ms();
    TAILQ_INSERT_TAIL(&w->shaking, c, phase_entry);
    w->handshakes++;
    if (c->ssl != NULL)
        conn_set_phase(c, PH_HANDSHAKE, w->limits.handshake_timeout);
    else
        conn_set_phase(c, PH_IDLE, w->limits.idle_timeout);
    return;
fail:
    if (c != NULL && c->source != NULL)
        source_leave(w, c->source);
    free(c);
    if (fd >= 0)
        close(fd);
}

static void
accept_update(struct web *w)
{
    bool want = has_room(w);
    struct timeval tv = {0, 0};
    int64_t left;

    if (!want && !w->draining && is_crowded(w) && (left = crowd_left(w)) > 0) {
        tv.tv_sec = left / 1000;
        tv.tv_usec = left % 1000 * 1000 + 1000;
        event_add(w->crowd, &tv);
    }
    if (want == w->accepting)
        return;
    if (want ? event_add(w->listener, NULL) == 0 : event_del(w->listener) == 0)
        w->accepting = want;
}

/* Out of descriptors or memory: trying again at once would only burn the processor. */
static void
accept_pause(struct web *w)
{
    struct timeval tv = {.tv_sec = w->pause_ms / 1000,
                         .tv_usec = (suseconds_t)(w->pause_ms % 1000) * 1000};

    log_warn("connections cannot be accepted", "error", strerror(errno), "open%u",
             (unsigned long long)w->open, "pause_ms%u", (unsigned long long)w->pause_ms, NULL);
    w->pausing = true;
    event_add(w->resume, &tv);
    if ((w->pause_ms *= 2) > ACCEPT_PAUSE_MAX)
        w->pause_ms = ACCEPT_PAUSE_MAX;
}

static void
resume_cb(evutil_socket_t fd, short what, void *arg)
{
    struct web *w = arg;

    w->pausing = false;
    accept_update(w);
}

static void
crowd_cb(evutil_socket_t fd, short what, void *arg)
{
    accept_update(arg);
}

static void
accept_cb(evutil_socket_t lfd, short what, void *arg)
{
    struct web *w = arg;
    struct sockaddr_storage ss;
    socklen_t len;
    int i, fd;

    for (i = 0; i < ACCEPT_BATCH && has_room(w); i++) {
        memset(&ss, 0, sizeof(ss));
        len = sizeof(ss);
        fd = accept4(w->listen_fd, (struct sockaddr *)&ss, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            w->pause_ms = ACCEPT_PAUSE_MS;
            conn_new(w, fd, &ss);
            continue;
        }
        switch (errno) {
        case EAGAIN:
            i = ACCEPT_BATCH;
            break;
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
        case EBADF:
        case EINVAL:
        case ENOTSOCK:
        case EOPNOTSUPP:
            accept_pause(w);
            break;
        default: /* that one client's trouble (accept(2)): the next may be fine */
            break;
        }
    }
    accept_update(w);
}

/* What the others see */

struct web *
web_new(struct event_base *base, int listen_fd, SSL_CTX *tls, const struct web_limits *limits,
        web_handler *handler, void *ctx)
{
    struct web *w = calloc(1, sizeof(*w));
    struct sigaction sa;

    if (w == NULL)
        return NULL;
    w->base = base;
    w->listen_fd = listen_fd;
    w->handler = handler;
    w->ctx = ctx;
    w->limits = *limits;
    w->pause_ms = ACCEPT_PAUSE_MS;
    w->free_slot = SLOT_NONE;
    TAILQ_INIT(&w->shaking);
    TAILQ_INIT(&w->idle);
    TAILQ_INIT(&w->ready);
    TAILQ_INIT(&w->dead);
    if ((w->listener = event_new(base, listen_fd, EV_READ | EV_PERSIST, accept_cb, w)) == NULL ||
        (w->resume = evtimer_new(base, resume_cb, w)) == NULL ||
        (w->crowd = evtimer_new(base, crowd_cb, w)) == NULL ||
        (w->turn = evtimer_new(base, turn_cb, w)) == NULL ||
        RAND_bytes((unsigned char *)&w->seed, sizeof(w->seed)) != 1 || !slots_grow(w)) {
        web_free(w);
        return NULL;
    }
    /* A client that left must not end the process: OpenSSL writes with write(2). */
    if (sigaction(SIGPIPE, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
    if (tls != NULL && SSL_CTX_up_ref(tls) == 1)
        w->tls = tls;
    accept_update(w);
    return w;
}

void
web_free(struct web *w)
{
    uint32_t i;
    struct conn *c;

    if (w == NULL)
        return;
    w->draining = true;
    for (i = 0; i < w->n_slots; i++)
        if ((c = w->slots[i].conn) != NULL)
            conn_kill(c);
    while ((c = TAILQ_FIRST(&w->dead)) != NULL) {
        TAILQ_REMOVE(&w->dead, c, ready_entry);
        conn_free(c);
    }
    if (w->listener != NULL)
        event_free(w->listener);
    if (w->resume != NULL)
        event_free(w->resume);
    if (w->crowd != NULL)
        event_free(w->crowd);
    if (w->turn != NULL)
        event_free(w->turn);
    SSL_CTX_free(w->tls);
    free(w->slots);
    free(w);
}

void
web_reload(struct web *w, SSL_CTX *tls, const struct web_limits *limits)
{
    if (tls != NULL && w->tls != NULL && SSL_CTX_up_ref(tls) == 1) {
        SSL_CTX_free(w->tls);
        w->tls = tls;
    }
    w->limits = *limits;
    accept_update(w);
}

void
web_answer(struct web *w, uint64_t conn, int status, const char *content_type, struct buf *body,
           int retry_after, bool close)
{
    struct conn *c = conn_find(w, conn);

    if (c != NULL && c->phase == PH_ANSWER) {
        c->close = c->close || close || w->draining;
        conn_answer(c, status, content_type == NULL ? "application/json" : content_type, body,
                    retry_after);
    }
    buf_release(body);
}

void
web_abort(struct web *w, uint64_t conn)
{
    struct conn *c = conn_find(w, conn);

    if (c == NULL || c->phase != PH_ANSWER)
        return;
    c->broken = true; /* no close_notify: nothing was said that could be whole */
    conn_kill(c);
}

/* A request may be on its way on a connection that idles, or behind the end of its handshake:
 * whoever sent one before the drain began is answered. */
void
web_drain(struct web *w)
{
    uint32_t i;
    struct conn *c;

    w->draining = true;
    accept_update(w);
    for (i = 0; i < w->n_slots; i++)
        if ((c = w->slots[i].conn) != NULL && c->phase == PH_IDLE)
            conn_set_phase(c, PH_IDLE, DRAIN_SECONDS);
}

size_t
web_open(const struct web *w)
{
    return w->open;
}
