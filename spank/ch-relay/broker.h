/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's parts and what they share. */
#ifndef BROKER_H
#define BROKER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "../common/relay.h"

/* A caller's request. */
struct request {
	struct relay_request head;
	int streams[3]; /* -1: closed */
	bool confined;  /* the host's environment and directory, not the caller's */
	char *text;
	const char *name, *directory;
	char **argv;      /* ended by NULL */
	char **variables; /* ended by NULL */
};

/* broker.c */
int relay_serve(const char *commands);

/* request.c */
ssize_t request_receive(int fd, void *data, size_t size, int *fds, size_t room, size_t *count);
int request_parse(struct request *q, ssize_t n, int *fds, size_t count, const char *allowed);
void request_release(struct request *q);

/* command.c */
void send_reply(int fd, enum relay_kind kind, uint32_t value);
void command_become(const struct request *q, int client, pid_t broker) __attribute__((noreturn));

#endif
