/*
 * kmsctl.h - what the files with commands of kmsctl share.  kmsctl_main.c has the table of commands
 * and the rest.
 */
#ifndef KMS_KMSCTL_H
#define KMS_KMSCTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Exit statuses, documented in kmsctl(8). */
enum { EXIT_OK = 0, EXIT_REFUSED = 1, EXIT_USAGE = 2, EXIT_UNREACHABLE = 3 };

/* What the options said, and the connection. */
struct ctl {
    char *socket; /* owned; NULL until it is needed */
    const char *config;
    const char *url;
    const char *op;
    const char *hsm_socket;
    const char *key;        /* --key: a verifier key, or a file with one */
    const char *checkpoint; /* --checkpoint: a file */
    const char *out;        /* --out: a file */
    bool json;
    bool exit;
    bool follow;
    bool dry_run;
    bool check;
    bool watch, all;
    long long timeout_ms;
    long long bits;
    long long limit;
    json_t *values; /* owned: of the options with a value that only some commands have, by name */
    int fd;         /* to the server, kept from call to call; -1: none */
};

struct command {
    const char *words;   /* "org add" */
    const char *args;    /* for help: "NAME" */
    int min, max;        /* how many arguments */
    const char *options; /* the letters of those that only some commands have */
    const char *help;
    int (*run)(struct ctl *ctl, int argc, char **argv);
};
/* The commands of other files, each list ended by NULL words; kmsctl_main.c has the list of lists.
 */
extern const struct command control_commands[];  /* kmsctl_control.c */
extern const struct command explain_commands[];  /* kmsctl_explain.c */
extern const struct command cmk_commands[];      /* kmsctl_cmk.c */
extern const struct command rotation_commands[]; /* kmsctl_rotation.c */
extern const struct command backup_commands[];   /* kmsctl_backup.c */
extern const struct command restore_commands[];  /* kmsctl_restore.c */
extern const struct command freeze_commands[];   /* kmsctl_freeze.c */
extern const struct command destroy_commands[];  /* kmsctl_destroy.c */

/*
 * hsmd's socket by --hsm-socket, else the configuration, and the domain that the configuration
 * says, else "".  0 and both are the caller's; else an exit status, after complaining.
 */
int find_hsmd(struct ctl *ctl, char **socket, char **domain);

/* One line on standard error, "kmsctl: ...". */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* One line of JSON on standard output. */
void print_json(const json_t *v);

/*
 * Calls a method; takes params over.  0 and *result is the caller's; else an exit status, after
 * complaining.
 */
int ask(struct ctl *ctl, const char *method, json_t *params, json_t **result);
/* The same, but what the server refuses is not complained of: EXIT_REFUSED with *error set (the
 * caller's) instead of *result. */
int ask_quietly(struct ctl *ctl, const char *method, json_t *params, json_t **result,
                json_t **error);
/* Complains of it. */
void tell_error(const struct ctl *ctl, const char *method, const json_t *error);
/* And shows what comes back, as a table or as JSON. */
int ask_and_show(struct ctl *ctl, const char *method, json_t *params);

/* kmsctl_control.c: calls an action, and tells of the approval that waits, or of what was done. */
int ask_and_tell(struct ctl *ctl, const char *method, json_t *params);
/* kmsctl_cmk.c: waits for what a keeper does in the HSM for an organisation, and tells how it
 * ended. An exit status. */
int cmk_wait(struct ctl *ctl, const char *org, const char *job);

/* The last value of an option of values; NULL: not given. */
const char *opt_text(const struct ctl *ctl, const char *name);
/* Sets params' state by --state: one of names (separated by spaces), of which the first is taken
 * when none is given; "all": not set.  0, or an exit status after complaining. */
int opt_state(const struct ctl *ctl, const char *names, json_t *params);
/* "24h", "90d", "0": milliseconds.  KMS_ERR_SYNTAX: it is none. */
int parse_duration(const char *text, int64_t *ms);

/* A key or resource by its id or its whole URI: the id. */
const char *last_part(const char *uri);

/* kmsctl_audit.c */
int run_audit_key(struct ctl *ctl, int argc, char **argv);
int run_audit_show(struct ctl *ctl, int argc, char **argv);
int run_audit_prove(struct ctl *ctl, int argc, char **argv);
int run_audit_export(struct ctl *ctl, int argc, char **argv);
int run_audit_verify(struct ctl *ctl, int argc, char **argv);
int run_audit_check(struct ctl *ctl, int argc, char **argv);
int run_audit_cosign(struct ctl *ctl, int argc, char **argv);
int run_person_erase(struct ctl *ctl, int argc, char **argv);

#endif
