/* audit_dir.c - an exported log as files. */
#include "kms/audit_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/buf.h"
#include "proto/err.h"

#define FILE_MAX (MERKLE_TILE * (2 + 65535))

int
audit_dir_open(struct audit_dir *d, const char *path)
{
    struct stat st;

    memset(d, 0, sizeof(*d));
    d->path = path;
    if (stat(path, &st) != 0)
        return KMS_ERR_SYSTEM;
    if (!S_ISDIR(st.st_mode)) {
        errno = ENOTDIR;
        return KMS_ERR_SYSTEM;
    }
    return KMS_OK;
}

void
audit_dir_close(struct audit_dir *d)
{
    if (d->history != NULL)
        fclose(d->history);
    free(d->file);
    memset(d, 0, sizeof(*d));
}

static int
full_path(const struct audit_dir *d, const char *name, char out[PATH_MAX])
{
    return snprintf(out, PATH_MAX, "%s/%s", d->path, name) < PATH_MAX ? KMS_OK : KMS_ERR_LENGTH;
}

int
audit_dir_read(struct audit_dir *d, const char *name, const unsigned char **p, size_t *len)
{
    char path[PATH_MAX];
    struct stat st;
    ssize_t n = 0;
    int fd, r;

    if ((r = full_path(d, name, path)) != KMS_OK)
        return r;
    if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return errno == ENOENT || errno == ENOTDIR ? KMS_ERR_NOT_FOUND : KMS_ERR_SYSTEM;
    r = KMS_ERR_SYSTEM;
    if (fstat(fd, &st) != 0)
        goto out;
    r = KMS_ERR_LENGTH;
    if (!S_ISREG(st.st_mode) || st.st_size > FILE_MAX)
        goto out;
    r = KMS_ERR_NOMEM;
    if ((size_t)st.st_size > d->cap || d->file == NULL) {
        unsigned char *more = realloc(d->file, (size_t)st.st_size + 65536);

        if (more == NULL)
            goto out;
        d->file = more;
        d->cap = (size_t)st.st_size + 65536;
    }
    r = KMS_ERR_SYSTEM;
    for (d->len = 0; d->len < (size_t)st.st_size; d->len += (size_t)n) {
        n = read(fd, d->file + d->len, (size_t)st.st_size - d->len);
        if (n < 0 && errno == EINTR)
            n = 0;
        else if (n <= 0)
            break;
    }
    if (n < 0)
        goto out;
    *p = d->file;
    *len = d->len;
    r = KMS_OK;
out:
    close(fd);
    return r;
}

/* The folders of a path. */
static int
make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        int r;

        *slash = '\0';
        r = mkdir(path, 0777);
        *slash = '/';
        if (r != 0 && errno != EEXIST)
            return KMS_ERR_SYSTEM;
    }
    return KMS_OK;
}

int
audit_dir_write(struct audit_dir *d, const char *name, const void *p, size_t len)
{
    char path[PATH_MAX], temp[PATH_MAX + 8];
    FILE *f;
    int r;

    if ((r = full_path(d, name, path)) != KMS_OK)
        return r;
    snprintf(temp, sizeof(temp), "%s.new", path);
    if ((f = fopen(temp, "we")) == NULL && errno == ENOENT) {
        if ((r = make_folders(path)) != KMS_OK)
            return r;
        f = fopen(temp, "we");
    }
    if (f == NULL)
        return KMS_ERR_SYSTEM;
    r = fwrite(p, 1, len, f) == len ? KMS_OK : KMS_ERR_SYSTEM;
    if (fclose(f) != 0)
        r = KMS_ERR_SYSTEM;
    if (r == KMS_OK && rename(temp, path) != 0)
        r = KMS_ERR_SYSTEM;
    if (r != KMS_OK)
        unlink(temp);
    return r;
}

void
audit_dir_drop_partial(struct audit_dir *d, int level, uint64_t index)
{
    char name[MERKLE_PATH_MAX], path[PATH_MAX];
    struct dirent *e;
    DIR *dir;

    merkle_tile_path(name, level, index, 1);
    *strrchr(name, '/') = '\0';
    if (full_path(d, name, path) != KMS_OK || (dir = opendir(path)) == NULL)
        return;
    while ((e = readdir(dir)) != NULL) {
        if (e->d_name[0] != '.')
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    closedir(dir);
    rmdir(path);
}

/* --- as a source --- */

/* A tile may be there in full, or as wide as it was when it was exported. */
static int
read_tile(struct audit_dir *d, int level, uint64_t index, unsigned width, const unsigned char **p,
          size_t *len)
{
    char name[MERKLE_PATH_MAX];
    int r;

    merkle_tile_path(name, level, index, width);
    r = audit_dir_read(d, name, p, len);
    if (r == KMS_ERR_NOT_FOUND && width != MERKLE_TILE) {
        merkle_tile_path(name, level, index, MERKLE_TILE);
        r = audit_dir_read(d, name, p, len);
    }
    /* Too long is no tile. */
    return r == KMS_ERR_LENGTH ? KMS_ERR_NOT_FOUND : r;
}

static int
dir_bundle(void *ctx, uint64_t index, unsigned width, struct audit_bundle *out)
{
    const unsigned char *p;
    size_t len;
    int r = read_tile(ctx, -1, index, width, &p, &len);

    if (r == KMS_OK)
        audit_bundle_split(out, p, len);
    return r;
}

static int
dir_tile(void *ctx, unsigned level, uint64_t index, unsigned width,
         unsigned char out[MERKLE_TILE][MERKLE_LEN], unsigned *n)
{
    const unsigned char *p;
    size_t len;
    int r = read_tile(ctx, (int)level, index, width, &p, &len);

    *n = 0;
    if (r != KMS_OK)
        return r;
    *n = (unsigned)(len / MERKLE_LEN);
    if (len % MERKLE_LEN != 0 || *n > MERKLE_TILE)
        *n = 0;
    if (*n > width)
        *n = width;
    memcpy(out, p, (size_t)*n * MERKLE_LEN);
    return KMS_OK;
}

static int
dir_checkpoint(void *ctx, struct buf *out)
{
    const unsigned char *p;
    size_t len;
    int r = audit_dir_read(ctx, "checkpoint", &p, &len);

    return r == KMS_OK ? buf_put(out, p, len) : r;
}

/* A note ends where the empty line after its signatures is: its text has none. */
static int
dir_next_checkpoint(void *ctx, struct buf *out)
{
    struct audit_dir *d = ctx;
    char path[PATH_MAX], *line = NULL;
    size_t cap = 0;
    bool signatures = false;
    int r = KMS_ERR_NOT_FOUND;
    ssize_t n;

    if (d->history == NULL) {
        if (full_path(d, "checkpoints", path) != KMS_OK)
            return KMS_ERR_LENGTH;
        if ((d->history = fopen(path, "re")) == NULL)
            return errno == ENOENT ? KMS_ERR_NOT_FOUND : KMS_ERR_SYSTEM;
    }
    while ((n = getline(&line, &cap, d->history)) > 0) {
        if (n == 1 && line[0] == '\n' && signatures)
            break;
        signatures = signatures || (n == 1 && line[0] == '\n');
        if ((r = buf_put(out, line, (size_t)n)) != KMS_OK)
            break;
        if (out->len > NOTE_MAX)
            break;
    }
    if (n < 0 && ferror(d->history))
        r = KMS_ERR_SYSTEM;
    free(line);
    return r;
}

struct audit_source
audit_dir_source(struct audit_dir *d)
{
    struct audit_source s = {d, dir_bundle, dir_tile, dir_checkpoint, dir_next_checkpoint};

    return s;
}
