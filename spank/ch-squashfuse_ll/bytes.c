/* SPDX-License-Identifier: Apache-2.0 */
/* Reads bytes of the image: all that are requested or none, and never past its end. */
#include "image.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int bytes_read(struct image *image, void *to, size_t size, uint64_t position)
{
	char *at = to;

	if (position > image->size || size > image->size - position)
		return damaged(image, "beyond the image's end", position);
	while (size) {
		ssize_t n = pread(image->fd, at, size, image->offset + position);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return damaged(image, n ? strerror(errno) : "the file has been cut off", position);
		at += n;
		position += n;
		size -= n;
	}
	return 0;
}
