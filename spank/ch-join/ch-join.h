/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of ch-join share. */
#ifndef CH_JOIN_H
#define CH_JOIN_H

#include <stdbool.h>
#include <stddef.h>

struct sock_filter;

/* messages.c */
void messages_level(int level);
void messages_color(void);
void messages_to(int fd);
/* From here on, exit as ch-run does. */
void exit_codes_of_ch_run(void);
int exit_code(int code);
void die(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Print a message that is shown from this verbosity on. */
void info(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));
char *need(char *allocated);

/* ticket.c: wait on the tasks' socket for the launcher's ticket, and look at it
 * without taking it; enter the container that it is for. */
#define MORE_NAMESPACES 3 /* net, ipc, uts */
struct ticket {
	int user_fd, mount_fd, plan_fd;
	int relay_fd; /* -1: no relay */
	int more_fds[MORE_NAMESPACES];
	size_t more_count;
};
bool is_first_task(void);
/* Whether this task prints a message that all get, and how long it waits, and for whom. */
struct waiting {
	bool speaks;
	unsigned seconds;  /* 0: for ever */
	const char *tag;   /* the join's, where there is a limit */
	const char *maker; /* who makes the container, and its pid */
	int pid;
};
void ticket_read(int sock, struct ticket *t, const struct waiting *w);
/* Refuse a container that another user has made. */
void ticket_check_owner(const struct ticket *t);
void ticket_enter(const struct ticket *t);

/* plan.c: records in a sealed memory file; carried out inside. */
struct plan {
	const char *first, *end;
};
struct settings {
	const char *directory;	     /* asked for, or NULL */
	const char *usual_directory; /* else this one, or NULL */
	const char *lost_directory;  /* words about the caller's, which is not there, or NULL */
	const char *images_directory; /* where the image's own command starts, or NULL */
	int verbosity;
	const char *emulates_root; /* the option that asks for it; NULL: no */
	bool keeps_keyring, as_srun;
};
struct plan plan_read(int fd);
struct settings plan_carry_out(struct plan plan);

/* save.c: have this process wait for its child, which goes on as the task, for the container to be saved; the text
 * is the plugin's. In the child, when it has entered: end with the one that waits. */
void save_at_end(const char *text, const struct ticket *t);
void end_with_keeper(void);

/* task.c: enter the container of a ticket, and become the command there. `directory` is
 * the caller's. */
void task_run(const struct ticket *t, const char *directory, char **argv) __attribute__((noreturn));

/* cli.c: the command `slurm-ch`, or `ch-run`. */
void run_cli(const char *name, char **argv) __attribute__((noreturn));

/* command.c */
void command_run(const struct settings *s, const char *callers, char **argv) __attribute__((noreturn));

/* execute.c: as execvp, but never returns: if the command can't be executed, report what is missing. */
void execute(const struct settings *s, char **argv) __attribute__((noreturn));

/* entrypoint.c: the command that the image was built with, for "-" and the
 * arguments after it. */
char **images_own(char **argv);

/* sealed.c: a copy of this program in memory that nobody can change, for the container; -1
 * if the user can't change this one either. Become it there, to carry out a plan. */
int sealed_copy(void);
void become_copy(int copy, int plan_fd, const char *directory, char **argv) __attribute__((noreturn));

/* root_emulation.c: make the system calls succeed that only root may make. */
void emulate_root(const char *label);
size_t root_filter(struct sock_filter *to, size_t room);

/* relay_start.c: start the broker of Slurm's commands; take over the variables and the directory of a
 * script that called srun through a relay. */
int relay_start(const char *broker, int listen_fd);
int relay_take_variables(const char **directory);

/* keyring.c: let go of the caller's session keyring, for the container's own. */
void leave_keyring(void);

/* variables.c: set NAME=VALUE, expanded or not; set it unless it is set; whether it still has this
 * value; unset by shell pattern; add /bin to PATH; check TMPDIR and similar variables. */
enum expansion { LITERAL, EXPAND_ITEMS, EXPAND_ANYWHERE };
void set_variable(const char *assignment, enum expansion how);
void set_default(const char *assignment);
bool is_still(const char *assignment);
void unset_variables(const char *pattern);
void path_has(const char *directories, bool makes_one);
void check_temporary(bool tells);

#endif
