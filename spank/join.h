/* What the parts of ch-join share. */
#ifndef JOIN_H
#define JOIN_H

#include <stddef.h>

struct sock_filter;

/* ch-join.c */
void die(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
char *need(char *allocated);

/* entrypoint.c: the command that the image was built with, for "-" and the
 * arguments behind it. */
char **images_own(char **argv);

/* seccomp.c: make the system calls succeed that only root may make. */
void emulate_root(void);
size_t root_filter(struct sock_filter *to, size_t room);

#endif
