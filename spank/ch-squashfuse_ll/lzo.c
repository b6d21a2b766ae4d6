/* SPDX-License-Identifier: Apache-2.0 */
/* Decompresses LZO1X, by the description in the kernel's Documentation/staging/lzo.rst.
 *
 * A stream is a sequence of instructions. Each copies a match, from up to 48 KiB
 * back, and then up to three literals; or it copies four literals or more. The
 * meaning of an instruction below 16 depends on how many literals came before it.
 */
#include <string.h>

#include "image.h"

struct stream {
	const uint8_t *in, *in_end;
	uint8_t *start, *out, *end;
};

/* Read a length that may not fit in its instruction: then each byte of 0 adds 255, and the next byte ends it. */
static bool read_length(struct stream *s, size_t *length, size_t mask)
{
	if (*length)
		return true;
	*length = mask;
	for (;;) {
		if (s->in == s->in_end)
			return false;
		if (*s->in)
			break;
		*length += 255;
		s->in++;
	}
	*length += *s->in++;
	return true;
}

static bool copy_literals(struct stream *s, size_t length)
{
	if (length > (size_t)(s->in_end - s->in) || length > (size_t)(s->end - s->out))
		return false;
	memcpy(s->out, s->in, length);
	s->in += length;
	s->out += length;
	return true;
}

static bool copy_match(struct stream *s, size_t distance, size_t length)
{
	const uint8_t *from = s->out - distance;

	if (distance > (size_t)(s->out - s->start) || length > (size_t)(s->end - s->out))
		return false;
	if (distance >= length) {
		memcpy(s->out, from, length);
		s->out += length;
		return true;
	}
	/* The match overlaps its own copy, so that its beginning is repeated. */
	while (length--)
		*s->out++ = *from++;
	return true;
}

/* Execute an instruction of 16 or more: copy a match. Return 1, 0 at the end of the stream, or -1. `literals` is
 * how many follow. */
static int match(struct stream *s, uint8_t code, size_t *literals)
{
	size_t length, distance;

	if (code >= 64) {
		if (s->in == s->in_end)
			return -1;
		length = (code >> 5) + 1;
		distance = ((size_t)*s->in++ << 3) + (code >> 2 & 7) + 1;
		*literals = code & 3;
		return copy_match(s, distance, length) ? 1 : -1;
	}
	length = code & (code >= 32 ? 31 : 7);
	if (!read_length(s, &length, code >= 32 ? 31 : 7) || s->in_end - s->in < 2)
		return -1;
	length += 2;
	distance = (s->in[0] | s->in[1] << 8) >> 2;
	*literals = s->in[0] & 3;
	s->in += 2;
	distance += code >= 32 ? 1 : 16384 + ((size_t)(code & 8) << 11);
	if (code < 32 && distance == 16384)
		return length == 3 ? 0 : -1;
	return copy_match(s, distance, length) ? 1 : -1;
}

/* Execute an instruction below 16: a run of literals if no literals came before it, else a short match. */
static bool below_16(struct stream *s, uint8_t code, size_t before, size_t *literals)
{
	size_t length = code, distance;

	if (!before) {
		*literals = 4; /* 4 or more, which are already copied */
		return read_length(s, &length, 15) && copy_literals(s, length + 3);
	}
	if (s->in == s->in_end)
		return false;
	distance = ((size_t)*s->in++ << 2) + (code >> 2) + 1;
	*literals = code & 3;
	return before < 4 ? copy_match(s, distance, 2) : copy_match(s, distance + 2048, 3);
}

ssize_t lzo_decompress(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	struct stream s = { from, from + size, to, to, to + room };
	size_t before = 0; /* literals since the last match; 4 means 4 or more */

	/* Only the first instruction may be a run of literals of this form. */
	if (size && *from > 17) {
		before = *s.in++ - 17;
		if (!copy_literals(&s, before))
			return -1;
		if (before > 4)
			before = 4;
	}
	while (s.in < s.in_end) {
		uint8_t code = *s.in++;
		size_t literals;

		if (code >= 16) {
			int done = match(&s, code, &literals);

			if (done <= 0)
				return !done && s.in == s.in_end ? s.out - s.start : -1;
		} else if (!below_16(&s, code, before, &literals)) {
			return -1;
		}
		before = literals;
		if (literals < 4 && !copy_literals(&s, literals))
			return -1;
	}
	return -1; /* the stream has no end instruction */
}
