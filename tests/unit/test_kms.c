/* test_kms.c - the small parts of kmsd that need no database: rates, answers, database parameters.
 */
#include <criterion/criterion.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kms/answer.h"
#include "kms/rate.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/msg.h"

#define SECOND 1000000

Test(rate, zero_is_no_limit)
{
    struct rate *r = rate_new(0, 16);
    int i;

    for (i = 0; i < 10000; i++)
        cr_assert(rate_take(r, "a", 100, 0));
    rate_free(r);
}

Test(rate, a_burst_is_two_seconds_worth_and_then_the_rate)
{
    struct rate *r = rate_new(10, 16);
    int i, n = 0;

    for (i = 0; i < 100; i++)
        n += rate_take(r, "a", 1, SECOND);
    cr_assert_eq(n, 20);
    cr_assert_not(rate_take(r, "a", 1, SECOND + 50000), "half a token is none");
    cr_assert(rate_take(r, "a", 1, SECOND + 100000), "a tenth of a second is one token");
    for (n = 0, i = 0; i < 100; i++)
        n += rate_take(r, "a", 1, 100 * (int64_t)SECOND);
    cr_assert_eq(n, 20, "a long pause gives no more than a burst");
    rate_free(r);
}

Test(rate, names_do_not_share_a_bucket)
{
    struct rate *r = rate_new(1, 4096);
    char name[32];
    int i;

    for (i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "user-%d", i);
        cr_assert(rate_take(r, name, 2, SECOND));
    }
    for (i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "user-%d", i);
        cr_assert_not(rate_take(r, name, 1, SECOND));
    }
    rate_free(r);
}

Test(rate, a_batch_larger_than_a_burst_passes_a_full_bucket_and_leaves_a_debt)
{
    struct rate *r = rate_new(10, 16);

    cr_assert(rate_take(r, "relay", 100, SECOND));
    cr_assert_not(rate_take(r, "relay", 1, SECOND + SECOND));
    rate_free(r);
}

Test(rate, names_with_rates_of_their_own_share_a_table)
{
    struct rate *r = rate_new(0, 16);
    int i;

    for (i = 0; i < 4; i++)
        cr_assert(rate_take_of(r, "slow", 2, 1, SECOND));
    cr_assert_not(rate_take_of(r, "slow", 2, 1, SECOND));
    for (i = 0; i < 200; i++)
        cr_assert(rate_take_of(r, "quick", 100, 1, SECOND));
    cr_assert_not(rate_take_of(r, "quick", 100, 1, SECOND));
    cr_assert(rate_take_of(r, "slow", 0, 1000, SECOND));
    cr_assert(rate_take_of(r, "slow", 2, 1, SECOND + SECOND / 2));
    rate_free(r);
}

Test(rate, strangers_names_do_not_grow_the_table)
{
    struct rate *r = rate_new(1, 64);
    char name[32];
    int i;

    for (i = 0; i < 100000; i++) {
        snprintf(name, sizeof(name), "stranger-%d", i);
        rate_take(r, name, 1, i);
    }
    rate_free(r);
}

static struct rate_shared *
rate_shared_new(void)
{
    struct rate_shared *r =
        mmap(NULL, sizeof(*r), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    cr_assert_neq(r, MAP_FAILED);
    cr_assert(rate_shared_init(r));
    return r;
}

Test(rate_shared, a_burst_is_one_seconds_worth_and_then_the_rate)
{
    static const int rates[] = {1, 2, 3, 7, 100, 999, 1000000};
    struct rate_shared *r = rate_shared_new();

    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        int rate = rates[i], n = 0;
        int64_t now = SECOND, end = 11 * (int64_t)SECOND;
        char name[32];

        snprintf(name, sizeof(name), "service-%d", rate);
        while (rate_shared_take(r, name, rate, now) == RATE_YES)
            n++;
        cr_assert_eq(n, rate, "%d at once, not %d", rate, n);
        if (rate > 1000)
            continue;
        for (n = 0; now < end; now += 100)
            n += rate_shared_take(r, name, rate, now) == RATE_YES;
        cr_assert(n <= 10 * rate && n >= 10 * rate - 1, "%d in ten seconds, not %d", 10 * rate, n);
        now += 1000 * (int64_t)SECOND;
        for (n = 0; rate_shared_take(r, name, rate, now) == RATE_YES;)
            n++;
        cr_assert_eq(n, rate, "a long pause gives no more than a burst");
    }
    for (int i = 0; i < 10000; i++)
        cr_assert_eq(rate_shared_take(r, "unlimited", 0, SECOND), RATE_YES);
    munmap(r, sizeof(*r));
}

/* At one moment, four processes at once ask for far more than there is, of some names that all are
 * new: each name gives exactly its rate, whoever gets it.  A second later once more. */
Test(rate_shared, is_exact_over_processes)
{
    enum { PROCESSES = 4, NAMES = 50, RATE = 200 };
    struct rate_shared *r = rate_shared_new();
    atomic_int *got = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    atomic_int *go = &got[NAMES];

    cr_assert_neq(got, MAP_FAILED);
    for (int second = 1; second <= 5; second++) {
        int status;

        memset(got, 0, 4096);
        for (int p = 0; p < PROCESSES; p++) {
            pid_t pid = fork();

            cr_assert_geq(pid, 0);
            if (pid > 0)
                continue;
            atomic_fetch_add(go, 1);
            while (atomic_load(go) < PROCESSES)
                sched_yield();
            for (int i = 0; i < NAMES * RATE; i++) {
                char name[32];

                snprintf(name, sizeof(name), "service-%d", i % NAMES);
                if (rate_shared_take(r, name, RATE, second * (int64_t)SECOND) == RATE_YES)
                    atomic_fetch_add(&got[i % NAMES], 1);
            }
            _exit(0);
        }
        for (int p = 0; p < PROCESSES; p++)
            cr_assert(wait(&status) > 0 && status == 0);
        for (int i = 0; i < NAMES; i++)
            cr_assert_eq(atomic_load(&got[i]), RATE, "%d", atomic_load(&got[i]));
    }
    munmap(got, 4096);
    munmap(r, sizeof(*r));
}

Test(rate_shared, says_when_it_is_full_and_forgets_nobody)
{
    struct rate_shared *r = rate_shared_new();
    char name[32];

    for (int i = 0; i < RATE_SLOTS; i++) {
        snprintf(name, sizeof(name), "service-%d", i);
        cr_assert_eq(rate_shared_take(r, name, 1, SECOND), RATE_YES);
    }
    cr_assert_eq(rate_shared_take(r, "one more", 1, SECOND), RATE_NO_SLOT);
    for (int i = 0; i < RATE_SLOTS; i++) {
        snprintf(name, sizeof(name), "service-%d", i);
        cr_assert_eq(rate_shared_take(r, name, 1, SECOND), RATE_NO);
    }
    munmap(r, sizeof(*r));
}

/* What a text becomes in an answer, read back by the parser that everything else uses. */
Test(answer, any_text_comes_back_as_it_was)
{
    static const char *const texts[] = {"", "plain", "\"quoted\" \\ back", "\n\t\r\b\f\x01\x1f",
                                        "ünïcødé 😀"};
    size_t i;

    kms_json_init();
    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct buf out = BUF_INIT;
        struct answer a;
        json_t *id = json_string(texts[i]), *j = NULL;

        answer_begin(&a, &out, 200, id);
        answer_text(&a, "text", texts[i]);
        answer_open(&a, "list", '[');
        answer_int(&a, NULL, 1);
        answer_int(&a, NULL, -2);
        answer_open(&a, NULL, '{');
        answer_close(&a, '}');
        answer_close(&a, ']');
        cr_assert_eq(answer_end(&a), KMS_OK);
        cr_assert_eq(kms_json_parse(&j, buf_str(&out), out.len), KMS_OK, "%s", buf_str(&out));
        cr_assert_str_eq(json_string_value(json_object_get(j, "text")), texts[i]);
        cr_assert_str_eq(json_string_value(json_object_get(j, "requestId")), texts[i]);
        cr_assert_eq(json_array_size(json_object_get(j, "list")), 3);
        json_decref(j);
        json_decref(id);
        buf_release(&out);
    }
}

Test(answer, an_integer_request_id_stays_an_integer)
{
    struct buf out = BUF_INIT;
    json_t *id = json_integer(42);

    cr_assert_eq(answer_error(&out, KMS_CODE_NOT_FOUND, id, "gone"), KMS_OK);
    cr_assert_str_eq(buf_str(&out),
                     "{\"status\":404,\"requestId\":42,\"reason\":\"gone\",\"errorCode\":404001}");
    json_decref(id);
    buf_release(&out);
}

Test(answer, every_code_has_a_reason)
{
    static const int codes[] = {400001, 400002, 400003, 401001, 401002, 403001, 403002,
                                403003, 403004, 403005, 403006, 403007, 403009, 403010,
                                404001, 405005, 405006, 409001, 409002, 410001, 413001,
                                429001, 499001, 503001, 503002, 503003};
    size_t i;

    for (i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
        cr_assert_neq(kms_code_reason(codes[i])[0], '\0', "%d", codes[i]);
}
