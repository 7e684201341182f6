/*
 * custodian.c - the process that holds the token: frames in from the supervisor, one at a time,
 * answers out.
 *
 * It blocks wherever the module blocks; the supervisor watches the clock and kills it.  What it
 * cannot mend by a new session or a new login it leaves to its successor, by exiting: the
 * supervisor then has the request still.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hsm/frame.h"
#include "hsm/harden.h"
#include "hsm/keyring.h"
#include "hsm/log.h"
#include "hsm/setup.h"
#include "hsm/token.h"
#include "proto/err.h"

#define RSA_CANARY_EVERY 64
#define ROOTS_SHOWN      32
#define REPORT_MAX       1024        /* greeting and state */
#define GROWTH_MAX       (64L << 20) /* bytes of resident memory after which a successor is asked for */
#define GROWTH_EVERY     1024        /* frames between two looks at it */
#define HEARTBEAT_MS     5000        /* of idleness, then the canary is heard */
#define EXPIRE_MS        1000
#define ORPHAN_S         3 /* to end what the module is at, when the supervisor died */
#define SECURE_HEAP      (2 * KEYRING_MAX * HSM_KEY_LEN)

struct custodian {
    int fd;
    struct setup setup;
    struct token t;
    struct keyring *k;
    bool stale;           /* a successor was asked for */
    struct hsm_info told; /* to the supervisor, last */
    long resident;        /* at the start, bytes */
    unsigned long frames, opened;
    int err[FRAME_ITEMS_MAX];
    unsigned char random[FRAME_ITEMS_MAX * HSM_KEY_LEN]; /* for the generates of this frame */
    unsigned char in[FRAME_MAX], out[FRAME_MAX];
    unsigned char report[FRAME_HEAD_LEN + REPORT_MAX + FRAME_TEXT_MAX];
};

static bool
read_full(int fd, void *p, size_t n)
{
    unsigned char *at = p;

    while (n > 0) {
        ssize_t got = read(fd, at, n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

static bool
write_full(int fd, const void *p, size_t n)
{
    const unsigned char *at = p;

    while (n > 0) {
        ssize_t put = send(fd, at, n, MSG_NOSIGNAL);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        at += put;
        n -= (size_t)put;
    }
    return true;
}

static long
resident_bytes(void)
{
    char line[128];
    long size, resident = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, line, sizeof(line) - 1) : -1;

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    line[n] = '\0';
    if (sscanf(line, "%ld %ld", &size, &resident) != 2)
        return 0;
    return resident * sysconf(_SC_PAGESIZE);
}

static json_t *
hex(const unsigned char *p, size_t n)
{
    char text[2 * HSM_RSA_MAX + 1];

    for (size_t i = 0; i < n; i++)
        snprintf(text + 2 * i, 3, "%02x", p[i]);
    return json_string(text);
}

/* CK_TOKEN_INFO's texts are padded with spaces, and of the vendor's making. */
static json_t *
padded(const unsigned char *p, size_t n)
{
    char text[65];

    while (n > 0 && (p[n - 1] == ' ' || p[n - 1] == '\0'))
        n--;
    for (size_t i = 0; i < n; i++)
        text[i] = p[i] >= ' ' && p[i] < 0x7f ? (char)p[i] : '?';
    text[n] = '\0';
    return json_string(text);
}

static json_t *
key_json(const char *use, const char *type, const unsigned char *id, const unsigned char *kcv,
         bool current)
{
    return json_pack("{s:s, s:s, s:o, s:o, s:b}", "use", use, "type", type, "id",
                     hex(id, HSM_ID_LEN), "kcv", hex(kcv, HSM_KCV_LEN), "current", current);
}

static json_t *
keys_json(const struct token *t)
{
    json_t *keys = json_array();
    unsigned char kcv[HSM_KCV_LEN];
    char type[32];

    /* Main and period keys may be many: see hsm_list. */
    for (unsigned i = 0; i < t->roots_n && i < ROOTS_SHOWN; i++)
        json_array_append_new(keys, key_json("root", "AES-256", t->keks[i].id, t->keks[i].kcv,
                                             &t->keks[i] == t->root));
    if (t->static_key.handle != 0) {
        snprintf(type, sizeof(type), "RSA-%u", (unsigned)t->static_key.n_len * 8);
        public_kcv(t->static_key.n, t->static_key.n_len, kcv);
        json_array_append_new(keys, key_json("static", type, t->static_key.id, kcv, true));
    }
    if (t->audit_key != 0) {
        public_kcv(t->audit_public, sizeof(t->audit_public), kcv);
        json_array_append_new(keys, key_json("audit", "Ed25519", t->audit_id, kcv, true));
    }
    return keys;
}

static json_t *
can_json(const struct token *t)
{
    static const char *const habits[] = {[NONCE_UNKNOWN] = "not asked",
                                         [NONCE_OURS] = "ours",
                                         [NONCE_ITS] = "its own",
                                         [NONCE_ZEROED] = "its own, into zeros"};
    char number[24];

    snprintf(number, sizeof(number), "0x%lx", t->can.wrap);
    return json_pack("{s:s, s:b, s:b, s:s, s:b, s:b, s:b, s:b, s:b}", "wrap_mechanism", number,
                     "wrap_is_rfc3394", t->can.wrap_proven, "aes_gcm", t->can.gcm, "gcm_nonce",
                     habits[t->can.nonce], "rsa_raw", t->can.raw_rsa, "rsa_oaep_sha1",
                     t->can.oaep_sha1, "rsa_oaep_sha256", t->can.oaep_sha256, "rsa_pss", t->can.pss,
                     "eddsa", t->can.eddsa);
}

/* What `hsm_status` shows of the token; the supervisor adds what it knows.  NULL: no memory. */
static char *
report_text(const struct custodian *c)
{
    const struct token *t = &c->t;
    const CK_TOKEN_INFO *i = &t->info;
    json_t *j = json_object();
    char *text;

    if (t->trouble[0] != '\0')
        json_object_set_new(j, "trouble", json_string_nocheck(t->trouble));
    if (t->session != 0) {
        json_object_set_new(j, "token",
                            json_pack("{s:o, s:o, s:o, s:o}", "label",
                                      padded(i->label, sizeof(i->label)), "manufacturer",
                                      padded(i->manufacturerID, sizeof(i->manufacturerID)), "model",
                                      padded(i->model, sizeof(i->model)), "serial",
                                      padded(i->serialNumber, sizeof(i->serialNumber))));
        json_object_set_new(j, "can", can_json(t));
        json_object_set_new(j, "keys", keys_json(t));
    }
    text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return text;
}

/* The items are in place behind out's head. */
static bool
answer(struct custodian *c, unsigned char *out, enum frame_type type, uint32_t seq, unsigned count,
       const char *text)
{
    size_t fixed = count * frame_item_size(type, FRAME_ANSWER_WAY);
    size_t len = text != NULL ? strlen(text) : 0;
    struct frame_head h = {.type = (uint8_t)type, .count = (uint16_t)count, .seq = seq};

    if (len > FRAME_TEXT_MAX)
        len = FRAME_TEXT_MAX;
    if (len > 0)
        memcpy(out + FRAME_HEAD_LEN + fixed, text, len);
    h.len = (uint32_t)(FRAME_HEAD_LEN + fixed + len);
    frame_head_put(&h, FRAME_ANSWER_WAY, out);
    return write_full(c->fd, out, h.len);
}

static bool
report(struct custodian *c, enum frame_state state)
{
    struct frame_hello hello = {
        .version = FRAME_VERSION, .ready = state == FRAME_STATE_READY, .lifecycle = true};
    char *text = report_text(c);
    bool ok;

    keys_to_info(&c->t, &hello.info);
    memcpy(&c->told, &hello.info, sizeof(c->told));
    frame_report_put(&hello, state, c->report + FRAME_HEAD_LEN);
    ok = answer(c, c->report, FRAME_REPORT, 0, 1, text);
    free(text);
    return ok;
}

/* The state of a custodian that can work. */
static enum frame_state
working_state(const struct custodian *c)
{
    return c->t.root != NULL && c->t.static_key.handle != 0 ? FRAME_STATE_READY : FRAME_STATE_EMPTY;
}

static int
do_key(struct custodian *c, enum frame_type type, unsigned index, const union frame_request *r,
       struct frame_answer *a)
{
    struct held_key *h;
    int err;

    if ((err = keyring_get(c->k, &r->key.wk, &h)) != KMS_OK)
        return err;
    switch (type) {
    case FRAME_GENERATE:
        memcpy(a->u.key.key, c->random + index * HSM_KEY_LEN, HSM_KEY_LEN);
        return keyring_seal(c->k, h, r->key.purpose, r->key.object, a->u.key.key, a->u.key.blob);
    case FRAME_WRAP:
        return keyring_seal(c->k, h, r->key.purpose, r->key.object, r->key.key, a->u.key.blob);
    default:
        return keyring_open(c->k, h, r->key.purpose, r->key.object, r->key.blob, a->u.key.key);
    }
}

/* From one wrapping key to another; answered only when it was opened again. */
static int
do_reseal(struct custodian *c, const union frame_request *r, struct frame_answer *a)
{
    unsigned char key[HSM_KEY_LEN], back[HSM_KEY_LEN];
    struct held_key *h;
    int err;

    if ((err = keyring_get(c->k, &r->key.wk, &h)) != KMS_OK ||
        (err = keyring_open(c->k, h, r->key.purpose, r->key.object, r->key.blob, key)) != KMS_OK)
        return err;
    if ((err = keyring_get(c->k, &r->key.to, &h)) == KMS_OK &&
        (err = keyring_seal(c->k, h, r->key.purpose, r->key.object, key, a->u.key.blob)) ==
            KMS_OK &&
        (keyring_open(c->k, h, r->key.purpose, r->key.object, a->u.key.blob, back) != KMS_OK ||
         CRYPTO_memcmp(key, back, sizeof(key)) != 0))
        err = KMS_ERR_UNAVAILABLE;
    OPENSSL_cleanse(key, sizeof(key));
    OPENSSL_cleanse(back, sizeof(back));
    return err;
}

/* Lets go of all that is wrapped by this key, or is of this organisation, and of the key. */
static int
do_forget(struct custodian *c, const unsigned char id[HSM_ID_LEN])
{
    struct token *t = &c->t;
    int err;

    keyring_drop(c->k, id);
    if ((err = keks_forget(t, id)) != KMS_OK)
        return err;
    return t->root == NULL || t->root->handle == t->canary_root ? KMS_OK : canary_new(t);
}

static int
do_wrapping_key(struct custodian *c, const struct kek *parent, struct frame_answer *a)
{
    memcpy(a->u.wrapping_key.root, parent->id, HSM_ID_LEN);
    return keys_new_wrapping_key(&c->t, parent->handle, a->u.wrapping_key.wrapped,
                                 a->u.wrapping_key.kcv);
}

static int
do_life(struct custodian *c, enum frame_type type, const union frame_request *r,
        struct frame_answer *a)
{
    struct token *t = &c->t;
    enum hsm_kind kind = (enum hsm_kind)r->kept.kind;
    const struct kek *parent;
    int err;

    switch (type) {
    case FRAME_KEY_NEW:
        return life_key_new(t, kind, r->kept.id, a->u.bytes.b);
    case FRAME_KEY_DESTROY:
        keyring_drop(c->k, r->kept.id);
        return life_key_destroy(t, kind, r->kept.id);
    case FRAME_FORGET:
        return do_forget(c, r->kept.id);
    case FRAME_LIST:
        return life_list(t, kind, r->kept.id, a);
    case FRAME_IMPORT_PAIR:
        return life_import_pair(t, r->kept.id, r->kept.number, a);
    case FRAME_IMPORT:
        return life_import(t, r->import.id, r->import.pair, r->import.allow_128, r->import.ek,
                           r->import.len, a->u.bytes.b);
    case FRAME_WRAPPING_KEY_UNDER:
        if ((err = keys_kek(t, r->kept.id, &parent)) != KMS_OK)
            return err;
        return do_wrapping_key(c, parent, a);
    case FRAME_REWRAP:
        return life_rewrap(t, r->rewrap.from, r->rewrap.to, r->rewrap.wrapped, a->u.bytes.b);
    case FRAME_RESEAL:
        return do_reseal(c, r, a);
    default:
        return KMS_ERR_PROTOCOL;
    }
}

static int
do_item(struct custodian *c, enum frame_type type, unsigned index, const union frame_request *r,
        struct frame_answer *a)
{
    struct token *t = &c->t;

    switch (type) {
    case FRAME_GENERATE:
    case FRAME_WRAP:
    case FRAME_UNWRAP:
        return do_key(c, type, index, r, a);
    case FRAME_OAEP:
        if (t->static_key.handle == 0)
            return KMS_ERR_NOT_FOUND;
        c->opened++;
        return rsa_oaep_open(t, r->oaep.hash, r->oaep.ek, r->oaep.len, a->u.bytes.b);
    case FRAME_PSS:
        if (t->static_key.handle == 0)
            return KMS_ERR_NOT_FOUND;
        return rsa_sign_pss(t, r->digest, a->u.bytes.b, &a->u.bytes.len);
    case FRAME_AUDIT:
        if (t->audit_key == 0)
            return KMS_ERR_NOT_FOUND;
        return audit_sign(t, r->audit.msg, r->audit.len, a->u.bytes.b);
    case FRAME_RANDOM:
        a->u.bytes.len = r->random;
        return token_random(t, a->u.bytes.b, r->random);
    case FRAME_WRAPPING_KEY:
        if (t->root == NULL)
            return KMS_ERR_NOT_FOUND;
        return do_wrapping_key(c, t->root, a);
    default:
        return do_life(c, type, r, a);
    }
}

/* Codes that may be the token's fault as well as the caller's. */
static bool
is_in_doubt(int err)
{
    return err == KMS_ERR_CRYPTO || err == KMS_ERR_LIMIT;
}

enum verdict { ALL_WELL, REFUSED, FAULTY };

/* One pass over the items that have no lasting answer yet. */
static enum verdict
do_items(struct custodian *c, const struct frame_head *head)
{
    size_t in_size = frame_item_size(head->type, FRAME_REQUEST_WAY);
    size_t out_size = frame_item_size(head->type, FRAME_ANSWER_WAY);
    enum verdict verdict = ALL_WELL;
    union frame_request r;
    struct frame_answer a;

    c->t.looked = false;
    if (head->type == FRAME_GENERATE &&
        token_random(&c->t, c->random, head->count * (size_t)HSM_KEY_LEN) != KMS_OK)
        return FAULTY;
    for (unsigned i = 0; i < head->count; i++) {
        if (c->err[i] != KMS_ERR_AGAIN)
            continue;
        a.err = frame_request_get(head->type, &r, c->in + i * in_size);
        if (a.err == KMS_OK)
            a.err = do_item(c, head->type, i, &r, &a);
        if (is_in_doubt(a.err) && verdict == ALL_WELL)
            verdict = REFUSED;
        if (a.err == KMS_ERR_UNAVAILABLE)
            verdict = FAULTY;
        c->err[i] = a.err;
        frame_answer_put(head->type, &a, c->out + FRAME_HEAD_LEN + i * out_size);
    }
    OPENSSL_cleanse(&a, sizeof(a));
    OPENSSL_cleanse(&r, sizeof(r));
    return verdict;
}

/*
 * Recovery: a new session, then a new login, then a new process.  false: it is the process's turn.
 */
static bool
climb(struct custodian *c, unsigned step)
{
    enum frame_state state = FRAME_STATE_ABSENT;
    int err;

    token_complain(&c->t, step == 0   ? "token: trouble; trying a new session"
                          : step == 1 ? "token: trouble; trying a new login"
                                      : "token: trouble; leaving it to a new process");
    keyring_forget(c->k);
    if (step > 1)
        return false;
    err = step == 0 ? token_new_session(&c->t) : token_login_again(&c->t, &state);
    if (err == KMS_OK && canary_sings(&c->t, true))
        return true;
    if (state == FRAME_STATE_PIN_REFUSED || state == FRAME_STATE_PIN_LOCKED)
        report(c, state);
    return step == 0 && climb(c, 1);
}

/*
 * Does a frame's items, whatever it takes.  An item is refused for good only if the canary sings
 * afterwards: a code by itself says nothing about who is at fault.  false: give up, unanswered.
 */
static bool
do_frame(struct custodian *c, const struct frame_head *head)
{
    enum verdict verdict;

    for (unsigned i = 0; i < head->count; i++)
        c->err[i] = KMS_ERR_AGAIN;
    for (unsigned step = 0;; step++) {
        verdict = do_items(c, head);
        if (verdict == ALL_WELL || (verdict == REFUSED && canary_sings(&c->t, true)))
            return true;
        if (!climb(c, step))
            return false;
        for (unsigned i = 0; i < head->count; i++)
            if (is_in_doubt(c->err[i]) || c->err[i] == KMS_ERR_UNAVAILABLE)
                c->err[i] = KMS_ERR_AGAIN;
    }
}

/* Makes the keys; afterwards everything is found anew, in a new session.  The report goes first:
 * whoever hears that the keys are made can use them. */
static bool
do_init(struct custodian *c, const struct frame_head *head)
{
    union frame_request r;
    char trouble[sizeof(c->t.trouble)];
    int err = frame_request_get(FRAME_INIT, &r, c->in);

    c->t.trouble[0] = '\0';
    if (err == KMS_OK)
        err = keys_make(&c->t, r.rsa_bits);
    memcpy(trouble, c->t.trouble, sizeof(trouble));
    keyring_forget(c->k);
    if (token_new_session(&c->t) != KMS_OK ||
        (c->t.static_key.handle != 0 && probe_static_key(&c->t) != KMS_OK))
        return false;
    c->t.trouble[0] = '\0';
    if (!report(c, working_state(c)))
        return false;
    frame_error_put(FRAME_INIT, err, c->out + FRAME_HEAD_LEN);
    return answer(c, c->out, FRAME_INIT, head->seq, 1, trouble);
}

/* The items, and before their answers the word that a root came or went: whoever hears the answer
 * finds it so. */
static bool
do_and_answer(struct custodian *c, const struct frame_head *head)
{
    struct hsm_info info;

    if (!do_frame(c, head))
        return false;
    keys_to_info(&c->t, &info);
    if (memcmp(&info, &c->told, sizeof(info)) != 0 && !report(c, working_state(c)))
        return false;
    return answer(c, c->out, head->type, head->seq, head->count, NULL);
}

/* Modules leak: a process that made and destroyed much, or grew much, asks to be replaced. */
static bool
is_worn(struct custodian *c)
{
    if (c->t.churn > c->setup.recycle)
        return true;
    return ++c->frames % GROWTH_EVERY == 0 && resident_bytes() - c->resident > GROWTH_MAX;
}

/* Waits for a frame; looks after the token and the keys meanwhile.  false: the end of this process.
 */
static bool
wait_for_frame(struct custodian *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    int wait = c->setup.custody_process ? EXPIRE_MS : HEARTBEAT_MS, idle = 0;

    while (poll(&p, 1, wait) <= 0) {
        if (c->setup.custody_process)
            keyring_expire(c->k);
        if ((idle += wait) < HEARTBEAT_MS)
            continue;
        idle = 0;
        if (!canary_sings(&c->t, false) && !climb(c, 0))
            return false;
    }
    return true;
}

/* One frame.  false: the end of this process. */
static bool
serve(struct custodian *c)
{
    unsigned char b[FRAME_HEAD_LEN];
    struct frame_head head;
    unsigned long opened = c->opened;
    bool ok;

    if (!wait_for_frame(c) || !read_full(c->fd, b, sizeof(b)) ||
        frame_head_get(&head, FRAME_REQUEST_WAY, b) != KMS_OK ||
        !read_full(c->fd, c->in, head.len - FRAME_HEAD_LEN))
        return false;
    if (c->setup.custody_process)
        keyring_expire(c->k);
    ok = head.type == FRAME_INIT ? do_init(c, &head) : do_and_answer(c, &head);
    OPENSSL_cleanse(c->in, head.len - FRAME_HEAD_LEN);
    OPENSSL_cleanse(c->random, head.count * (size_t)HSM_KEY_LEN);
    OPENSSL_cleanse(c->out,
                    FRAME_HEAD_LEN + head.count * frame_item_size(head.type, FRAME_ANSWER_WAY));
    /* By count, not after a failure: when it comes must not tell what was opened before. */
    if (ok && opened / RSA_CANARY_EVERY != c->opened / RSA_CANARY_EVERY &&
        !rsa_canary_sings(&c->t)) {
        token_complain(&c->t, "token: the static key does not open any more");
        return false;
    }
    if (ok && !c->stale && is_worn(c)) {
        c->stale = true;
        ok = report(c, FRAME_STATE_STALE);
    }
    return ok;
}

/* Room for the keyring in locked memory; only custody = process has bare keys. */
static bool
secure_heap(void)
{
    int r = CRYPTO_secure_malloc_init(SECURE_HEAP, HSM_KEY_LEN);

    if (r == 2)
        log_warn("custodian: the secure heap is not locked; set LimitMEMLOCK", NULL);
    return r != 0;
}

/*
 * The supervisor died.  Its socket tells so too, once the module returns; killed at once, SoftHSM
 * can lose a token whose files it is just writing, at a login even all of it.
 */
static void
orphaned(int sig)
{
    alarm(ORPHAN_S);
}

int
custodian_main(void)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT};
    struct custodian *c = calloc(1, sizeof(*c));
    enum frame_state state;
    char name[32];

    /* The end of the supervisor's socket is the signal to go: a terminal's or a service manager's
     * comes too early. */
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
        signal(ignored[i], SIG_IGN);
    signal(SIGUSR1, orphaned);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    log_init("hsmd[custodian]");
    if (c == NULL || !read_full(CUSTODIAN_FD, &c->setup, sizeof(c->setup)) ||
        c->setup.size != sizeof(c->setup)) {
        log_error("custodian: is started by hsmd only", NULL);
        _exit(1);
    }
    c->fd = CUSTODIAN_FD;
    fcntl(c->fd, F_SETFD, FD_CLOEXEC);
    snprintf(name, sizeof(name), "hsmd[custodian %u]", c->setup.number);
    log_init(name);
    log_set_level((enum log_level)c->setup.log_level);
    harden_process();
    if ((c->setup.custody_process && !secure_heap()) || (c->k = keyring_new(&c->t)) == NULL) {
        log_error("custodian: out of memory", NULL);
        _exit(1);
    }
    state = token_open(&c->t, &c->setup);
    c->resident = resident_bytes();
    if (state != FRAME_STATE_READY && state != FRAME_STATE_EMPTY)
        log_error("token: cannot be worked with", "why", c->t.trouble, NULL);
    if (report(c, state) && (state == FRAME_STATE_READY || state == FRAME_STATE_EMPTY))
        while (serve(c))
            ;
    keyring_free(c->k);
    token_close(&c->t);
    /* Not exit: a module's own handlers run badly after C_Finalize. */
    _exit(0);
}
