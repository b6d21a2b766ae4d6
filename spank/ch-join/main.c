/* SPDX-License-Identifier: Apache-2.0 */
/* ch-join: takes a task into its container and becomes the task's command.
 *
 * It is statically linked, because it runs with the container's root and the task's
 * environment: no loader, no LD_PRELOAD, no library of the image may run.
 *
 * It is called in one of three ways:
 *   SLURM_CH_JOIN="FD[:BROKER][ ARGV0|+ARGV0]", by the plugin: wait on socket FD
 *       for the launcher's ticket, enter its namespaces, carry out its plan. BROKER
 *       tells which broker of Slurm's commands may be started (relay_start.c).
 *       ARGV0, if given, replaces the first word (this program's own path); after a
 *       "+" it replaces the second.
 *   ch-join --plan=FD -- CMD..., by Python or its own copy (sealed.c): carry out a
 *       plan; the container has been entered.
 *   Under the name slurm-ch or ch-run: the command (cli.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

/* Start the broker, which runs Slurm's commands on the host, once per node. The ticket
 * only supplies its socket: the plugin decides whether there may be a broker, and for
 * which commands. */
static void start_broker(const char *broker, int listen_fd)
{
	if (!*broker)
		die(EXIT_SETUP, "the launcher offers a relay of Slurm's commands where the plugin "
				"knows of none");
	if (is_first_task() && relay_start(broker, listen_fd))
		die(EXIT_SETUP, "can't start the relay of Slurm's commands: %s", strerror(errno));
	close(listen_fd);
}

/* Read a small non-negative number and move past it; -1 if there is none. */
static int number(const char **text)
{
	char *end;
	long n;

	if (**text < '0' || **text > '9')
		return -1;
	n = strtol(*text, &end, 10);
	*text = end;
	return n > INT_MAX ? -1 : (int)n;
}

static void __attribute__((noreturn)) run_by_ticket(const char *join, char **argv)
{
	struct waiting w = { .reports = is_first_task() };
	struct ticket t;
	const char *rest = join;
	const char *callers = NULL;
	char *broker = "", *command = NULL, *saver = getenv(SAVER_VARIABLE);
	int sock = number(&rest);
	bool is_second_word;

	if (sock >= 0 && *rest == ':') {
		size_t n = strcspn(++rest, " +");

		broker = need(strndup(rest, n));
		rest += n;
	}
	is_second_word = *rest != ' ';
	if (sock < 0 || (*rest && *rest != ' ' && *rest != '+'))
		die(EXIT_USAGE, "ch-join is started by Slurm's plugin, not by hand");
	if (*rest)
		command = need(strdup(rest + 1));
	unsetenv(JOIN_VARIABLE);
	if (saver)
		saver = need(strdup(saver));
	unsetenv(SAVER_VARIABLE);
	ticket_read(sock, &t, &w);
	close(sock);
	if (t.relay_fd >= 0)
		start_broker(broker, t.relay_fd);
	if (saver)
		save_at_end(saver, &t);
	argv += is_second_word;
	if (!argv[0])
		die(EXIT_USAGE, "no command given");
	if (command)
		argv[0] = command;
	if (relay_take_variables(&callers))
		need(NULL);
	task_run(&t, callers, argv);
}

int main(int argc, char **argv)
{
	const char *join = getenv(JOIN_VARIABLE);
	const char *name = basename(argc ? argv[0] : "ch-join");
	const char *rest;
	struct settings settings;
	int plan;

	if (!strcmp(name, SLURM_CH) || !strcmp(name, CH_RUN) || !strcmp(name, CHECKED))
		run_cli(name, argv + 1);

	/* The variable counts first: with it, even a word --plan= may be the user's. */
	if (join)
		run_by_ticket(join, argv);
	if (argc > 3 && !strncmp(argv[1], PLAN_OPTION, strlen(PLAN_OPTION)) && !strcmp(argv[2], "--")) {
		rest = argv[1] + strlen(PLAN_OPTION);
		plan = number(&rest);
		if (plan >= 0 && !*rest) {
			char *callers = getenv(CWD_VARIABLE);

			if (callers)
				callers = need(strdup(callers));
			unsetenv(CWD_VARIABLE);
			settings = plan_carry_out(plan_read(plan));
			command_run(&settings, callers, argv + 3);
		}
	}
	die(EXIT_USAGE, "ch-join is started by Slurm's plugin, not by hand");
}
