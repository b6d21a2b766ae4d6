/* SPDX-License-Identifier: Apache-2.0 */
/* Confines the server, before it reads the first byte of the image, to the system
 * calls that serving needs: reading what is open, answering, memory, and threads
 * of its own. An image that exploits a fault in the reader then controls a process
 * that can open nothing, start nothing, signal nobody and connect to nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "confine.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* Signals from the terminal or to the step must not end the server before the command: it ends by itself, with
 * the mount. SIGPIPE: while the server serves, nobody reads its standard error. */
static const int for_tasks[] = { SIGHUP, SIGINT, SIGTERM, SIGPIPE, SIGQUIT };

int go_to_background(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { { 0 } };
	pid_t child;

	for (size_t i = 0; i < sizeof(for_tasks) / sizeof(for_tasks[0]); i++)
		signal(for_tasks[i], SIG_IGN);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &head, none))
		return -1;
	child = fork();
	if (child > 0)
		_exit(0);
	return child < 0 || setsid() < 0 ? -1 : 0;
}

#ifdef ARCHITECTURE

static const int allowed[] = {
	SYS_read, SYS_pread64, SYS_write, SYS_writev, SYS_lseek, SYS_fstat, SYS_futex,
	/* memory; none that can be executed, see below */
	SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise,
	/* threads; see below for clone */
	SYS_set_robust_list, SYS_rseq, SYS_sched_yield, SYS_membarrier, SYS_restart_syscall,
	/* to end normally or by a signal; see below for tgkill */
	SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_getpid,
	SYS_gettid,
};
static const int without_exec[] = { SYS_mmap, SYS_mprotect };

/* The flags with which C libraries create a thread. A thread needs CLONE_THREAD, for which the kernel requires
 * CLONE_SIGHAND and CLONE_VM; 0x400000 is CLONE_DETACHED, which musl sets and the kernel ignores. */
#define THREAD_FLAGS \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | \
	 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID | 0x400000)

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LOAD(member) \
	(struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define IF(how, what, yes, no) (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_K | (how), (what), (yes), (no))
#define RETURN(what) (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what)
#define REFUSE(number) RETURN(SECCOMP_RET_ERRNO | (number))

/* The filter looks at the low half of each argument, which comes first on little-endian machines. The kernel
 * uses no more than that half of a pid, of clone's flags and of a protection's bits. */
int confine(void)
{
	struct sock_filter code[2 * COUNT(allowed) + 5 * COUNT(without_exec) + 18];
	struct sock_fprog program = { .filter = code };
	size_t n = 0;

	code[n++] = LOAD(arch);
	code[n++] = IF(BPF_JEQ, ARCHITECTURE, 1, 0);
	code[n++] = RETURN(SECCOMP_RET_KILL_PROCESS);
	code[n++] = LOAD(nr);
	for (size_t i = 0; i < COUNT(allowed); i++) {
		code[n++] = IF(BPF_JEQ, allowed[i], 0, 1);
		code[n++] = RETURN(SECCOMP_RET_ALLOW);
	}
	for (size_t i = 0; i < COUNT(without_exec); i++) {
		code[n++] = IF(BPF_JEQ, without_exec[i], 0, 4);
		code[n++] = LOAD(args[2]);
		code[n++] = IF(BPF_JSET, PROT_EXEC, 1, 0);
		code[n++] = RETURN(SECCOMP_RET_ALLOW);
		code[n++] = REFUSE(EPERM);
	}
	/* Threads, but neither processes nor namespaces. */
	code[n++] = IF(BPF_JEQ, SYS_clone, 0, 5);
	code[n++] = LOAD(args[0]);
	code[n++] = IF(BPF_JSET, ~(uint32_t)THREAD_FLAGS, 2, 0);
	code[n++] = IF(BPF_JSET, CLONE_THREAD, 0, 1);
	code[n++] = RETURN(SECCOMP_RET_ALLOW);
	code[n++] = REFUSE(EPERM);
	/* The flags of clone3 are in memory, where no filter sees them: after ENOSYS the C library uses clone. */
	code[n++] = IF(BPF_JEQ, SYS_clone3, 0, 1);
	code[n++] = REFUSE(ENOSYS);
	/* abort() signals its own process; no other may be signalled. */
	code[n++] = IF(BPF_JEQ, SYS_tgkill, 0, 3);
	code[n++] = LOAD(args[0]);
	code[n++] = IF(BPF_JEQ, (uint32_t)getpid(), 0, 1);
	code[n++] = RETURN(SECCOMP_RET_ALLOW);
	code[n++] = REFUSE(EPERM);
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

int close_others(int one, int other)
{
	unsigned int low = one < other ? one : other, high = one < other ? other : one;
	const unsigned int kept[] = { STDERR_FILENO, low, high, ~0U };

	for (size_t i = 0; i + 1 < sizeof(kept) / sizeof(kept[0]); i++) {
		unsigned int first = kept[i] + 1, last = kept[i + 1] - (kept[i + 1] != ~0U);

		if (first > STDERR_FILENO && first <= last && syscall(SYS_close_range, first, last, 0))
			return -1;
	}
	return 0;
}
