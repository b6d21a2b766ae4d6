/* SPDX-License-Identifier: Apache-2.0 */
/* The relay's protocol, between ch-relay in the container and the broker on the host.
 *
 * The request is one SEQPACKET message: a header, with the descriptors of a sealed
 * memory file and of each standard stream that is open. The memory file has the
 * strings, which may be larger than any message: the command's name, the working
 * directory, the arguments and the environment, each with its NUL. After the
 * request, signals go one way and replies the other.
 */
#ifndef RELAY_H
#define RELAY_H

#include <stdint.h>
#include <sys/resource.h>

#define RELAY_MAGIC "chrelay1"
/* The kernel takes 6 MiB of arguments and environment at most. */
#define RELAY_MAX_BYTES (8u << 20)
#define RELAY_MAX_STRINGS (1u << 20)

/* In the broker's list, this follows the name of a command that always gets the
 * host's environment and directory, never its caller's. */
#define RELAY_CONFINED "!"

/* The broker's descriptors: the socket where it listens, and the process with whose end it ends. */
#define RELAY_LISTEN_FD 3
#define RELAY_WATCH_FD 4

struct relay_request {
	char magic[8];
	uint64_t ignored, blocked; /* signals: bit N - 1 is signal N */
	uint64_t size;             /* of the memory file */
	uint32_t arguments, variables;
	uint32_t umask;
	uint32_t streams; /* bit N: stream N is open */
	struct {
		uint64_t soft, hard;
	} limits[RLIM_NLIMITS];
};

struct relay_signal {
	uint32_t number;
	uint32_t group; /* whether it is for the command's process group */
};

enum relay_kind { RELAY_EXITED = 1, RELAY_KILLED, RELAY_STOPPED, RELAY_FAILED, RELAY_REFUSED };

struct relay_reply {
	uint32_t kind;
	uint32_t value; /* exit status, signal, signal, errno, errno */
};

#endif
