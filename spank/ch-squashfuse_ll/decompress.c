/* SPDX-License-Identifier: Apache-2.0 */
/* Decompression by libraries. Each thread creates its decompressor once and keeps it. */
#include "image.h"

typedef ssize_t decoder(const uint8_t *from, size_t size, uint8_t *to, size_t room);

static const char *const names[] = {
	[GZIP] = "gzip", [LZMA] = "lzma", [LZO] = "lzo", [XZ] = "xz", [LZ4] = "lz4", [ZSTD] = "zstd",
};

#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>

static ssize_t gzip(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	static _Thread_local struct libdeflate_decompressor *d;
	size_t inflated = 0;

	if (!d && !(d = libdeflate_alloc_decompressor()))
		return -1;
	return libdeflate_zlib_decompress(d, from, size, to, room, &inflated) ? -1 : (ssize_t)inflated;
}
#elif defined(HAVE_ZLIB)
#include <zlib.h>

static ssize_t gzip(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	static _Thread_local z_stream z;

	if (z.state ? inflateReset(&z) : inflateInit(&z))
		return -1;
	z.next_in = (uint8_t *)from;
	z.avail_in = size;
	z.next_out = to;
	z.avail_out = room;
	return inflate(&z, Z_FINISH) == Z_STREAM_END ? (ssize_t)(room - z.avail_out) : -1;
}
#else
#define gzip NULL
#endif

#ifdef HAVE_XZ
#include <lzma.h>

/* Enough for a block of 1 MiB and the decoder itself. */
#define XZ_MEMORY (2 << 20)

static ssize_t xz(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	static _Thread_local lzma_stream s;

	/* A stream that is initialized again keeps its memory. */
	if (lzma_stream_decoder(&s, XZ_MEMORY, 0) != LZMA_OK)
		return -1;
	s.next_in = from;
	s.avail_in = size;
	s.next_out = to;
	s.avail_out = room;
	return lzma_code(&s, LZMA_FINISH) == LZMA_STREAM_END ? (ssize_t)(room - s.avail_out) : -1;
}
#else
#define xz NULL
#endif

#ifdef HAVE_ZSTD
#include <zstd.h>

static ssize_t zstd(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	static _Thread_local ZSTD_DCtx *d;
	size_t inflated;

	if (!d && !(d = ZSTD_createDCtx()))
		return -1;
	inflated = ZSTD_decompressDCtx(d, to, room, from, size);
	return ZSTD_isError(inflated) ? -1 : (ssize_t)inflated;
}
#else
#define zstd NULL
#endif

#ifdef HAVE_LZ4
#include <lz4.h>

static ssize_t lz4(const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	return LZ4_decompress_safe((const char *)from, (char *)to, size, room);
}
#else
#define lz4 NULL
#endif

/* lzma, which SquashFS had before 4.1, has a name for messages, but no decoder. */
static decoder *const decoders[ZSTD + 1] = {
	[GZIP] = gzip, [LZO] = lzo_decompress, [XZ] = xz, [LZ4] = lz4, [ZSTD] = zstd,
};

const char *compression_name(int compression)
{
	return compression >= GZIP && compression <= ZSTD ? names[compression] : NULL;
}

bool compression_supported(int compression)
{
	return compression_name(compression) && decoders[compression];
}

ssize_t decompress(int compression, const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	return decoders[compression](from, size, to, room);
}
