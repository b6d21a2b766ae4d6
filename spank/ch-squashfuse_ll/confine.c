/* SPDX-License-Identifier: Apache-2.0 */
/* What the server may still ask of the kernel from before it reads the first
 * byte of the image: to read what it has open, to answer, memory, and threads
 * of its own. An image that finds a fault in what takes it apart gets hold of
 * a process that can open, start, signal and reach nothing.
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

/* The terminal's and the step's signals must not end the server before the command: it ends by itself
 * when the mount does. SIGPIPE: nobody listens any more once it serves. */
static const int for_tasks[] = { SIGHUP, SIGINT, SIGTERM, SIGPIPE, SIGQUIT };

int step_aside(void)
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
	/* to die as ever; see below for tgkill */
	SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_getpid,
	SYS_gettid,
};
static const int without_exec[] = { SYS_mmap, SYS_mprotect };

/* What C libraries make a thread with. A thread needs CLONE_THREAD, and the kernel then insists on
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

/* Arguments are looked at by their low half, which comes first where little does. The kernel takes no
 * more than that half of a pid, of clone's flags and of a protection's bits. */
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
	/* Its flags are in memory, where no filter sees them: the C library takes clone instead. */
	code[n++] = IF(BPF_JEQ, SYS_clone3, 0, 1);
	code[n++] = REFUSE(ENOSYS);
	/* abort() signals its own process, and nobody signals another. */
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
