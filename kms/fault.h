/*
 * fault.h - places where a test can have a process die, by name.
 *
 * FAULT("name") does nothing, and is nothing, unless the build was configured with --enable-faults.
 * In such a build the process kills itself with SIGKILL at the place that KMS_FAULT names, if the
 * file that KMS_FAULT_DIR/name names is not there yet: it is made first, so a place kills once.
 * KMS_FAULT_DIR is /tmp when it is not set.  Such a build is for tests only.
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
    const char *wanted = getenv("KMS_FAULT"), *dir = getenv("KMS_FAULT_DIR");
    char path[512];
    int fd;

    if (wanted == NULL || strcmp(wanted, name) != 0)
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
