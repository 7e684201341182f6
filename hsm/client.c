/*
 * client.c - the server's side of hsmd's socket: items gathered into frames, answers handed to
 * their callbacks.
 *
 * An item lives in a batch.  A batch is open while the turn of the loop lasts that began it, then
 * it is sent, or held while hsmd is away for a moment; it dies when its answer, its deadline or the
 * end of the connection came.  All items of a batch were handed over in one turn, so they have one
 * deadline.
 */
#include "hsm/hsm.h"

#include <errno.h>
#include <event2/event.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "hsm/frame.h"
#include "hsm/log.h"
#include "hsm/wire.h"
#include "proto/err.h"

#define ITEMS_MAX    16384  /* under way */
#define FIRST_ROOM   16     /* items that a batch has room for at first */
#define INIT_MS      120000 /* RSA keys may take an HSM a minute */
#define GREETING_MS  2000
#define GRACE_MS     1000 /* how long items wait for a connection that is away */
#define RETRY_MIN_MS 25
#define RETRY_MAX_MS 1000
#define ANSWER_EARLY 20 /* the part of a deadline, 1/20, that hsmd has less than the caller */

struct item {
    union {
        hsm_key_cb *key;
        hsm_bytes_cb *bytes;
        hsm_wrapping_key_cb *wrapping_key;
        hsm_list_cb *list;
    } cb;
    void *ctx;
    uint64_t id;
    unsigned index;
};

struct batch {
    TAILQ_ENTRY(batch) entry;
    struct hsm *h; /* borrowed */
    enum frame_type type;
    enum { BATCH_OPEN, BATCH_HELD, BATCH_SENT } state;
    uint32_t seq;
    unsigned count, room;
    struct item *items;   /* owned */
    unsigned char *frame; /* owned until it is sent */
    struct event *timer;
    int deadline_ms;
};
TAILQ_HEAD(batches, batch);

struct hsm {
    struct event_base *base;
    struct sockaddr_un address;
    int deadline_ms;
    enum hsm_role role;
    struct wire *wire; /* NULL: not connected */
    int door;          /* HSM_MANAGE: where a connection is to come out of; -1: none is awaited */
    bool greeted, ready;
    bool lifecycle; /* hsmd knows the types from FRAME_KEY_NEW on */
    bool grace;     /* away since a moment only: items are held */
    bool told;      /* the log knows that hsmd is away */
    struct hsm_info info;
    struct event *retry, *handed, *greeting, *grace_timer, *flush;
    int retry_ms;
    uint32_t seq;
    unsigned items; /* under way */
    struct batch *open[FRAME_TYPES];
    struct batches held, sent;
    void (*change)(void *ctx, bool ready);
    void *change_ctx;
};

static struct timeval
ms(int n)
{
    return (struct timeval){.tv_sec = n / 1000, .tv_usec = (n % 1000) * 1000};
}

static void
timer_start(struct event *e, int n)
{
    struct timeval tv = ms(n);

    event_add(e, &tv);
}

static size_t
frame_room(enum frame_type type, unsigned items)
{
    return FRAME_HEAD_LEN + items * frame_item_size(type, FRAME_REQUEST_WAY);
}

/* Takes the batch out of whichever place it is in. */
static void
batch_unlink(struct batch *b)
{
    struct hsm *h = b->h;

    if (b->state == BATCH_OPEN)
        h->open[b->type] = NULL;
    else
        TAILQ_REMOVE(b->state == BATCH_HELD ? &h->held : &h->sent, b, entry);
}

/* An unlinked batch's end. */
static void
batch_free(struct batch *b)
{
    if (b->timer != NULL)
        event_free(b->timer);
    wire_frame_free(b->frame, frame_room(b->type, b->room));
    OPENSSL_free(b->items);
    OPENSSL_free(b);
}

static bool
is_key_type(enum frame_type type)
{
    return type == FRAME_GENERATE || type == FRAME_WRAP || type == FRAME_UNWRAP ||
           type == FRAME_RESEAL;
}

static void
item_done(const struct batch *b, const struct item *it, const struct frame_answer *a)
{
    bool ok = a->err == KMS_OK;

    if (is_key_type(b->type))
        it->cb.key(it->ctx, it->id, it->index, a->err,
                   ok && b->type != FRAME_WRAP && b->type != FRAME_RESEAL ? a->u.key.key : NULL,
                   ok && b->type != FRAME_UNWRAP ? a->u.key.blob : NULL);
    else if (b->type == FRAME_WRAPPING_KEY || b->type == FRAME_WRAPPING_KEY_UNDER)
        it->cb.wrapping_key(it->ctx, it->id, a->err, ok ? a->u.wrapping_key.root : NULL,
                            ok ? a->u.wrapping_key.wrapped : NULL,
                            ok ? a->u.wrapping_key.kcv : NULL);
    else if (b->type == FRAME_LIST)
        it->cb.list(it->ctx, it->id, a->err, ok ? a->u.list.keys : NULL, ok ? a->u.list.n : 0,
                    ok && a->u.list.more);
    else
        it->cb.bytes(it->ctx, it->id, it->index, a->err,
                     ok && a->u.bytes.len > 0 ? a->u.bytes.b : NULL, ok ? a->u.bytes.len : 0);
}

/* Answers every item with err; the batch is gone. */
static void
batch_fail(struct batch *b, int err)
{
    struct frame_answer a = {.err = err};

    batch_unlink(b);
    b->h->items -= b->count;
    for (unsigned i = 0; i < b->count; i++)
        item_done(b, &b->items[i], &a);
    batch_free(b);
}

static void
fail_all(struct batches *list, int err)
{
    struct batches now = TAILQ_HEAD_INITIALIZER(now);
    struct batch *b;

    /* Callbacks may hand in new items; those are not of this list. */
    TAILQ_CONCAT(&now, list, entry);
    while ((b = TAILQ_FIRST(&now)) != NULL) {
        TAILQ_REMOVE(&now, b, entry);
        TAILQ_INSERT_HEAD(list, b, entry);
        batch_fail(b, err);
    }
}

static void
deadline_cb(evutil_socket_t fd, short what, void *arg)
{
    struct batch *b = arg;

    batch_fail(b, b->h->greeted ? KMS_ERR_TIMEOUT : KMS_ERR_UNAVAILABLE);
}

static void
batch_send(struct batch *b)
{
    struct hsm *h = b->h;
    size_t len = frame_room(b->type, b->count);
    struct frame_head head = {.len = (uint32_t)len,
                              .type = (uint8_t)b->type,
                              .count = (uint16_t)b->count,
                              .seq = b->seq,
                              .deadline_ms =
                                  (uint32_t)(b->deadline_ms - b->deadline_ms / ANSWER_EARLY)};
    unsigned char *frame = b->frame;

    frame_head_put(&head, FRAME_REQUEST_WAY, frame);
    b->frame = NULL;
    b->state = BATCH_SENT;
    TAILQ_INSERT_TAIL(&h->sent, b, entry);
    if (wire_send(h->wire, frame, len) != KMS_OK)
        batch_fail(b, KMS_ERR_NOMEM);
}

/* An open batch takes no more items: it waits to be sent. */
static void
batch_close(struct batch *b)
{
    batch_unlink(b);
    b->state = BATCH_HELD;
    TAILQ_INSERT_TAIL(&b->h->held, b, entry);
}

static void
send_held(struct hsm *h)
{
    struct batch *b;

    while ((b = TAILQ_FIRST(&h->held)) != NULL) {
        /* An hsmd from before there were these would take it for noise. */
        if (b->type >= FRAME_KEY_NEW && !h->lifecycle) {
            batch_fail(b, KMS_ERR_PROTOCOL);
            continue;
        }
        batch_unlink(b);
        batch_send(b);
    }
}

/* At the end of the turn: what was gathered goes out, or waits, or is refused. */
static void
flush_cb(evutil_socket_t fd, short what, void *arg)
{
    struct hsm *h = arg;

    for (int type = 0; type < FRAME_TYPES; type++)
        if (h->open[type] != NULL)
            batch_close(h->open[type]);
    if (h->greeted)
        send_held(h);
    else if (!h->grace)
        fail_all(&h->held, KMS_ERR_UNAVAILABLE);
}

/* Those that may make an RSA key take longer than anybody's deadline. */
static bool
is_long(enum frame_type type)
{
    return type == FRAME_INIT || type == FRAME_IMPORT_PAIR;
}

static struct batch *
batch_new(struct hsm *h, enum frame_type type)
{
    struct batch *b = OPENSSL_zalloc(sizeof(*b));
    unsigned max = frame_items_max(type);

    if (b == NULL)
        return NULL;
    b->h = h;
    b->type = type;
    b->seq = ++h->seq;
    b->room = max < FIRST_ROOM ? max : FIRST_ROOM;
    b->deadline_ms = is_long(type) && h->deadline_ms < INIT_MS ? INIT_MS : h->deadline_ms;
    b->items = OPENSSL_zalloc(b->room * sizeof(*b->items));
    b->frame = wire_frame_new(frame_room(type, b->room));
    b->timer = evtimer_new(h->base, deadline_cb, b);
    if (b->items == NULL || b->frame == NULL || b->timer == NULL) {
        batch_free(b);
        return NULL;
    }
    timer_start(b->timer, b->deadline_ms);
    return b;
}

static int
batch_grow(struct batch *b)
{
    unsigned max = frame_items_max(b->type);
    unsigned room = b->room * 2 < max ? b->room * 2 : max;
    struct item *items = OPENSSL_realloc(b->items, room * sizeof(*items));
    unsigned char *frame;

    if (items == NULL)
        return KMS_ERR_NOMEM;
    b->items = items;
    if ((frame = wire_frame_new(frame_room(b->type, room))) == NULL)
        return KMS_ERR_NOMEM;
    memcpy(frame, b->frame, frame_room(b->type, b->count));
    wire_frame_free(b->frame, frame_room(b->type, b->room));
    b->frame = frame;
    b->room = room;
    return KMS_OK;
}

/* Adds one item to what goes out at the end of this turn. */
static int
submit(struct hsm *h, enum frame_type type, const union frame_request *r, const struct item *it)
{
    struct batch *b = h->open[type];
    int err;

    if (h->items >= ITEMS_MAX)
        return KMS_ERR_LIMIT;
    if (b != NULL && b->count == frame_items_max(type)) {
        batch_close(b);
        b = NULL;
    }
    if (b == NULL) {
        if ((b = batch_new(h, type)) == NULL)
            return KMS_ERR_NOMEM;
        h->open[type] = b;
    }
    if (b->count == b->room && (err = batch_grow(b)) != KMS_OK)
        return err;
    frame_request_put(type, r, b->frame + frame_room(type, b->count));
    b->items[b->count++] = *it;
    h->items++;
    event_active(h->flush, EV_TIMEOUT, 1);
    return KMS_OK;
}

static void
set_ready(struct hsm *h, bool ready)
{
    if (h->ready == ready)
        return;
    h->ready = ready;
    if (h->change != NULL)
        h->change(h->change_ctx, ready);
}

static void
door_close(struct hsm *h)
{
    if (h->door < 0)
        return;
    event_del(h->handed);
    close(h->door);
    h->door = -1;
}

/* The connection is over, or was never made: everybody hears, and it is tried again a little later.
 */
static void
disconnect(struct hsm *h)
{
    unsigned char jitter = 0;
    bool was = h->greeted;

    wire_free(h->wire);
    h->wire = NULL;
    door_close(h);
    h->greeted = false;
    event_del(h->greeting);
    if (was) {
        h->grace = true;
        timer_start(h->grace_timer, GRACE_MS);
        h->retry_ms = RETRY_MIN_MS;
        log_warn("hsmd: the connection ended", "socket", h->address.sun_path, NULL);
    }
    RAND_bytes(&jitter, 1);
    timer_start(h->retry, h->retry_ms + h->retry_ms * jitter / 1024);
    h->retry_ms = h->retry_ms * 2 < RETRY_MAX_MS ? h->retry_ms * 2 : RETRY_MAX_MS;
    set_ready(h, false);
    fail_all(&h->sent, KMS_ERR_UNAVAILABLE);
}

static void
closed_cb(void *ctx, int err)
{
    struct hsm *h = ctx;

    if (err == KMS_ERR_PROTOCOL)
        log_error("hsmd: what it sent is not the protocol", "socket", h->address.sun_path, NULL);
    disconnect(h);
}

static void
on_hello(struct hsm *h, const unsigned char *body)
{
    struct frame_hello hello;

    if (frame_hello_get(&hello, body) != KMS_OK) {
        log_error("hsmd: speaks another version of the protocol", "socket", h->address.sun_path,
                  "theirs%d", (int)hello.version, "ours%d", FRAME_VERSION, NULL);
        disconnect(h);
        return;
    }
    h->info = hello.info;
    h->lifecycle = hello.lifecycle;
    if (!h->greeted) {
        h->greeted = true;
        h->grace = h->told = false;
        h->retry_ms = RETRY_MIN_MS;
        event_del(h->greeting);
        event_del(h->grace_timer);
        send_held(h);
        log_info("hsmd: connected", "socket", h->address.sun_path, "ready",
                 hello.ready ? "yes" : "no", NULL);
    }
    set_ready(h, hello.ready);
}

/* A text's answer: the text also tells why, when err says that it failed. */
static void
text_done(struct batch *b, const struct frame_head *head, const unsigned char *body)
{
    size_t fixed = frame_item_size(b->type, FRAME_ANSWER_WAY);
    size_t len = head->len - FRAME_HEAD_LEN - fixed;
    struct item *it = &b->items[0];

    it->cb.bytes(it->ctx, it->id, it->index, -(int)body[0], len > 0 ? body + fixed : NULL, len);
}

static void
frame_cb(void *ctx, const struct frame_head *head, const unsigned char *body, size_t len)
{
    struct hsm *h = ctx;
    size_t size = frame_item_size(head->type, FRAME_ANSWER_WAY);
    struct frame_answer a;
    struct batch *b;

    if (head->type == FRAME_HELLO) {
        on_hello(h, body);
        return;
    }
    TAILQ_FOREACH(b, &h->sent, entry)
    if (b->seq == head->seq)
        break;
    if (b == NULL)
        return; /* its deadline passed */
    if (b->type != head->type || b->count != head->count) {
        log_error("hsmd: an answer does not fit its request", NULL);
        disconnect(h);
        return;
    }
    batch_unlink(b);
    h->items -= b->count;
    if (frame_has_text(b->type, FRAME_ANSWER_WAY)) {
        text_done(b, head, body);
    } else {
        for (unsigned i = 0; i < b->count; i++) {
            if (frame_answer_get(b->type, &a, body + i * size) != KMS_OK)
                a.err = KMS_ERR_PROTOCOL;
            item_done(b, &b->items[i], &a);
            /* Only a key's first bytes were filled; the whole union is a kilobyte. */
            OPENSSL_cleanse(&a, is_key_type(b->type)
                                    ? offsetof(struct frame_answer, u) + sizeof(a.u.key)
                                    : sizeof(a));
        }
    }
    batch_free(b);
}

static void
not_connected(struct hsm *h)
{
    if (!h->told) {
        h->told = true;
        log_warn("hsmd: cannot connect", "socket", h->address.sun_path, "error", strerror(errno),
                 NULL);
    }
    disconnect(h);
}

/* What hsmd handed out at its door. */
static void
handed_cb(evutil_socket_t door, short what, void *arg)
{
    struct hsm *h = arg;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.space = {0}};
    char word;
    struct iovec room = {.iov_base = &word, .iov_len = 1};
    struct msghdr m = {.msg_iov = &room,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof(control.space)};
    const struct cmsghdr *c;
    ssize_t n = recvmsg(door, &m, MSG_CMSG_CLOEXEC);
    int fd = -1;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0 && (c = CMSG_FIRSTHDR(&m)) != NULL && c->cmsg_level == SOL_SOCKET &&
        c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    door_close(h);
    if (fd < 0 ||
        (h->wire = wire_new(h->base, fd, FRAME_ANSWER_WAY, frame_cb, closed_cb, h)) == NULL) {
        if (fd >= 0)
            close(fd);
        errno = ECONNREFUSED;
        not_connected(h);
    }
}

/* A Unix socket connects at once or not at all. */
static void
retry_cb(evutil_socket_t unused, short what, void *arg)
{
    struct hsm *h = arg;
    int type = h->role == HSM_MANAGE ? SOCK_SEQPACKET : SOCK_STREAM;
    int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (struct sockaddr *)&h->address, sizeof(h->address)) == 0) {
        if (h->role == HSM_MANAGE) {
            h->door = fd;
            if (event_assign(h->handed, h->base, fd, EV_READ | EV_PERSIST, handed_cb, h) == 0 &&
                event_add(h->handed, NULL) == 0) {
                timer_start(h->greeting, GREETING_MS);
                return;
            }
            h->door = -1;
        } else if ((h->wire = wire_new(h->base, fd, FRAME_ANSWER_WAY, frame_cb, closed_cb, h)) !=
                   NULL) {
            timer_start(h->greeting, GREETING_MS);
            return;
        }
    }
    if (fd >= 0)
        close(fd);
    not_connected(h);
}

static void
greeting_cb(evutil_socket_t fd, short what, void *arg)
{
    log_error("hsmd: no greeting came", NULL);
    disconnect(arg);
}

static void
grace_cb(evutil_socket_t fd, short what, void *arg)
{
    struct hsm *h = arg;

    h->grace = false;
    fail_all(&h->held, KMS_ERR_UNAVAILABLE);
}

struct hsm *
hsm_new(struct event_base *base, const char *path, enum hsm_role role, int deadline_ms)
{
    struct hsm *h = OPENSSL_zalloc(sizeof(*h));

    if (h == NULL)
        return NULL;
    h->base = base;
    h->deadline_ms = deadline_ms > 0 ? deadline_ms : 1;
    h->address.sun_family = AF_UNIX;
    snprintf(h->address.sun_path, sizeof(h->address.sun_path), "%s%s", path,
             role == HSM_MANAGE ? HSM_MANAGE_SUFFIX : "");
    h->role = role;
    h->door = -1;
    h->retry_ms = RETRY_MIN_MS;
    TAILQ_INIT(&h->held);
    TAILQ_INIT(&h->sent);
    h->retry = evtimer_new(base, retry_cb, h);
    h->handed = event_new(base, -1, 0, handed_cb, h);
    h->greeting = evtimer_new(base, greeting_cb, h);
    h->grace_timer = evtimer_new(base, grace_cb, h);
    h->flush = event_new(base, -1, 0, flush_cb, h);
    if (h->retry == NULL || h->handed == NULL || h->greeting == NULL || h->grace_timer == NULL ||
        h->flush == NULL) {
        hsm_free(h);
        return NULL;
    }
    h->grace = true;
    timer_start(h->grace_timer, GRACE_MS);
    timer_start(h->retry, 0);
    return h;
}

void
hsm_free(struct hsm *h)
{
    struct event **events[] = {&h->retry, &h->handed, &h->greeting, &h->grace_timer, &h->flush};

    if (h == NULL)
        return;
    wire_free(h->wire);
    door_close(h);
    fail_all(&h->sent, KMS_ERR_UNAVAILABLE);
    fail_all(&h->held, KMS_ERR_UNAVAILABLE);
    for (int type = 0; type < FRAME_TYPES; type++)
        if (h->open[type] != NULL)
            batch_fail(h->open[type], KMS_ERR_UNAVAILABLE);
    for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++)
        if (*events[i] != NULL)
            event_free(*events[i]);
    OPENSSL_free(h);
}

bool
hsm_ready(const struct hsm *h)
{
    return h->ready;
}

void
hsm_on_change(struct hsm *h, void (*cb)(void *ctx, bool ready), void *ctx)
{
    h->change = cb;
    h->change_ctx = ctx;
}

const struct hsm_info *
hsm_get_info(const struct hsm *h)
{
    return &h->info;
}

static int
submit_key(struct hsm *h, enum frame_type type, const struct hsm_wrapping_key *wk,
           enum hsm_purpose purpose, const unsigned char object[HSM_ID_LEN], union frame_request *r,
           hsm_key_cb *cb, void *ctx, uint64_t id, unsigned index)
{
    struct item it = {.cb.key = cb, .ctx = ctx, .id = id, .index = index};

    r->key.wk = *wk;
    r->key.purpose = purpose;
    memcpy(r->key.object, object, HSM_ID_LEN);
    return submit(h, type, r, &it);
}

int
hsm_generate(struct hsm *h, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
             const unsigned char object[HSM_ID_LEN], hsm_key_cb *cb, void *ctx, uint64_t id,
             unsigned index)
{
    union frame_request r;

    return submit_key(h, FRAME_GENERATE, wk, purpose, object, &r, cb, ctx, id, index);
}

int
hsm_wrap(struct hsm *h, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
         const unsigned char object[HSM_ID_LEN], const unsigned char key[HSM_KEY_LEN],
         hsm_key_cb *cb, void *ctx, uint64_t id, unsigned index)
{
    union frame_request r;
    int err;

    memcpy(r.key.key, key, HSM_KEY_LEN);
    err = submit_key(h, FRAME_WRAP, wk, purpose, object, &r, cb, ctx, id, index);
    OPENSSL_cleanse(r.key.key, HSM_KEY_LEN);
    return err;
}

int
hsm_unwrap(struct hsm *h, const struct hsm_wrapping_key *wk, enum hsm_purpose purpose,
           const unsigned char object[HSM_ID_LEN], const unsigned char blob[HSM_BLOB_LEN],
           hsm_key_cb *cb, void *ctx, uint64_t id, unsigned index)
{
    union frame_request r;

    memcpy(r.key.blob, blob, HSM_BLOB_LEN);
    return submit_key(h, FRAME_UNWRAP, wk, purpose, object, &r, cb, ctx, id, index);
}

static int
submit_bytes(struct hsm *h, enum frame_type type, const union frame_request *r, hsm_bytes_cb *cb,
             void *ctx, uint64_t id, unsigned index)
{
    struct item it = {.cb.bytes = cb, .ctx = ctx, .id = id, .index = index};

    return submit(h, type, r, &it);
}

int
hsm_oaep_open(struct hsm *h, enum hsm_oaep hash, const unsigned char *ek, size_t ek_len,
              hsm_bytes_cb *cb, void *ctx, uint64_t id, unsigned index)
{
    union frame_request r = {.oaep = {.hash = hash}};

    /* One that is too long for any key is wrong padding like any other: hsmd sees an empty one. */
    if (ek_len <= HSM_RSA_MAX) {
        r.oaep.len = ek_len;
        memcpy(r.oaep.ek, ek, ek_len);
    }
    return submit_bytes(h, FRAME_OAEP, &r, cb, ctx, id, index);
}

int
hsm_sign_pss(struct hsm *h, const unsigned char digest[32], hsm_bytes_cb *cb, void *ctx,
             uint64_t id, unsigned index)
{
    union frame_request r;

    memcpy(r.digest, digest, sizeof(r.digest));
    return submit_bytes(h, FRAME_PSS, &r, cb, ctx, id, index);
}

int
hsm_sign_audit(struct hsm *h, const void *msg, size_t len, hsm_bytes_cb *cb, void *ctx, uint64_t id,
               unsigned index)
{
    union frame_request r;

    if (len > FRAME_AUDIT_MAX)
        return KMS_ERR_LIMIT;
    r.audit.len = len;
    memcpy(r.audit.msg, msg, len);
    return submit_bytes(h, FRAME_AUDIT, &r, cb, ctx, id, index);
}

int
hsm_random(struct hsm *h, size_t len, hsm_bytes_cb *cb, void *ctx, uint64_t id, unsigned index)
{
    union frame_request r = {.random = len};

    if (len == 0 || len > FRAME_RANDOM_MAX)
        return KMS_ERR_LIMIT;
    return submit_bytes(h, FRAME_RANDOM, &r, cb, ctx, id, index);
}

int
hsm_wrapping_key_new(struct hsm *h, hsm_wrapping_key_cb *cb, void *ctx, uint64_t id)
{
    struct item it = {.cb.wrapping_key = cb, .ctx = ctx, .id = id};
    union frame_request r = {.random = 0};

    return submit(h, FRAME_WRAPPING_KEY, &r, &it);
}

int
hsm_init(struct hsm *h, unsigned rsa_bits, hsm_bytes_cb *cb, void *ctx, uint64_t id)
{
    union frame_request r = {.rsa_bits = rsa_bits};

    return submit_bytes(h, FRAME_INIT, &r, cb, ctx, id, 0);
}

int
hsm_status(struct hsm *h, hsm_bytes_cb *cb, void *ctx, uint64_t id)
{
    union frame_request r = {.random = 0};

    return submit_bytes(h, FRAME_STATUS, &r, cb, ctx, id, 0);
}

int
hsm_id_new(const struct hsm *h, unsigned char id[HSM_ID_LEN])
{
    struct timespec now;
    uint64_t ms_now, ms_root = 0;

    clock_gettime(CLOCK_REALTIME, &now);
    ms_now = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    for (int i = 0; i < 6; i++)
        ms_root = ms_root << 8 | h->info.root[i];
    if (ms_now <= ms_root) /* a clock that was put back must not make it the older one */
        ms_now = ms_root + 1;
    for (int i = 5; i >= 0; i--, ms_now >>= 8)
        id[i] = (unsigned char)ms_now;
    return RAND_bytes(id + 6, HSM_ID_LEN - 6) == 1 ? KMS_OK : KMS_ERR_INTERNAL;
}

static union frame_request
kept(unsigned kind, const unsigned char *id, unsigned number)
{
    union frame_request r = {.kept = {.kind = kind, .number = number}};

    if (id != NULL)
        memcpy(r.kept.id, id, HSM_ID_LEN);
    return r;
}

int
hsm_key_new(struct hsm *h, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN],
            hsm_bytes_cb *cb, void *ctx, uint64_t id)
{
    union frame_request r = kept(kind, key, 0);

    return submit_bytes(h, FRAME_KEY_NEW, &r, cb, ctx, id, 0);
}

int
hsm_key_destroy(struct hsm *h, enum hsm_kind kind, const unsigned char key[HSM_ID_LEN],
                hsm_bytes_cb *cb, void *ctx, uint64_t id)
{
    union frame_request r = kept(kind, key, 0);

    return submit_bytes(h, FRAME_KEY_DESTROY, &r, cb, ctx, id, 0);
}

int
hsm_forget(struct hsm *h, const unsigned char key_or_org[HSM_ID_LEN], hsm_bytes_cb *cb, void *ctx,
           uint64_t id)
{
    union frame_request r = kept(0, key_or_org, 0);

    return submit_bytes(h, FRAME_FORGET, &r, cb, ctx, id, 0);
}

int
hsm_list(struct hsm *h, enum hsm_kind kind, const unsigned char *after, hsm_list_cb *cb, void *ctx,
         uint64_t id)
{
    struct item it = {.cb.list = cb, .ctx = ctx, .id = id};
    union frame_request r = kept(kind, after, 0);

    return submit(h, FRAME_LIST, &r, &it);
}

int
hsm_import_pair(struct hsm *h, const unsigned char key[HSM_ID_LEN], unsigned rsa_bits,
                hsm_bytes_cb *cb, void *ctx, uint64_t id)
{
    union frame_request r = kept(HSM_IMPORT, key, rsa_bits);

    return submit_bytes(h, FRAME_IMPORT_PAIR, &r, cb, ctx, id, 0);
}

int
hsm_import(struct hsm *h, const unsigned char key[HSM_ID_LEN], const unsigned char pair[HSM_ID_LEN],
           bool allow_128, const unsigned char *ciphertext, size_t len, hsm_bytes_cb *cb, void *ctx,
           uint64_t id)
{
    union frame_request r = {.import = {.allow_128 = allow_128}};

    memcpy(r.import.id, key, HSM_ID_LEN);
    memcpy(r.import.pair, pair, HSM_ID_LEN);
    if (len <= HSM_RSA_MAX) { /* else none: as wrong as one that is too long */
        r.import.len = len;
        memcpy(r.import.ek, ciphertext, len);
    }
    return submit_bytes(h, FRAME_IMPORT, &r, cb, ctx, id, 0);
}

int
hsm_wrapping_key_new_under(struct hsm *h, const unsigned char parent[HSM_ID_LEN],
                           hsm_wrapping_key_cb *cb, void *ctx, uint64_t id)
{
    struct item it = {.cb.wrapping_key = cb, .ctx = ctx, .id = id};
    union frame_request r = kept(0, parent, 0);

    return submit(h, FRAME_WRAPPING_KEY_UNDER, &r, &it);
}

int
hsm_rewrap(struct hsm *h, const unsigned char wrapped[HSM_WRAPPED_LEN],
           const unsigned char from[HSM_ID_LEN], const unsigned char to[HSM_ID_LEN],
           hsm_bytes_cb *cb, void *ctx, uint64_t id, unsigned index)
{
    union frame_request r;

    memcpy(r.rewrap.wrapped, wrapped, HSM_WRAPPED_LEN);
    memcpy(r.rewrap.from, from, HSM_ID_LEN);
    memcpy(r.rewrap.to, to, HSM_ID_LEN);
    return submit_bytes(h, FRAME_REWRAP, &r, cb, ctx, id, index);
}

int
hsm_reseal(struct hsm *h, const struct hsm_wrapping_key *from, const struct hsm_wrapping_key *to,
           enum hsm_purpose purpose, const unsigned char object[HSM_ID_LEN],
           const unsigned char blob[HSM_BLOB_LEN], hsm_key_cb *cb, void *ctx, uint64_t id,
           unsigned index)
{
    union frame_request r;

    r.key.to = *to;
    memcpy(r.key.blob, blob, HSM_BLOB_LEN);
    return submit_key(h, FRAME_RESEAL, from, purpose, object, &r, cb, ctx, id, index);
}
