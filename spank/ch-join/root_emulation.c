/* SPDX-License-Identifier: Apache-2.0 */
/* Root emulation: a seccomp filter by which system calls that only root may make
 * succeed without effect. Package managers and tar can then run in a container
 * whose root has no privileges.
 *
 * Faked calls: the chown, setuid and setgroups families, capset, mknod of devices,
 * and kexec_load, which shows whether the filter works. mknod of a plain file, a
 * FIFO or a socket is not faked.
 *
 * One filter covers all architectures below: a 64-bit machine may run 32-bit
 * programs too, and only the call itself shows the caller's architecture.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#define FAKED_MAX 32
#define NONE -1

struct architecture {
	uint32_t audit;
	int mknod, mknodat;
	int faked[FAKED_MAX]; /* ended by 0, which is the number of no faked call on any architecture */
};

/* Numbers from the kernel's tables; a test compares them with its headers. x32
 * programs call with another bit set, and are left alone. */
static const struct architecture ARCHITECTURES[] = {
	{ AUDIT_ARCH_X86_64, 133, 259,
	  { 92 /* chown */, 93 /* fchown */, 94 /* lchown */, 260 /* fchownat */, 105 /* setuid */,
	    106 /* setgid */, 113 /* setreuid */, 114 /* setregid */, 116 /* setgroups */,
	    117 /* setresuid */, 119 /* setresgid */, 122 /* setfsuid */, 123 /* setfsgid */,
	    126 /* capset */, 246 /* kexec_load */ } },
	{ AUDIT_ARCH_I386, 14, 297,
	  { 182 /* chown */, 95 /* fchown */, 16 /* lchown */, 212 /* chown32 */, 207 /* fchown32 */,
	    198 /* lchown32 */, 298 /* fchownat */, 23 /* setuid */, 46 /* setgid */,
	    70 /* setreuid */, 71 /* setregid */, 81 /* setgroups */, 164 /* setresuid */,
	    170 /* setresgid */, 138 /* setfsuid */, 139 /* setfsgid */, 213 /* setuid32 */,
	    214 /* setgid32 */, 203 /* setreuid32 */, 204 /* setregid32 */, 206 /* setgroups32 */,
	    208 /* setresuid32 */, 210 /* setresgid32 */, 215 /* setfsuid32 */,
	    216 /* setfsgid32 */, 185 /* capset */, 283 /* kexec_load */ } },
	{ AUDIT_ARCH_AARCH64, NONE, 33,
	  { 55 /* fchown */, 54 /* fchownat */, 146 /* setuid */, 144 /* setgid */,
	    145 /* setreuid */, 143 /* setregid */, 159 /* setgroups */, 147 /* setresuid */,
	    149 /* setresgid */, 151 /* setfsuid */, 152 /* setfsgid */, 91 /* capset */,
	    104 /* kexec_load */ } },
	{ AUDIT_ARCH_ARM, 14, 324,
	  { 182 /* chown */, 95 /* fchown */, 16 /* lchown */, 212 /* chown32 */, 207 /* fchown32 */,
	    198 /* lchown32 */, 325 /* fchownat */, 23 /* setuid */, 46 /* setgid */,
	    70 /* setreuid */, 71 /* setregid */, 81 /* setgroups */, 164 /* setresuid */,
	    170 /* setresgid */, 138 /* setfsuid */, 139 /* setfsgid */, 213 /* setuid32 */,
	    214 /* setgid32 */, 203 /* setreuid32 */, 204 /* setregid32 */, 206 /* setgroups32 */,
	    208 /* setresuid32 */, 210 /* setresgid32 */, 215 /* setfsuid32 */,
	    216 /* setfsgid32 */, 185 /* capset */, 347 /* kexec_load */ } },
};

#define ARCHITECTURE_COUNT (sizeof(ARCHITECTURES) / sizeof(*ARCHITECTURES))

/* Instructions before and after the comparisons with one architecture's numbers. */
#define HEAD 3
#define TAIL 11
#define FILTER_MAX (ARCHITECTURE_COUNT * (HEAD + FAKED_MAX + TAIL) + 1)

/* A mode is in the lower half of a 64-bit argument. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arguments of big-endian machines lie otherwise");
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n))
#define FAKE (SECCOMP_RET_ERRNO | 0)

/* Write the instructions for one architecture; return their number. After the
 * comparisons come: allow; the mode test of the two mknods; fake. */
static size_t block(struct sock_filter *to, const struct architecture *a)
{
	size_t faked = 0, fake, n = 0;

	while (faked < FAKED_MAX && a->faked[faked])
		faked++;
	fake = HEAD + faked + TAIL - 1;
	to[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
					       offsetof(struct seccomp_data, arch));
	to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, a->audit, 0, fake - 1);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
					       offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < faked; i++, n++)
		to[n] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, a->faked[i],
						     fake - n - 1, 0);
	to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, a->mknod, 2, 0);
	to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, a->mknodat, 3, 0);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(1));
	to[n++] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 1);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(2));
	to[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, S_IFMT);
	to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, S_IFCHR, 2, 0);
	to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, S_IFBLK, 1, 0);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, FAKE);
	return n;
}

/* Write the whole filter; return its length in instructions, or 0 if there is no room for it. */
size_t root_filter(struct sock_filter *to, size_t room)
{
	size_t n = 0;

	if (room < FILTER_MAX)
		return 0;
	for (size_t i = 0; i < ARCHITECTURE_COUNT; i++)
		n += block(to + n, &ARCHITECTURES[i]);
	to[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return n;
}

void emulate_root(const char *label)
{
	struct sock_filter filter[FILTER_MAX];
	struct sock_fprog program = { .len = root_filter(filter, FILTER_MAX), .filter = filter };

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die(EXIT_SETUP, "%s: can't emulate root: %s", label, strerror(errno));
	/* Without the filter, this call fails for every caller. */
	if (syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0UL))
		die(EXIT_SETUP, "%s: can't emulate root: not known how on this architecture", label);
}
