/*
 * test_vectors_json.c - JSONTestSuite: what must be accepted is, what must be refused is, and what
 * may be either is as the table says.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/json.h"
#include "tests/unit/vectors.h"

#define N(rows) (sizeof(rows) / sizeof((rows)[0]))

/* The undecided ones.  Files that are not here fail the test: whoever adds one decides. */
static const struct {
    const char *name;
    bool accepted;
    const char *why;
} undecided[] = {
    {"i_number_double_huge_neg_exp", true, "rounds to 0"},
    {"i_number_huge_exp", false, "no double"},
    {"i_number_neg_int_huge_exp", false, "no double"},
    {"i_number_pos_double_huge_exp", false, "no double"},
    {"i_number_real_neg_overflow", false, "no double"},
    {"i_number_real_pos_overflow", false, "no double"},
    {"i_number_real_underflow", true, "rounds to 0"},
    {"i_number_too_big_neg_int", false, "no 64-bit integer"},
    {"i_number_too_big_pos_int", false, "no 64-bit integer"},
    {"i_number_very_big_negative_int", false, "no 64-bit integer"},
    {"i_object_key_lone_2nd_surrogate", false, "unpaired surrogate"},
    {"i_string_1st_surrogate_but_2nd_missing", false, "unpaired surrogate"},
    {"i_string_1st_valid_surrogate_2nd_invalid", false, "unpaired surrogate"},
    {"i_string_UTF-16LE_with_BOM", false, "not UTF-8"},
    {"i_string_UTF-8_invalid_sequence", false, "not UTF-8"},
    {"i_string_UTF8_surrogate_U+D800", false, "not UTF-8"},
    {"i_string_incomplete_surrogate_and_escape_valid", false, "unpaired surrogate"},
    {"i_string_incomplete_surrogate_pair", false, "unpaired surrogate"},
    {"i_string_incomplete_surrogates_escape_valid", false, "unpaired surrogate"},
    {"i_string_invalid_lonely_surrogate", false, "unpaired surrogate"},
    {"i_string_invalid_surrogate", false, "unpaired surrogate"},
    {"i_string_invalid_utf-8", false, "not UTF-8"},
    {"i_string_inverted_surrogates_U+1D11E", false, "unpaired surrogate"},
    {"i_string_iso_latin_1", false, "not UTF-8"},
    {"i_string_lone_second_surrogate", false, "unpaired surrogate"},
    {"i_string_lone_utf8_continuation_byte", false, "not UTF-8"},
    {"i_string_not_in_unicode_range", false, "not UTF-8"},
    {"i_string_overlong_sequence_2_bytes", false, "not UTF-8"},
    {"i_string_overlong_sequence_6_bytes", false, "not UTF-8"},
    {"i_string_overlong_sequence_6_bytes_null", false, "not UTF-8"},
    {"i_string_truncated-utf-8", false, "not UTF-8"},
    {"i_string_utf16BE_no_BOM", false, "not UTF-8"},
    {"i_string_utf16LE_no_BOM", false, "not UTF-8"},
    {"i_structure_500_nested_arrays", false, "deeper than 16"},
    {"i_structure_UTF-8_BOM_empty_object", false, "byte order mark"},
};

/*
 * Files that must be accepted by RFC 8259 and that we refuse, on purpose.  The suite holds no more
 * of these than stand here.
 */
static const struct {
    const char *name;
    int want;
    const char *why;
} stricter[] = {
    {"y_object_duplicated_key", KMS_ERR_DUPLICATE, "a duplicate member"},
    {"y_object_duplicated_key_and_value", KMS_ERR_DUPLICATE, "a duplicate member"},
    {"y_object_escaped_null_in_key", KMS_ERR_SYNTAX, "U+0000"},
    {"y_string_null_escape", KMS_ERR_SYNTAX, "U+0000"},
};

/* The exact bytes in a block of their own, so that AddressSanitizer sees a step too far. */
static char *
read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    char *text;
    long size;

    cr_assert_not_null(f, "%s", path);
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    text = malloc(size > 0 ? (size_t)size : 1);
    cr_assert_not_null(text);
    *len = fread(text, 1, (size_t)size, f);
    cr_assert_eq(*len, (size_t)size);
    fclose(f);
    return text;
}

/* What kms_json_parse_any must say: KMS_OK, a code, or -1000 for any refusal. */
static int
wanted(const char *name, size_t len)
{
    size_t i;

    for (i = 0; i < N(undecided); i++)
        if (strlen(undecided[i].name) == len && memcmp(undecided[i].name, name, len) == 0)
            return undecided[i].accepted ? KMS_OK : -1000;
    for (i = 0; i < N(stricter); i++)
        if (strlen(stricter[i].name) == len && memcmp(stricter[i].name, name, len) == 0)
            return stricter[i].want;
    cr_assert_neq(name[0], 'i', "%s is not in the table", name);
    return name[0] == 'y' ? KMS_OK : -1000;
}

TestSuite(json, .init = kms_json_init);

Test(json, the_suite_is_accepted_and_refused_as_it_must_be)
{
    size_t seen[3] = {0, 0, 0}, len;
    const struct dirent *entry;
    char path[4096];
    int want, r;
    json_t *v;
    char *text;
    DIR *dir;

    NEED_VECTORS();
    snprintf(path, sizeof(path), "%s/jsontestsuite", vectors_dir());
    dir = opendir(path);
    cr_assert_not_null(dir, "%s", path);
    while ((entry = readdir(dir)) != NULL) {
        len = strlen(entry->d_name);
        if (len < 7 || strcmp(entry->d_name + len - 5, ".json") != 0)
            continue;
        snprintf(path, sizeof(path), "%s/jsontestsuite/%s", vectors_dir(), entry->d_name);
        want = wanted(entry->d_name, len - 5);
        text = read_file(path, &len);
        r = kms_json_parse_any(&v, text, len);
        if (want == -1000)
            cr_expect_neq(r, KMS_OK, "%s", entry->d_name);
        else
            cr_expect_eq(r, want, "%s: %s", entry->d_name, kms_strerror(r));
        cr_expect_eq(v != NULL, r == KMS_OK, "%s", entry->d_name);
        /* A message is an object: the other door lets in no more. */
        json_decref(v);
        if (kms_json_parse(&v, text, len) == KMS_OK)
            cr_expect(r == KMS_OK && json_is_object(v), "%s", entry->d_name);
        json_decref(v);
        free(text);
        seen[entry->d_name[0] == 'y' ? 0 : entry->d_name[0] == 'n' ? 1 : 2]++;
    }
    closedir(dir);
    cr_expect_geq(seen[0], 95, "%zu of y_", seen[0]);
    cr_expect_geq(seen[1], 187, "%zu of n_", seen[1]);
    cr_expect_eq(seen[2], N(undecided), "%zu of i_", seen[2]);
}

Test(json, what_the_suite_has_accepted_is_the_same_when_written_and_read_again)
{
    const struct dirent *entry;
    struct buf out = BUF_INIT;
    char path[4096];
    json_t *v, *again;
    size_t len, n = 0;
    char *text;
    DIR *dir;

    NEED_VECTORS();
    snprintf(path, sizeof(path), "%s/jsontestsuite", vectors_dir());
    dir = opendir(path);
    cr_assert_not_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != 'y')
            continue;
        snprintf(path, sizeof(path), "%s/jsontestsuite/%s", vectors_dir(), entry->d_name);
        text = read_file(path, &len);
        if (kms_json_parse_any(&v, text, len) == KMS_OK) {
            buf_reset(&out);
            cr_assert_eq(kms_json_put(&out, v), KMS_OK);
            cr_expect_eq(kms_json_parse_any(&again, buf_str(&out), out.len), KMS_OK, "%s",
                         entry->d_name);
            cr_expect(json_equal(v, again), "%s", entry->d_name);
            json_decref(again);
            n++;
        }
        json_decref(v);
        free(text);
    }
    closedir(dir);
    cr_expect_gt(n, 90);
    buf_release(&out);
}
