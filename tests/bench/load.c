/*
 * load.c - a load on a running server, for tests/bench/run.sh: how many messages a second come back
 * right.
 *
 *   load --url U --domain D --ca FILE --token-key FILE --token-kid K --issuer I --audience A
 *        --org O --mode release|create|channel|idle|service|beside|closing
 *        [--connections C] [--messages M] [--seconds S] [--keys N] [--cert FILE --key FILE]
 *        [--rounds R] [--pids P,P,...] [--turn COMMAND]
 *
 * Everything that costs the client is done before the clock starts: the POSTs are sealed ahead and
 * sent round and round (the protocol has no replay rule for requests), one process a connection.
 * Afterwards each process opens its last answer and checks that every message in it succeeded;
 * counts are of messages whose HTTP answer was 200.  Prints one line: "messages/s N".
 *
 * The mode service compares the same release to a user and to a service (--cert and --key, of one
 * that may have the organisation's spaces for indexing): the same keys, over the same connections
 * with the same workers (a bearer makes a user of who has a certificate), turn by turn in rounds of
 * S seconds for each, R rounds (--rounds), so that whatever else the machine does meets both alike.
 * Connections are made anew for each round, as workers are not all the same.  Prints "user/s N",
 * "service/s N" (medians) and "service.cost R", the median of what it cost in each round as a
 * multiple; with --pids, the server's processes, also the processor time they took for a message
 * ("user.us", "service.us") and its multiple ("service.cpu").
 *
 * The mode beside takes such turns for a user only, alone and beside something that --turn starts
 * and stops: COMMAND alone begin, COMMAND alone end, COMMAND beside begin, COMMAND beside end run
 * around the turns, outside of what is measured; one that fails ends it all.  Prints "alone/s N",
 * "beside/s N" and "slower R", the medians, R being how many percent slower a round's turn was.
 *
 * The mode closing asks until keys are refused, and then for S seconds more.  Every message is
 * looked at.  Prints "begun" when each connection has got keys, and at the end "released N",
 * "refused N", "code C", and when (seconds since 1970) the last key came and the last request was
 * sent that got one, and the first refusal came: "last.came T", "last.sent T", "first.refused T".
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <limits.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kms/client.h"
#include "kms/https.h"
#include "kms/mint.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwe.h"
#include "proto/jwk.h"
#include "proto/jws.h"
#include "proto/kdf.h"
#include "proto/secret.h"

#define BODIES     64 /* different POSTs that a connection sends round and round */
#define ROUNDS_MAX 1000
#define CLOSING_S  60 /* for so long it may go on giving keys */

static struct {
    const char *url, *domain, *ca, *mode, *cert, *key, *pids, *turn;
    struct mint mint;
    int connections, messages, keys, rounds;
    double seconds;
} opt = {
    .mode = "release", .connections = 4, .messages = 50, .seconds = 5, .keys = 1000, .rounds = 7};

/* What the processes share. */
static struct board {
    atomic_int ready, go, failed;
    atomic_llong done;
    /* Of the mode service: turns that were begun (go) and ended; how many have ended theirs. */
    atomic_int stop, ended;
    /* Of the mode closing: what came, and when, in nanoseconds since 1970. */
    atomic_llong released, refused, last_came, last_sent, first_refused;
    atomic_int code;
} * board;

static struct https *http;
static EVP_PKEY *server_key;
static char server_kid[512];
static struct buf token = BUF_INIT;

/* Whose channel it is. */
static struct who {
    bool service;
    struct secret *key;
    char uri[256];
} user, service = {.service = true}, *who = &user;

static void
die(const char *what, int err)
{
    fprintf(stderr, "load: %s: %s\n", what, kms_strerror(err));
    if (board != NULL)
        atomic_store(&board->failed, 1);
    exit(1);
}

static double
now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
connect_server(void)
{
    int r = https_new(&http, opt.url, opt.ca, 30);

    if (r == KMS_OK && opt.cert != NULL)
        r = https_set_certificate(http, opt.cert, opt.key);
    if (r != KMS_OK)
        die(https_error(http), r);
}

static json_t *
post(const char *body, size_t len, int *status)
{
    struct buf answer = BUF_INIT;
    json_t *j = NULL;
    int r;

    r = https_exchange(http, "POST", "/encryption/api/v1/kms/messages", body, len, status, &answer);
    if (r != KMS_OK)
        die(https_error(http), r);
    if ((r = kms_json_parse(&j, buf_str(&answer), answer.len)) != KMS_OK)
        die("the answer is no JSON", r);
    buf_release(&answer);
    return j;
}

/* The static key, as a client learns and checks it. */
static void
learn_server(void)
{
    struct buf answer = BUF_INIT;
    json_t *j = NULL, *jwk = NULL;
    const char *kid, *why = "", *text;
    int status, r;

    r = https_exchange(http, "GET", "/encryption/api/v1/kms/bench", NULL, 0, &status, &answer);
    if (r != KMS_OK || status != 200)
        die(https_error(http), r);
    if (kms_json_parse(&j, buf_str(&answer), answer.len) != KMS_OK ||
        (text = json_string_value(json_object_get(j, "rsaPublicKey"))) == NULL ||
        kms_json_parse(&jwk, text, strlen(text)) != KMS_OK)
        die("the static key cannot be read", KMS_ERR_PROTOCOL);
    r = client_check_static_key(&server_key, &kid, jwk, opt.domain, https_cas(http), &why);
    if (r != KMS_OK)
        die(why, r);
    snprintf(server_kid, sizeof(server_kid), "%s", kid);
    json_decref(jwk);
    json_decref(j);
    buf_release(&answer);
}

/* A request's text; what is added to it by the caller is owned by it. */
static json_t *
request(const char *method, const char *uri)
{
    static int n;
    char id[32];

    snprintf(id, sizeof(id), "bench-%d", ++n);
    return json_pack("{s:{s:s, s:o}, s:s, s:s, s:s}", "client", "clientId", "bench", "credential",
                     who->service ? json_object() : json_pack("{s:s}", "bearer", buf_str(&token)),
                     "method", method, "uri", uri, "requestId", id);
}

/* The compact text of an ephemeral key request for a fresh pair. */
static void
seal_channel(struct buf *out, EVP_PKEY *pair)
{
    json_t *q = request("create", "/ecdhe");
    struct buf plain = BUF_INIT;
    int r;

    json_object_set_new(q, "jwk", jwk_from_public(pair));
    if ((r = kms_json_put(&plain, q)) != KMS_OK ||
        (r = jwe_seal_rsa(out, server_kid, JWE_RSA_OAEP, server_key, plain.data, plain.len)) !=
            KMS_OK)
        die("sealing", r);
    json_decref(q);
    buf_release(&plain);
}

static void
seal(struct buf *out, json_t *q)
{
    struct buf plain = BUF_INIT;
    int r;

    if ((r = kms_json_put(&plain, q)) != KMS_OK ||
        (r = jwe_seal_dir(out, who->uri, who->key->b, plain.data, plain.len)) != KMS_OK)
        die("sealing", r);
    json_decref(q);
    buf_release(&plain);
}

static void
body_begin(struct buf *b)
{
    buf_putf(b, "{\"destination\":\"kms://%s\",\"kmsMessages\":[", opt.domain);
}

/* Opens one answer. */
static json_t *
open_message(const char *text)
{
    struct jwe jwe;
    struct jws jws;
    struct buf plain = BUF_INIT;
    json_t *j = NULL;
    int r;

    if (jwe_parse(&jwe, text, strlen(text)) == KMS_OK)
        r = jwe_open(&jwe, who->key->b, &plain);
    else if ((r = jws_parse(&jws, text, strlen(text))) == KMS_OK &&
             (r = jws_verify(&jws, server_key)) == KMS_OK)
        r = jws_payload(&jws, &plain);
    if (r == KMS_OK)
        r = kms_json_parse(&j, buf_str(&plain), plain.len);
    if (r != KMS_OK)
        die("an answer does not open", r);
    buf_release(&plain);
    return j;
}

static bool
is_success(const json_t *answer)
{
    return json_integer_value(json_object_get(answer, "status")) / 100 == 2;
}

/* Opens one answer; its status must be a success. */
static json_t *
open_answer(const char *text)
{
    json_t *j = open_message(text);

    if (!is_success(j)) {
        char *shown = json_dumps(j, 0);

        fprintf(stderr, "load: refused: %s\n", shown);
        die("a message did not succeed", KMS_ERR_STATE);
    }
    return j;
}

static json_t *
call(json_t *q)
{
    struct buf body = BUF_INIT;
    json_t *j, *answer;
    int status;

    body_begin(&body);
    buf_putc(&body, '"');
    seal(&body, q);
    buf_puts(&body, "\"]}");
    j = post(buf_str(&body), body.len, &status);
    if (status != 200)
        die("the request was refused", KMS_ERR_STATE);
    answer = open_answer(json_string_value(json_array_get(json_object_get(j, "kmsMessages"), 0)));
    json_decref(j);
    buf_release(&body);
    return answer;
}

static void
open_channel(void)
{
    EVP_PKEY *pair = ecdh_generate(), *peer = NULL;
    struct buf body = BUF_INIT;
    json_t *j, *answer;
    int status, r;

    body_begin(&body);
    buf_putc(&body, '"');
    seal_channel(&body, pair);
    buf_puts(&body, "\"]}");
    j = post(buf_str(&body), body.len, &status);
    if (status != 200)
        die("no channel", KMS_ERR_STATE);
    answer = open_answer(json_string_value(json_array_get(json_object_get(j, "kmsMessages"), 0)));
    if ((r = jwk_get_p256(&peer, json_object_get(json_object_get(answer, "key"), "jwk"))) !=
            KMS_OK ||
        (r = ecdh_channel_key(&who->key, pair, peer)) != KMS_OK)
        die("no channel key", r);
    snprintf(who->uri, sizeof(who->uri), "%s",
             json_string_value(json_object_get(json_object_get(answer, "key"), "uri")));
    json_decref(answer);
    json_decref(j);
    EVP_PKEY_free(pair);
    EVP_PKEY_free(peer);
    buf_release(&body);
}

/* Bound keys, in resources of so many each. */
static char **
make_keys(int n, int each)
{
    char **uris = calloc((size_t)n, sizeof(*uris));
    int have = 0;
    size_t i;

    while (have < n) {
        json_t *q = request("create", "/keys"), *a, *k, *list = json_array();

        json_object_set_new(q, "count", json_integer(each));
        a = call(q);
        json_array_foreach(json_object_get(a, "keys"), i, k)
        {
            if (have < n)
                uris[have++] = strdup(json_string_value(json_object_get(k, "uri")));
            json_array_append(list, json_object_get(k, "uri"));
        }
        json_decref(a);
        q = request("create", "/resources");
        json_object_set_new(q, "keyUris", list);
        json_decref(call(q));
    }
    return uris;
}

/* The POSTs that a connection sends. */
static void
build(struct buf bodies[BODIES], char **uris)
{
    int b, m;

    for (b = 0; b < BODIES; b++) {
        body_begin(&bodies[b]);
        for (m = 0; m < opt.messages; m++) {
            json_t *q;

            buf_puts(&bodies[b], m == 0 ? "\"" : ",\"");
            if (strcmp(opt.mode, "channel") == 0) {
                EVP_PKEY *pair = ecdh_generate();

                seal_channel(&bodies[b], pair);
                EVP_PKEY_free(pair);
            } else if (strcmp(opt.mode, "create") == 0) {
                q = request("create", "/keys");
                json_object_set_new(q, "count", json_integer(10));
                seal(&bodies[b], q);
            } else {
                q = request("retrieve", uris[random() % opt.keys]);
                if (who->service)
                    json_object_set_new(q, "purpose", json_string("indexing"));
                seal(&bodies[b], q);
            }
            buf_putc(&bodies[b], '"');
        }
        buf_puts(&bodies[b], "]}");
    }
}

/* One POST, whose answer is left in answer. */
static void
send_one(const struct buf *body, struct buf *answer)
{
    int status, r;

    buf_reset(answer);
    r = https_exchange(http, "POST", "/encryption/api/v1/kms/messages", body->data, body->len,
                       &status, answer);
    if (r != KMS_OK)
        die(https_error(http), r);
    if (status != 200)
        die("HTTP did not answer 200", KMS_ERR_STATE);
}

/* Every message of an answer is there, and each is opened by `each`. */
static void
for_answers(const struct buf *answer, void (*each)(const char *text))
{
    json_t *j = NULL;
    const json_t *m;
    size_t k;
    int r;

    if ((r = kms_json_parse(&j, buf_str(answer), answer->len)) != KMS_OK)
        die("the answer is no JSON", r);
    json_array_foreach(json_object_get(j, "kmsMessages"), k, m)
    {
        each(json_string_value(m));
    }
    if (k != (size_t)opt.messages)
        die("answers are missing", KMS_ERR_PROTOCOL);
    json_decref(j);
}

static void
check_answer(const char *text)
{
    json_decref(open_answer(text));
}

static void
wait_for(atomic_int *count, int until)
{
    while (atomic_load(count) < until && !atomic_load(&board->failed))
        usleep(200);
}

/* One connection: warm up, wait for the others, send until the time is over. */
static void
run(int number, char **uris)
{
    struct buf bodies[BODIES] = {0}, answer = BUF_INIT;
    double end;
    long long done = 0;
    int i, status;

    srandom((unsigned)number + 1);
    connect_server();
    build(bodies, uris);
    json_decref(post(buf_str(&bodies[0]), bodies[0].len, &status));
    atomic_fetch_add(&board->ready, 1);
    while (!atomic_load(&board->go))
        usleep(1000);
    end = now() + opt.seconds;
    for (i = 0; now() < end; i = (i + 1) % BODIES) {
        send_one(&bodies[i], &answer);
        done += opt.messages;
    }
    atomic_fetch_add(&board->done, done);
    for_answers(&answer, check_answer);
}

/* --- turns: a service beside a user, or a user alone and beside something --- */

static struct who *both[] = {&user, &service};

/* Whose turn it is; each goes first as often as the other. */
static int
whose(int turn)
{
    return (turn / 2 + turn) % 2;
}

/* One connection: takes each turn as the parent calls it, two to a round. */
static void
take_turns(int number, char **uris)
{
    struct buf bodies[2][BODIES] = {0}, answer[2] = {BUF_INIT, BUF_INIT};
    int status, k;

    for (k = 0; k < 2; k++) {
        who = both[k];
        srandom((unsigned)number + 1); /* the same keys in the same order */
        build(bodies[k], uris);
    }
    for (int turn = 0; turn < 2 * opt.rounds; turn++) {
        if (turn % 2 == 0) {
            if (turn > 0)
                https_free(http);
            connect_server();
            for (k = 0; k < 2; k++)
                json_decref(post(buf_str(&bodies[k][0]), bodies[k][0].len, &status));
        }
        k = whose(turn);
        atomic_fetch_add(&board->ready, 1);
        while (atomic_load(&board->go) <= turn)
            usleep(200);
        for (int i = 0; atomic_load(&board->stop) <= turn; i = (i + 1) % BODIES) {
            send_one(&bodies[k][i], &answer[k]);
            atomic_fetch_add(&board->done, opt.messages);
        }
        atomic_fetch_add(&board->ended, 1);
    }
    for (k = 0; k < 2 && !atomic_load(&board->failed); k++) {
        who = both[k];
        for_answers(&answer[k], check_answer);
    }
}

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double
median(double *list, int n)
{
    qsort(list, (size_t)n, sizeof(*list), by_value);
    return (list[(n - 1) / 2] + list[n / 2]) / 2;
}

/* Seconds of processor that the server's processes (--pids) have had so far. */
static double
server_cpu(void)
{
    const char *p = opt.pids;
    double sum = 0;

    while (p != NULL && *p != '\0') {
        char path[64], *end;
        long pid = strtol(p, &end, 10);
        unsigned long long ns;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%ld/schedstat", pid);
        if ((f = fopen(path, "re")) != NULL) {
            if (fscanf(f, "%llu", &ns) == 1)
                sum += (double)ns / 1e9;
            fclose(f);
        }
        p = *end != '\0' ? end + 1 : end;
    }
    return sum;
}

/* Tells --turn which turn begins or ends. */
static void
tell_turn(int k, const char *what)
{
    char command[PATH_MAX];

    if (opt.turn == NULL)
        return;
    snprintf(command, sizeof(command), "%s %s %s", opt.turn, k == 0 ? "alone" : "beside", what);
    if (system(command) != 0)
        atomic_store(&board->failed, 1);
}

static void
print_beside(double rate[2][ROUNDS_MAX])
{
    double slower[ROUNDS_MAX];

    for (int i = 0; i < opt.rounds; i++)
        slower[i] = 100 - 100 * rate[1][i] / rate[0][i];
    printf("alone/s %.0f\n", median(rate[0], opt.rounds));
    printf("beside/s %.0f\n", median(rate[1], opt.rounds));
    printf("slower %.1f\n", median(slower, opt.rounds));
}

/* Calls the turns, and prints what came of them. */
static void
call_turns(void)
{
    static double rate[2][ROUNDS_MAX], cpu[2][ROUNDS_MAX], cost[ROUNDS_MAX];

    for (int turn = 0; turn < 2 * opt.rounds; turn++) {
        long long before, done;
        double start, used;
        int k = whose(turn);

        wait_for(&board->ready, (turn + 1) * opt.connections);
        tell_turn(k, "begin");
        before = atomic_load(&board->done);
        used = server_cpu();
        start = now();
        atomic_store(&board->go, turn + 1);
        usleep((useconds_t)(opt.seconds * 1e6));
        atomic_store(&board->stop, turn + 1);
        wait_for(&board->ended, (turn + 1) * opt.connections);
        done = atomic_load(&board->done) - before;
        rate[k][turn / 2] = (double)done / (now() - start);
        cpu[k][turn / 2] = (server_cpu() - used) / (double)done;
        tell_turn(k, "end");
        if (atomic_load(&board->failed)) {
            atomic_store(&board->stop, INT_MAX);
            atomic_store(&board->go, INT_MAX);
            return;
        }
    }
    if (opt.turn != NULL) {
        print_beside(rate);
        return;
    }
    for (int i = 0; i < opt.rounds; i++)
        cost[i] = rate[0][i] / rate[1][i];
    printf("user/s %.0f\n", median(rate[0], opt.rounds));
    printf("service/s %.0f\n", median(rate[1], opt.rounds));
    printf("service.cost %.2f\n", median(cost, opt.rounds));
    if (opt.pids == NULL)
        return;
    for (int i = 0; i < opt.rounds; i++)
        cost[i] = cpu[1][i] / cpu[0][i];
    printf("user.us %.0f\n", median(cpu[0], opt.rounds) * 1e6);
    printf("service.us %.0f\n", median(cpu[1], opt.rounds) * 1e6);
    printf("service.cpu %.2f\n", median(cost, opt.rounds));
}

/* --- until keys are refused --- */

static long long
wall_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (long long)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
at_least(atomic_llong *at, long long t)
{
    long long was = atomic_load(at);

    while (was < t && !atomic_compare_exchange_weak(at, &was, t))
        ;
}

static long long sent, came; /* of the POST whose answers are looked at */

static void
count_answer(const char *text)
{
    json_t *j = open_message(text);
    long long none = 0;

    if (is_success(j)) {
        atomic_fetch_add(&board->released, 1);
        at_least(&board->last_came, came);
        at_least(&board->last_sent, sent);
    } else {
        atomic_fetch_add(&board->refused, 1);
        atomic_compare_exchange_strong(&board->first_refused, &none, came);
        atomic_store(&board->code, (int)json_integer_value(json_object_get(j, "errorCode")));
    }
    json_decref(j);
}

/* One connection: asks until some have been refused for so long. */
static void
ask_until_closed(int number, char **uris)
{
    struct buf bodies[BODIES] = {0}, answer = BUF_INIT;
    long long closed;

    srandom((unsigned)number + 1);
    connect_server();
    build(bodies, uris);
    for (int i = 0;; i++) {
        sent = wall_ns();
        send_one(&bodies[i % BODIES], &answer);
        came = wall_ns();
        for_answers(&answer, count_answer);
        if (i == 0)
            atomic_fetch_add(&board->ready, 1);
        closed = atomic_load(&board->first_refused);
        if (closed != 0 && (double)(came - closed) / 1e9 > opt.seconds)
            break;
        if (atomic_load(&board->stop) != 0)
            die("keys are not refused", KMS_ERR_STATE);
    }
}

static void
tell_closing(void)
{
    double end = now() + CLOSING_S;

    wait_for(&board->ready, opt.connections);
    if (atomic_load(&board->refused) == 0)
        printf("begun\n");
    fflush(stdout);
    while (atomic_load(&board->first_refused) == 0 && !atomic_load(&board->failed) && now() < end)
        usleep(10000);
    if (atomic_load(&board->first_refused) == 0)
        atomic_store(&board->stop, 1);
}

static void
print_closing(void)
{
    printf("released %lld\nrefused %lld\ncode %d\n", (long long)atomic_load(&board->released),
           (long long)atomic_load(&board->refused), atomic_load(&board->code));
    printf("last.came %.6f\n", (double)atomic_load(&board->last_came) / 1e9);
    printf("last.sent %.6f\n", (double)atomic_load(&board->last_sent) / 1e9);
    printf("first.refused %.6f\n", (double)atomic_load(&board->first_refused) / 1e9);
}

/* Holds idle connections while the reader of our output measures the server. */
static void
idle(void)
{
    int i;

    for (i = 0; i < opt.connections; i++) {
        struct buf answer = BUF_INIT;
        int status;

        connect_server();
        if (https_exchange(http, "GET", "/encryption/api/v1/kms/bench", NULL, 0, &status,
                           &answer) != KMS_OK)
            die(https_error(http), KMS_ERR_SYSTEM);
        buf_release(&answer);
    }
    printf("idle %d\n", opt.connections);
    fflush(stdout);
    usleep((useconds_t)(opt.seconds * 1e6));
}

static void
options(int argc, char **argv)
{
    static const struct option known[] = {
        {"url", 1, NULL, 'u'},       {"domain", 1, NULL, 'd'},
        {"ca", 1, NULL, 'a'},        {"token-key", 1, NULL, 'k'},
        {"token-kid", 1, NULL, 'K'}, {"issuer", 1, NULL, 'i'},
        {"audience", 1, NULL, 'A'},  {"org", 1, NULL, 'o'},
        {"mode", 1, NULL, 'm'},      {"connections", 1, NULL, 'c'},
        {"messages", 1, NULL, 'n'},  {"seconds", 1, NULL, 's'},
        {"keys", 1, NULL, 'N'},      {"cert", 1, NULL, 'C'},
        {"key", 1, NULL, 'y'},       {"rounds", 1, NULL, 'r'},
        {"pids", 1, NULL, 'p'},      {"turn", 1, NULL, 't'},
        {NULL, 0, NULL, 0},
    };
    int o;

    while ((o = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (o) {
        case 'u':
            opt.url = optarg;
            break;
        case 'd':
            opt.domain = optarg;
            break;
        case 'a':
            opt.ca = optarg;
            break;
        case 'k':
            opt.mint.key_file = optarg;
            break;
        case 'K':
            opt.mint.kid = optarg;
            break;
        case 'i':
            opt.mint.issuer = optarg;
            break;
        case 'A':
            opt.mint.audience = optarg;
            break;
        case 'o':
            opt.mint.org = optarg;
            break;
        case 'm':
            opt.mode = optarg;
            break;
        case 'c':
            opt.connections = atoi(optarg);
            break;
        case 'n':
            opt.messages = atoi(optarg);
            break;
        case 's':
            opt.seconds = atof(optarg);
            break;
        case 'N':
            opt.keys = atoi(optarg);
            break;
        case 'C':
            opt.cert = optarg;
            break;
        case 'y':
            opt.key = optarg;
            break;
        case 'r':
            opt.rounds = atoi(optarg);
            break;
        case 'p':
            opt.pids = optarg;
            break;
        case 't':
            opt.turn = optarg;
            break;
        default:
            exit(2);
        }
    }
    if (opt.url == NULL || opt.domain == NULL || opt.ca == NULL || opt.mint.key_file == NULL ||
        opt.mint.kid == NULL || opt.mint.issuer == NULL || opt.mint.audience == NULL ||
        opt.mint.org == NULL || opt.connections < 1 || opt.messages < 1 || opt.messages > 100 ||
        opt.keys < 1 || opt.rounds < 1 || opt.rounds > ROUNDS_MAX ||
        (opt.cert == NULL) != (opt.key == NULL) ||
        (strcmp(opt.mode, "service") == 0 && opt.cert == NULL) ||
        (strcmp(opt.mode, "beside") == 0) != (opt.turn != NULL)) {
        fprintf(stderr,
                "load: options are missing or out of range; its file says which there are\n");
        exit(2);
    }
    opt.mint.subject = "bench";
    opt.mint.scope = "spark:kms";
    opt.mint.lifetime = 3600;
}

int
main(int argc, char **argv)
{
    char **uris = NULL;
    bool compare, turns, closing;
    int i, status, r, bad = 0;

    options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    kms_json_init();
    secret_heap_init(
        4u << 20); /* OpenSSL keeps its ephemeral keys there as well, one a connection */
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED)
        return 1;
    if ((r = mint_token(&token, &opt.mint, (int64_t)time(NULL))) != KMS_OK)
        die("no token", r);
    if (strcmp(opt.mode, "idle") == 0) {
        idle();
        return 0;
    }
    connect_server();
    learn_server();
    open_channel();
    compare = strcmp(opt.mode, "service") == 0;
    turns = compare || strcmp(opt.mode, "beside") == 0;
    closing = strcmp(opt.mode, "closing") == 0;
    if (turns || closing || strcmp(opt.mode, "release") == 0)
        uris = make_keys(opt.keys, compare ? 10 : 100);
    if (compare) {
        who = &service;
        open_channel();
    } else {
        both[1] = &user;
    }
    https_free(http);
    for (i = 0; i < opt.connections; i++) {
        fflush(NULL);
        if (fork() == 0) {
            if (turns)
                take_turns(i, uris);
            else if (closing)
                ask_until_closed(i, uris);
            else
                run(i, uris);
            exit(0);
        }
    }
    if (turns) {
        call_turns();
    } else if (closing) {
        tell_closing();
    } else {
        wait_for(&board->ready, opt.connections);
        atomic_store(&board->go, 1);
    }
    for (i = 0; i < opt.connections; i++)
        if (wait(&status) < 0 || status != 0)
            bad++;
    if (bad > 0 || atomic_load(&board->failed))
        return 1;
    if (closing)
        print_closing();
    if (turns || closing)
        return 0;
    printf("messages/s %.0f\n", (double)atomic_load(&board->done) / opt.seconds);
    return 0;
}
