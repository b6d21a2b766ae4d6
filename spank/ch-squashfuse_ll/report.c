/* SPDX-License-Identifier: Apache-2.0 */
/* Reports a damaged place in the image, once per server.
 *
 * Nobody reads the server's standard error while the container runs: it can't be the
 * step's, or srun would wait for the server. So the message goes to the node's log as
 * well, where the kernel's own SquashFS would report it.
 */
#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

#include "image.h"

static char name[PATH_MAX] = "image";
static int node_log = -1;

void report_open(int image)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/dev/log" };
	char link[32];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", image);
	n = readlink(link, name, sizeof(name) - 1);
	if (n > 0)
		name[n] = '\0';
	/* Non-blocking: a log that is full or missing must not delay the server. */
	node_log = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (node_log >= 0 && connect(node_log, (struct sockaddr *)&to, sizeof(to))) {
		close(node_log);
		node_log = -1;
	}
}

int damaged(struct image *image, const char *what, uint64_t position)
{
	static int reported;
	char line[PATH_MAX + 256];
	int before, n;

	(void)image;
	if (__atomic_exchange_n(&reported, 1, __ATOMIC_RELAXED))
		return -EIO;
	before = snprintf(line, sizeof(line), "<%d>ch-squashfuse_ll[%d]: ", LOG_USER | LOG_WARNING, getpid());
	n = before + snprintf(line + before, sizeof(line) - before, "%s is damaged: %s, at byte %" PRIu64, name, what,
			      position);
	for (char *c = line + before; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127)
			*c = '?';
	if (node_log >= 0 && write(node_log, line, n) < 0)
		node_log = -1;
	line[n] = '\n';
	if (write(STDERR_FILENO, line + before, n + 1 - before) < 0)
		return -EIO;
	return -EIO;
}
