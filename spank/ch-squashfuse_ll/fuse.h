/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's side of the server: requests in, answers out. */
#ifndef FUSE_H
#define FUSE_H

#include "image.h"

/* Answer requests from the FUSE descriptor with `threads` threads, until the mount is gone. */
void __attribute__((noreturn)) fuse_serve(struct image *image, int fuse, int threads);

#endif
