/* SPDX-License-Identifier: Apache-2.0 */
/* Explains why the kernel did not execute a file: its "No such file" for a file that exists is about another
 * file, such as the interpreter. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "ch-join.h"

/* The kernel looks at this much of a file (BINPRM_BUF_SIZE). */
#define HEAD_SIZE 256
/* The longest name in a reason. A message has room for the command, its file and two such names. */
#define NAME_SIZE 512
/* An interpreter may be a script, whose interpreter may be one too, and so on: as deep as in the kernel. */
#define DEPTH_MAX 4

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OWN_DATA ELFDATA2LSB
#else
#define OWN_DATA ELFDATA2MSB
#endif

struct head {
	unsigned char bytes[HEAD_SIZE + 1]; /* a NUL at the end */
	size_t size;
};

static bool read_head(const char *path, struct head *h)
{
	/* O_NONBLOCK: the open of a FIFO would hang. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t n;

	if (fd < 0)
		return false;
	n = pread(fd, h->bytes, HEAD_SIZE, 0);
	close(fd);
	if (n < 0)
		return false;
	h->size = n;
	h->bytes[n] = '\0';
	return true;
}

/* ---- ELF ---- */

static const struct {
	unsigned machine;
	const char *name;
} machines[] = {
	{ EM_386, "i386" }, { EM_X86_64, "x86_64" }, { EM_ARM, "32-bit ARM" }, { EM_AARCH64, "aarch64" },
	{ EM_PPC, "ppc" }, { EM_PPC64, "ppc64" }, { EM_RISCV, "riscv" }, { EM_S390, "s390" },
	{ EM_MIPS, "mips" }, { EM_SPARCV9, "sparc" }, { EM_IA_64, "ia64" }, { 258 /* EM_LOONGARCH */, "loongarch" },
};

static bool is_elf(const struct head *h)
{
	return h->size >= SELFMAG && !memcmp(h->bytes, ELFMAG, SELFMAG);
}

static unsigned half(const struct head *h, size_t at)
{
	const unsigned char *b = h->bytes + at;

	return h->bytes[EI_DATA] == ELFDATA2MSB ? b[0] << 8 | b[1] : b[1] << 8 | b[0];
}

/* Explain why the kernel doesn't execute an ELF file. */
static void explain_elf(const struct head *h, char *to, size_t room)
{
	const size_t type = offsetof(Elf64_Ehdr, e_type), machine = offsetof(Elf64_Ehdr, e_machine);
	struct utsname own;

	if (h->size < sizeof(Elf32_Ehdr) || h->bytes[EI_CLASS] < ELFCLASS32 || h->bytes[EI_CLASS] > ELFCLASS64 ||
	    h->bytes[EI_DATA] < ELFDATA2LSB || h->bytes[EI_DATA] > ELFDATA2MSB) {
		snprintf(to, room, "its ELF header is broken; was it copied whole?");
		return;
	}
	if (half(h, type) != ET_EXEC && half(h, type) != ET_DYN) {
		snprintf(to, room, "an ELF file, but no program%s",
			 half(h, type) == ET_REL ? ": an object file, not linked yet" : "");
		return;
	}
	if (uname(&own))
		strcpy(own.machine, "another");
	for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++)
		if (machines[i].machine == half(h, machine) && strcmp(machines[i].name, own.machine)) {
			snprintf(to, room, "built for %s%s, and this node is %s: use an image for its processor",
				 machines[i].name, h->bytes[EI_DATA] == OWN_DATA ? "" : " of the other byte order",
				 own.machine);
			return;
		}
	snprintf(to, room, "its ELF header is broken, or for another processor than this node's (%s)", own.machine);
}

/* Copy the name of the loader that an ELF file of this machine's byte order names, or "". */
static void loader_of(const char *path, const struct head *h, char *to, size_t room)
{
	Elf64_Ehdr e64;
	Elf32_Ehdr e32;
	bool wide = h->bytes[EI_CLASS] == ELFCLASS64;
	uint64_t table, count, size, where = 0, length = 0;
	int fd;

	*to = '\0';
	if (h->size < sizeof(e64) || h->bytes[EI_DATA] != OWN_DATA)
		return;
	memcpy(&e64, h->bytes, sizeof(e64));
	memcpy(&e32, h->bytes, sizeof(e32));
	table = wide ? e64.e_phoff : e32.e_phoff;
	count = wide ? e64.e_phnum : e32.e_phnum;
	size = wide ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return;
	for (uint64_t i = 0; i < count && !length; i++) {
		union {
			Elf64_Phdr wide;
			Elf32_Phdr narrow;
		} p;

		if (pread(fd, &p, size, table + i * size) != (ssize_t)size)
			break;
		if ((wide ? p.wide.p_type : p.narrow.p_type) != PT_INTERP)
			continue;
		where = wide ? p.wide.p_offset : p.narrow.p_offset;
		length = wide ? p.wide.p_filesz : p.narrow.p_filesz;
	}
	if (length && length < room && pread(fd, to, length, where) == (ssize_t)length)
		to[length] = '\0';
	else
		*to = '\0';
	close(fd);
}

/* ---- Scripts ---- */

/* Copy the interpreter in a script's first line, or "" if it has none. Return whether a carriage return ends the line. */
static bool interpreter_of(const struct head *h, char *to, size_t room)
{
	const char *line = (const char *)h->bytes;
	size_t begin, length;

	*to = '\0';
	if (h->size < 2 || memcmp(line, "#!", 2))
		return false;
	begin = 2 + strspn(line + 2, " \t");
	length = strcspn(line + begin, " \t\n");
	if (length >= room)
		length = room - 1;
	memcpy(to, line + begin, length);
	to[length] = '\0';
	begin = strcspn(line, "\n");
	return begin < h->size && line[begin - 1] == '\r';
}

/* As in bash: a file with a NUL in its first line is not a script. */
static bool is_binary(const struct head *h)
{
	const unsigned char *newline = memchr(h->bytes, '\n', h->size);

	return is_elf(h) || memchr(h->bytes, '\0', newline ? (size_t)(newline - h->bytes) : h->size);
}

/* ---- Explaining ---- */

static void explain(const char *path, int why, char *to, size_t room, int depth);

/* Explain what is wrong with `name`, the interpreter or loader (`kind`) of a file. */
static void explain_needed(const char *kind, const char *name, const char *remedy, int why, char *to, size_t room, int depth)
{
	char deeper[REASON_SIZE] = "";
	struct stat st;

	if (stat(name, &st)) {
		if (errno == ENOENT || errno == ENOTDIR)
			snprintf(to, room, "%s, %.*s, is not in the container%s", kind, NAME_SIZE, name, remedy);
		else
			snprintf(to, room, "%s, %.*s: %s", kind, NAME_SIZE, name, strerror(errno));
		return;
	}
	if (depth < DEPTH_MAX)
		explain(name, why, deeper, sizeof(deeper), depth + 1);
	snprintf(to, room, "%s, %.*s, can't be executed: %s", kind, NAME_SIZE, name, deeper);
}

static void explain_denied(const char *path, const struct stat *st, char *to, size_t room)
{
	struct statvfs fs;

	if (S_ISDIR(st->st_mode))
		snprintf(to, room, "%s: it is a directory", strerror(EACCES));
	else if (!S_ISREG(st->st_mode))
		snprintf(to, room, "%s: it is not a regular file", strerror(EACCES));
	else if (!statvfs(path, &fs) && fs.f_flag & ST_NOEXEC)
		snprintf(to, room, "%s: its file system is mounted noexec; copy it to another, or start a script by its interpreter",
			 strerror(EACCES));
	else if (!(st->st_mode & (S_IXUSR | S_IXGRP | S_IXOTH)))
		snprintf(to, room, "%s: the file is not executable (chmod +x)", strerror(EACCES));
	else
		snprintf(to, room, "%s", strerror(EACCES));
}

/* Explain why the execution of `path`, which exists, failed with `why`. */
static void explain(const char *path, int why, char *to, size_t room, int depth)
{
	char name[PATH_MAX];
	struct head h;
	struct stat st;
	bool returns;

	snprintf(to, room, "%s", strerror(why));
	if (stat(path, &st)) {
		ssize_t n = readlink(path, name, sizeof(name) - 1);

		if (n > 0 && why == ENOENT)
			snprintf(to, room, "it is a link to %.*s, which is not in the container",
				 (int)(n < NAME_SIZE ? n : NAME_SIZE), name);
		return;
	}
	if (!S_ISREG(st.st_mode) || (why == EACCES && access(path, X_OK))) {
		explain_denied(path, &st, to, room);
		return;
	}
	if (!read_head(path, &h))
		return;
	returns = interpreter_of(&h, name, sizeof(name));
	if (*name && returns && name[strlen(name) - 1] == '\r') {
		snprintf(to, room, "%s: its lines end with CR LF, as on Windows (sed -i 's/\\r$//' FILE)", strerror(why));
	} else if (*name) {
		explain_needed("the interpreter in its first line", name, "", why, to, room, depth);
	} else if (is_elf(&h)) {
		loader_of(path, &h, name, sizeof(name));
		if (*name && (why == ENOENT || why == ENOTDIR || why == EACCES || why == ELIBBAD || why == ELOOP))
			explain_needed("its loader", name, ": built for another C library or distribution?", why, to, room, depth);
		else if (why == ENOEXEC || why == EINVAL || why == ELIBBAD)
			explain_elf(&h, to, room);
	} else if (why == ENOEXEC && is_binary(&h)) {
		snprintf(to, room, "neither a program nor a script for this node");
	}
}

void explain_exec_failure(const char *path, int why, char reason[REASON_SIZE])
{
	explain(path, why, reason, REASON_SIZE, 0);
}

bool is_text_file(const char *path)
{
	struct head h;

	return read_head(path, &h) && !is_binary(&h);
}
