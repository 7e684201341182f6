/*
 * audit_dir.h - an exported log: a directory in the C2SP tlog-tiles layout.
 *
 *     checkpoint                     the newest one
 *     checkpoints                    all that were exported, by size, with an empty line after each
 * (our addition) tile/<L>/<N>[.p/<W>]           hashes tile/entries/<N>[.p/<W>]       leaves, each
 * after its length (uint16, big-endian)
 */
#ifndef KMS_AUDIT_DIR_H
#define KMS_AUDIT_DIR_H

#include <stdint.h>
#include <stdio.h>

#include "kms/audit_verify.h"

struct buf;

struct audit_dir {
    const char *path;    /* borrowed */
    FILE *history;       /* owned; the file checkpoints, while it is read */
    unsigned char *file; /* owned; the last one read */
    size_t len, cap;
};

/* KMS_OK, or KMS_ERR_SYSTEM: there is no such directory (errno). */
int audit_dir_open(struct audit_dir *d, const char *path);
void audit_dir_close(struct audit_dir *d);
/* As what audit_verify reads. */
struct audit_source audit_dir_source(struct audit_dir *d);

/* A whole file below the directory, borrowed until the next call.  KMS_ERR_NOT_FOUND, _SYSTEM,
 * _LENGTH, _NOMEM. */
int audit_dir_read(struct audit_dir *d, const char *name, const unsigned char **p, size_t *len);
/* Writes one whole, making folders; a reader sees the old one or the new one. */
int audit_dir_write(struct audit_dir *d, const char *name, const void *p, size_t len);
/* Removes the partial tiles of a tile that is full now. */
void audit_dir_drop_partial(struct audit_dir *d, int level, uint64_t index);

#endif
