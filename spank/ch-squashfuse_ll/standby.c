/* SPDX-License-Identifier: Apache-2.0 */
#include "standby.h"

#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "../agreement.h"

/* Of Linux 6.9; headers may lack it. */
#define NOTIFY_RESEND 7

static struct pollfd processes[STANDBY_MAX];
static int devices[STANDBY_MAX];
static int ahead;

bool standby_behind(const char *words)
{
	char end;

	if (ahead == STANDBY_MAX || sscanf(words, "%d:%d%c", &processes[ahead].fd, &devices[ahead], &end) != 2)
		return false;
	processes[ahead++].events = POLLIN;
	return true;
}

/* Where the kernel is older, it is an error for who waits for these answers. */
static void ask_again(int fuse)
{
	const struct fuse_out_header again = { .len = sizeof(again), .error = NOTIFY_RESEND };

	if (write(fuse, &again, sizeof(again)) < 0)
		return;
}

static void let_go(int i)
{
	if (devices[i] >= 0)
		close(devices[i]);
	devices[i] = -1;
}

/* What a server has taken and not answered fails as soon as nobody has its device open, unless the kernel is told
 * before to ask for it again. So whose turn it is does that first; the others let go at once, for there is one
 * ahead of them that hasn't. */
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
				let_go(i);
	}
	if (ahead)
		ask_again(fuse);
	for (int i = 0; i < ahead; i++)
		let_go(i);
}
