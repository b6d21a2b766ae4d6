/* SPDX-License-Identifier: Apache-2.0 */
/* Included before each source of the SquashFS reader, so that it reads from memory and is observed. */
#ifndef SQUASHFS_HOOKS_H
#define SQUASHFS_HOOKS_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t fuzz_pread(int fd, void *to, size_t size, off_t offset);
void *fuzz_malloc(size_t size);
void *fuzz_calloc(size_t count, size_t size);
void fuzz_free(void *memory);
void fuzz_field(const uint8_t *at, size_t size);
void fuzz_loading(uint8_t *data, size_t bytes);
void fuzz_loaded(uint8_t *data, size_t bytes, size_t used, uint64_t position);

#define FIELD(at, size) fuzz_field(at, size)
#define BLOCK_GAP 64
#define BLOCK_LOADING(block, bytes) fuzz_loading((block)->data, bytes)
#define BLOCK_LOADED(block, bytes) fuzz_loaded((block)->data, bytes, failed ? 0 : (block)->size, (block)->position)

/* Defined after the declarations of these functions. */
#define pread fuzz_pread
#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define free fuzz_free

#endif
