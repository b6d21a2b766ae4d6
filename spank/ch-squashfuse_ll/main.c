/* SPDX-License-Identifier: Apache-2.0 */
/* ch-squashfuse_ll: serves a SquashFS image on a FUSE device that is already mounted.
 *
 *   ch-squashfuse_ll -f|-b [-r] [-s] [-t SECONDS] [-o offset=BYTES] [-w PIDFD:FUSE]... /dev/fd/IMAGE /dev/fd/FUSE
 *
 * -f: stay in the foreground; -b: go to the background, without capabilities; -r:
 * root owns all files, whoever owns them in the image; -s: use one thread; -t: the
 * kernel ends the mount when a request waits that long (Linux 6.15, which checks
 * every 15 seconds, and takes less for 15); -o: where in its file the image begins;
 * -w: serve only after that process has ended (standby.c). The rest of the command
 * line is squashfuse_ll's.
 *
 * The program is static, so that it serves a few ms sooner. Its threads share each
 * inflated block. Because an image doesn't change, the kernel may cache all answers
 * for ever, files need no OPEN and RELEASE, and a directory's entries come with
 * their attributes. The server ends with the mount.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answers.h"
#include "confine.h"
#include "fuse.h"
#include "report.h"
#include "standby.h"

#define THREADS_MAX 4

static struct image image;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static int cores(void)
{
	cpu_set_t set;
	int count = sched_getaffinity(0, sizeof(set), &set) ? THREADS_MAX : CPU_COUNT(&set);

	return count < THREADS_MAX ? count : THREADS_MAX;
}

static int descriptor(const char *path)
{
	return strncmp(path, "/dev/fd/", 8) ? -1 : atoi(path + 8);
}

static void __attribute__((noreturn)) usage(void)
{
	fputs("usage: ch-squashfuse_ll -f|-b [-r] [-s] [-t SECONDS] [-o offset=BYTES] [-w PIDFD:FUSE]... /dev/fd/IMAGE"
	      " /dev/fd/FUSE\n"
	      "compressions:",
	      stderr);
	for (int i = GZIP; i <= ZSTD; i++)
		if (compression_supported(i))
			fprintf(stderr, " %s", compression_name(i));
	die("%s", "");
}

static bool read_offset(const char *words, uint64_t *offset)
{
	char *end;

	if (strncmp(words, "offset=", 7) || words[7] < '0' || words[7] > '9')
		return false;
	errno = 0;
	*offset = strtoull(words + 7, &end, 10);
	return !errno && !*end;
}

int main(int argc, char **argv)
{
	bool background = argc > 1 && !strcmp(argv[1], "-b");
	bool usable = argc > 3 && (!strcmp(argv[1], "-f") || background);
	int threads = cores(), option, fd, fuse;
	uint64_t offset = 0;
	struct stat st;
	char why[200];

	opterr = 0;
	while (usable && (option = getopt(argc, argv, "fbrst:o:w:")) != -1) {
		if (option == 's')
			threads = 1;
		else if (option == 'r')
			one_owner = true;
		else if (option == 't')
			usable = (request_timeout = atoi(optarg)) > 0;
		else if (option == 'o')
			usable = read_offset(optarg, &offset);
		else if (option == 'w')
			usable = standby_note(optarg);
		else
			usable = option == (background ? 'b' : 'f');
	}
	if (!usable || optind + 2 != argc || (fd = descriptor(argv[optind])) < 0 ||
	    (fuse = descriptor(argv[optind + 1])) < 0)
		usage();
	if (background && go_to_background())
		die("can't start the server: %s", strerror(errno));
	/* Little is allocated and none of it freed: so use one arena, and never return memory to the kernel. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 8 << 20);
	mallopt(M_TRIM_THRESHOLD, 8 << 20);
	if (chdir("/"))
		die("can't cd to /: %s", strerror(errno));
	if (fstat(fd, &st))
		die("can't read the image: %s", strerror(errno));
	standby_wait(fuse);
	if (close_others(fd, fuse))
		die("can't confine the server: %s", strerror(errno));
	report_open(fd);
	if (confine())
		die("can't confine the server: %s", strerror(errno));
	/* The image is only read after this process has given up its rights. */
	if (!image_open(&image, fd, offset, st.st_size, threads, why, sizeof(why)))
		die("%s", why);
	fuse_serve(&image, fuse, threads);
	die("out of memory");
}
