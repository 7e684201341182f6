/*
 * json.h - the only door through which JSON comes in, and the way it goes out.
 *
 * Built on jansson.  Strict: RFC 8259, one value, UTF-8 without BOM, no duplicate member names,
 * depth and size bounded before the parser sees the text, no U+0000 (jansson refuses it) and no
 * unpaired surrogate. kms_json_init installs an allocator that wipes what jansson frees, since
 * trees hold tokens and keys.
 */
#ifndef PROTO_JSON_H
#define PROTO_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct buf;

#define KMS_JSON_DEPTH  16    /* nesting of arrays and objects that is accepted */
#define KMS_JSON_VALUES 10000 /* array elements and members, all together, from strangers */

/* Once per process, before the first json_t: what was allocated before it cannot be freed after it.
 */
void kms_json_init(void);

/*
 * Parses exactly one object.  *out is a new reference, or NULL.  KMS_ERR_SYNTAX (a bare string or
 * number too), KMS_ERR_DUPLICATE, KMS_ERR_MEMBER (an array), KMS_ERR_LENGTH (nested too deeply),
 * KMS_ERR_NOMEM.
 */
int kms_json_parse(json_t **out, const char *text, size_t len);

/* The same for what a stranger sent: of more than KMS_JSON_VALUES values, KMS_ERR_LIMIT. */
int kms_json_parse_strange(json_t **out, const char *text, size_t len);

/*
 * That, with every integer made a real number: for a text that kms_json_parse refused, to see
 * whether only an integer of more than 64 bits was to blame.
 */
int kms_json_parse_reals(json_t **out, const char *text, size_t len);

/* Parses exactly one value of any kind: for the tests' vectors, and where an array is expected. */
int kms_json_parse_any(json_t **out, const char *text, size_t len);

/*
 * Makes escapes that name no character (\u0000, half a surrogate pair) into \uFFFD, in place, so
 * that JSON whose only fault they are can be read and refused for what it is.  True when there were
 * any.  A backslash is only an escape inside a string, and no JSON has one elsewhere: strings need
 * not be told apart.
 */
bool kms_json_mend(char *text, size_t len);

/* Compact text, members in the order they were set.  KMS_OK, KMS_ERR_NOMEM. */
int kms_json_put(struct buf *out, const json_t *v);

/*
 * Readers of one member.  present but of another type, or longer than max bytes (or outside
 * min..max): KMS_ERR_MEMBER.  Absent: KMS_ERR_NOT_FOUND, *out untouched.  Strings are borrowed from
 * the object.
 */
int kms_json_str(const json_t *obj, const char *name, size_t max, const char **out);
int kms_json_int(const json_t *obj, const char *name, long long min, long long max, long long *out);

#endif
