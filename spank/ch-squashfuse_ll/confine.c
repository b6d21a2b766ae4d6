/* SPDX-License-Identifier: Apache-2.0 */
/* What the server may still ask of the kernel once it serves: to read what it
 * has open, to answer, and memory. An image that finds a fault in the library
 * that takes it apart gets hold of a process that can open, start and reach
 * nothing.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "confine.h"

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

#ifdef ARCHITECTURE

static const int allowed[] = {
	SYS_read, SYS_pread64, SYS_write, SYS_writev, SYS_lseek, SYS_fstat, SYS_futex,
	/* memory; none that can be executed, see below */
	SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise,
	/* threads */
	SYS_clone, SYS_clone3, SYS_set_robust_list, SYS_rseq, SYS_sched_getaffinity, SYS_sched_yield,
	SYS_membarrier, SYS_restart_syscall,
	/* to die as ever */
	SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_getpid,
	SYS_gettid, SYS_tgkill,
};
static const int without_exec[] = { SYS_mmap, SYS_mprotect };

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LOAD(member) \
	(struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define RETURN(what) (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what)

int confine(void)
{
	struct sock_filter code[2 * COUNT(allowed) + 6 * COUNT(without_exec) + 8];
	struct sock_fprog program = { .filter = code };
	size_t n = 0;

	code[n++] = LOAD(arch);
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
	code[n++] = RETURN(SECCOMP_RET_KILL_PROCESS);
	code[n++] = LOAD(nr);
	for (size_t i = 0; i < COUNT(allowed); i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		code[n++] = RETURN(SECCOMP_RET_ALLOW);
	}
	for (size_t i = 0; i < COUNT(without_exec); i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, without_exec[i], 0, 4);
		code[n++] = LOAD(args[2]); /* the low half, where little comes first */
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0);
		code[n++] = RETURN(SECCOMP_RET_ALLOW);
		code[n++] = RETURN(SECCOMP_RET_ERRNO | EPERM);
	}
	code[n++] = RETURN(SECCOMP_RET_ERRNO | EPERM);
	program.len = n;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

#else

int confine(void)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

#endif
