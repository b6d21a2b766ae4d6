/* SPDX-License-Identifier: Apache-2.0 */
/* ch-squashfuse_ll: serves a SquashFS image on a FUSE descriptor that is mounted already.
 *
 *   ch-squashfuse_ll -f [-s] [-t SECONDS] /dev/fd/IMAGE /dev/fd/FUSE
 *
 * -s: one thread; -t: the kernel ends the mount when a request waits that long
 * (Linux 6.15; it looks every 15 seconds, and takes less for 15).
 * Else as squashfuse_ll's command line has it, for which it stands in where
 * libsquashfuse was there to build it. It is static, so that it serves a few
 * ms sooner, shares each inflated block among its threads, and has the kernel
 * ask once: an image doesn't change, so that everything may be cached for ever,
 * files need no OPEN and RELEASE, and a directory's entries come with their
 * attributes. Ends when the mount does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/fuse.h>
#include <malloc.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blocks.h"
#include "confine.h"

/* The kernel wants room for 8 KiB; nothing longer is ever written to us. */
#define REQUEST_BYTES (16 << 10)
#define READ_BYTES (128 << 10) /* the longest read: 32 pages unless told otherwise, which may be of 64 KiB */
#define REPLY_BYTES (READ_BYTES + (4 << 10))
#define THREADS_MAX 4
#define FOREVER (UINT64_MAX >> 2)
/* An image can say that a name has 64 KiB, and libsquashfuse reads what it says. */
#define NAME_BYTES (128 << 10)
/* READDIR's offsets: 1 and 2 are behind "." and "..". */
#define DOTS 2
/* INIT's newest part, which headers may lack: flags' second half in the request and the reply, and the
 * reply's timeout, by their places. */
#define INIT_EXT (1U << 30)
#define REQUEST_TIMEOUT (1U << (42 - 32))
#define IN_FLAGS2 16
#define OUT_FLAGS2 32
#define OUT_TIMEOUT 40

static struct image image;
static int fuse = -1;
static bool have_xattrs;
static uint16_t request_timeout; /* seconds; 0: none */
/* Where names of entries and attributes are read to, with the metadata locked. */
static char *name_buffer;

struct request {
	struct fuse_in_header head;
	char body[REQUEST_BYTES - sizeof(struct fuse_in_header)];
};

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* ---- Nodes ---- */

/* A node's number is its inode's place in the image; 0 and 1 mean something to the kernel. */
static uint64_t node_of(sqfs_inode_id id)
{
	return id == sqfs_inode_root(&image.fs) ? FUSE_ROOT_ID : id + 2;
}

/* Needs the metadata locked, as all from here to the block reads does. */
static int get_inode(uint64_t node, sqfs_inode *inode)
{
	sqfs_inode_id id = node == FUSE_ROOT_ID ? sqfs_inode_root(&image.fs) : node - 2;

	return sqfs_inode_get(&image.fs, inode, id) ? -EIO : 0;
}

static int get_attr(sqfs_inode *inode, struct fuse_attr *attr)
{
	sqfs_id_t uid, gid;
	mode_t mode = inode->base.mode | sqfs_mode(inode->base.inode_type);

	if (sqfs_id_get(&image.fs, inode->base.uid, &uid) || sqfs_id_get(&image.fs, inode->base.guid, &gid))
		return -EIO;
	memset(attr, 0, sizeof(*attr));
	attr->ino = inode->base.inode_number;
	attr->mode = mode;
	attr->nlink = inode->nlink;
	attr->uid = uid;
	attr->gid = gid;
	attr->atime = attr->mtime = attr->ctime = inode->base.mtime;
	attr->blksize = image.fs.sb.block_size;
	if (S_ISREG(mode))
		attr->size = inode->xtra.reg.file_size;
	else if (S_ISLNK(mode))
		attr->size = inode->xtra.symlink_size;
	else if (S_ISDIR(mode))
		attr->size = inode->xtra.dir.dir_size;
	else if (S_ISBLK(mode) || S_ISCHR(mode))
		attr->rdev = makedev(inode->xtra.dev.major, inode->xtra.dev.minor);
	attr->blocks = (attr->size + 511) / 512;
	return 0;
}

static int get_entry(sqfs_inode_id id, struct fuse_entry_out *out)
{
	sqfs_inode inode;

	memset(out, 0, sizeof(*out));
	if (sqfs_inode_get(&image.fs, &inode, id))
		return -EIO;
	out->nodeid = node_of(id);
	out->entry_valid = out->attr_valid = FOREVER;
	return get_attr(&inode, &out->attr);
}

/* ---- Requests: each returns the reply's size, or -errno ---- */

static ssize_t lookup(struct request *r, char *reply)
{
	struct fuse_entry_out *out = (struct fuse_entry_out *)reply;
	sqfs_inode directory;
	sqfs_dir_entry entry;
	bool found;
	int failed = get_inode(r->head.nodeid, &directory);

	if (failed)
		return failed;
	if (!S_ISDIR(directory.base.mode | sqfs_mode(directory.base.inode_type)))
		return -ENOTDIR;
	sqfs_dentry_init(&entry, name_buffer);
	if (sqfs_dir_lookup(&image.fs, &directory, r->body, strlen(r->body), &entry, &found))
		return -EIO;
	if (!found) { /* nothing, and that for ever */
		memset(out, 0, sizeof(*out));
		out->entry_valid = FOREVER;
		return sizeof(*out);
	}
	failed = get_entry(sqfs_dentry_inode(&entry), out);
	return failed ? failed : (ssize_t)sizeof(*out);
}

static ssize_t getattr(struct request *r, char *reply)
{
	struct fuse_attr_out *out = (struct fuse_attr_out *)reply;
	sqfs_inode inode;
	int failed = get_inode(r->head.nodeid, &inode);

	memset(out, 0, sizeof(*out));
	out->attr_valid = FOREVER;
	if (!failed)
		failed = get_attr(&inode, &out->attr);
	return failed ? failed : (ssize_t)sizeof(*out);
}

static ssize_t readlink_of(struct request *r, char *reply)
{
	size_t size = PATH_MAX + 1;
	sqfs_inode inode;
	int failed = get_inode(r->head.nodeid, &inode);

	if (failed)
		return failed;
	if (!S_ISLNK(inode.base.mode | sqfs_mode(inode.base.inode_type)))
		return -EINVAL;
	return sqfs_readlink(&image.fs, &inode, reply, &size) ? -EIO : (ssize_t)strlen(reply);
}

/* Append one entry to a directory's listing; false if there is no room. */
static bool add_entry(char *reply, size_t *used, size_t room, bool plus, struct fuse_dirent *head,
		      const char *name, const struct fuse_entry_out *attributes)
{
	size_t before = plus ? sizeof(*attributes) : 0;
	size_t size = FUSE_DIRENT_ALIGN(before + sizeof(*head) + head->namelen);
	char *to = reply + *used;

	if (*used + size > room)
		return false;
	memset(to, 0, size);
	if (plus && attributes)
		memcpy(to, attributes, sizeof(*attributes));
	memcpy(to + before, head, sizeof(*head));
	memcpy(to + before + sizeof(*head), name, head->namelen);
	*used += size;
	return true;
}

static ssize_t readdir_of(struct request *r, char *reply, bool plus)
{
	const struct fuse_read_in *in = (const struct fuse_read_in *)r->body;
	size_t room = in->size < REPLY_BYTES ? in->size : REPLY_BYTES, used = 0;
	struct fuse_entry_out attributes;
	sqfs_inode directory;
	sqfs_dir_entry entry;
	sqfs_dir dir;
	sqfs_err error = SQFS_OK;
	int failed = get_inode(r->head.nodeid, &directory);

	if (failed)
		return failed;
	if (!S_ISDIR(directory.base.mode | sqfs_mode(directory.base.inode_type)))
		return -ENOTDIR;
	for (uint64_t dot = in->offset; dot < DOTS; dot++) {
		struct fuse_dirent head = { .off = dot + 1, .namelen = dot + 1, .type = S_IFDIR >> 12 };

		head.ino = dot ? directory.xtra.dir.parent_inode : directory.base.inode_number;
		if (!add_entry(reply, &used, room, plus, &head, "..", NULL))
			return used;
	}
	if (sqfs_dir_open(&image.fs, &directory, &dir, in->offset > DOTS ? in->offset - DOTS : 0))
		return -EIO;
	sqfs_dentry_init(&entry, name_buffer);
	while (sqfs_dir_next(&image.fs, &dir, &entry, &error)) {
		struct fuse_dirent head = { .ino = sqfs_dentry_inode_num(&entry),
					    .off = sqfs_dentry_next_offset(&entry) + DOTS,
					    .namelen = sqfs_dentry_name_size(&entry),
					    .type = sqfs_dentry_mode(&entry) >> 12 };

		if (head.namelen > SQUASHFS_NAME_LEN ||
		    (plus && get_entry(sqfs_dentry_inode(&entry), &attributes)))
			return -EIO;
		if (!add_entry(reply, &used, room, plus, &head, name_buffer, &attributes))
			return used;
	}
	return error && !used ? -EIO : (ssize_t)used;
}

static ssize_t statfs_of(char *reply)
{
	struct fuse_statfs_out *out = (struct fuse_statfs_out *)reply;

	memset(out, 0, sizeof(*out));
	out->st.bsize = out->st.frsize = image.fs.sb.block_size;
	out->st.blocks = (image.fs.sb.bytes_used + out->st.bsize - 1) / out->st.bsize;
	out->st.files = image.fs.sb.inodes;
	out->st.namelen = SQUASHFS_NAME_LEN;
	return sizeof(*out);
}

/* A value, or its size where the kernel asks for that with no room. */
static ssize_t sized(char *reply, size_t room, size_t size)
{
	struct fuse_getxattr_out *out = (struct fuse_getxattr_out *)reply;

	if (room)
		return size > room ? -ERANGE : (ssize_t)size;
	memset(out, 0, sizeof(*out));
	out->size = size;
	return sizeof(*out);
}

/* Read the next attribute, with its name in name_buffer; the name's size, or -EIO. libsquashfuse takes
 * trusted. and security. for each other, and its sqfs_xattr_lookup reads names of any length into few bytes. */
static ssize_t next_attribute(sqfs_xattr *x)
{
	static const char *const prefixes[] = { "user.", "trusted.", "security." };
	size_t prefix;

	if (sqfs_xattr_read(x) || x->type >= sizeof(prefixes) / sizeof(prefixes[0]))
		return -EIO;
	prefix = strlen(prefixes[x->type]);
	memcpy(name_buffer, prefixes[x->type], prefix);
	return sqfs_xattr_name(x, name_buffer + prefix, false) ? -EIO : (ssize_t)prefix + x->entry.size;
}

static ssize_t getxattr_of(struct request *r, char *reply)
{
	const struct fuse_getxattr_in *in = (const struct fuse_getxattr_in *)r->body;
	const char *wanted = r->body + sizeof(*in);
	ssize_t length = strlen(wanted), named;
	size_t size;
	sqfs_xattr x;
	sqfs_inode inode;
	int failed = have_xattrs ? get_inode(r->head.nodeid, &inode) : -ENOSYS;

	if (failed)
		return failed;
	if (sqfs_xattr_open(&image.fs, &inode, &x))
		return -EIO;
	while (x.remain) {
		if ((named = next_attribute(&x)) < 0)
			return named;
		if (named != length || memcmp(name_buffer, wanted, length))
			continue;
		if (sqfs_xattr_value_size(&x, &size) || size > REPLY_BYTES)
			return -EIO;
		if (in->size >= size && sqfs_xattr_value(&x, reply))
			return -EIO;
		return sized(reply, in->size, size);
	}
	return -ENODATA;
}

static ssize_t listxattr_of(struct request *r, char *reply)
{
	const struct fuse_getxattr_in *in = (const struct fuse_getxattr_in *)r->body;
	size_t used = 0;
	sqfs_xattr x;
	sqfs_inode inode;
	int failed = have_xattrs ? get_inode(r->head.nodeid, &inode) : -ENOSYS;

	if (failed)
		return failed;
	if (sqfs_xattr_open(&image.fs, &inode, &x))
		return -EIO;
	while (x.remain) {
		ssize_t size = next_attribute(&x);

		if (size < 0 || used + size + 1 > REPLY_BYTES)
			return -EIO;
		memcpy(reply + used, name_buffer, size);
		reply[used + size] = '\0';
		used += size + 1;
	}
	return sized(reply, in->size, used);
}

static ssize_t read_of(struct request *r, char *reply)
{
	const struct fuse_read_in *in = (const struct fuse_read_in *)r->body;
	size_t size = in->size < REPLY_BYTES ? in->size : REPLY_BYTES;
	sqfs_inode inode;
	int failed;

	pthread_mutex_lock(&image.metadata);
	failed = get_inode(r->head.nodeid, &inode);
	pthread_mutex_unlock(&image.metadata);
	if (failed)
		return failed;
	if (!S_ISREG(inode.base.mode | sqfs_mode(inode.base.inode_type)))
		return -EINVAL;
	return blocks_read(&image, &inode, in->offset, size, reply);
}

static ssize_t init(struct request *r, char *reply)
{
	const struct fuse_init_in *in = (const struct fuse_init_in *)r->body;
	struct fuse_init_out *out = (struct fuse_init_out *)reply;
	uint32_t wanted = FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_DO_READDIRPLUS |
			  FUSE_READDIRPLUS_AUTO | FUSE_CACHE_SYMLINKS | FUSE_NO_OPEN_SUPPORT |
			  FUSE_NO_OPENDIR_SUPPORT | FUSE_MAX_PAGES;
	long page = sysconf(_SC_PAGESIZE);

	memset(out, 0, sizeof(*out));
	out->major = FUSE_KERNEL_VERSION;
	out->minor = in->minor < FUSE_KERNEL_MINOR_VERSION ? in->minor : FUSE_KERNEL_MINOR_VERSION;
	out->max_readahead = in->max_readahead;
	out->flags = in->flags & wanted;
	out->max_background = 64;
	out->congestion_threshold = 48;
	out->max_write = 4096;
	out->max_pages = page > 0 && page < READ_BYTES ? READ_BYTES / page : 1;
	out->time_gran = 1000000000; /* whole seconds are all that SquashFS has */
	if (request_timeout && in->flags & INIT_EXT) {
		uint32_t flags2;

		memcpy(&flags2, r->body + IN_FLAGS2, sizeof(flags2));
		flags2 &= REQUEST_TIMEOUT;
		out->flags |= INIT_EXT;
		memcpy(reply + OUT_FLAGS2, &flags2, sizeof(flags2));
		if (flags2)
			memcpy(reply + OUT_TIMEOUT, &request_timeout, sizeof(request_timeout));
	}
	return sizeof(*out);
}

static ssize_t with_metadata(struct request *r, char *reply)
{
	switch (r->head.opcode) {
	case FUSE_LOOKUP:
		return lookup(r, reply);
	case FUSE_GETATTR:
		return getattr(r, reply);
	case FUSE_READLINK:
		return readlink_of(r, reply);
	case FUSE_READDIR:
		return readdir_of(r, reply, false);
	case FUSE_READDIRPLUS:
		return readdir_of(r, reply, true);
	case FUSE_STATFS:
		return statfs_of(reply);
	case FUSE_GETXATTR:
		return getxattr_of(r, reply);
	case FUSE_LISTXATTR:
		return listxattr_of(r, reply);
	default: /* OPEN, OPENDIR, FLUSH, ACCESS, ...: the kernel won't ask again */
		return -ENOSYS;
	}
}

static ssize_t answer(struct request *r, char *reply)
{
	ssize_t size;

	if (r->head.opcode == FUSE_READ)
		return read_of(r, reply);
	if (r->head.opcode == FUSE_INIT)
		return init(r, reply);
	if (r->head.opcode == FUSE_DESTROY)
		return 0;
	pthread_mutex_lock(&image.metadata);
	size = with_metadata(r, reply);
	pthread_mutex_unlock(&image.metadata);
	return size;
}

/* ---- The server ---- */

/* Read one request; false when the mount is gone. */
static bool receive(struct request *r)
{
	for (;;) {
		ssize_t n = read(fuse, r, sizeof(*r));

		if (n >= (ssize_t)sizeof(r->head)) {
			/* Names end with a NUL; whatever comes behind is none of ours. */
			((char *)r)[n < (ssize_t)sizeof(*r) ? n : (ssize_t)sizeof(*r) - 1] = '\0';
			return true;
		}
		if (n >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
			return false;
	}
}

static void send_reply(struct request *r, char *reply, ssize_t size)
{
	struct fuse_out_header head = { .unique = r->head.unique };
	struct iovec parts[] = { { &head, sizeof(head) }, { reply, size > 0 ? size : 0 } };

	head.error = size < 0 ? size : 0;
	head.len = sizeof(head) + parts[1].iov_len;
	/* ENOENT: the request was interrupted; anything else shows at the next read. */
	if (writev(fuse, parts, 2) < 0)
		return;
}

static void *serve(void *unused)
{
	struct request *r = malloc(sizeof(*r));
	char *reply = malloc(REPLY_BYTES + PATH_MAX);

	(void)unused;
	if (!r || !reply)
		die("out of memory");
	while (receive(r)) {
		if (r->head.opcode == FUSE_FORGET || r->head.opcode == FUSE_BATCH_FORGET)
			continue;
		send_reply(r, reply, answer(r, reply));
	}
	_exit(0);
}

static int cores(void)
{
	cpu_set_t set;
	int count = sched_getaffinity(0, sizeof(set), &set) ? THREADS_MAX : CPU_COUNT(&set);

	return count < THREADS_MAX ? count : THREADS_MAX;
}

static int descriptor(const char *path)
{
	int fd;

	return sscanf(path, "/dev/fd/%d", &fd) == 1 ? fd : -1;
}

static void open_image(int fd, int threads)
{
	sqfs_err error = sqfs_init(&image.fs, fd, 0);

	if (error == SQFS_BADFORMAT)
		die("not a SquashFS image");
	if (error == SQFS_BADVERSION)
		die("SquashFS %d.%d: only version 4 is supported", image.fs.sb.s_major, image.fs.sb.s_minor);
	if (error == SQFS_BADCOMP)
		die("the image's compression (%d) is not supported", sqfs_compression(&image.fs));
	if (error)
		die("can't read the SquashFS image: damaged?");
	have_xattrs = image.fs.sb.xattr_id_table_start != (uint64_t)SQUASHFS_INVALID_BLK;
	if (blocks_init(&image, threads))
		die("can't read the SquashFS image: block size %u", image.fs.sb.block_size);
}

/* A name that is longer than any can be ends the server, not what is behind it in memory. */
static char *make_name_buffer(void)
{
	char *start = mmap(NULL, 2 * NAME_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (start == MAP_FAILED || mprotect(start + NAME_BYTES, NAME_BYTES, PROT_NONE))
		die("out of memory");
	return start;
}

int main(int argc, char **argv)
{
	bool single = false, usable = argc > 3 && !strcmp(argv[1], "-f");
	int threads = cores(), option, fd;
	pthread_attr_t small;
	pthread_t thread;

	opterr = 0;
	while (usable && (option = getopt(argc, argv, "fst:")) != -1) {
		if (option == 's')
			single = true;
		else if (option == 't')
			usable = (request_timeout = atoi(optarg)) > 0;
		else
			usable = option == 'f';
	}
	if (!usable || optind + 2 != argc || (fd = descriptor(argv[optind])) < 0 ||
	    (fuse = descriptor(argv[optind + 1])) < 0)
		die("usage: ch-squashfuse_ll -f [-s] [-t SECONDS] /dev/fd/IMAGE /dev/fd/FUSE");
	if (single)
		threads = 1;
	/* Blocks come and go, at a size for which malloc would ask the kernel each time. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 8 << 20);
	mallopt(M_TRIM_THRESHOLD, 8 << 20);
	name_buffer = make_name_buffer();
	if (chdir("/"))
		die("can't cd to /: %s", strerror(errno));
	if (close_others(fd, fuse) || confine())
		die("can't confine the server: %s", strerror(errno));
	/* From here on, whatever the image says is read by a process that can do nothing with it. */
	open_image(fd, threads);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	for (int i = 1; i < threads; i++)
		if (pthread_create(&thread, &small, serve, NULL))
			break; /* those that there are will do */
	serve(NULL);
}
