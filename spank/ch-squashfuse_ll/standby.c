/* SPDX-License-Identifier: Apache-2.0 */
/* Keeps a server waiting until the servers ahead of it have ended, and then has the kernel send their
 * unanswered requests again. */
#include "standby.h"

#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "../agreement.h"

/* FUSE_NOTIFY_RESEND, from Linux 6.9 on; headers may lack it. */
#define NOTIFY_RESEND 7

static struct pollfd processes[STANDBY_MAX];
static int devices[STANDBY_MAX];
static int ahead;

bool standby_note(const char *words)
{
	char end;

	if (ahead == STANDBY_MAX || sscanf(words, "%d:%d%c", &processes[ahead].fd, &devices[ahead], &end) != 2)
		return false;
	processes[ahead++].events = POLLIN;
	return true;
}

/* On an older kernel, those who wait for the unanswered requests get an error. */
static void request_resend(int fuse)
{
	const struct fuse_out_header again = { .len = sizeof(again), .error = NOTIFY_RESEND };

	if (write(fuse, &again, sizeof(again)) < 0)
		return;
}

static void close_device(int i)
{
	if (devices[i] >= 0)
		close(devices[i]);
	devices[i] = -1;
}

/* When a server ends, the requests that it has not answered fail as soon as nobody has its device open, unless the
 * kernel is first told to send them again. So the server whose turn it is keeps its copy of that device until it has
 * told the kernel. The others close theirs immediately, because a server ahead of them still keeps one. */
void standby_wait(int fuse)
{
	int left = ahead;

	while (left) {
		if (poll(processes, ahead, -1) < 0)
			continue;
		for (int i = 0; i < ahead; i++) {
			if (processes[i].fd < 0 || !processes[i].revents)
				continue;
			close(processes[i].fd);
			processes[i].fd = -1; /* poll leaves it out */
			left--;
		}
		for (int i = 0; left && i < ahead; i++)
			if (processes[i].fd < 0)
				close_device(i);
	}
	if (ahead)
		request_resend(fuse);
	for (int i = 0; i < ahead; i++)
		close_device(i);
}
