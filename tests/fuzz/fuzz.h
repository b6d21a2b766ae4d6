/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the fuzz targets: each is the unmodified source with the outside
 * world, exit included, replaced. */
#ifndef FUZZ_H
#define FUZZ_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static jmp_buf fuzz_top;
static const uint8_t *fuzz_data;
static size_t fuzz_size;

static inline void __attribute__((noreturn)) fuzz_exit(int code)
{
	/* An error must not exit with the status of success. */
	if (!(code & 0xff))
		abort();
	longjmp(fuzz_top, 1);
}

/* Take n bytes of the input, or all that are left. */
static inline const uint8_t *fuzz_take(size_t n, size_t *got)
{
	const uint8_t *at = fuzz_data;

	*got = n < fuzz_size ? n : fuzz_size;
	fuzz_data += *got;
	fuzz_size -= *got;
	return at;
}

static inline uint8_t fuzz_byte(void)
{
	size_t got;
	const uint8_t *at = fuzz_take(1, &got);

	return got ? *at : 0;
}

/* Take the bytes up to the next NUL as a string, which only the arena frees. */
static char *fuzz_strings[4096];
static size_t fuzz_string_count;

static inline char *fuzz_string(void)
{
	size_t n = 0;
	char *text;

	while (n < fuzz_size && fuzz_data[n])
		n++;
	text = calloc(n + 1, 1);
	for (size_t i = 0; i < n; i++)
		text[i] = fuzz_data[i];
	fuzz_data += n < fuzz_size ? n + 1 : n;
	fuzz_size -= n < fuzz_size ? n + 1 : n;
	if (fuzz_string_count < sizeof(fuzz_strings) / sizeof(*fuzz_strings))
		fuzz_strings[fuzz_string_count++] = text;
	return text;
}

static inline void fuzz_free_strings(void)
{
	while (fuzz_string_count)
		free(fuzz_strings[--fuzz_string_count]);
}

#endif
