/* SPDX-License-Identifier: Apache-2.0 */
/* What the SquashFS server could still do, if an image had it in its power. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int confine(void);

static void *thread(void *to)
{
	*(int *)to = 7;
	return NULL;
}

/* Name what works. */
#define TRY(call) \
	do { \
		errno = 0; \
		if ((long)(call) != -1 || errno != EPERM) \
			puts(#call); \
	} while (0)

int main(void)
{
	char *argv[] = { "true", NULL };
	pthread_t id;
	int seen = 0;

	if (confine())
		return 2;
	TRY(open("/etc/passwd", O_RDONLY));
	TRY(execve("/bin/true", argv, argv));
	TRY(socket(AF_UNIX, SOCK_STREAM, 0));
	TRY(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
	TRY(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	TRY(mprotect((void *)((unsigned long)main & ~4095ul), 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
	TRY(kill(getppid(), 0));
	TRY(unlink("/nonexistent"));
	TRY(unshare(CLONE_NEWUSER));
	TRY(syscall(SYS_openat2, 0, 0, 0, 0));
	TRY(syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0));
	TRY(syscall(SYS_io_uring_setup, 1, 0));
	TRY(syscall(SYS_pidfd_open, 1, 0));
	/* And what it must: threads and memory. */
	if (pthread_create(&id, NULL, thread, &seen) || pthread_join(id, NULL) || seen != 7)
		puts("no threads");
	if (!malloc(64 << 20))
		puts("no memory");
	puts("done");
	return 0;
}
