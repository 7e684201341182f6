/* harden.c - what a process gives up. */
#include "kms/harden.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hsm/log.h"
#include "proto/err.h"

#define SOCK_TYPES 0xf /* the bits of a type that are no flags */

void
harden_process(void)
{
    static const struct rlimit none = {0, 0};
    struct rlimit lock;

    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    /*
     * Pages are locked as they are touched.  Under a small limit that would make malloc fail later:
     * then only the secure heap is locked (proto/secret.h).
     */
    if (getrlimit(RLIMIT_MEMLOCK, &lock) == 0 &&
        (lock.rlim_cur == RLIM_INFINITY || geteuid() == 0) &&
        mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
        log_warn("memory could not be locked", "errno%d", errno, NULL);
}

static int
confine(bool worker)
{
    static const int never[] = {
        SCMP_SYS(execve),
        SCMP_SYS(execveat),
        SCMP_SYS(fork),
        SCMP_SYS(vfork),
        SCMP_SYS(ptrace),
        SCMP_SYS(process_vm_readv),
        SCMP_SYS(process_vm_writev),
        SCMP_SYS(pidfd_getfd),
        SCMP_SYS(kcmp),
        SCMP_SYS(mount),
        SCMP_SYS(umount2),
        SCMP_SYS(pivot_root),
        SCMP_SYS(chroot),
        SCMP_SYS(unshare),
        SCMP_SYS(setns),
        SCMP_SYS(bpf),
        SCMP_SYS(perf_event_open),
        SCMP_SYS(kexec_load),
        SCMP_SYS(kexec_file_load),
        SCMP_SYS(init_module),
        SCMP_SYS(finit_module),
        SCMP_SYS(delete_module),
        SCMP_SYS(keyctl),
        SCMP_SYS(add_key),
        SCMP_SYS(request_key),
        SCMP_SYS(userfaultfd),
        SCMP_SYS(reboot),
        SCMP_SYS(swapon),
        SCMP_SYS(swapoff),
        SCMP_SYS(open_by_handle_at),
        SCMP_SYS(setuid),
        SCMP_SYS(setgid),
        SCMP_SYS(setreuid),
        SCMP_SYS(setregid),
        SCMP_SYS(setresuid),
        SCMP_SYS(setresgid),
        SCMP_SYS(setgroups),
        SCMP_SYS(io_uring_setup), /* its operations pass no filter */
    };
    scmp_filter_ctx f = seccomp_init(SCMP_ACT_ALLOW);
    unsigned i;
    int r = 0;

    if (f == NULL)
        return KMS_ERR_SYSTEM;
    for (i = 0; i < sizeof(never) / sizeof(never[0]) && r == 0; i++)
        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), never[i], 0);
    /* libcurl's resolver is a thread, so clone stays for threads; clone3 hides its flags, glibc
     * falls back from ENOSYS. */
    if (r == 0)
        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
                             SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
    if (r == 0)
        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    /* The kernel looks at no more of the type than this, and so does the rule. */
    for (i = 0; i < 2 && r == 0 && worker; i++)
        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM),
                             i == 0 ? SCMP_SYS(socket) : SCMP_SYS(socketpair), 1,
                             SCMP_A1(SCMP_CMP_MASKED_EQ, SOCK_TYPES, SOCK_SEQPACKET));
    if (r == 0)
        r = seccomp_load(f);
    seccomp_release(f);
    return r == 0 ? KMS_OK : KMS_ERR_SYSTEM;
}

int
harden_worker(void)
{
    return confine(true);
}

int
harden_keeper(void)
{
    return confine(false);
}

int
harden_user(const char *name)
{
    const struct passwd *pw;

    if (name[0] == '\0' || geteuid() != 0)
        return KMS_OK;
    if ((pw = getpwnam(name)) == NULL)
        return KMS_ERR_NOT_FOUND;
    if (pw->pw_uid == 0)
        return KMS_OK;
    if (initgroups(name, pw->pw_gid) != 0 || setresgid(pw->pw_gid, pw->pw_gid, pw->pw_gid) != 0 ||
        setresuid(pw->pw_uid, pw->pw_uid, pw->pw_uid) != 0 || setuid(0) == 0)
        return KMS_ERR_SYSTEM;
    return KMS_OK;
}
