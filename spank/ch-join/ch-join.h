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
/* From now on, exit with ch-run's codes. */
void exit_codes_of_ch_run(void);
int exit_code(int code);
void die(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Print a message if the verbosity is `level` or higher. */
void info(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Return the argument, unless it is NULL: then die, because memory has run out. */
char *need(char *allocated);

/* ticket.c: wait on the tasks' socket for the launcher's ticket and read it, but leave it there for the
 * other tasks; enter the container that the ticket is for. */
#define MORE_NAMESPACES 3 /* net, ipc, uts */
struct ticket {
	int user_fd, mount_fd, plan_fd;
	int relay_fd; /* -1: no relay */
	int more_fds[MORE_NAMESPACES];
	size_t more_count;
};
bool is_first_task(void);
/* How a task waits for the ticket. */
struct waiting {
	bool reports;	   /* prints what concerns all tasks of the node */
	unsigned seconds;  /* 0: without a limit */
	const char *tag;   /* of the join, for the message after `seconds` */
	const char *maker; /* the peer that makes the container, and its pid */
	int pid;
};
void ticket_read(int sock, struct ticket *t, const struct waiting *w);
/* Refuse a container that another user has made. */
void ticket_check_owner(const struct ticket *t);
void ticket_enter(const struct ticket *t);

/* plan.c: read a plan, which is records in a sealed memory file; carry it out in the container. */
struct plan {
	const char *first, *end;
};
struct settings {
	const char *directory;	     /* requested, or NULL */
	const char *usual_directory; /* without `directory`: this one, or NULL */
	const char *lost_directory;  /* a message about the caller's directory, which is not in the container, or NULL */
	const char *images_directory; /* where the image's own command starts, or NULL */
	int verbosity;
	const char *emulates_root; /* the option that requests it; NULL: no */
	bool keeps_keyring, as_srun;
};
struct plan plan_read(int fd);
struct settings plan_carry_out(struct plan plan);

/* save.c: have the container saved at the end of the task. save_at_end forks: the child returns and goes on as the
 * task; the parent, the keeper, waits for it. `text` is the plugin's. end_with_keeper, called by the child in the
 * container, has it killed when its keeper ends. */
void save_at_end(const char *text, const struct ticket *t);
void end_with_keeper(void);

/* task.c: enter the container of a ticket, and become the command there. `directory` is the working
 * directory of a caller in another container, or NULL. */
void task_run(const struct ticket *t, const char *directory, char **argv) __attribute__((noreturn));

/* cli.c: the command `slurm-ch`, or `ch-run`. */
void run_cli(const char *name, char **argv) __attribute__((noreturn));

/* command.c: in the container, become the command; `callers` is task_run's `directory`. */
void command_run(const struct settings *s, const char *callers, char **argv) __attribute__((noreturn));

/* execute.c: as execvp, but if the command can't be executed, report what is missing, and exit. */
void execute(const struct settings *s, char **argv) __attribute__((noreturn));

/* exec_failure.c: explain why the execution of a file that exists failed with errno `why`; tell whether a file is
 * text, so that a shell may run it. */
#define REASON_SIZE 1400
void explain_exec_failure(const char *path, int why, char reason[REASON_SIZE]);
bool is_text_file(const char *path);

/* entrypoint.c: the command that the image was built with, for "-" and the
 * arguments after it. */
char **images_own(char **argv);

/* sealed.c: make a copy of this program in memory that nobody can change; return -1 if none is needed,
 * because the user can't change this program. In the container, become that copy, to carry out a plan. */
int sealed_copy(void);
void become_copy(int copy, int plan_fd, const char *directory, char **argv) __attribute__((noreturn));

/* root_emulation.c: have system calls that only root may make succeed without effect. */
void emulate_root(const char *label);
size_t root_filter(struct sock_filter *to, size_t room);

/* relay_start.c: start the broker of Slurm's commands; take over the variables and the directory of a
 * script that called srun through a relay. */
int relay_start(const char *broker, int listen_fd);
int relay_take_variables(const char **directory);

/* keyring.c: leave the caller's session keyring for the container's own. */
void leave_keyring(void);

/* variables.c: set NAME=VALUE, expanded or not; set it unless NAME is set; tell whether NAME still has
 * this value; unset by shell pattern; add directories to PATH; check TMPDIR and similar variables. */
enum expansion { LITERAL, EXPAND_ITEMS, EXPAND_ANYWHERE };
void set_variable(const char *assignment, enum expansion how);
void set_default(const char *assignment);
bool is_still(const char *assignment);
void unset_variables(const char *pattern);
void add_to_path(const char *directories, bool makes_one);
void check_temporary(bool reports);

#endif
