/*
 * harden.c - keeps other processes, core files and swap away from this process's memory.
 *
 * The filter lists what is refused, not what is allowed: it is inherited by the custodians, and
 * nobody can tell what a vendor's module needs.
 */
#include "hsm/harden.h"

#include <errno.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hsm/log.h"

/* The leak checker stops its own threads by ptrace. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static const int refused[] = {
    SCMP_SYS(ptrace),        SCMP_SYS(process_vm_readv),  SCMP_SYS(process_vm_writev),
    SCMP_SYS(kcmp),          SCMP_SYS(init_module),       SCMP_SYS(finit_module),
    SCMP_SYS(delete_module), SCMP_SYS(kexec_load),        SCMP_SYS(kexec_file_load),
    SCMP_SYS(mount),         SCMP_SYS(umount2),           SCMP_SYS(pivot_root),
    SCMP_SYS(bpf),           SCMP_SYS(perf_event_open),   SCMP_SYS(reboot),
    SCMP_SYS(swapon),        SCMP_SYS(swapoff),           SCMP_SYS(settimeofday),
    SCMP_SYS(clock_settime), SCMP_SYS(open_by_handle_at), SCMP_SYS(userfaultfd),
};

static void
filter_calls(void)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    int err = ctx == NULL ? -ENOMEM : 0;

    for (size_t i = 0; err == 0 && i < sizeof(refused) / sizeof(refused[0]); i++)
        err = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), refused[i], 0);
    if (err == 0)
        err = seccomp_load(ctx);
    if (err != 0)
        log_warn("harden: no system call filter", "error", strerror(-err), NULL);
    seccomp_release(ctx);
}

/*
 * Under a small RLIMIT_MEMLOCK, locking all that is to come would make later allocations fail, deep
 * inside the module; then only the secure heap is locked.
 */
static void
lock_memory(void)
{
    struct rlimit limit;

    if (geteuid() != 0 &&
        (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY))
        log_warn("harden: memory is not locked; set LimitMEMLOCK=infinity", NULL);
    else if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
        log_warn("harden: memory is not locked", "error", strerror(errno), NULL);
}

void
harden_process(void)
{
    const struct rlimit none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
    if (!SANITIZED) {
        prctl(PR_SET_DUMPABLE, 0);
        filter_calls();
    }
    lock_memory();
}
