/* SPDX-License-Identifier: Apache-2.0 */
/* Tries what the SquashFS server could still do if an image controlled it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int confine(void);

static void *thread(void *to)
{
	*(int *)to = 7;
	return NULL;
}

/* Report an action that works, or fails for another reason. If it has created a process, that reports it. */
#define TRY(call) TRY_FOR(EPERM, call)
#define TRY_FOR(number, call) \
	do { \
		long got_; \
		errno = 0; \
		got_ = (long)(call); \
		if (got_ != -1 || errno != (number)) \
			puts(#call); \
		if (got_ == 0 && getpid() != self) \
			_exit(0); \
	} while (0)

#define A_THREAD \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | \
	 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

int main(void)
{
	static const unsigned long spaces[] = { CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET,
						CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP };
	char *argv[] = { "true", NULL };
	struct clone_args process = { .exit_signal = SIGCHLD };
	pid_t self = getpid(), other;
	pthread_t id;
	int seen = 0, status;

	setvbuf(stdout, NULL, _IONBF, 0);
	/* Another process of the user, with threads that could be signalled; it ends with this one. */
	other = fork();
	if (!other) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == self) /* else it has ended already, and no signal comes */
			pause();
		_exit(0);
	}
	if (confine())
		return 2;
	TRY(open("/etc/passwd", O_RDONLY));
	TRY(execve("/bin/true", argv, argv));
	TRY(socket(AF_UNIX, SOCK_STREAM, 0));
	TRY(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
	TRY(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	TRY(mprotect((void *)((unsigned long)main & ~4095ul), 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
	TRY(unlink("/nonexistent"));
	TRY(unshare(CLONE_NEWUSER));
	TRY(syscall(SYS_openat2, 0, 0, 0, 0));
	TRY(syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0));
	TRY(syscall(SYS_io_uring_setup, 1, 0));
	TRY(syscall(SYS_pidfd_open, 1, 0));
	TRY(syscall(SYS_setpgid, 0, 0));
	TRY(syscall(SYS_sched_setaffinity, other, 8, &seen));
	TRY(syscall(SYS_prlimit64, other, 0, NULL, NULL));
	TRY(syscall(SYS_ioctl, 0, 0, 0));
	TRY(syscall(SYS_fcntl, 0, F_SETOWN, other));
	/* It can signal only itself. */
	TRY(kill(getppid(), 0));
	TRY(kill(self, 0));
	TRY(syscall(SYS_tkill, other, SIGTERM));
	TRY(syscall(SYS_tgkill, other, other, SIGTERM));
	TRY(syscall(SYS_tgkill, getppid(), getppid(), 0));
	TRY(syscall(SYS_tgkill, -1, other, 0));
	TRY(syscall(SYS_rt_sigqueueinfo, other, SIGTERM, NULL));
	TRY(syscall(SYS_rt_tgsigqueueinfo, other, other, SIGTERM, NULL));
	/* It can create neither processes nor namespaces, nor half of a thread. */
	TRY(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
	TRY(syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0));
	TRY(syscall(SYS_clone, CLONE_VM | CLONE_SIGHAND, 0, 0, 0, 0));
	TRY(syscall(SYS_clone, CLONE_PARENT, 0, 0, 0, 0));
	TRY(syscall(SYS_clone, CLONE_PIDFD, 0, 0, 0, 0));
	TRY(syscall(SYS_clone, A_THREAD | SIGCHLD, 0, 0, 0, 0));
	TRY(syscall(SYS_clone, A_THREAD | CLONE_PTRACE, 0, 0, 0, 0));
	for (size_t i = 0; i < sizeof(spaces) / sizeof(spaces[0]); i++) {
		TRY(syscall(SYS_clone, spaces[i] | SIGCHLD, 0, 0, 0, 0));
		TRY(syscall(SYS_clone, A_THREAD | spaces[i], 0, 0, 0, 0));
	}
	/* ENOSYS, as from a kernel that is too old for it: so the C library falls back to clone. */
	TRY_FOR(ENOSYS, syscall(SYS_clone3, &process, sizeof(process)));
#ifdef SYS_fork
	TRY(syscall(SYS_fork));
	TRY(syscall(SYS_vfork));
#endif
	/* It must be able to use threads and memory, and to end. */
	for (int i = 0; i < 3; i++, seen = 0)
		if (pthread_create(&id, NULL, thread, &seen) || pthread_join(id, NULL) || seen != 7)
			puts("no threads");
	if (!malloc(64 << 20))
		puts("no memory");
	if (syscall(SYS_tgkill, self, self, 0))
		puts("no signal to itself");
	if (syscall(SYS_wait4, other, &status, WNOHANG, NULL) != -1)
		puts("can wait");
	puts("done");
	abort();
}
