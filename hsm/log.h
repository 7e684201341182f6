/*
 * log.h - structured log lines on standard error, for journald or a file.
 *
 * One line an event: "<6>" (the syslog level, only when journald reads us), then key=value pairs:
 * ts (unless journald), level, proc, pid, msg, then what the event adds.  Values with spaces,
 * quotes or controls are quoted and escaped, so a client cannot forge a line.  Nothing here formats
 * a key, a token or a PIN; pass ids and lengths.
 */
#ifndef HSM_LOG_H
#define HSM_LOG_H

#include <stdarg.h>

enum log_level { LOG_ERROR_, LOG_WARN_, LOG_INFO_, LOG_DEBUG_ };

/* proc: "kmsd[worker 1]", ... copied.  Once a process, and again after fork. */
void log_init(const char *proc);
/* May point into memory that processes share: the level then changes for all of them.  NULL: back
 * to its own. */
void log_level_at(const volatile int *level);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* "error", "warn", "info", "debug"; -1: none of them. */
int log_level_parse(const char *name);

/*
 * msg: a constant text.  Then pairs, ended by NULL: a name with a suffix for the value's type:
 * "name" const char * (NULL is left out), "name%d" int, "name%l" long long, "name%u" unsigned long
 * long.  The caller's errno is kept. At most 20 lines a second of one msg; the next one then says
 * how many were left out.
 */
void log_error(const char *msg, ...) __attribute__((sentinel));
void log_warn(const char *msg, ...) __attribute__((sentinel));
void log_info(const char *msg, ...) __attribute__((sentinel));
void log_debug(const char *msg, ...) __attribute__((sentinel));

#endif
