/* SPDX-License-Identifier: Apache-2.0 */
/* Tries to leave the container, as a hostile command would.
 *
 *   escape READ-ONLY-FILE PID...
 *
 * Prints what worked, one word per line; no output is good. With `--control` in place
 * of the file it only tries the PIDs, which proves that these attempts can work.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *context = "";

static void worked(const char *what, const char *on)
{
	printf("%s%s:%s\n", context, what, on);
	fflush(stdout);
}

/* ---- Processes outside ---- */

static void try_open(const char *pid, const char *what, int flags)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, what);
	fd = open(path, flags);
	if (fd < 0)
		return;
	worked(what, pid);
	if (!strncmp(what, "ns/", 3) && !setns(fd, 0))
		worked("setns", what);
	close(fd);
}

static void try_process(const char *pid)
{
	static const char *const files[] = { "mem", "environ", "maps", "auxv" };
	static const char *const links[] = { "root/", "cwd/", "fd/0", "ns/user", "ns/mnt", "ns/pid", "ns/net" };
	char byte;
	struct iovec local = { &byte, 1 }, remote = { (void *)0x400000, 1 };
	pid_t number = atoi(pid);
	int pidfd = syscall(SYS_pidfd_open, number, 0);

	if (ptrace(PTRACE_SEIZE, number, NULL, NULL) == 0) {
		worked("ptrace", pid);
		ptrace(PTRACE_DETACH, number, NULL, NULL);
	}
	if (process_vm_readv(number, &local, 1, &remote, 1, 0) >= 0 || errno == EFAULT)
		worked("process_vm_readv", pid);
	for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++)
		try_open(pid, files[i], O_RDONLY);
	for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++)
		try_open(pid, links[i], O_RDONLY | O_NONBLOCK);
	if (pidfd >= 0 && syscall(SYS_pidfd_getfd, pidfd, 0, 0) >= 0)
		worked("pidfd_getfd", pid);
	if (pidfd >= 0 && !setns(pidfd, CLONE_NEWNS))
		worked("setns-pidfd", pid);
}

/* ---- Mounts ---- */

static void each_mount(void (*try)(const char *point))
{
	static char text[1 << 18];
	int fd = open("/proc/self/mountinfo", O_RDONLY);
	size_t n = 0;
	ssize_t more;

	while (fd >= 0 && (more = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += more;
	close(fd);
	text[n] = '\0';
	for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char point[4096], options[1024];

		if (sscanf(line, "%*s %*s %*s %*s %4095s %1023s", point, options) == 2)
			try(point);
	}
}

static void try_mount(const char *point)
{
	const unsigned long locked = ST_RDONLY | ST_NOSUID | ST_NODEV;
	struct mount_attr clear = { .attr_clr = MOUNT_ATTR_RDONLY }, nosuid = { .attr_clr = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV };
	struct stat before, after;
	struct statvfs flags, flags_after;
	int fd;

	stat(point, &before);
	statvfs(point, &flags);
	if (!umount2(point, MNT_DETACH))
		worked("umount", point);
	syscall(SYS_mount_setattr, AT_FDCWD, point, 0, &clear, sizeof(clear));
	syscall(SYS_mount_setattr, AT_FDCWD, point, 0, &nosuid, sizeof(nosuid));
	mount(NULL, point, NULL, MS_REMOUNT | MS_BIND, NULL);
	mount(NULL, point, NULL, MS_REMOUNT, NULL);
	if (!statvfs(point, &flags_after) && (flags.f_flag & locked & ~flags_after.f_flag))
		worked("flags", point);
	/* Files below a mount must stay hidden. */
	if (strcmp(point, "/")) {
		mkdir("/dev/shm/escape", 0700);
		if (!mount(point, "/dev/shm/escape", NULL, MS_MOVE, NULL)) {
			worked("move", point);
			mount("/dev/shm/escape", point, NULL, MS_MOVE, NULL);
		}
		rmdir("/dev/shm/escape");
	}
	fd = syscall(SYS_open_tree, AT_FDCWD, point, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (fd >= 0) {
		struct stat cloned;

		syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &clear, sizeof(clear));
		if (!fstatvfs(fd, &flags_after) && (flags.f_flag & locked & ~flags_after.f_flag))
			worked("flags-of-clone", point);
		if (!fstat(fd, &cloned) && (cloned.st_dev != before.st_dev || cloned.st_ino != before.st_ino))
			worked("below", point);
		close(fd);
	}
	if (!stat(point, &after) && (before.st_dev != after.st_dev || before.st_ino != after.st_ino))
		worked("changed", point);
}

static void try_writing(const char *path)
{
	static const char *const places[] = { "/escape", "/proc/escape", "/sys/escape", "/dev/escape", "/etc/escape" };
	int fd = open(path, O_WRONLY | O_APPEND);

	if (fd >= 0)
		worked("write", path);
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		fd = open(places[i], O_WRONLY | O_CREAT, 0600);
		if (fd >= 0)
			worked("create", places[i]);
	}
	fd = open("/proc/sys/kernel/hostname", O_WRONLY);
	if (fd >= 0)
		worked("write", "/proc/sys");
	fd = open("/proc/self/oom_score_adj", O_WRONLY);
	if (fd >= 0)
		worked("write", "/proc/self");
}

/* ---- What is mounted below the root ---- */

#ifndef SYS_statmount
#define SYS_statmount 457
#define SYS_listmount 458
#endif
#define ROOT_OF_NAMESPACE 0xffffffffffffffffUL
#define WANTED 0x22UL /* STATMOUNT_MNT_BASIC | STATMOUNT_FS_TYPE */

struct request {
	uint32_t size, spare;
	uint64_t mnt_id, param, mnt_ns_id;
};

/* The start of struct statmount, as it has been since Linux 6.8. */
struct answer {
	uint32_t size, spare1;
	uint64_t mask;
	uint32_t sb_dev_major, sb_dev_minor;
	uint64_t sb_magic;
	uint32_t sb_flags, fs_type;
	uint64_t mnt_id, mnt_parent_id;
	uint32_t mnt_id_old, mnt_parent_id_old;
	uint64_t rest[58];
	char strings[4096];
};

static bool in_mountinfo(unsigned id)
{
	static char line[16384];
	FILE *file = fopen("/proc/self/mountinfo", "re");
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file))
		found = strtoul(line, NULL, 10) == id;
	if (file)
		fclose(file);
	return found;
}

static int status_of(uint64_t id, struct answer *a)
{
	struct request one = { .size = 24, .mnt_id = id, .param = WANTED };

	memset(a, 0, sizeof(*a));
	return syscall(SYS_statmount, &one, a, sizeof(*a), 0);
}

/* Go up from the root's mount as far as the kernel answers, then look at all mounts below
 * that. The initial ramfs is always the topmost. */
static void try_below(void)
{
	static uint64_t ids[4096];
	static struct answer a;
	struct request list = { .size = 24, .mnt_id = ROOT_OF_NAMESPACE };
	struct statx root;
	long n;

	if (!syscall(SYS_statx, AT_FDCWD, "/", 0, 0x4000 /* STATX_MNT_ID_UNIQUE */, &root))
		for (list.mnt_id = root.stx_mnt_id; !status_of(list.mnt_id, &a); list.mnt_id = a.mnt_parent_id)
			if (a.mnt_parent_id == list.mnt_id || status_of(a.mnt_parent_id, &a) || status_of(list.mnt_id, &a))
				break;
	n = syscall(SYS_listmount, &list, ids, 4096, 0);
	for (long i = 0; i < n; i++)
		if (!status_of(ids[i], &a) && !in_mountinfo(a.mnt_id_old) && strcmp(a.strings + a.fs_type, "rootfs"))
			worked("below-the-root", a.strings + a.fs_type);
}

/* Mount a new /proc that can be written, because that has the maps of a user namespace. */
static void try_fresh_proc(void)
{
	if (fork() == 0) {
		if (unshare(CLONE_NEWPID))
			_exit(0);
		if (fork() == 0) {
			if (!mount("proc", "/mnt", "proc", 0, NULL))
				worked("fresh", "proc"), umount("/mnt");
			_exit(0);
		}
		wait(NULL);
		_exit(0);
	}
	wait(NULL);
}

/* ---- The root ---- */

static void try_root(void)
{
	struct stat root, now;

	stat("/", &root);
	if (fork() == 0) {
		int here = open("/", O_RDONLY | O_DIRECTORY);

		if (chroot("/etc") == 0) { /* and then climb from outside of it */
			fchdir(here);
			for (int i = 0; i < 64; i++)
				if (chdir(".."))
					break;
			if (!stat(".", &now) && (now.st_dev != root.st_dev || now.st_ino != root.st_ino))
				worked("chroot", "..");
		}
		_exit(0);
	}
	wait(NULL);
	if (fork() == 0) {
		if (!syscall(SYS_pivot_root, "/", "/dev/shm"))
			worked("pivot_root", "/dev/shm");
		if (!chdir("/") && !syscall(SYS_pivot_root, ".", ".") && !umount2(".", MNT_DETACH))
			worked("pivot_root", ".");
		_exit(0);
	}
	wait(NULL);
}

static void try_handle(void)
{
	struct {
		struct file_handle head;
		unsigned char rest[128];
	} handle = { .head = { .handle_bytes = 128 } };
	int id, at = open("/", O_RDONLY | O_DIRECTORY);

	if (!name_to_handle_at(AT_FDCWD, "/", &handle.head, &id, 0) && open_by_handle_at(at, &handle.head, O_RDONLY) >= 0)
		worked("open_by_handle_at", "/");
	/* The root of most file systems: inode 2. */
	handle.head.handle_bytes = 8;
	handle.head.handle_type = 1;
	memcpy(handle.rest, (uint32_t[]){ 2, 0 }, 8);
	if (open_by_handle_at(at, &handle.head, O_RDONLY) >= 0)
		worked("open_by_handle_at", "2");
	close(at);
}

static void try_kernel(void)
{
	if (!mknod("/dev/shm/escape", S_IFBLK | 0666, makedev(7, 0)) || errno == EEXIST)
		worked("mknod", "block"), unlink("/dev/shm/escape");
	if (!mknod("/dev/shm/escape", S_IFCHR | 0666, makedev(1, 1)))
		worked("mknod", "char"), unlink("/dev/shm/escape");
	if (!mount("proc", "/mnt", "proc", 0, NULL))
		worked("mount", "proc"), umount("/mnt");
	if (!mount("sysfs", "/mnt", "sysfs", 0, NULL))
		worked("mount", "sysfs"), umount("/mnt");
	if (!mount("/dev/loop0", "/mnt", "ext4", MS_RDONLY, NULL))
		worked("mount", "loop"), umount("/mnt");
	if (!syscall(SYS_init_module, "", 0, ""))
		worked("init_module", "");
	if (!sethostname("escape", 6))
		worked("sethostname", "");
	if (!setuid(0) && geteuid() == 0 && !access("/dev/vda", R_OK))
		worked("setuid", "0");
	if (!access("/proc/1/root/", F_OK))
		worked("root", "1");
}

static void try_all(const char *file)
{
	try_kernel();
	try_handle();
	try_writing(file);
	try_root();
	try_below();
	try_fresh_proc();
	each_mount(try_mount);
	try_writing(file);
	try_root();
}

int main(int argc, char **argv)
{
	for (int i = 2; i < argc; i++)
		try_process(argv[i]);
	if (argc < 2 || !strcmp(argv[1], "--control"))
		return 0;
	try_all(argv[1]);
	/* The same with all that a user namespace of one's own gives. */
	if (fork() == 0) {
		if (!unshare(CLONE_NEWUSER | CLONE_NEWNS)) {
			worked("userns", "");
			context = "nested-";
			for (int i = 2; i < argc; i++)
				try_process(argv[i]);
			try_all(argv[1]);
		}
		_exit(0);
	}
	wait(NULL);
	puts("done");
	return 0;
}
