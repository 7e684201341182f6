/*
 * fault.h - places where a test can have a process die, by name.
 *
 * FAULT("name") does nothing, and is nothing, unless the build was configured with --enable-faults.
 * In such a build the process kills itself with SIGKILL at the places that KMS_FAULT names (one, or
 * several with commas between), if the file KMS_FAULT_DIR/name is not there yet: it is made first,
 * so a place kills once. KMS_FAULT_DIR is /tmp when it is not set.  Such a build is for tests only.
 */
#ifndef KMS_FAULT_H
#define KMS_FAULT_H

#ifdef KMS_FAULTS
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void
fault_here(const char *name)
{
    const char *at = getenv("KMS_FAULT"), *dir = getenv("KMS_FAULT_DIR");
    size_t len = strlen(name);
    char path[512];
    int fd;

    while (at != NULL && (strncmp(at, name, len) != 0 || (at[len] != '\0' && at[len] != ',')))
        at = strchr(at, ',') != NULL ? strchr(at, ',') + 1 : NULL;
    if (at == NULL)
        return;
    snprintf(path, sizeof(path), "%s/%s", dir != NULL ? dir : "/tmp", name);
    if ((fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600)) < 0)
        return;
    fsync(fd);
    close(fd);
    kill(getpid(), SIGKILL);
}
#define FAULT(name) fault_here(name)
#else
#define FAULT(name) ((void)0)
#endif

#endif
