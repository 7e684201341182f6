/*
 * wire.c - frames in and out of one non-blocking socket, each byte wiped when it was dealt with.
 */
#include "hsm/wire.h"

#include <errno.h>
#include <event2/event.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/err.h"

struct outgoing {
    TAILQ_ENTRY(outgoing) entry;
    unsigned char *frame; /* owned */
    size_t len, sent;
};

struct wire {
    int fd;
    enum frame_way way;
    struct event *read, *write;
    wire_frame_cb *frame;
    wire_closed_cb *closed;
    void *ctx;
    TAILQ_HEAD(, outgoing) out;
    size_t backlog;
    bool paused, dead;
    unsigned busy; /* callbacks under way: wire_free then leaves the memory to them */
    size_t have;
    unsigned char in[FRAME_MAX];
};

unsigned char *
wire_frame_new(size_t len)
{
    return OPENSSL_zalloc(len);
}

void
wire_frame_free(unsigned char *frame, size_t len)
{
    OPENSSL_clear_free(frame, len);
}

static void
out_pop(struct wire *w)
{
    struct outgoing *o = TAILQ_FIRST(&w->out);

    TAILQ_REMOVE(&w->out, o, entry);
    w->backlog -= o->len - o->sent;
    wire_frame_free(o->frame, o->len);
    OPENSSL_free(o);
}

/* No more reading and writing; the memory stays for wire_free. */
static void
shut(struct wire *w)
{
    if (w->dead)
        return;
    w->dead = true;
    event_free(w->read);
    event_free(w->write);
    close(w->fd);
    while (!TAILQ_EMPTY(&w->out))
        out_pop(w);
}

static void
release(struct wire *w)
{
    OPENSSL_clear_free(w, sizeof(*w));
}

void
wire_free(struct wire *w)
{
    if (w == NULL)
        return;
    shut(w);
    w->closed = NULL;
    if (w->busy == 0)
        release(w);
}

static void
enter(struct wire *w)
{
    w->busy++;
}

/* false: the owner let go of the wire in a callback; it is gone. */
static bool
leave(struct wire *w)
{
    if (--w->busy > 0 || w->closed != NULL)
        return true;
    release(w);
    return false;
}

/* Tells the owner, once. */
static void
end(struct wire *w, int err)
{
    if (w->dead)
        return;
    shut(w);
    w->closed(w->ctx, err);
}

/* Hands over the whole frames in the buffer. */
static void
take_frames(struct wire *w)
{
    size_t at = 0;
    struct frame_head h;

    while (!w->dead && !w->paused && w->have - at >= FRAME_HEAD_LEN) {
        if (frame_head_get(&h, w->way, w->in + at) != KMS_OK) {
            end(w, KMS_ERR_PROTOCOL);
            break;
        }
        if (w->have - at < h.len)
            break;
        w->frame(w->ctx, &h, w->in + at + FRAME_HEAD_LEN, h.len - FRAME_HEAD_LEN);
        at += h.len;
    }
    if (at > 0) {
        memmove(w->in, w->in + at, w->have - at);
        OPENSSL_cleanse(w->in + w->have - at, at);
        w->have -= at;
    }
}

static void
read_cb(evutil_socket_t fd, short what, void *arg)
{
    struct wire *w = arg;
    ssize_t n = -1;
    bool gone;

    enter(w);
    errno = EAGAIN;
    /* Once round the loop each: one busy peer must not starve the others. */
    if (w->have < sizeof(w->in)) {
        n = read(fd, w->in + w->have, sizeof(w->in) - w->have);
        if (n > 0)
            w->have += (size_t)n;
    }
    gone = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    take_frames(w);
    if (gone)
        end(w, KMS_ERR_UNAVAILABLE);
    leave(w);
}

/* KMS_OK: all that the socket took is gone. */
static int
flush(struct wire *w)
{
    struct outgoing *o;

    while ((o = TAILQ_FIRST(&w->out)) != NULL) {
        ssize_t n = send(w->fd, o->frame + o->sent, o->len - o->sent, MSG_NOSIGNAL);

        if (n < 0)
            return errno == EAGAIN || errno == EINTR ? KMS_OK : KMS_ERR_UNAVAILABLE;
        o->sent += (size_t)n;
        w->backlog -= (size_t)n;
        if (o->sent == o->len)
            out_pop(w);
    }
    return KMS_OK;
}

static void
write_cb(evutil_socket_t fd, short what, void *arg)
{
    struct wire *w = arg;

    enter(w);
    if (flush(w) != KMS_OK)
        end(w, KMS_ERR_UNAVAILABLE);
    else if (!TAILQ_EMPTY(&w->out))
        event_add(w->write, NULL);
    leave(w);
}

struct wire *
wire_new(struct event_base *base, int fd, enum frame_way way, wire_frame_cb *frame,
         wire_closed_cb *closed, void *ctx)
{
    struct wire *w = OPENSSL_zalloc(sizeof(*w));

    if (w == NULL)
        return NULL;
    w->fd = fd;
    w->way = way;
    w->frame = frame;
    w->closed = closed;
    w->ctx = ctx;
    TAILQ_INIT(&w->out);
    w->read = event_new(base, fd, EV_READ | EV_PERSIST, read_cb, w);
    w->write = event_new(base, fd, EV_WRITE, write_cb, w);
    if (w->read == NULL || w->write == NULL || evutil_make_socket_nonblocking(fd) != 0 ||
        event_add(w->read, NULL) != 0) {
        if (w->read != NULL)
            event_free(w->read);
        if (w->write != NULL)
            event_free(w->write);
        release(w);
        return NULL;
    }
    return w;
}

int
wire_send(struct wire *w, unsigned char *frame, size_t len)
{
    struct outgoing *o;
    bool idle = TAILQ_EMPTY(&w->out);

    if (w->dead || (o = OPENSSL_zalloc(sizeof(*o))) == NULL) {
        wire_frame_free(frame, len);
        return w->dead ? KMS_OK : KMS_ERR_NOMEM; /* of the end the owner hears by itself */
    }
    o->frame = frame;
    o->len = len;
    TAILQ_INSERT_TAIL(&w->out, o, entry);
    w->backlog += len;
    /* Mostly the socket takes it at once; an error is told from the loop, never from inside this
     * call. */
    if (!idle || flush(w) != KMS_OK || !TAILQ_EMPTY(&w->out))
        event_add(w->write, NULL);
    return KMS_OK;
}

size_t
wire_backlog(const struct wire *w)
{
    return w->backlog;
}

void
wire_pause(struct wire *w, bool pause)
{
    if (w->dead || w->paused == pause)
        return;
    w->paused = pause;
    if (pause) {
        event_del(w->read);
    } else {
        event_add(w->read, NULL);
        /* Frames that came in whole before the pause wait in the buffer. */
        event_active(w->read, EV_READ, 1);
    }
}
