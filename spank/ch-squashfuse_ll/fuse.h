/* SPDX-License-Identifier: Apache-2.0 */
/* Serving a FUSE device. */
#ifndef FUSE_H
#define FUSE_H

#include "image.h"

/* Answer requests from the FUSE descriptor, with up to `threads` threads. When the mount is gone, the process
 * ends. Return only if there is no memory for one thread. */
void fuse_serve(struct image *image, int fuse, int threads);

#endif
