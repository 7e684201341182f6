/*
 * kmsctl_destroy.c - destruction: commands that wait and can be undone, what tonight's run would
 * destroy, and the certificates of what was destroyed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kms/kmsctl.h"
#include "kms/kmsctl_log.h"
#include "kms/table.h"
#include "proto/buf.h"
#include "proto/err.h"
#include "proto/note.h"

#define FIRST_LINE "kms destruction certificate 1\n"

/* --- commands --- */

static int
run_key_destroy(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "key.destroy", json_pack("{s:s}", "key", last_part(argv[0])));
}

static int
run_resource_destroy(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "resource.destroy",
                        json_pack("{s:s}", "resource", last_part(argv[0])));
}

static int
run_recording_destroy(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "recording.destroy",
                        json_pack("{s:s}", "recording", last_part(argv[0])));
}

static int
run_org_destroy(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "org.destroy", json_pack("{s:s}", "org", argv[0]));
}

static int
run_undo(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "destruction.undo", json_pack("{s:s}", "destruction", argv[0]));
}

static int
run_confirm_clock(struct ctl *ctl, int argc, char **argv)
{
    return ask_and_tell(ctl, "clock.confirm", json_object());
}

/* --- lists --- */

static json_t *
org_params(int argc, char **argv)
{
    return argc > 0 ? json_pack("{s:s}", "org", argv[0]) : json_object();
}

/* A table of an answer that is a list. */
static int
ask_and_list(struct ctl *ctl, const char *method, json_t *params, const char *const *names)
{
    json_t *result;
    int status = ask(ctl, method, params, &result);

    if (status != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        table_print(result, names);
    json_decref(result);
    return EXIT_OK;
}

static int
run_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const names[] = {"destruction", "org_name", "kind",    "target",
                                        "state",       "due",      "held_by", "requested_by",
                                        "certificate", NULL};
    json_t *params = org_params(argc, argv);
    int status = opt_state(ctl, "waiting undone done all", params);

    if (status != 0) {
        json_decref(params);
        return status;
    }
    return ask_and_list(ctl, "destruction.list", params, names);
}

static int
run_certificate_list(struct ctl *ctl, int argc, char **argv)
{
    static const char *const names[] = {"certificate", "org_name", "why",
                                        "created",     "signed",   NULL};
    json_t *params = org_params(argc, argv);

    json_object_set_new(params, "limit", json_integer(ctl->limit));
    return ask_and_list(ctl, "certificate.list", params, names);
}

static void
put_text(const json_t *o, const char *name)
{
    struct buf text = BUF_INIT;

    table_put_value(&text, name, json_object_get(o, name));
    fputs(buf_str(&text), stdout);
    buf_release(&text);
}

#define BEHIND_MS                                                                                  \
    60000 /* where officers may confirm the clock, as sql/0013_destruction.sql has it */

static int
run_clock(struct ctl *ctl, int argc, char **argv)
{
    static const struct {
        const char *name, *text;
    } rows[] = {{"now", "the database's clock"},
                {"trusted", "accounted for by nodes"},
                {"used", "what is destroyed goes by"}};
    json_t *result;
    int status = ask(ctl, "clock.show", json_object(), &result);
    bool behind;

    if (status != 0)
        return status;
    behind = json_integer_value(json_object_get(result, "used")) + BEHIND_MS <
             json_integer_value(json_object_get(result, "now"));
    if (ctl->json) {
        print_json(result);
    } else {
        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
            printf("%-27s", rows[i].text);
            put_text(result, rows[i].name);
            putchar('\n');
        }
        puts(json_is_true(json_object_get(result, "held"))
                 ? "\nThe database's clock is in question: it is ahead of what the nodes' clocks "
                   "account for, and\nnothing is destroyed by it.  Set it right, or confirm it: "
                   "kmsctl retention confirm-clock"
             : behind ? "\nThe database's clock was set ahead: what is destroyed follows it by an "
                        "hour in a day, so that\nnothing goes early.  To have it follow at once: "
                        "kmsctl retention confirm-clock"
                      : "\nIt is trusted.");
    }
    json_decref(result);
    return EXIT_OK;
}

/* --- what tonight's run would do --- */

static json_int_t
figure(const json_t *figures, const char *name)
{
    return json_integer_value(json_object_get(figures, name));
}

/* "3 resources", "1 key" */
static void
put_count(json_int_t n, const char *what)
{
    printf("%" JSON_INTEGER_FORMAT " %s%s", n, what, n == 1 ? "" : "s");
}

static void
put_figures(const json_t *org)
{
    static const struct {
        const char *name, *text;
    } rows[] = {{"resources", "resources"},
                {"keys", "keys"},
                {"recordings", "recordings and transcripts"},
                {"commands", "commands of officers"},
                {"held", "kept by matters"}};
    const json_t *now = json_object_get(org, "figures"),
                 *before = json_object_get(org, "yesterday");

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_int_t n = figure(now, rows[i].name), was = figure(before, rows[i].name);

        printf("  %-28s %10" JSON_INTEGER_FORMAT, rows[i].text, n);
        if (json_is_object(before))
            printf("   yesterday %" JSON_INTEGER_FORMAT " (%+" JSON_INTEGER_FORMAT ")", was,
                   n - was);
        else if (i == 0)
            printf("   no figures of yesterday to compare with");
        putchar('\n');
    }
}

static void
put_preview(const json_t *p, json_int_t limit)
{
    static const char *const items[] = {
        "org_name",        "kind",   "id", "why", "due", "keys", "recordings", "held_keys",
        "held_recordings", "matter", NULL};
    static const char *const months[] = {"month", "key", "kcv", "wrapping_keys", NULL};
    const json_t *orgs = json_object_get(p, "organisations"), *o, *m, *list;
    size_t i, k;

    printf("What is due until ");
    put_text(p, "until");
    putchar('\n');
    if (json_is_true(json_object_get(json_object_get(p, "clock"), "held")))
        puts("The database's clock is in question: nothing is destroyed by it until it is set "
             "right, or confirmed (kmsctl retention confirm-clock).");
    if (json_array_size(orgs) == 0)
        puts("\nNothing.");
    json_array_foreach(orgs, i, o)
    {
        printf("\n%s\n", json_string_value(json_object_get(o, "org_name")));
        put_figures(o);
        list = json_object_get(o, "held");
        json_array_foreach(list, k, m)
        {
            printf("    %s keeps ", json_string_value(json_object_get(m, "matter")));
            put_count(figure(m, "resources"), "resource");
            fputs(", ", stdout);
            put_count(figure(m, "keys"), "key");
            fputs(", ", stdout);
            put_count(figure(m, "recordings"), "recording");
            fputs(": ", stdout);
            put_text(m, "name");
            putchar('\n');
        }
        if (figure(o, "destroyed") > 0) {
            fputs("  in the last 24 hours ", stdout);
            put_count(figure(o, "destroyed"), "certificate");
            puts(" of destruction");
        }
    }
    if (json_array_size(json_object_get(p, "items")) > 0) {
        putchar('\n');
        table_print(json_object_get(p, "items"), items);
        if ((json_int_t)json_array_size(json_object_get(p, "items")) == limit)
            puts("There may be more: --limit");
    }
    if (json_array_size(json_object_get(p, "months")) > 0) {
        puts("\nMonths that end, and the keys that go with them:");
        table_print(json_object_get(p, "months"), months);
    }
}

static int
run_preview(struct ctl *ctl, int argc, char **argv)
{
    json_t *params = org_params(argc, argv), *result;
    int status;

    json_object_set_new(params, "limit", json_integer(ctl->limit));
    if ((status = ask(ctl, "retention.preview", params, &result)) != 0)
        return status;
    if (ctl->json)
        print_json(result);
    else
        put_preview(result, ctl->limit);
    json_decref(result);
    return EXIT_OK;
}

/* --- certificates --- */

static int
write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    bool good = f != NULL && fputs(text, f) >= 0;

    if (f == NULL || fclose(f) != 0 || !good) {
        complain("cannot write %s: %s", path, strerror(errno));
        return EXIT_REFUSED;
    }
    return EXIT_OK;
}

static int
run_certificate_show(struct ctl *ctl, int argc, char **argv)
{
    json_t *result;
    const char *note;
    int status = ask(ctl, "certificate.show", json_pack("{s:s}", "certificate", argv[0]), &result);

    if (status != 0)
        return status;
    note = json_string_value(json_object_get(result, "note"));
    if (ctl->json) {
        print_json(result);
    } else if (note == NULL) {
        complain("it is not signed yet; the text:");
        fputs(json_string_value(json_object_get(result, "text")), stdout);
        status = EXIT_REFUSED;
    } else if (ctl->out != NULL) {
        status = write_file(ctl->out, note);
    } else {
        fputs(note, stdout);
    }
    json_decref(result);
    return status;
}

static int
read_file(struct buf *text, const char *path)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char chunk[4096];
    size_t n;
    int r = KMS_OK;

    if (f == NULL) {
        complain("cannot read %s: %s", path, strerror(errno));
        return EXIT_REFUSED;
    }
    while (r == KMS_OK && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        r = text->len + n > NOTE_MAX ? KMS_ERR_LENGTH : buf_put(text, chunk, n);
    if (f != stdin)
        fclose(f);
    if (r != KMS_OK) {
        complain("%s is no certificate: it is too long", path);
        return EXIT_REFUSED;
    }
    return EXIT_OK;
}

/* For people and programs. */
static int
not_good(const struct ctl *ctl, const char *path, const char *why)
{
    json_t *out;

    if (ctl->json) {
        out = json_pack("{s:b, s:s}", "good", 0, "why", why);
        print_json(out);
        json_decref(out);
    }
    complain("%s: %s", path, why);
    return EXIT_REFUSED;
}

/* Needs nothing but the file and the key. */
static int
run_certificate_verify(struct ctl *ctl, int argc, char **argv)
{
    struct buf text = BUF_INIT;
    struct note_key key;
    struct note note;
    int status, r;

    if (ctl->key == NULL) {
        complain("certificate verify needs --key: what kmsctl audit key has printed for its "
                 "organisation, kept where the server's owner cannot change it");
        return EXIT_USAGE;
    }
    if ((status = read_note_key(&key, ctl->key)) != 0)
        return status;
    if ((status = read_file(&text, argv[0])) == EXIT_OK) {
        if ((r = note_parse(&note, buf_str(&text), text.len)) != KMS_OK ||
            note.text_len < strlen(FIRST_LINE) ||
            memcmp(note.text, FIRST_LINE, strlen(FIRST_LINE)) != 0) {
            status = not_good(ctl, argv[0], "no certificate of destruction");
        } else if ((r = note_verify(&note, &key, NULL)) != KMS_OK) {
            status = not_good(ctl, argv[0],
                              r == KMS_ERR_NOT_FOUND ? "no signature by this key"
                                                     : "the signature is wrong: it was changed");
        } else if (ctl->json) {
            json_t *out = json_pack("{s:b,s:s,s:s%}", "good", 1, "key", key.name, "text", note.text,
                                    note.text_len);

            print_json(out);
            json_decref(out);
        } else {
            printf("%.*s\nGood: signed by %s\n", (int)note.text_len, note.text, key.name);
        }
    }
    buf_release(&text);
    return status;
}

const struct command destroy_commands[] = {
    {"key destroy", "ID", 1, 1, "",
     "destroy a content key for ever (needs approval, then waits and can be undone)",
     run_key_destroy},
    {"resource destroy", "ID", 1, 1, "",
     "destroy all keys and recordings of a resource (needs approval, then waits and can be undone)",
     run_resource_destroy},
    {"recording destroy", "ID", 1, 1, "",
     "destroy the key of a recording or transcript (needs approval, then waits and can be undone)",
     run_recording_destroy},
    {"org destroy", "NAME", 1, 1, "",
     "destroy all that an organisation has (needs approval, then waits and can be undone)",
     run_org_destroy},
    {"destruction list", "[ORG]", 0, 1, "t",
     "what waits to be destroyed, and what holds it; --state: waiting, undone, done, all",
     run_list},
    {"destruction undo", "ID", 1, 1, "",
     "take a command to destroy back, at once; until its waiting period is over", run_undo},
    {"retention preview", "[ORG]", 0, 1, "n",
     "what tonight's run would destroy, what matters keep, and what has changed since yesterday",
     run_preview},
    {"retention clock", "", 0, 0, "", "by which time things are destroyed", run_clock},
    {"retention confirm-clock", "", 0, 0, "",
     "say that a clock that was found far ahead is right (needs approval)", run_confirm_clock},
    {"certificate list", "[ORG]", 0, 1, "n", "certificates of what was destroyed",
     run_certificate_list},
    {"certificate show", "ID", 1, 1, "o", "a certificate of destruction, as a signed note",
     run_certificate_show},
    {"certificate verify", "FILE --key KEY", 1, 1, "k",
     "check a certificate by its organisation's key, without a server", run_certificate_verify},
    {NULL, NULL, 0, 0, NULL, NULL, NULL},
};
