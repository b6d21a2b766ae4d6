/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile ldconfig of an image: it reports which descriptors it was given,
 * what it can read from them, and answers the tasks in the launcher's place.
 *
 *   REPORT, PROGRAM: where it tells, and what it wants to be run on the host
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void forge(int sock)
{
	static const char plan[] = "slurm_ch plan 1\0Btsrun:" PROGRAM "\0EFORGED=1";
	union {
		char space[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { "slurmch1\0\0\0", 12 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	int memory = memfd_create("plan", 0);
	int fds[] = { open("/proc/self/ns/user", O_RDONLY), open("/proc/self/ns/mnt", O_RDONLY), memory,
		      socket(AF_UNIX, SOCK_SEQPACKET, 0) };

	if (write(memory, plan, sizeof(plan)) < 0)
		return;
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(c), fds, sizeof(fds));
	sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* The launcher waits for this process: try to reach its descriptors. */
static void try_parent(FILE *report)
{
	char path[100];
	int pidfd = syscall(SYS_pidfd_open, getppid(), 0);

	snprintf(path, sizeof(path), "/proc/%d/fd", getppid());
	if (opendir(path))
		fputs("parent listed\n", report);
	snprintf(path, sizeof(path), "/proc/%d/environ", getppid());
	if (open(path, O_RDONLY) >= 0)
		fputs("parent environ\n", report);
	snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
	if (open(path, O_RDWR) >= 0)
		fputs("parent mem\n", report);
	for (int fd = 0; fd < 64; fd++) {
		int got = syscall(SYS_pidfd_getfd, pidfd, fd, 0);

		if (got >= 0) {
			fprintf(report, "parent gave %d\n", fd);
			forge(got);
		}
	}
	if (!ptrace(PTRACE_SEIZE, getppid(), NULL, NULL))
		fputs("parent traced\n", report);
}

int main(void)
{
	FILE *report = fopen(REPORT, "we");
	DIR *all = opendir("/proc/self/fd");
	static char text[1 << 20];

	if (!report || !all)
		return 3;
	for (struct dirent *entry; (entry = readdir(all));) {
		char path[300], link[4096];
		int fd = atoi(entry->d_name);
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
		n = readlink(path, link, sizeof(link) - 1);
		if (n <= 0 || fd == fileno(report) || fd == dirfd(all))
			continue;
		link[n] = '\0';
		fprintf(report, "%d %s\n", fd, link);
		if (!strncmp(link, "socket:", 7))
			forge(fd);
		n = pread(fd, text, sizeof(text), 0);
		for (ssize_t i = 0; fd > 2 && i < n; i += strlen(text + i) + 1)
			fprintf(report, "read %s\n", text + i);
	}
	try_parent(report);
	if (syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", "slurm-ch-test", 0) >= 0)
		fputs("key found\n", report);
	return fclose(report) != 0;
}
