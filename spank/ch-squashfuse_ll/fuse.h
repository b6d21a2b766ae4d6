/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's side of the server: requests in, answers out. */
#ifndef FUSE_H
#define FUSE_H

#include "image.h"

/* Answer requests from the FUSE descriptor with up to `threads` threads. It ends the process when the
 * mount is gone, and returns only if there is no memory for one thread. */
void fuse_serve(struct image *image, int fuse, int threads);

#endif
