/* SPDX-License-Identifier: Apache-2.0 */
/* Gives a program that is about to be executed the descriptors of a list, in order, and no other.
 *
 * This also runs between vfork and exec: nothing here allocates memory or writes outside its own frame.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptors.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define COUNT_MAX 9

/* Return a copy of `fd` whose number is `count` or more: each number below may be in use, or closed. */
static int raised(int fd, int count)
{
	int null, copy;

	if (fd != DEV_NULL)
		return fcntl(fd, F_DUPFD_CLOEXEC, count);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || null >= count)
		return null;
	copy = fcntl(null, F_DUPFD_CLOEXEC, count);
	close(null);
	return copy;
}

int descriptors_become(const int *list, int count)
{
	int high[COUNT_MAX];

	if (count > COUNT_MAX) {
		errno = EINVAL;
		return -1;
	}
	for (int i = 0; i < count; i++) {
		high[i] = raised(list[i], count);
		if (high[i] < 0)
			return -1;
	}
	for (int i = 0; i < count; i++)
		if (dup2(high[i], i) < 0)
			return -1;
	return (int)syscall(SYS_close_range, count, ~0U, 0);
}
