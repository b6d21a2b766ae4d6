/* SPDX-License-Identifier: Apache-2.0 */
/* Answers the kernel's FUSE requests from the image. */
#include "answers.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOREVER (UINT64_MAX >> 2)
/* READDIR's offsets: 1 is after ".", and 2 after "..". */
#define DOTS 2
/* Fields of INIT that the headers may lack, by their places: the second half of the flags in request and reply,
 * and the timeout in the reply. */
#define INIT_EXT (1U << 30)
#define REQUEST_TIMEOUT (1U << (42 - 32))
#define IN_FLAGS2 16
#define OUT_FLAGS2 32
#define OUT_TIMEOUT 40

uint16_t request_timeout;
bool one_owner;

/* ---- Nodes ---- */

/* A node's number is its inode's place in the image, plus 2, because 0 and 1 are reserved by the kernel. */
static uint64_t node_of(const struct image *image, uint64_t reference)
{
	return reference == image->root ? FUSE_ROOT_ID : reference + 2;
}

static int get_inode(struct image *image, uint64_t node, struct inode *inode)
{
	return inode_read(image, node == FUSE_ROOT_ID ? image->root : node - 2, 0, inode);
}

/* `attr` is all zeros. */
static void get_attr(const struct image *image, const struct inode *inode, struct fuse_attr *attr)
{
	attr->ino = inode->number;
	attr->mode = inode->mode;
	attr->nlink = inode->links;
	if (!one_owner) {
		attr->uid = inode->uid;
		attr->gid = inode->gid;
	}
	attr->atime = attr->mtime = attr->ctime = inode->mtime;
	attr->blksize = image->block_size;
	attr->size = inode->size;
	if (inode->type == TYPE_BLOCK || inode->type == TYPE_CHARACTER)
		attr->rdev = inode->device; /* both have the kernel's encoding */
	attr->blocks = (attr->size + 511) / 512;
}

/* The entry must have the same type as its inode. The caller closes the cursor. */
static int get_entry(struct cursor *inodes, struct image *image, const struct entry *entry, struct fuse_entry_out *out)
{
	struct inode inode;

	memset(out, 0, sizeof(*out));
	if (inode_read_next(inodes, image, entry->reference, entry->type, &inode))
		return -EIO;
	out->nodeid = node_of(image, entry->reference);
	out->entry_valid = out->attr_valid = FOREVER;
	get_attr(image, &inode, &out->attr);
	return 0;
}

/* ---- Requests: each returns the reply's size, or -errno ---- */

static ssize_t lookup(struct image *image, const struct request *r, char *reply)
{
	struct fuse_entry_out *out = (struct fuse_entry_out *)reply;
	struct cursor inodes = { .block = NULL };
	struct inode directory;
	struct entry entry;
	int found;

	if (get_inode(image, r->head.nodeid, &directory))
		return -EIO;
	if (directory.type != TYPE_DIRECTORY)
		return -ENOTDIR;
	found = directory_find(image, &directory, r->body, strlen(r->body), &entry);
	if (found < 0)
		return -EIO;
	if (!found) { /* the kernel may remember that for ever */
		memset(out, 0, sizeof(*out));
		out->entry_valid = FOREVER;
		return sizeof(*out);
	}
	found = get_entry(&inodes, image, &entry, out);
	cursor_close(&inodes);
	return found ? found : (ssize_t)sizeof(*out);
}

static ssize_t getattr(struct image *image, const struct request *r, char *reply)
{
	struct fuse_attr_out *out = (struct fuse_attr_out *)reply;
	struct inode inode;

	if (get_inode(image, r->head.nodeid, &inode))
		return -EIO;
	memset(out, 0, sizeof(*out));
	out->attr_valid = FOREVER;
	get_attr(image, &inode, &out->attr);
	return sizeof(*out);
}

static ssize_t readlink_of(struct image *image, const struct request *r, char *reply)
{
	struct inode inode;

	if (get_inode(image, r->head.nodeid, &inode))
		return -EIO;
	return inode.type == TYPE_LINK ? link_read(image, &inode, reply, PATH_MAX) : -EINVAL;
}

/* Append one entry to a directory's listing. With `plus`, its attributes go before it. Return where they
 * belong, or NULL if there is no room. */
static struct fuse_entry_out *add_entry(char *reply, size_t *used, size_t room, bool plus,
					const struct fuse_dirent *head, const void *name)
{
	size_t before = plus ? sizeof(struct fuse_entry_out) : 0;
	size_t end = before + sizeof(*head) + head->namelen, size = FUSE_DIRENT_ALIGN(end);
	char *to = reply + *used;

	if (size > room - *used)
		return NULL;
	memcpy(to + before, head, sizeof(*head));
	memcpy(to + before + sizeof(*head), name, head->namelen);
	memset(to + end, 0, size - end);
	*used += size;
	return (struct fuse_entry_out *)to;
}

/* Append entries until there are no more, or no room. */
static ssize_t list(struct directory *d, const struct inode *inode, char *reply, size_t used, size_t room, bool plus)
{
	struct cursor inodes = { .block = NULL };
	struct fuse_entry_out *attributes;
	struct entry entry;
	int found;

	while ((found = directory_next(d, &entry)) == 1) {
		struct fuse_dirent head = {
			.ino = entry.number,
			.off = (uint64_t)entry.next + DOTS,
			.namelen = entry.length,
			.type = (const uint8_t[]){ 0, DT_DIR, DT_REG, DT_LNK, DT_BLK, DT_CHR, DT_FIFO,
						   DT_SOCK }[entry.type],
		};

		if (!(attributes = add_entry(reply, &used, room, plus, &head, entry.name))) {
			directory_interrupt(d, inode);
			break;
		}
		/* The name is listed even if its inode can't be read: that is an error of the later LOOKUP. */
		if (plus && get_entry(&inodes, d->cursor.image, &entry, attributes))
			memset(attributes, 0, sizeof(*attributes));
	}
	cursor_close(&inodes);
	return found < 0 && !used ? -EIO : (ssize_t)used;
}

static ssize_t readdir_of(struct image *image, const struct request *r, char *reply, bool plus)
{
	const struct fuse_read_in *in = (const struct fuse_read_in *)r->body;
	size_t room = in->size < REPLY_BYTES ? in->size : REPLY_BYTES, used = 0;
	struct fuse_entry_out *attributes;
	struct directory d;
	struct inode inode;
	ssize_t size;

	if (get_inode(image, r->head.nodeid, &inode))
		return -EIO;
	if (inode.type != TYPE_DIRECTORY)
		return -ENOTDIR;
	for (uint64_t dot = in->offset; dot < DOTS; dot++) {
		struct fuse_dirent head = { .off = dot + 1, .namelen = dot + 1, .type = DT_DIR };

		head.ino = dot ? inode.directory.parent : inode.number;
		attributes = add_entry(reply, &used, room, plus, &head, "..");
		if (!attributes)
			return used;
		if (plus)
			memset(attributes, 0, sizeof(*attributes));
	}
	if (in->offset > UINT32_MAX)
		return used;
	if (directory_open(&d, image, &inode, in->offset > DOTS ? in->offset - DOTS : 0))
		return used ? (ssize_t)used : -EIO;
	size = list(&d, &inode, reply, used, room, plus);
	directory_close(&d);
	return size;
}

static ssize_t statfs_of(struct image *image, char *reply)
{
	struct fuse_statfs_out *out = (struct fuse_statfs_out *)reply;

	memset(out, 0, sizeof(*out));
	out->st.bsize = out->st.frsize = image->block_size;
	out->st.blocks = (image->size + image->block_size - 1) / image->block_size;
	out->st.files = image->inode_count;
	out->st.namelen = NAME_LENGTH_MAX;
	return sizeof(*out);
}

/* Return a value's size; if the kernel has given no room, that size itself is the reply. */
static ssize_t sized(char *reply, size_t room, ssize_t size)
{
	struct fuse_getxattr_out *out = (struct fuse_getxattr_out *)reply;

	if (room || size < 0)
		return size;
	memset(out, 0, sizeof(*out));
	out->size = size;
	return sizeof(*out);
}

static ssize_t xattrs(struct image *image, const struct request *r, char *reply)
{
	const struct fuse_getxattr_in *in = (const struct fuse_getxattr_in *)r->body;
	size_t room = in->size < REPLY_BYTES ? in->size : REPLY_BYTES;
	struct inode inode;

	if (!image->has_xattrs)
		return -ENOSYS;
	if (get_inode(image, r->head.nodeid, &inode))
		return -EIO;
	if (r->head.opcode == FUSE_LISTXATTR)
		return sized(reply, room, xattr_list(image, &inode, reply, room));
	return sized(reply, room, xattr_read(image, &inode, r->body + sizeof(*in), reply, room));
}

static ssize_t read_of(struct image *image, const struct request *r, char *reply)
{
	const struct fuse_read_in *in = (const struct fuse_read_in *)r->body;
	struct inode inode;

	if (get_inode(image, r->head.nodeid, &inode))
		return -EIO;
	if (inode.type != TYPE_FILE)
		return -EINVAL;
	return blocks_read(image, &inode, in->offset, in->size < REPLY_BYTES ? in->size : REPLY_BYTES, reply);
}

static ssize_t init(const struct request *r, char *reply)
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
	out->time_gran = 1000000000; /* SquashFS only has whole seconds */
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

ssize_t answer(struct image *image, const struct request *r, char *reply)
{
	switch (r->head.opcode) {
	case FUSE_LOOKUP:
		return lookup(image, r, reply);
	case FUSE_GETATTR:
		return getattr(image, r, reply);
	case FUSE_READ:
		return read_of(image, r, reply);
	case FUSE_READLINK:
		return readlink_of(image, r, reply);
	case FUSE_READDIR:
		return readdir_of(image, r, reply, false);
	case FUSE_READDIRPLUS:
		return readdir_of(image, r, reply, true);
	case FUSE_STATFS:
		return statfs_of(image, reply);
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
		return xattrs(image, r, reply);
	case FUSE_INIT:
		return init(r, reply);
	case FUSE_DESTROY:
		return 0;
	default: /* OPEN, OPENDIR, FLUSH, ACCESS, ...: the kernel does not send these again */
		return -ENOSYS;
	}
}
