/*
 * kmsctl_control.c - what officers decide: services, purposes, matters, rules, canaries,
 * destruction; and the approvals of other officers that most of it needs.
 *
 * Durations and dates are read here; what else an argument may be is for the server to say.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kms/kmsctl.h"
#include "kms/table.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"

#define DEFAULT_RATE    100
#define DEFAULT_BREADTH 1000
#define KEY_FILE_MAX    65536
#define SETTINGS_MAX    32 /* of one command */
#define MS              INT64_C(1000)

static const char *const all_kinds[] = {"space", "meeting", "file", "whiteboard", "calendar", NULL};

/* --- options --- */

const char *
opt_text(const struct ctl *ctl, const char *name)
{
    const json_t *all = json_object_get(ctl->values, name);

    return json_string_value(json_array_get(all, json_array_size(all) - 1));
}

int
opt_state(const struct ctl *ctl, const char *names, json_t *params)
{
    const char *state = opt_text(ctl, "state");
    size_t n = state != NULL ? strlen(state) : strcspn(names, " ");

    if (state == NULL)
        state = names;
    for (const char *s = names; *s != '\0'; s += strspn(s, " ")) {
        size_t m = strcspn(s, " ");

        if (m == n && strncmp(s, state, n) == 0) {
            if (n != 3 || strncmp(state, "all", n) != 0)
                json_object_set_new(params, "state", json_stringn(state, n));
            return 0;
        }
        s += m;
    }
    complain("--state: \"%s\" is none of: %s", state, names);
    return EXIT_USAGE;
}

/* All values of an option, each of which may be several with commas between them.  NULL: not given.
 */
static json_t *
opt_list(const struct ctl *ctl, const char *name)
{
    const json_t *all = json_object_get(ctl->values, name), *v;
    json_t *list;
    size_t i;

    if (all == NULL)
        return NULL;
    list = json_array();
    json_array_foreach(all, i, v)
    {
        const char *s = json_string_value(v);

        while (*s != '\0') {
            size_t n = strcspn(s, ",");

            if (n > 0)
                json_array_append_new(list, json_stringn(s, n));
            s += n + (s[n] == ',');
        }
    }
    return list;
}

/* 0, or an exit status after complaining.  Not given: *out stays. */
static int
opt_number(const struct ctl *ctl, const char *name, long long max, long long *out)
{
    const char *text = opt_text(ctl, name);
    char *end;
    long long n;

    if (text == NULL)
        return 0;
    errno = 0;
    n = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < 0 || n > max) {
        complain("--%s: \"%s\" is not a number from 0 to %lld", name, text, max);
        return EXIT_USAGE;
    }
    *out = n;
    return 0;
}

static int
missing(const char *command, const char *option)
{
    complain("%s needs --%s; see kmsctl %s --help", command, option, command);
    return EXIT_USAGE;
}

/* --- durations and dates --- */

static const struct {
    const char *name;
    int64_t ms;
} units[] = {
    {"w", 7 * 86400 * MS}, {"d", 86400 * MS}, {"h", 3600 * MS},
    {"m", 60 * MS},        {"s", MS},         {"ms", 1},
};
#define UNITS (sizeof(units) / sizeof(units[0]))

int
parse_duration(const char *text, int64_t *ms)
{
    char *end;
    long long n;

    if (!isdigit((unsigned char)text[0]))
        return KMS_ERR_SYNTAX;
    errno = 0;
    n = strtoll(text, &end, 10);
    if (n == 0 && *end == '\0') {
        *ms = 0;
        return KMS_OK;
    }
    for (size_t i = 0; errno == 0 && i < UNITS; i++) {
        if (strcmp(end, units[i].name) == 0 && n <= INT64_MAX / 2 / units[i].ms) {
            *ms = n * units[i].ms;
            return KMS_OK;
        }
    }
    return KMS_ERR_SYNTAX;
}

static void
put_duration(struct buf *out, int64_t ms)
{
    size_t i = 0;

    while (i < UNITS - 1 && ms % units[i].ms != 0)
        i++;
    if (ms == 0)
        buf_puts(out, "0");
    else
        buf_putf(out, "%" PRId64 "%s", ms / units[i].ms, units[i].name);
}

/* So many digits; -1: they are not all digits. */
static int
digits(const char **s, int n)
{
    int v = 0;

    for (; n > 0; n--, (*s)++) {
        if (!isdigit((unsigned char)**s))
            return -1;
        v = 10 * v + (**s - '0');
    }
    return v;
}

static bool
skip(const char **s, char ch)
{
    if (**s != ch)
        return false;
    (*s)++;
    return true;
}

/* RFC 3339, or YYYY-MM-DD for its midnight in UTC: milliseconds since 1970. */
static int
parse_time(const char *s, int64_t *ms)
{
    struct tm tm = {0}, back;
    int64_t offset = 0, fraction = 0;
    int h, m, sign;
    time_t t;

    tm.tm_year = digits(&s, 4) - 1900;
    if (tm.tm_year < 70 || !skip(&s, '-') || (tm.tm_mon = digits(&s, 2) - 1) < 0 ||
        !skip(&s, '-') || (tm.tm_mday = digits(&s, 2)) < 1)
        return KMS_ERR_SYNTAX;
    if (*s != '\0') {
        if (!skip(&s, 'T') && !skip(&s, 't') && !skip(&s, ' '))
            return KMS_ERR_SYNTAX;
        if ((tm.tm_hour = digits(&s, 2)) < 0 || !skip(&s, ':') || (tm.tm_min = digits(&s, 2)) < 0 ||
            !skip(&s, ':') || (tm.tm_sec = digits(&s, 2)) < 0)
            return KMS_ERR_SYNTAX;
        if (skip(&s, '.')) {
            int64_t unit = 100;

            if (!isdigit((unsigned char)*s))
                return KMS_ERR_SYNTAX;
            for (; isdigit((unsigned char)*s); s++, unit /= 10)
                fraction += (*s - '0') * unit;
        }
        if (!skip(&s, 'Z') && !skip(&s, 'z')) {
            sign = skip(&s, '+') ? 1 : skip(&s, '-') ? -1 : 0;
            if (sign == 0 || (h = digits(&s, 2)) < 0 || h > 23 || !skip(&s, ':') ||
                (m = digits(&s, 2)) < 0 || m > 59)
                return KMS_ERR_SYNTAX;
            offset = sign * (h * 3600 + m * 60) * MS;
        }
        if (*s != '\0')
            return KMS_ERR_SYNTAX;
    }
    /* What does not come back as it was is no date. */
    back = tm;
    if ((t = timegm(&back)) == (time_t)-1 || back.tm_mon != tm.tm_mon ||
        back.tm_mday != tm.tm_mday || back.tm_hour != tm.tm_hour || back.tm_min != tm.tm_min ||
        back.tm_sec != tm.tm_sec)
        return KMS_ERR_SYNTAX;
    *ms = (int64_t)t * MS + fraction - offset;
    return KMS_OK;
}

/* Sets params' member to the time that an option tells.  later: a duration from now will do.  0, or
 * an exit status after complaining; an option that is not given is passed over. */
static int
opt_time(const struct ctl *ctl, const char *name, bool later, json_t *params, const char *member)
{
    const char *text = opt_text(ctl, name);
    int64_t ms, length;

    if (text == NULL)
        return 0;
    if (parse_time(text, &ms) != KMS_OK) {
        if (!later || parse_duration(text, &length) != KMS_OK) {
            complain("--%s: \"%s\" is not a time; write 2026-01-31, 2026-01-31T08:00:00Z%s", name,
                     text, later ? ", or from now: 12h, 90d" : "");
            return EXIT_USAGE;
        }
        ms = (int64_t)time(NULL) * MS + length;
    }
    json_object_set_new(params, member, json_integer(ms));
    return 0;
}

/* --- approvals, for people --- */

static bool
is_duration(const char *setting)
{
    return setting != NULL &&
           (strcmp(setting, "dlp.age") == 0 || strcmp(setting, "approvals.lifetime") == 0 ||
            strncmp(setting, "retention.", strlen("retention.")) == 0);
}

/* A setting's value, which is text: durations as people write them. */
static json_t *
setting_value(const char *setting, const json_t *value)
{
    const char *text = json_string_value(value);
    struct buf out = BUF_INIT;
    json_t *v;

    if (text == NULL || !is_duration(setting))
        return json_deep_copy(value);
    put_duration(&out, strtoll(text, NULL, 10));
    v = json_string(buf_str(&out));
    buf_release(&out);
    return v;
}

static void
copy(json_t *to, const json_t *from, const char *const *names)
{
    for (; *names != NULL; names++) {
        json_t *v = json_object_get(from, *names);

        if (v != NULL)
            json_object_set(to, *names, v);
    }
}

/* What is asked for, by whom, what it would touch. */
static void
print_report(const json_t *p)
{
    static const char *const head[] = {"approval", "action", "org_name", NULL};
    static const char *const tail[] = {"requested_by", "created", "expires", "decided", NULL};
    static const char *const changed[] = {"before", "after", NULL};
    const char *setting = NULL, *text = json_string_value(json_object_get(p, "text"));
    json_t *o = json_object(), *args = json_deep_copy(json_object_get(p, "args"));
    json_t *impact = json_deep_copy(json_object_get(p, "impact")), *votes, *v;
    json_int_t needed = json_integer_value(json_object_get(p, "needed"));
    size_t i;

    setting = json_string_value(json_object_get(args, "name"));
    if (is_duration(setting)) {
        json_object_set_new(args, "value", setting_value(setting, json_object_get(args, "value")));
        for (i = 0; changed[i] != NULL; i++) {
            v = json_object_get(impact, changed[i]);
            if (v != NULL)
                json_object_set_new(impact, changed[i], setting_value(setting, v));
        }
    }
    /* Nobody reads it; what it is stands in the report, by its hash. */
    if (json_string_length(json_object_get(args, "ciphertext")) > 0)
        json_object_set_new(
            args, "ciphertext",
            json_sprintf("%zu bytes", json_string_length(json_object_get(args, "ciphertext")) / 2));
    if (json_is_string(json_object_get(impact, "waiting")))
        json_object_set_new(impact, "waiting",
                            setting_value("dlp.age", json_object_get(impact, "waiting")));
    copy(o, p, head);
    votes = json_object_get(p, "votes");
    json_object_set_new(o, "state",
                        json_sprintf("%s, %zu of %" JSON_INTEGER_FORMAT " officers",
                                     json_string_value(json_object_get(p, "state")),
                                     json_array_size(votes), needed));
    copy(o, p, tail);
    table_print_object(o, 0);
    if (json_object_size(args) > 0) {
        puts("\nwhat");
        table_print_object(args, 2);
    }
    if (text != NULL) {
        struct buf shown = BUF_INIT;

        puts("\ntext");
        for (; *text != '\0'; text += strcspn(text, "\n"), text += *text == '\n') {
            json_t *line = json_stringn(text, strcspn(text, "\n"));

            buf_reset(&shown);
            table_put_value(&shown, "", line);
            printf("  %s\n", buf_str(&shown));
            json_decref(line);
        }
        buf_release(&shown);
    }
    if (impact != NULL) {
        puts("\nimpact");
        table_print_object(impact, 2);
        json_object_clear(o);
        json_object_set(o, "hash", json_object_get(p, "hash"));
        putchar('\n');
        table_print_object(o, 0);
    }
    if (json_array_size(votes) > 0) {
        static const char *const columns[] = {"officer", "at", "stale", NULL};

        putchar('\n');
        table_print(votes, columns);
    }
    json_decref(impact);
    json_decref(args);
    json_decref(o);
}

/* What an officer may want to know next. */
static void
print_next(const char *action, const json_t *result)
{
    const char *id = json_string_value(json_object_get(result, "destruction"));

    if (id != NULL)
        printf("\nit waits until then; to take it back: kmsctl destruction undo %s\n", id);
    else if (action != NULL && strcmp(action, "root.rotate") == 0)
        puts("\nhow far it is: kmsctl rotation status --watch");
}

/* What comes of a call: an approval that waits or is done, or what was done at once.  known: its
 * report has just been shown.  An exit status. */
static int
print_outcome(struct ctl *ctl, const json_t *p, bool known)
{
    const char *state = json_string_value(json_object_get(p, "state"));
    const char *id = json_string_value(json_object_get(p, "approval"));
    const char *org = json_string_value(json_object_get(p, id != NULL ? "org_name" : "org"));
    const json_t *result = id != NULL ? json_object_get(p, "result") : p;
    const char *job = json_string_value(json_object_get(result, "job"));
    size_t votes = json_array_size(json_object_get(p, "votes"));
    json_int_t needed = json_integer_value(json_object_get(p, "needed"));
    json_int_t more = needed - (json_int_t)votes;
    bool done = state != NULL && strcmp(state, "done") == 0;

    if (id == NULL)
        table_print_object(p, 0);
    else if (!known)
        print_report(p);
    if (id != NULL && state != NULL && strcmp(state, "pending") == 0) {
        printf("\nnothing is done yet: %" JSON_INTEGER_FORMAT
               " more officer%s must agree:\n  kmsctl approvals approve %s\n",
               more > 0 ? more : 1, more > 1 ? "s" : "", id);
    } else if (id != NULL && done) {
        printf("\ndone: %zu of %" JSON_INTEGER_FORMAT " officers have agreed\n", votes, needed);
        if (job == NULL && json_object_size(result) > 0)
            table_print_object(result, 2);
        print_next(json_string_value(json_object_get(p, "action")), result);
    }
    return done && job != NULL && org != NULL ? cmk_wait(ctl, org, job) : EXIT_OK;
}

int
ask_and_tell(struct ctl *ctl, const char *method, json_t *params)
{
    json_t *result;
    int status = ask(ctl, method, params, &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        status = print_outcome(ctl, result, false);
    json_decref(result);
    return status;
}

/* A list as a table of these columns. */
static int
ask_and_list(struct ctl *ctl, const char *method, json_t *params, const char *const *columns)
{
    json_t *result;
    int status = ask(ctl, method, params, &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        table_print(result, columns);
    json_decref(result);
    return EXIT_OK;
}

/* --- approvals list, show, approve, reject --- */

static int
run_approvals_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {"approval",     "action",  "org_name", "state", "needed",
                                          "requested_by", "created", "expires",  NULL};
    json_t *params = json_object();
    int status = opt_state(ctl, "pending done rejected expired failed all", params);

    if (status != 0) {
        json_decref(params);
        return status;
    }
    return ask_and_list(ctl, "approval.list", params, columns);
}

static int
run_approvals_show(struct ctl *ctl, int argc, char **argv)
{
    json_t *result;
    int status =
        ask(ctl, "approval.show", json_pack("{s:s}", "approval", last_part(argv[0])), &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        print_report(result);
    json_decref(result);
    return EXIT_OK;
}

/* Shows the report as of now; *hash: borrowed from *report, which is the caller's. */
static int
look(struct ctl *ctl, const char *id, json_t **report, const char **hash)
{
    int status = ask(ctl, "approval.show", json_pack("{s:s}", "approval", id), report);

    if (status != 0)
        return status;
    if (!ctl->json)
        print_report(*report);
    *hash = json_string_value(json_object_get(*report, "hash"));
    return EXIT_OK;
}

/* On a terminal. */
static bool
confirmed(void)
{
    char line[16];

    fputs("\napprove this? [y/N] ", stdout);
    fflush(stdout);
    return fgets(line, sizeof(line), stdin) != NULL && (line[0] == 'y' || line[0] == 'Y');
}

static int
vote(struct ctl *ctl, const char *id, const char *hash, json_t **result, json_t **error)
{
    json_t *params = json_pack("{s:s}", "approval", id);

    if (hash != NULL)
        json_object_set_new(params, "hash", json_string(hash));
    return ask_quietly(ctl, "approval.approve", params, result, error);
}

/* An approval is always for a report that this officer has seen, or whose hash he gives. */
static int
approve(struct ctl *ctl, const char *id)
{
    const char *hash = opt_text(ctl, "hash"), *why;
    json_t *report = NULL, *result = NULL, *error = NULL;
    int status;

    if (hash == NULL && !ctl->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
        if ((status = look(ctl, id, &report, &hash)) != 0)
            return status;
        if (!confirmed()) {
            complain("not approved");
            json_decref(report);
            return EXIT_REFUSED;
        }
    }
    status = vote(ctl, id, hash, &result, &error);
    why = json_string_value(json_object_get(error, "message"));
    /* He has never looked: here it is, and this is what he agrees to.  An op is for one call. */
    if (hash == NULL && ctl->op == NULL && why != NULL && strcmp(why, "look at it first") == 0) {
        json_decref(error);
        error = NULL;
        if ((status = look(ctl, id, &report, &hash)) == 0)
            status = vote(ctl, id, hash, &result, &error);
    }
    if (error != NULL) {
        tell_error(ctl, "approval.approve", error);
    } else if (status == 0 && ctl->json) {
        print_json(result);
    } else if (status == 0) {
        status = print_outcome(ctl, result, report != NULL);
    }
    json_decref(error);
    json_decref(result);
    json_decref(report);
    return status;
}

static int
run_approvals_approve(struct ctl *ctl, int argc, char **argv)
{
    return approve(ctl, argv[0]);
}

static int
run_approvals_reject(struct ctl *ctl, int argc, char **argv)
{
    const char *why = opt_text(ctl, "why");
    json_t *params = json_pack("{s:s}", "approval", argv[0]);

    if (why != NULL)
        json_object_set_new(params, "why", json_string(why));
    return ask_and_tell(ctl, "approval.reject", params);
}

/* --- purposes --- */

static int
run_purpose_enable(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "purpose.enable",
                        json_pack("{s:s, s:s}", "org", argv[0], "purpose", argv[1]));
}

static int
run_purpose_disable(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "purpose.disable",
                        json_pack("{s:s, s:s}", "org", argv[0], "purpose", argv[1]));
}

/* params with the organisation that a list is of, if one is named. */
static json_t *
of_org(int argc, char **argv)
{
    json_t *params = json_object();

    if (argc > 0)
        json_object_set_new(params, "org", json_string(argv[0]));
    return params;
}

static int
run_purpose_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {"org_name", "purpose",  "enabled",
                                          "changed",  "services", NULL};

    return ask_and_list(ctl, "purpose.list", of_org(argc, argv), columns);
}

/* --- services --- */

/* The public half of a key, from a JWK or PEM.  NULL: after complaining. */
static json_t *
parse_public_key(const char *path, const char *text, size_t len)
{
    json_t *given = NULL, *jwk = NULL, *kid;
    EVP_PKEY *key = NULL;
    BIO *in = NULL;
    X509 *cert;

    if (text[strspn(text, " \t\r\n")] == '{') {
        if (kms_json_parse(&given, text, len) != KMS_OK)
            complain("--public-key: %s is not JSON", path);
        else if (jwk_has_private(given))
            complain("--public-key: %s holds a private or secret key; give the public one", path);
        else if (jwk_get_public(&key, given) != KMS_OK)
            complain("--public-key: %s is no public key of a kind that is known (RSA, EC P-256)",
                     path);
    } else if (strstr(text, "PRIVATE KEY") != NULL) {
        complain("--public-key: %s holds a private key; give the public one", path);
    } else if ((in = BIO_new_mem_buf(text, (int)len)) != NULL) {
        if ((cert = PEM_read_bio_X509(in, NULL, NULL, NULL)) != NULL) {
            key = X509_get_pubkey(cert);
            X509_free(cert);
        } else {
            BIO_reset(in);
            key = PEM_read_bio_PUBKEY(in, NULL, NULL, NULL);
        }
        if (key == NULL)
            complain("--public-key: %s holds neither a JWK nor a public key or certificate in PEM",
                     path);
    }
    if (key != NULL && (jwk = jwk_from_public(key)) == NULL)
        complain("--public-key: %s is of a kind that is not known (RSA, EC P-256)", path);
    if (jwk != NULL && (kid = json_object_get(given, "kid")) != NULL)
        json_object_set(jwk, "kid", kid);
    EVP_PKEY_free(key);
    BIO_free(in);
    ERR_clear_error();
    json_decref(given);
    return jwk;
}

static json_t *
read_public_key(const char *path)
{
    char *text = calloc(1, KEY_FILE_MAX + 1);
    json_t *jwk = NULL;
    FILE *f = NULL;
    size_t n;

    if (text == NULL) {
        complain("out of memory");
    } else if ((f = fopen(path, "re")) == NULL) {
        complain("--public-key: %s: %s", path, strerror(errno));
    } else {
        n = fread(text, 1, KEY_FILE_MAX, f);
        jwk = parse_public_key(path, text, n);
        OPENSSL_cleanse(text, n); /* it may have been the private one */
    }
    if (f != NULL)
        fclose(f);
    free(text);
    return jwk;
}

/* Sets what the options of a service say; *params is what it was before, or new. */
static int
service_options(const struct ctl *ctl, json_t *params)
{
    static const struct {
        const char *option, *member;
    } lists[] = {{"purpose", "purposes"}, {"org", "orgs"}, {"kind", "kinds"}};
    const char *identity = opt_text(ctl, "identity"), *path = opt_text(ctl, "public-key");
    long long rate = -1, breadth = -1;
    json_t *v;
    int status;

    if (identity != NULL)
        json_object_set_new(params, "identity", json_string(identity));
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        if ((v = opt_list(ctl, lists[i].option)) != NULL)
            json_object_set_new(params, lists[i].member, v);
    }
    if ((status = opt_number(ctl, "rate", 1000000, &rate)) != 0 ||
        (status = opt_number(ctl, "breadth", 1000000000, &breadth)) != 0)
        return status;
    if (rate >= 0)
        json_object_set_new(params, "rate", json_integer(rate));
    if (breadth >= 0)
        json_object_set_new(params, "breadth", json_integer(breadth));
    if (path != NULL && strcmp(path, "none") == 0) {
        json_object_del(params, "public_key");
    } else if (path != NULL) {
        if ((v = read_public_key(path)) == NULL)
            return EXIT_USAGE;
        json_object_set_new(params, "public_key", v);
    }
    return 0;
}

static json_t *
kinds_new(void)
{
    json_t *list = json_array();

    for (size_t i = 0; all_kinds[i] != NULL; i++)
        json_array_append_new(list, json_string(all_kinds[i]));
    return list;
}

static int
run_service_add(struct ctl *ctl, int argc, char **argv)
{
    static const char *const needed[] = {"identity", "purpose", "org"};
    json_t *params;
    int status;

    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (opt_text(ctl, needed[i]) == NULL)
            return missing("service add", needed[i]);
    }
    params = json_pack("{s:s, s:o, s:i, s:i}", "service", argv[0], "kinds", kinds_new(), "rate",
                       DEFAULT_RATE, "breadth", DEFAULT_BREADTH);
    if ((status = service_options(ctl, params)) != 0) {
        json_decref(params);
        return status;
    }
    return ask_and_tell(ctl, "service.add", params);
}

/* An action replaces all of it, so that an approval shows all of it. */
static int
run_service_change(struct ctl *ctl, int argc, char **argv)
{
    static const char *const members[] = {"service", "identity", "purposes",   "orgs", "kinds",
                                          "rate",    "breadth",  "public_key", NULL};
    json_t *params, *now;
    int status;

    if (json_object_size(ctl->values) == 0) {
        complain("say what to change; see kmsctl service change --help");
        return EXIT_USAGE;
    }
    if ((status = ask(ctl, "service.show", json_pack("{s:s}", "service", argv[0]), &now)) != 0)
        return status;
    params = json_object();
    copy(params, now, members);
    json_decref(now);
    if (json_is_null(json_object_get(params, "public_key")))
        json_object_del(params, "public_key");
    if ((status = service_options(ctl, params)) != 0) {
        json_decref(params);
        return status;
    }
    return ask_and_tell(ctl, "service.change", params);
}

static int
run_service_retire(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "service.retire", json_pack("{s:s}", "service", argv[0]));
}

static int
run_service_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {"service", "state",   "purposes", "orgs", "kinds",
                                          "rate",    "breadth", "identity", NULL};

    return ask_and_list(ctl, "service.list", json_object(), columns);
}

static int
run_service_show(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "service.show", json_pack("{s:s}", "service", argv[0]));
}

static int
run_service_revoke(struct ctl *ctl, int argc, char **argv)
{
    const char *issuer = opt_text(ctl, "issuer");
    json_t *params = json_pack("{s:s}", "serial", argv[0]);

    if (issuer != NULL)
        json_object_set_new(params, "issuer", json_string(issuer));
    return ask_and_tell(ctl, "certificate.revoke", params);
}

/* --- matters --- */

static int
run_matter_open(struct ctl *ctl, int argc, char **argv)
{
    static const char *const needed[] = {"custodian", "from", "to", "expires"};
    json_t *params, *kinds;
    int status;

    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (opt_text(ctl, needed[i]) == NULL)
            return missing("matter open", needed[i]);
    }
    if ((kinds = opt_list(ctl, "kind")) == NULL)
        kinds = kinds_new();
    params = json_pack("{s:s, s:s, s:o, s:o}", "org", argv[0], "name", argv[1], "custodians",
                       opt_list(ctl, "custodian"), "kinds", kinds);
    if ((status = opt_time(ctl, "from", false, params, "from")) != 0 ||
        (status = opt_time(ctl, "to", false, params, "to")) != 0 ||
        (status = opt_time(ctl, "expires", true, params, "expires")) != 0 ||
        (status = opt_time(ctl, "sealed-until", true, params, "sealed_until")) != 0) {
        json_decref(params);
        return status;
    }
    return ask_and_tell(ctl, "matter.open", params);
}

/* A matter and what approves it have one id. */
static int
run_matter_approve(struct ctl *ctl, int argc, char **argv)
{
    json_t *matter;
    int status = ask(ctl, "matter.show", json_pack("{s:s}", "matter", last_part(argv[0])), &matter);

    json_decref(matter);
    return status != 0 ? status : approve(ctl, last_part(argv[0]));
}

static int
run_matter_show(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_show(ctl, "matter.show", json_pack("{s:s}", "matter", last_part(argv[0])));
}

static int
run_matter_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {"matter",    "org_name", "name",    "state", "custodians",
                                          "opened_by", "opened",   "expires", NULL};
    json_t *params = of_org(argc, argv);
    int status = opt_state(ctl, "all pending open expired closed rejected", params);

    if (status != 0) {
        json_decref(params);
        return status;
    }
    return ask_and_list(ctl, "matter.list", params, columns);
}

static int
run_matter_close(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "matter.close", json_pack("{s:s}", "matter", last_part(argv[0])));
}

/* --- rules --- */

/* SETTING=VALUE as params of setting.set; NULL: after complaining. */
static json_t *
parse_setting(const char *org, const char *text)
{
    const char *eq = strchr(text, '=');
    json_t *params;
    char name[64], value[32];
    int64_t ms;

    if (eq == NULL || eq == text || (size_t)(eq - text) >= sizeof(name)) {
        complain("\"%s\" is not SETTING=VALUE", text);
        return NULL;
    }
    memcpy(name, text, (size_t)(eq - text));
    name[eq - text] = '\0';
    if (is_duration(name)) {
        if (parse_duration(eq + 1, &ms) != KMS_OK) {
            complain("%s: \"%s\" is not a duration; write 24h or 90d", name, eq + 1);
            return NULL;
        }
        snprintf(value, sizeof(value), "%" PRId64, ms);
        eq = NULL;
    }
    params = json_pack("{s:s, s:s}", "name", name, "value", eq != NULL ? eq + 1 : value);
    if (params == NULL)
        complain("\"%s\" is no text", text);
    else if (org != NULL)
        json_object_set_new(params, "org", json_string(org));
    return params;
}

/* Each is an action of its own.  With --json one of them is an object, several are an array. */
static int
set_settings(struct ctl *ctl, const char *org, int argc, char **argv)
{
    json_t *params[SETTINGS_MAX], *results = json_array(), *result;
    int status = 0, n = 0;

    if (argc > 1 && ctl->op != NULL) {
        complain("--op is for one setting");
        status = EXIT_USAGE;
    }
    for (; status == 0 && n < argc; n++) {
        if ((params[n] = parse_setting(org, argv[n])) == NULL) {
            status = EXIT_USAGE;
            break;
        }
    }
    for (int i = 0; i < n; i++) {
        if (status != 0) {
            json_decref(params[i]);
            continue;
        }
        if ((status = ask(ctl, "setting.set", params[i], &result)) != 0)
            continue;
        if (!ctl->json) {
            if (i > 0)
                putchar('\n');
            print_outcome(ctl, result, false);
        }
        json_array_append_new(results, result);
    }
    if (ctl->json && argc == 1 && status == 0)
        print_json(json_array_get(results, 0));
    else if (ctl->json && json_array_size(results) > 0)
        print_json(results);
    json_decref(results);
    return status;
}

static int
list_settings(struct ctl *ctl, json_t *params)
{
    static const char *const columns[] = {"name", "value", "default", "changed", NULL};
    json_t *result, *row;
    size_t i;
    int status = ask(ctl, "setting.list", params, &result);

    if (status != 0)
        return status;
    if (ctl->json) {
        print_json(result);
    } else {
        json_array_foreach(result, i, row)
        {
            const char *name = json_string_value(json_object_get(row, "name"));

            json_object_set_new(row, "value", setting_value(name, json_object_get(row, "value")));
        }
        table_print(result, columns);
    }
    json_decref(result);
    return EXIT_OK;
}

static int
run_org_set(struct ctl *ctl, int argc, char **argv)
{
    return set_settings(ctl, argv[0], argc - 1, argv + 1);
}

static int
run_org_get(struct ctl *ctl, int argc, char **argv)
{
    return list_settings(ctl, of_org(argc, argv));
}

static int
run_rule_set(struct ctl *ctl, int argc, char **argv)
{
    return set_settings(ctl, NULL, argc, argv);
}

static int
run_rule_list(struct ctl *ctl, int argc, char **argv)
{
    return list_settings(ctl, json_object());
}

/* --- canaries, destruction, the stream --- */

static int
run_canary_add(struct ctl *ctl, int argc, char **argv)
{
    const char *note = opt_text(ctl, "note");

    return ask_and_tell(
        ctl, "canary.add",
        json_pack("{s:s, s:s}", "resource", last_part(argv[0]), "note", note != NULL ? note : ""));
}

static int
run_canary_remove(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "canary.remove", json_pack("{s:s}", "resource", last_part(argv[0])));
}

static int
run_canary_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const columns[] = {"resource", "org_name", "created", "note", NULL};

    return ask_and_list(ctl, "canary.list", of_org(argc, argv), columns);
}

static int
run_audit_suspend(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "audit.suspend", json_object());
}

static int
run_audit_resume(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "audit.resume", json_object());
}

/* Those that need other officers say so in their help. */
const struct command control_commands[] = {
    {"purpose enable", "ORG PURPOSE", 2, 2, "",
     "let services ask for keys of it under a purpose (needs approval)", run_purpose_enable},
    {"purpose disable", "ORG PURPOSE", 2, 2, "",
     "let services ask for no keys of it under a purpose any more, at once", run_purpose_disable},
    {"purpose list", "[ORG]", 0, 1, "", "purposes, on or off, and the services that have them",
     run_purpose_list},
    {"service add", "NAME", 1, 1, "ipgyrBP", "register a cloud service (needs approval)",
     run_service_add},
    {"service change", "NAME", 1, 1, "ipgyrBP",
     "change a registration; what is not named stays (needs approval)", run_service_change},
    {"service retire", "NAME", 1, 1, "", "give it nothing any more, for ever", run_service_retire},
    {"service list", "", 0, 0, "", "all services", run_service_list},
    {"service show", "NAME", 1, 1, "", "one service, and what it may do where", run_service_show},
    {"service revoke-certificate", "SERIAL", 1, 1, "I",
     "take a certificate no more, by its serial number in hexadecimal", run_service_revoke},
    {"matter open", "ORG NAME", 2, 2, "CFTEyS",
     "ask for a matter: whose keys, of which time, until when (needs approval)", run_matter_open},
    {"matter approve", "ID", 1, 1, "H", "agree to a matter that another officer asks for",
     run_matter_approve},
    {"matter show", "ID", 1, 1, "", "one matter: its text, state and hash", run_matter_show},
    {"matter list", "[ORG]", 0, 1, "t",
     "matters, the newest first; --state: pending, open, expired, closed, rejected, all",
     run_matter_list},
    {"matter close", "ID", 1, 1, "", "release nothing under it any more, at once",
     run_matter_close},
    {"approvals list", "", 0, 0, "t",
     "what waits for officers; --state: pending, done, rejected, expired, failed, all",
     run_approvals_list},
    {"approvals show", "ID", 1, 1, "", "what is asked for, and what it touches as of now",
     run_approvals_show},
    {"approvals approve", "ID", 1, 1, "H",
     "agree, to the report that you were shown last; nobody agrees to his own",
     run_approvals_approve},
    {"approvals reject", "ID", 1, 1, "w",
     "end what is asked for; who asked for it takes it back so", run_approvals_reject},
    {"org set", "NAME SETTING=VALUE...", 2, 1 + SETTINGS_MAX, "",
     "change its settings (needs approval where it opens up, or destroys earlier)", run_org_set},
    {"org get", "NAME", 1, 1, "", "an organisation's settings", run_org_get},
    {"rule set", "SETTING=VALUE...", 1, SETTINGS_MAX, "",
     "change the installation's settings (needs approval where it loosens)", run_rule_set},
    {"rule list", "", 0, 0, "", "the installation's settings", run_rule_list},
    {"canary add", "RESOURCE", 1, 1, "N", "raise an alarm when a key of it is retrieved",
     run_canary_add},
    {"canary remove", "RESOURCE", 1, 1, "", "raise no alarm for it any more", run_canary_remove},
    {"canary list", "[ORG]", 0, 1, "", "all canaries", run_canary_list},
    {"audit suspend", "", 0, 0, "", "stop the stream to the syslog collector (needs approval)",
     run_audit_suspend},
    {"audit resume", "", 0, 0, "",
     "let the stream to the syslog collector go on from where it stopped", run_audit_resume},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
