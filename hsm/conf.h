/*
 * conf.h - one INI file, read as a whole and checked as a whole, for kmsd and hsmd alike.
 *
 * A program gives a table of the settings it knows; sections that it does not own are passed over
 * if they are in the list of the other program's sections, anything else unknown is an error.  Each
 * error names file, line, what is wrong and what to write instead; reading goes on, so that one run
 * shows them all.
 */
#ifndef HSM_CONF_H
#define HSM_CONF_H

#include <stdbool.h>
#include <stddef.h>

enum conf_type {
    CONF_STRING,  /* char *, owned by the struct */
    CONF_INT,     /* long long, min..max */
    CONF_BOOL,    /* bool: yes/no, true/false, on/off */
    CONF_SECONDS, /* long long seconds: 30, 30s, 5m, 1h, 7d; min..max */
    CONF_BYTES,   /* long long bytes: 512, 64k, 4M; min..max */
    CONF_FILE,    /* char *: an absolute path that must be readable when the file is checked */
    CONF_PATH,    /* char *: an absolute path that need not exist */
    CONF_LIST,    /* char *: words separated by spaces or commas, kept as written */
};

struct conf_setting {
    const char *section;
    const char *name;
    enum conf_type type;
    size_t offset;      /* of the member in the program's struct */
    const char *def;    /* as text; NULL: required; "": empty, absent */
    long long min, max; /* CONF_INT, CONF_SECONDS, CONF_BYTES */
    const char *help;   /* what it is, in a few words: for errors and --help-config */
};

/* Where errors go: one call each, text without newline ("kms.conf:12: [token] leeway: \"5x\" is not
 * a time; write 60 or 1m"). */
typedef void conf_error_cb(void *ctx, const char *text);

/*
 * Fills *out (zeroed first) from the file.  others: sections that belong to another program,
 * NULL-terminated.  Returns KMS_OK, or KMS_ERR_CONFIG after the last error was reported; *out then
 * still has to be given to conf_release.
 */
int conf_read(void *out, size_t size, const struct conf_setting *settings, size_t n,
              const char *const *others, const char *path, conf_error_cb *cb, void *ctx);
void conf_release(void *out, const struct conf_setting *settings, size_t n);
/* Prints every setting with its default and help as a commented sample file. */
void conf_print_sample(const struct conf_setting *settings, size_t n);

#endif
