/* SPDX-License-Identifier: Apache-2.0 */
/* ch-squashfuse_ll: serves a SquashFS image on a FUSE descriptor that is mounted already.
 *
 *   ch-squashfuse_ll -f [-s] /dev/fd/IMAGE /dev/fd/FUSE      (-s: one thread)
 *
 * As squashfuse_ll's command line has it, for which it stands in where
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
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blocks.h"
#include "confine.h"

/* The kernel wants room for 8 KiB; nothing longer is ever written to us. */
#define REQUEST_BYTES (16 << 10)
#define REPLY_BYTES (132 << 10) /* 32 pages are its largest read, unless told otherwise */
#define THREADS_MAX 4
#define FOREVER (UINT64_MAX >> 2)
/* READDIR's offsets: 1 and 2 are behind "." and "..". */
#define DOTS 2

static struct image image;
static int fuse = -1;
static bool have_xattrs;

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
	sqfs_name name;
	bool found;
	int failed = get_inode(r->head.nodeid, &directory);

	if (failed)
		return failed;
	if (!S_ISDIR(directory.base.mode | sqfs_mode(directory.base.inode_type)))
		return -ENOTDIR;
	sqfs_dentry_init(&entry, name);
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
	sqfs_name name;
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
	sqfs_dentry_init(&entry, name);
	while (sqfs_dir_next(&image.fs, &dir, &entry, &error)) {
		struct fuse_dirent head = { .ino = sqfs_dentry_inode_num(&entry),
					    .off = sqfs_dentry_next_offset(&entry) + DOTS,
					    .namelen = sqfs_dentry_name_size(&entry),
					    .type = sqfs_dentry_mode(&entry) >> 12 };

		if (plus && get_entry(sqfs_dentry_inode(&entry), &attributes))
			return -EIO;
		if (!add_entry(reply, &used, room, plus, &head, name, &attributes))
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

static ssize_t getxattr_of(struct request *r, char *reply)
{
	const struct fuse_getxattr_in *in = (const struct fuse_getxattr_in *)r->body;
	size_t size = REPLY_BYTES;
	sqfs_inode inode;
	int failed = have_xattrs ? get_inode(r->head.nodeid, &inode) : -ENOSYS;

	if (failed)
		return failed;
	if (sqfs_xattr_lookup(&image.fs, &inode, r->body + sizeof(*in), reply, &size))
		return -EIO;
	return size ? sized(reply, in->size, size) : -ENODATA;
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
		size_t size;

		if (sqfs_xattr_read(&x))
			return -EIO;
		size = sqfs_xattr_name_size(&x);
		if (used + size + 1 > REPLY_BYTES || sqfs_xattr_name(&x, reply + used, true))
			return -EIO;
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
			  FUSE_NO_OPENDIR_SUPPORT;

	memset(out, 0, sizeof(*out));
	out->major = FUSE_KERNEL_VERSION;
	out->minor = in->minor < FUSE_KERNEL_MINOR_VERSION ? in->minor : FUSE_KERNEL_MINOR_VERSION;
	out->max_readahead = in->max_readahead;
	out->flags = in->flags & wanted;
	out->max_background = 64;
	out->congestion_threshold = 48;
	out->max_write = 4096;
	out->time_gran = 1000000000; /* whole seconds are all that SquashFS has */
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

int main(int argc, char **argv)
{
	bool single = argc == 5 && !strcmp(argv[2], "-s");
	int threads = single ? 1 : cores(), fd;
	pthread_attr_t small;
	pthread_t thread;

	if (argc != 4 + single || strcmp(argv[1], "-f") || (fd = descriptor(argv[2 + single])) < 0 ||
	    (fuse = descriptor(argv[3 + single])) < 0)
		die("usage: ch-squashfuse_ll -f [-s] /dev/fd/IMAGE /dev/fd/FUSE");
	/* Blocks come and go, at a size for which malloc would ask the kernel each time. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 8 << 20);
	mallopt(M_TRIM_THRESHOLD, 8 << 20);
	open_image(fd, threads);
	if (chdir("/"))
		die("can't cd to /: %s", strerror(errno));
	if (confine())
		die("can't confine the server: %s", strerror(errno));
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	for (int i = 1; i < threads; i++)
		if (pthread_create(&thread, &small, serve, NULL))
			break; /* those that there are will do */
	serve(NULL);
}
