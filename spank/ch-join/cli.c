/* SPDX-License-Identifier: Apache-2.0 */
/* The command `slurm-ch run`, or `ch-run`, alone or as one of a join's peers.
 *
 * As under Slurm's plugin, one launcher makes the container, and the process enters it by a ticket. A
 * command line that is not a plain `run`, or may be wrong, is left to Python, because only Python has the
 * texts of errors. For a join, Python then calls this program again, under the name CHECKED.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/facts.h"
#include "../common/start_launcher.h"
#include "ch-join.h"
#include "meeting.h"
#include "python.h"
#include "step.h"
#include "words.h"

extern char **environ;

/* What all launchers of this process have in common. */
struct call {
	const char *name, *located;
	const struct words *words;
	struct python python;
};

/* Open /dev/null for each standard stream that the caller has closed, so that no descriptor of ours
 * becomes one. */
static void fill_streams(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		die(EXIT_SETUP, "can't open /dev/null: %s", strerror(errno));
	close(fd);
}

/* Have the caller's open files closed at the exec of the command, except streams, pipes and sockets.
 * A directory or a device of the host would lead out of the container. Pipes and sockets don't, and
 * shells, make and MPI need them to talk to the processes that they start. */
static void drop_descriptors(void)
{
	DIR *open_files = opendir("/proc/self/fd");
	struct dirent *entry;
	struct stat st;

	if (!open_files)
		die(EXIT_SETUP, "can't list /proc/self/fd: %s", strerror(errno));
	while ((entry = readdir(open_files))) {
		int fd = atoi(entry->d_name);

		if (fd > STDERR_FILENO && !fstat(fd, &st) && !S_ISFIFO(st.st_mode) && !S_ISSOCK(st.st_mode))
			fcntl(fd, F_SETFD, FD_CLOEXEC);
	}
	closedir(open_files);
}

static int write_facts(const struct call *call)
{
	/* A limit on the size of files holds for memory files too: an error, not the end of this process. */
	void (*before)(int) = signal(SIGXFSZ, SIG_IGN);
	int fd;
	FILE *out = facts_open(&fd, environ);

	if (!out)
		return -1;
	facts_record(out, FACT_NAME, call->name);
	if (*call->located)
		facts_record(out, FACT_LOCATED, call->located);
	for (size_t i = 0; i < call->words->count; i++)
		facts_record(out, FACT_WORD, call->words->all[i]);
	fd = facts_close(fd, out);
	signal(SIGXFSZ, before);
	return fd;
}

/* Start the launcher to make the container, or, with `ready` (the user and mount namespace of a container that
 * exists), to make only this process's plan. Return the socket where the ticket will be. */
static int start_launcher(const struct call *call, const int *ready)
{
	int pair[2], facts = write_facts(call);
	struct launch l = { call->python.interpreter, call->python.launcher, getenv("SLURMD_NODENAME"),
			    facts, -1, -1, -1 };

	if (facts < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		die(EXIT_SETUP, "can't start the launcher: %s", strerror(errno));
	l.socket = pair[1];
	if (ready) {
		l.user_fd = ready[0];
		l.mount_fd = ready[1];
	}
	if (launch_start(&l))
		die(EXIT_SETUP, "can't start the launcher: %s", strerror(errno));
	close(facts);
	close(pair[1]);
	return pair[0];
}

/* Start a launcher for this process alone, and read its ticket. */
static void own_ticket(const struct call *call, const int *ready, struct ticket *t)
{
	struct waiting w = { .reports = true };
	int sock = start_launcher(call, ready);

	ticket_read(sock, t, &w);
	close(sock);
}

/* Hash what tells one image from another: the file that a reference means; else a path; else, if there is no
 * such path, the name and the storage where it is looked up. */
static uint64_t hash_image(const struct call *call, const char *directory)
{
	const struct words *w = call->words;
	const char *storage = w->storage ? w->storage : getenv("CH_IMAGE_STORAGE");
	uint64_t hash = hash_string(HASH_START, call->located);

	if (*w->image != '/' && !access(w->image, F_OK))
		hash = hash_string(hash, directory ? directory : "");
	else if (*w->image != '/')
		hash = hash_string(hash, storage ? storage : "");
	return hash_string(hash, w->image);
}

/* Hash all that a task's plan depends on: its words, its working directory, and the variables below. */
static uint64_t hash_rules(const struct words *w, const char *directory)
{
	static const char *const names[] = { "HOME", "USER", "PWD" };
	uint64_t hash = hash_string(w->rules, directory ? directory : "");

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		const char *value = getenv(names[i]);

		hash = hash_string(hash, value ? value : "");
	}
	return hash;
}

/* Join the peers' container. Return without a ticket if the kernel's policy refuses the peers' sockets. */
static void join(const struct call *call, const struct step *s, const char *directory, struct ticket *t)
{
	const struct words *words = call->words;
	struct hello h = { .magic = MEETING_MAGIC,
			   .image = hash_image(call, directory),
			   .rules = hash_rules(words, directory),
			   .rank = s->rank,
			   .peers = s->peers };
	struct waiting w = { .seconds = words->seconds, .tag = s->tag };
	struct meeting m;

	strcpy(h.name, s->name);
	strcpy(h.tag, s->tag);
	if (!meeting_enter(s, &h, words->seconds, &m))
		return;
	w.maker = m.answer.name;
	w.pid = m.answer.pid;
	if (m.begin) {
		/* In this order: if this process is killed between the two, the launcher ends with it,
		 * and another peer starts one. */
		m.ticket = start_launcher(call, NULL);
		meeting_hand_over(&m, m.ticket);
		w.reports = true;
		w.maker = s->name;
		w.pid = getpid();
	}
	ticket_read(m.ticket, t, &w);
	close(m.ticket);
	ticket_check_owner(t);
	if (!m.same_rules) {
		const int ready[] = { t->user_fd, t->mount_fd };
		struct ticket mine;

		own_ticket(call, ready, &mine);
		t->plan_fd = mine.plan_fd;
	}
}

void run_cli(const char *name, char **argv)
{
	static char *images_own[] = { "-", NULL };
	struct words w;
	struct step s;
	struct call call = { name, "", &w, { NULL, NULL, NULL } };
	struct ticket t = { .user_fd = -1, .mount_fd = -1, .plan_fd = -1, .relay_fd = -1 };
	const char *directory, *how = MEET_BY_SOCKET;
	char **words = argv;
	bool checked = !strcmp(name, CHECKED);

	fill_streams();
	unsetenv(JOIN_VARIABLE);
	unsetenv(CWD_VARIABLE);
	if (checked && argv[0] && argv[1] && argv[2]) {
		call.name = argv[0];
		call.located = argv[2];
		words = argv + 3;
	} else if (!strcmp(name, SLURM_CH)) {
		if (!argv[0] || strcmp(argv[0], "run"))
			python_become(name, how, argv);
		words = argv + 1;
	}
	if (!words_read(words, &w) || (!checked && words_is_reference(&w)) || (w.join && !step_read(&w, &s))) {
		if (checked)
			die(EXIT_SETUP, "the command's two parts are of different versions");
		python_become(name, how, argv);
	}
	if (!strcmp(call.name, CH_RUN))
		exit_codes_of_ch_run();
	drop_descriptors();
	directory = getcwd(NULL, 0);
	python_find(&call.python);
	if (checked)
		call.python.interpreter = argv[1];
	/* If Slurm or mpirun reports that this is the only peer, there is nobody to meet. */
	if (w.join && !(s.peers == 1 && !w.peers && s.rank >= 0))
		join(&call, &s, directory, &t);
	else
		own_ticket(&call, NULL, &t);
	if (t.user_fd < 0) {
		if (checked)
			die(EXIT_JOIN, "join: %s: the kernel's policy refuses sockets", s.tag);
		python_become(name, MEET_BY_NAME, argv);
	}
	if (t.relay_fd >= 0)
		die(EXIT_SETUP, "the launcher offers a relay of Slurm's commands where nobody asked for it");
	task_run(&t, NULL, w.command ? w.command : images_own);
}
