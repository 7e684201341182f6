/*
 * note.h - signed notes, checkpoints and cosignatures, as C2SP signed-note, tlog-checkpoint and
 * tlog-cosignature have them.
 *
 * A note is a text that ends in a newline, an empty line, and signature lines.  Signing has two
 * halves, because the private key is elsewhere: make the text, have it signed, put the line.  A
 * checkpoint of ours has one extension line, the time:
 *
 *     kms.example.com/log/6f1b...         origin
 *     20852163                            tree size
 *     CsUYapGGPo4dkMgIAUqom/Xajj7h...     root hash, base64
 *     time 1763800000                     POSIX seconds
 */
#ifndef PROTO_NOTE_H
#define PROTO_NOTE_H

#include <stddef.h>
#include <stdint.h>

struct buf;

#define NOTE_MAX        (64 * 1024)
#define NOTE_NAME_MAX   255
#define NOTE_SIGS_MAX   64
#define NOTE_PUBLIC_LEN 32
#define NOTE_SIG_LEN    64

enum note_type {
    NOTE_ED25519 = 0x01,    /* a log's signature */
    NOTE_COSIGNATURE = 0x04 /* a witness's, with its time: cosignature/v1 */
};

struct note_key {
    char name[NOTE_NAME_MAX + 1];
    enum note_type type;
    uint32_t id;
    unsigned char pub[NOTE_PUBLIC_LEN]; /* Ed25519 */
};

/* KMS_ERR_SYNTAX: name is empty, too long, or has a space, a plus or a control character. */
int note_key_init(struct note_key *k, const char *name, enum note_type type,
                  const unsigned char pub[NOTE_PUBLIC_LEN]);
/* A verifier key: NAME+ID+BASE64.  KMS_ERR_SYNTAX; KMS_ERR_ALGORITHM: another type; KMS_ERR_KEY:
 * its id is not its hash. */
int note_key_parse(struct note_key *k, const char *text, size_t len);
/* Appends one.  KMS_ERR_NOMEM. */
int note_key_put(struct buf *out, const struct note_key *k);

/* One signature line; all borrowed from the note's text. */
struct note_sig {
    const char *name;
    size_t name_len;
    const char *line; /* the whole of it, with its newline */
    size_t line_len;
    uint32_t id;
    unsigned char sig[8 + NOTE_SIG_LEN]; /* sig_len 0: of a size that no type of ours has */
    size_t sig_len;
};

struct note {
    const char *text; /* with its last newline; borrowed */
    size_t text_len;
    struct note_sig sig[NOTE_SIGS_MAX];
    size_t n;
};

/* KMS_ERR_SYNTAX, KMS_ERR_LENGTH (the note), KMS_ERR_LIMIT (the signatures). */
int note_parse(struct note *note, const char *text, size_t len);
/*
 * KMS_OK: key signed it; *time, unless NULL, is then when a cosignature says it was made (0 of a
 * log's own signature). KMS_ERR_NOT_FOUND: no signature by this key.  KMS_ERR_CRYPTO: one that is
 * wrong.
 */
int note_verify(const struct note *note, const struct note_key *key, uint64_t *time);
/* Appends a signature line: sig is 64 bytes of Ed25519, before it for a cosignature eight of the
 * time. */
int note_put_sig(struct buf *out, const struct note_key *key, const unsigned char *sig, size_t len);
/* Appends what a cosigner signs. */
int note_put_cosigned(struct buf *out, uint64_t time, const char *text, size_t len);

struct checkpoint {
    char origin[NOTE_NAME_MAX + 1];
    uint64_t size;
    unsigned char root[32];
    int64_t time; /* of our extension line; -1: none */
};

/* Appends the text.  time -1: without.  KMS_ERR_NOMEM. */
int checkpoint_put(struct buf *out, const struct checkpoint *c);
/* A note's text.  Other extension lines are passed over.  KMS_ERR_SYNTAX. */
int checkpoint_parse(struct checkpoint *c, const char *text, size_t len);

#endif
