/*
 * pool.c - custodian processes and the queues in front of them.
 *
 * Only one custodian is starting at a time: a wrong PIN is so tried once, not once by each.  One
 * that hangs is killed; one that dies is replaced.  The part that it had goes to another one, item
 * by item, so that of a frame in which one item kills custodians only that item is lost; an item
 * that was with two when they died is refused.
 *
 * Forgetting and destroying a key are done by every custodian: each has a part of its own waiting.
 * One that dies over it, or is sent home first, holds nothing any more either.
 */
#include "hsm/pool.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hsm/log.h"
#include "hsm/wire.h"
#include "proto/err.h"

#define WAITING_MAX 65536 /* items in the queues */
#define DEATHS_MAX  2
#define FAILURES_MAX                                                                               \
    2 /* starts that fail before those who wait are refused: the first may be a hiccup */
#define SPLIT_MIN   32 /* items from which two custodians are faster than one */
#define QUICK_ITEMS 64 /* at a time: over a network, these too take milliseconds each */
#define SLOW_ITEMS  4  /* of operations that take milliseconds: so many at a time */
#define MOVE_ITEMS  16 /* of a rotation's, which has time and comes in thousands */
#define START_CALLS                                                                                \
    10 /* how many times a call's limit a start may take: a dozen calls, login among them */
#define INIT_MS      120000
#define LEAVE_MS     3000
#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 5000

/* Some items of a request, waiting or with a custodian. */
struct part {
    TAILQ_ENTRY(part) entry;
    struct request *r;
    unsigned first, count;
    unsigned deaths; /* of custodians that had it */
};
TAILQ_HEAD(parts, part);

enum activity { OFF, STARTING, IDLE, BUSY };
enum wear { FRESH, WORN /* replaced when convenient */, OUTDATED /* gets no work */ };

struct custodian {
    struct pool *p;
    unsigned number;
    enum activity activity;
    enum wear wear;
    pid_t pid;
    struct wire *wire;
    struct part *part; /* owned while BUSY */
    struct parts own;  /* of what every custodian does: to be done next */
    struct event *watchdog;
};

/* A custodian that was sent home: it logs out by itself, or is killed. */
struct leaving {
    LIST_ENTRY(leaving) entry;
    pid_t pid;
    struct event *timer;
};

enum { QUICK, SLOW, QUEUES };

struct pool {
    struct event_base *base;
    struct pool_settings s;
    struct custodian *custodians;
    LIST_HEAD(, leaving) leaving;
    struct parts queues[QUEUES];
    unsigned waiting; /* items in the queues */
    int turn;         /* the queue to be served next */
    struct event *tend, *retry, *child;
    int retry_ms;
    enum frame_state state; /* of the last custodian that said; 0: none yet */
    unsigned failures;      /* starts that failed, since one did not */
    bool away;              /* nobody works, and the last ones that tried could not */
    bool stopped;           /* the PIN was refused: nobody is started */
    uint32_t seq;
    struct frame_hello hello;
    char *text; /* owned */
    struct pool_counters counters;
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

/* Looks after everything once this turn's events are dealt with. */
static void
tend_soon(struct pool *p)
{
    event_active(p->tend, EV_TIMEOUT, 1);
}

unsigned
pool_working(const struct pool *p)
{
    unsigned n = 0;

    for (unsigned i = 0; i < p->s.custodians; i++)
        n += p->custodians[i].activity == IDLE || p->custodians[i].activity == BUSY;
    return n;
}

/* --- parts --- */

static int
queue_of(enum frame_type type)
{
    return type == FRAME_GENERATE || type == FRAME_WRAP || type == FRAME_UNWRAP ||
                   type == FRAME_RANDOM
               ? QUICK
               : SLOW;
}

/* What every custodian does. */
static bool
is_for_all(enum frame_type type)
{
    return type == FRAME_FORGET || type == FRAME_KEY_DESTROY;
}

static struct part *
part_new(struct request *r, unsigned first, unsigned count, unsigned deaths)
{
    struct part *part = OPENSSL_zalloc(sizeof(*part));

    if (part == NULL)
        return NULL;
    part->r = r;
    part->first = first;
    part->count = count;
    part->deaths = deaths;
    r->parts++;
    return part;
}

static void
part_free(struct pool *p, struct part *part)
{
    struct request *r = part->r;

    OPENSSL_free(part);
    if (--r->parts == 0 && r->over)
        p->s.released(r);
}

static void
queue_put(struct pool *p, struct part *part, bool front)
{
    struct parts *q = &p->queues[queue_of(part->r->type)];

    if (front)
        TAILQ_INSERT_HEAD(q, part, entry);
    else
        TAILQ_INSERT_TAIL(q, part, entry);
    p->waiting += part->count;
}

static void
queue_take(struct pool *p, struct part *part)
{
    TAILQ_REMOVE(&p->queues[queue_of(part->r->type)], part, entry);
    p->waiting -= part->count;
}

/* Not queued, and will not be answered by a custodian. */
static void
part_refuse(struct pool *p, struct part *part, int err)
{
    if (!part->r->over)
        p->s.answer(part->r, part->first, part->count, err, NULL, NULL, 0);
    p->counters.refused += part->count;
    part_free(p, part);
}

static void
refuse_all(struct pool *p, int err)
{
    for (int q = 0; q < QUEUES; q++) {
        struct part *part;

        while ((part = TAILQ_FIRST(&p->queues[q])) != NULL) {
            queue_take(p, part);
            part_refuse(p, part, err);
        }
    }
}

/* Its custodian died.  Whether the part was the reason nobody knows; an item that sees it twice is.
 */
static void
part_orphaned(struct pool *p, struct part *part)
{
    struct request *r = part->r;

    if (r->over) {
        part_free(p, part);
        return;
    }
    if (++part->deaths >= DEATHS_MAX) {
        log_error("custodians: an item is refused, as two died with it", "type%d", (int)r->type,
                  NULL);
        part_refuse(p, part, KMS_ERR_UNAVAILABLE);
        return;
    }
    for (unsigned i = part->count; i-- > 1;) {
        struct part *single = part_new(r, part->first + i, 1, part->deaths);

        if (single == NULL) {
            p->s.answer(r, part->first + i, 1, KMS_ERR_NOMEM, NULL, NULL, 0);
            continue;
        }
        queue_put(p, single, true);
    }
    part->count = 1;
    queue_put(p, part, true);
}

/*
 * A custodian did its part, or is no more (KMS_ERR_AGAIN).  The last one's answer is everybody's.
 * That a key is forgotten is true when nobody is left; that it is destroyed somebody must have
 * seen.
 */
static void
all_done(struct pool *p, struct part *part, int err)
{
    struct request *r = part->r;

    if (err == KMS_OK)
        r->done++;
    else if (err != KMS_ERR_AGAIN)
        r->err = err;
    if (r->parts == 1 && !r->over) {
        if (r->err == KMS_OK && r->done == 0 && r->type == FRAME_KEY_DESTROY)
            r->err = KMS_ERR_UNAVAILABLE;
        p->s.answer(r, 0, r->count, r->err, NULL, NULL, 0);
    }
    part_free(p, part);
}

static void
own_parts_end(struct custodian *c)
{
    struct part *part;

    while ((part = TAILQ_FIRST(&c->own)) != NULL) {
        TAILQ_REMOVE(&c->own, part, entry);
        all_done(c->p, part, KMS_ERR_AGAIN);
    }
}

/* A part for each that works.  One that is starting holds nothing to be forgotten, but may have
 * looked at the token already. */
static int
add_for_all(struct pool *p, struct request *r)
{
    struct part *part;
    unsigned n = 0;

    for (unsigned i = 0; i < p->s.custodians; i++) {
        struct custodian *c = &p->custodians[i];

        if (c->activity == OFF || (c->activity == STARTING && r->type == FRAME_FORGET))
            continue;
        if ((part = part_new(r, 0, r->count, 0)) == NULL) {
            c->wear = OUTDATED; /* what it holds goes with it */
            continue;
        }
        TAILQ_INSERT_TAIL(&c->own, part, entry);
        n++;
    }
    if (n == 0 && r->type == FRAME_KEY_DESTROY)
        return KMS_ERR_UNAVAILABLE;
    if (n == 0)
        p->s.answer(r, 0, r->count, KMS_OK, NULL, NULL, 0);
    tend_soon(p);
    return KMS_OK;
}

int
pool_add(struct pool *p, struct request *r)
{
    struct part *part;

    if (is_for_all(r->type))
        return add_for_all(p, r);
    if (p->away)
        return KMS_ERR_UNAVAILABLE;
    if (p->waiting + r->count > WAITING_MAX)
        return KMS_ERR_LIMIT;
    if ((part = part_new(r, 0, r->count, 0)) == NULL)
        return KMS_ERR_NOMEM;
    queue_put(p, part, false);
    tend_soon(p);
    return KMS_OK;
}

void
pool_drop(struct pool *p, struct request *r)
{
    struct part *part, *next;

    r->over = true;
    r->parts++; /* so that it lasts until the loop is done */
    for (part = TAILQ_FIRST(&p->queues[queue_of(r->type)]); part != NULL; part = next) {
        next = TAILQ_NEXT(part, entry);
        if (part->r == r) {
            queue_take(p, part);
            part_free(p, part);
        }
    }
    if (--r->parts == 0)
        p->s.released(r);
}

/* --- custodians: their life --- */

static void
leaving_free(struct leaving *l)
{
    LIST_REMOVE(l, entry);
    event_free(l->timer);
    OPENSSL_free(l);
}

static void
leaving_cb(evutil_socket_t fd, short what, void *arg)
{
    struct leaving *l = arg;

    kill(l->pid, SIGKILL); /* SIGCHLD takes it off the list */
}

/* Children are known by their pid: none is reaped anywhere else while the loop runs. */
static void
child_cb(evutil_socket_t sig, short what, void *arg)
{
    struct pool *p = arg;
    struct leaving *l, *next;
    pid_t pid;

    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        for (l = LIST_FIRST(&p->leaving); l != NULL; l = next) {
            next = LIST_NEXT(l, entry);
            if (l->pid == pid)
                leaving_free(l);
        }
}

/*
 * The slot is free for a successor.  The process finds its socket closed and logs out; where it
 * cannot, or is to be killed, it is killed.
 */
static void
custodian_leave(struct custodian *c, bool kill_it)
{
    struct leaving *l = OPENSSL_zalloc(sizeof(*l));

    event_del(c->watchdog);
    wire_free(c->wire);
    c->wire = NULL;
    c->activity = OFF;
    if (l == NULL || (l->timer = evtimer_new(c->p->base, leaving_cb, l)) == NULL) {
        OPENSSL_free(l);
        kill(c->pid, SIGKILL);
    } else {
        l->pid = c->pid;
        LIST_INSERT_HEAD(&c->p->leaving, l, entry);
        timer_start(l->timer, LEAVE_MS);
        if (kill_it)
            kill(c->pid, SIGKILL);
    }
    c->pid = 0;
    own_parts_end(c);
    tend_soon(c->p);
}

/* Nobody works and nobody could be started: those who wait are told so now. */
static void
check_away(struct pool *p)
{
    p->away = pool_working(p) == 0 && (p->stopped || p->failures >= FAILURES_MAX);
    if (!p->away)
        return;
    p->hello.ready = false;
    refuse_all(p, KMS_ERR_UNAVAILABLE);
    p->s.change(p->s.ctx);
}

/* It could not be started.  The next one later, or not before an operator says so. */
static void
start_failed(struct pool *p)
{
    p->failures++;
    if (!p->stopped) {
        timer_start(p->retry, p->retry_ms);
        p->retry_ms = p->retry_ms * 2 < RETRY_MAX_MS ? p->retry_ms * 2 : RETRY_MAX_MS;
    }
    check_away(p);
}

static void
custodian_gone(struct custodian *c, bool kill_it)
{
    struct pool *p = c->p;
    bool starting = c->activity == STARTING;
    struct part *part = c->part;

    c->part = NULL;
    if (part != NULL && is_for_all(part->r->type)) {
        TAILQ_INSERT_TAIL(&c->own, part, entry); /* ends with the others */
        part = NULL;
    }
    custodian_leave(c, kill_it);
    if (kill_it)
        p->counters.killed++;
    else
        p->counters.died++;
    if (starting) {
        if (pool_working(p) == 0)
            p->state = FRAME_STATE_ABSENT; /* it died or hung before it could say */
        start_failed(p);
    }
    if (part != NULL)
        part_orphaned(p, part);
}

static void
closed_cb(void *ctx, int err)
{
    struct custodian *c = ctx;

    log_warn("custodian: gone", "number%u", (unsigned long long)c->number, "pid%d", (int)c->pid,
             NULL);
    custodian_gone(c, err == KMS_ERR_PROTOCOL);
}

static void
watchdog_cb(evutil_socket_t fd, short what, void *arg)
{
    struct custodian *c = arg;

    log_error("custodian: does not answer; killed", "number%u", (unsigned long long)c->number,
              "pid%d", (int)c->pid, NULL);
    custodian_gone(c, true);
}

/* A custodian that cannot work: it has said why, and ends. */
static void
on_bad_state(struct custodian *c, enum frame_state state)
{
    struct pool *p = c->p;
    bool pin = state == FRAME_STATE_PIN_REFUSED || state == FRAME_STATE_PIN_LOCKED;

    /* While others work, a token that one did not get hold of is not away; a PIN that was refused
     * always matters. */
    if (pin || pool_working(p) == 0)
        p->state = state;
    p->stopped |= pin; /* nobody else shall try */
    if (pin)
        log_error(
            "custodians: none is started any more, as the PIN was refused; put it right, then "
            "send SIGHUP or restart",
            NULL);
    if (c->activity == STARTING) {
        custodian_leave(c, false);
        start_failed(p);
    }
}

static void
on_report(struct custodian *c, const struct frame_head *head, const unsigned char *body)
{
    struct pool *p = c->p;
    size_t fixed = frame_item_size(FRAME_REPORT, FRAME_ANSWER_WAY);
    size_t len = head->len - FRAME_HEAD_LEN - fixed;
    struct frame_hello hello;
    enum frame_state state;
    char *text;

    if (frame_report_get(&hello, &state, body) != KMS_OK) {
        custodian_gone(c, true);
        return;
    }
    if (state == FRAME_STATE_STALE) {
        c->wear = WORN;
        tend_soon(p);
        return;
    }
    if ((text = OPENSSL_zalloc(len + 1)) != NULL) {
        memcpy(text, body + fixed, len);
        OPENSSL_free(p->text);
        p->text = text;
    }
    if (state != FRAME_STATE_READY && state != FRAME_STATE_EMPTY) {
        on_bad_state(c, state);
        return;
    }
    p->state = state;
    if (c->activity == STARTING) {
        c->activity = IDLE;
        event_del(c->watchdog);
        p->retry_ms = RETRY_MIN_MS;
        p->away = false;
        p->failures = 0;
        log_info("custodian: ready", "number%u", (unsigned long long)c->number, "pid%d",
                 (int)c->pid, NULL);
    } else if (c->part == NULL || !is_for_all(c->part->r->type)) {
        /* It made keys, or found that they are others now: the others have to find them. */
        for (unsigned i = 0; i < p->s.custodians; i++)
            if (&p->custodians[i] != c)
                p->custodians[i].wear = OUTDATED;
    }
    p->hello = hello;
    p->s.change(p->s.ctx);
    tend_soon(p);
}

static void
frame_cb(void *ctx, const struct frame_head *head, const unsigned char *body, size_t len)
{
    struct custodian *c = ctx;
    struct part *part = c->part;
    size_t fixed = frame_item_size(head->type, FRAME_ANSWER_WAY) * head->count;

    if (head->type == FRAME_REPORT) {
        on_report(c, head, body);
        return;
    }
    if (c->activity != BUSY || head->type != part->r->type || head->count != part->count) {
        log_error("custodian: an answer that nobody asked for", NULL);
        custodian_gone(c, true);
        return;
    }
    c->part = NULL;
    c->activity = IDLE;
    event_del(c->watchdog);
    if (is_for_all(part->r->type)) {
        all_done(c->p, part, -(int)body[0]);
        tend_soon(c->p);
        return;
    }
    if (!part->r->over)
        c->p->s.answer(part->r, part->first, part->count, KMS_OK, body,
                       len > fixed ? body + fixed : NULL, len - fixed);
    part_free(c->p, part);
    tend_soon(c->p);
}

/* The child's side of the fork: nothing but what is safe there. */
static void
become_custodian(int self_fd, int fd)
{
    static char name[] = "hsmd", option[] = "--custodian";
    char *argv[] = {name, option, NULL};
    extern char **environ;

    if (fd == CUSTODIAN_FD)
        fcntl(fd, F_SETFD, 0);
    else
        dup2(fd, CUSTODIAN_FD);
    fexecve(self_fd, argv, environ);
    _exit(127);
}

static bool
custodian_start(struct custodian *c)
{
    struct pool *p = c->p;
    struct setup *setup;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return false;
    if ((c->pid = fork()) == 0)
        become_custodian(p->s.self_fd, fds[1]);
    close(fds[1]);
    if (c->pid < 0 ||
        (c->wire = wire_new(p->base, fds[0], FRAME_ANSWER_WAY, frame_cb, closed_cb, c)) == NULL) {
        close(fds[0]); /* a child finds its end closed */
        return false;
    }
    c->activity = STARTING;
    c->wear = FRESH;
    p->counters.started++;
    timer_start(c->watchdog, p->s.call_ms * START_CALLS);
    if ((setup = (struct setup *)wire_frame_new(sizeof(*setup))) != NULL) {
        *setup = *p->s.setup;
        setup->number = c->number;
        setup->log_level = (int)log_get_level();
    }
    if (setup == NULL || wire_send(c->wire, (unsigned char *)setup, sizeof(*setup)) != KMS_OK)
        custodian_gone(c, true);
    return true;
}

/* --- feeding --- */

/* Making an RSA key takes an HSM long. */
static bool
is_long(enum frame_type type)
{
    return type == FRAME_INIT || type == FRAME_IMPORT_PAIR;
}

/* Gives a part, which is in no queue, to an idle custodian.  false: no memory. */
static bool
hand_over(struct custodian *c, struct part *part)
{
    struct pool *p = c->p;
    struct request *r = part->r;
    size_t size = frame_item_size(r->type, FRAME_REQUEST_WAY);
    size_t len = FRAME_HEAD_LEN + part->count * size;
    struct frame_head head = {.len = (uint32_t)len,
                              .type = (uint8_t)r->type,
                              .count = (uint16_t)part->count,
                              .seq = ++p->seq,
                              .deadline_ms = (uint32_t)p->s.call_ms};
    unsigned char *frame = wire_frame_new(len);

    if (frame == NULL)
        return false;
    frame_head_put(&head, FRAME_REQUEST_WAY, frame);
    memcpy(frame + FRAME_HEAD_LEN, r->items + part->first * size, part->count * size);
    c->part = part;
    c->activity = BUSY;
    timer_start(c->watchdog, is_long(r->type) ? INIT_MS : p->s.call_ms);
    if (wire_send(c->wire, frame, len) != KMS_OK)
        custodian_gone(c, true);
    return true;
}

/* Gives the part, or the front of it, to an idle custodian. */
static void
feed(struct custodian *c, struct part *part, unsigned take)
{
    struct pool *p = c->p;
    struct part *mine = part;

    queue_take(p, part);
    if (take < part->count) {
        if ((mine = part_new(part->r, part->first, take, part->deaths)) == NULL) {
            part_refuse(p, part, KMS_ERR_NOMEM);
            return;
        }
        part->first += take;
        part->count -= take;
        queue_put(p, part, true);
    }
    if (!hand_over(c, mine))
        part_refuse(p, mine, KMS_ERR_NOMEM);
}

/* What every custodian does comes before all else.  Where it cannot be handed over, what the
 * custodian holds goes with the custodian. */
static void
feed_own(struct pool *p)
{
    for (unsigned i = 0; i < p->s.custodians; i++) {
        struct custodian *c = &p->custodians[i];
        struct part *part = TAILQ_FIRST(&c->own);

        if (c->activity != IDLE || part == NULL)
            continue;
        TAILQ_REMOVE(&c->own, part, entry);
        if (!hand_over(c, part)) {
            TAILQ_INSERT_HEAD(&c->own, part, entry);
            custodian_gone(c, true);
        }
    }
}

static unsigned
smaller(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* How many items of a part to hand over, with so many custodians idle. */
static unsigned
portion(const struct pool *p, const struct part *part, unsigned idle)
{
    unsigned share = (part->count + idle - 1) / idle;

    if (part->r->type == FRAME_REWRAP || part->r->type == FRAME_RESEAL)
        return smaller(share, MOVE_ITEMS);
    if (queue_of(part->r->type) == SLOW)
        return smaller(share, SLOW_ITEMS);
    /* Only where nothing else waits for the other one. */
    if (part->count > SPLIT_MIN && TAILQ_NEXT(part, entry) == NULL)
        return smaller(share, QUICK_ITEMS);
    return smaller(part->count, QUICK_ITEMS);
}

static void
feed_all(struct pool *p)
{
    unsigned idle = 0;

    for (unsigned i = 0; i < p->s.custodians; i++)
        idle += p->custodians[i].activity == IDLE && p->custodians[i].wear != OUTDATED;
    for (unsigned i = 0; i < p->s.custodians && idle > 0; i++) {
        struct custodian *c = &p->custodians[i];
        struct part *part;

        if (c->activity != IDLE || c->wear == OUTDATED)
            continue;
        /* By turns: cheap work must not wait behind a heap of RSA, nor the other way round. */
        if ((part = TAILQ_FIRST(&p->queues[p->turn])) == NULL)
            part = TAILQ_FIRST(&p->queues[QUEUES - 1 - p->turn]);
        if (part == NULL)
            return;
        p->turn = QUEUES - 1 - p->turn;
        feed(c, part, portion(p, part, idle--));
    }
}

/* Sends worn custodians home and starts the missing, one at a time; then work is handed out. */
static void
tend_cb(evutil_socket_t fd, short what, void *arg)
{
    struct pool *p = arg;
    struct custodian *off = NULL, *worn = NULL;
    bool starting = false;

    for (unsigned i = 0; i < p->s.custodians; i++) {
        struct custodian *c = &p->custodians[i];

        if (c->activity == IDLE && c->wear == OUTDATED) {
            p->counters.replaced++;
            custodian_leave(c, false);
        }
        if (c->activity == OFF && off == NULL)
            off = c;
        if (c->activity == IDLE && c->wear == WORN && TAILQ_EMPTY(&c->own))
            worn = c;
        starting |= c->activity == STARTING;
    }
    if (!starting && !p->stopped && !evtimer_pending(p->retry, NULL)) {
        if (off == NULL && worn != NULL) {
            p->counters.replaced++;
            custodian_leave(worn, false);
            off = worn;
        }
        if (off != NULL && !custodian_start(off)) {
            log_error("custodians: cannot start one", "error", strerror(errno), NULL);
            start_failed(p);
        }
    } else if (p->stopped && !starting && !p->away && pool_working(p) == 0) {
        check_away(p);
    }
    feed_own(p);
    feed_all(p);
}

static void
retry_cb(evutil_socket_t fd, short what, void *arg)
{
    tend_soon(arg);
}

void
pool_renew(struct pool *p)
{
    for (unsigned i = 0; i < p->s.custodians; i++)
        if (p->custodians[i].wear == FRESH)
            p->custodians[i].wear = WORN;
    p->stopped = false;
    p->retry_ms = RETRY_MIN_MS;
    event_del(p->retry);
    tend_soon(p);
}

/* --- the whole --- */

struct pool *
pool_new(struct event_base *base, const struct pool_settings *s)
{
    struct pool *p = OPENSSL_zalloc(sizeof(*p));

    if (p == NULL)
        return NULL;
    p->base = base;
    p->s = *s;
    p->retry_ms = RETRY_MIN_MS;
    p->hello.version = FRAME_VERSION;
    LIST_INIT(&p->leaving);
    for (int q = 0; q < QUEUES; q++)
        TAILQ_INIT(&p->queues[q]);
    p->custodians = OPENSSL_zalloc(s->custodians * sizeof(*p->custodians));
    p->tend = event_new(base, -1, 0, tend_cb, p);
    p->retry = evtimer_new(base, retry_cb, p);
    p->child = evsignal_new(base, SIGCHLD, child_cb, p);
    if (p->custodians == NULL || p->tend == NULL || p->retry == NULL || p->child == NULL ||
        event_add(p->child, NULL) != 0) {
        p->s.custodians = 0;
        pool_free(p);
        return NULL;
    }
    for (unsigned i = 0; i < s->custodians; i++) {
        p->custodians[i].p = p;
        p->custodians[i].number = i + 1;
        TAILQ_INIT(&p->custodians[i].own);
        if ((p->custodians[i].watchdog = evtimer_new(base, watchdog_cb, &p->custodians[i])) ==
            NULL) {
            pool_free(p);
            return NULL;
        }
    }
    tend_soon(p);
    return p;
}

/* Waits until all children are gone, then no longer. */
static void
reap(struct pool *p, int limit_ms)
{
    const struct timespec nap = {.tv_nsec = 10000000};
    pid_t pid = 0;

    for (int waited = 0; waited < limit_ms && (pid = waitpid(-1, NULL, WNOHANG)) >= 0;)
        if (pid == 0) {
            nanosleep(&nap, NULL);
            waited += 10;
        }
}

void
pool_free(struct pool *p)
{
    struct event *events[] = {p->tend, p->retry, p->child};
    struct leaving *l;

    for (unsigned i = 0; i < p->s.custodians; i++) {
        struct custodian *c = &p->custodians[i];

        if (c->activity != OFF) {
            if (c->part != NULL)
                part_free(p, c->part);
            c->part = NULL;
            custodian_leave(c, false);
        }
    }
    refuse_all(p, KMS_ERR_UNAVAILABLE);
    reap(p, LEAVE_MS);
    LIST_FOREACH(l, &p->leaving, entry)
    kill(l->pid, SIGKILL);
    reap(p, LEAVE_MS);
    while ((l = LIST_FIRST(&p->leaving)) != NULL)
        leaving_free(l);
    for (unsigned i = 0; i < p->s.custodians; i++)
        if (p->custodians[i].watchdog != NULL)
            event_free(p->custodians[i].watchdog);
    for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++)
        if (events[i] != NULL)
            event_free(events[i]);
    OPENSSL_free(p->custodians);
    OPENSSL_free(p->text);
    OPENSSL_free(p);
}

const struct frame_hello *
pool_hello(const struct pool *p)
{
    return &p->hello;
}

const char *
pool_state(const struct pool *p)
{
    static const char *const names[FRAME_STATES] = {
        [0] = "starting",
        [FRAME_STATE_READY] = "ready",
        [FRAME_STATE_EMPTY] = "empty",
        [FRAME_STATE_ABSENT] = "absent",
        [FRAME_STATE_PIN_REFUSED] = "pin-refused",
        [FRAME_STATE_PIN_LOCKED] = "pin-locked",
        [FRAME_STATE_UNFIT] = "unfit",
    };

    return names[p->state];
}

const char *
pool_text(const struct pool *p)
{
    return p->text != NULL ? p->text : "";
}

unsigned
pool_waiting(const struct pool *p)
{
    return p->waiting;
}

const struct pool_counters *
pool_counters(const struct pool *p)
{
    return &p->counters;
}
