/* SPDX-License-Identifier: Apache-2.0 */
/* stepper: runs a program and causes one fault at one of its system calls.
 *
 * A copy of it is put at the path of a site argument (python=, ch_join=,
 * squashfuse=). The file with the copy's name and ".plan" has the fault:
 *
 *     real PATH         the program to run
 *     rank N            only if SLURM_PROCID is N; else just become the program
 *     log PATH          one line per call: PROCESS CALL NUMBER ARGUMENTS
 *     at PROCESS CALL NUMBER  where to act: both count from 0; at that call, or the
 *                             next one that is system call NUMBER (-1 for any);
 *                             PROCESS -1 for whichever comes first
 *     errno N | kill | hold PATH
 *
 * Process 0 is the program itself. The others are its children, in the order in
 * which they are forked, until they execute something. The program keeps its pid:
 * the tracer is another process, in its own session.
 *
 * hold: writes the pid to the FIFO PATH.held and goes on when PATH.go can be read.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <elf.h>
#include <linux/ptrace.h>

#ifndef SYS_close_range /* a C library older than Linux 5.9 */
#define SYS_close_range 436
#endif

enum action { NOTHING, KILL, ERRNO, HOLD };

static struct {
	char real[PATH_MAX], log[PATH_MAX], hold[PATH_MAX];
	int rank, process, call, error;
	long long number;
	enum action action;
} plan = { .rank = -1, .process = -1, .call = -1, .number = -1 };

#define MAX_PROCESSES 64
static struct process {
	pid_t pid;
	int calls;
	int failing; /* the errno that its current call is to return */
	int counting;
} processes[MAX_PROCESSES];
static int process_count;
static int log_fd = -1;
static int acted;

static void __attribute__((noreturn)) fail(const char *what)
{
	dprintf(2, "stepper: %s: %s\n", what, strerror(errno));
	_exit(99);
}

static void read_plan(void)
{
	char path[PATH_MAX], line[PATH_MAX + 64];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 6);
	FILE *file;

	if (n < 0)
		fail("readlink");
	strcpy(path + n, ".plan");
	file = fopen(path, "re");
	if (!file)
		fail(path);
	while (fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		if (sscanf(line, "real %4095s", plan.real) == 1 || sscanf(line, "log %4095s", plan.log) == 1 ||
		    sscanf(line, "rank %d", &plan.rank) == 1 ||
		    sscanf(line, "at %d %d %lld", &plan.process, &plan.call, &plan.number) == 3)
			continue;
		if (sscanf(line, "errno %d", &plan.error) == 1)
			plan.action = ERRNO;
		else if (!strcmp(line, "kill"))
			plan.action = KILL;
		else if (sscanf(line, "hold %4095s", plan.hold) == 1)
			plan.action = HOLD;
	}
	fclose(file);
}

static void note(const char *format, ...)
{
	char line[512];
	va_list args;
	int n;

	if (log_fd < 0)
		return;
	va_start(args, format);
	n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (write(log_fd, line, n) != n)
		_exit(98);
}

static struct process *find(pid_t pid)
{
	for (int i = 0; i < process_count; i++)
		if (processes[i].pid == pid)
			return &processes[i];
	return NULL;
}

static struct process *add(pid_t pid, int counting)
{
	struct process *p = find(pid);

	if (!p && process_count < MAX_PROCESSES) {
		p = &processes[process_count++];
		p->pid = pid;
		p->counting = counting;
	}
	return p;
}

/* ---- Registers ---- */

static void skip_call(pid_t pid)
{
#if defined(__x86_64__)
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, orig_rax), -1L);
#elif defined(__aarch64__)
	int none = -1;
	struct iovec iov = { &none, sizeof(none) };

	ptrace(PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &iov);
#else
#error "an architecture that nobody tried"
#endif
}

static void set_result(pid_t pid, long result)
{
#if defined(__x86_64__)
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rax), result);
#elif defined(__aarch64__)
	struct user_regs_struct regs;
	struct iovec iov = { &regs, sizeof(regs) };

	ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &iov);
	regs.regs[0] = result;
	ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &iov);
#endif
}

/* ---- The fault ---- */

static void hold(pid_t pid)
{
	char path[PATH_MAX + 8], byte;
	int fd;

	/* The process that releases the held one may have ended: then this one dies, and the held one goes on. */
	alarm(200);
	snprintf(path, sizeof(path), "%s.held", plan.hold);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	dprintf(fd, "%d\n", pid);
	close(fd);
	snprintf(path, sizeof(path), "%s.go", plan.hold);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (read(fd, &byte, 1) < 0)
		note("# hold: %s\n", strerror(errno));
	close(fd);
	alarm(0);
}

static void act(struct process *p, unsigned long long number)
{
	acted = 1;
	note("# hit %d %d %llu\n", plan.process, plan.call, number);
	switch (plan.action) {
	case KILL:
		kill(p->pid, SIGKILL);
		break;
	case ERRNO:
		skip_call(p->pid);
		p->failing = plan.error;
		break;
	case HOLD:
		hold(p->pid);
		break;
	default:
		break;
	}
}

static void on_call(struct process *p)
{
	struct ptrace_syscall_info info;

	if (ptrace(PTRACE_GET_SYSCALL_INFO, p->pid, sizeof(info), &info) < 0)
		return;
	if (info.op == PTRACE_SYSCALL_INFO_EXIT && p->failing) {
		set_result(p->pid, -p->failing);
		p->failing = 0;
	}
	if (info.op != PTRACE_SYSCALL_INFO_ENTRY || !p->counting)
		return;
	if (!acted)
		note("%d %d %llu %llx %llx %llx\n", (int)(p - processes), p->calls, info.entry.nr,
		     info.entry.args[0], info.entry.args[1], info.entry.args[2]);
	if (!acted && plan.action && (plan.process < 0 || p - processes == plan.process) && p->calls >= plan.call &&
	    (plan.number < 0 || plan.number == (long long)info.entry.nr))
		act(p, info.entry.nr);
	p->calls++;
}

static void on_stop(pid_t pid, int status)
{
	struct process *p = add(pid, 1);
	int event = status >> 16, signal = WSTOPSIG(status);
	unsigned long child;

	/* After the fault, or when a child executes another program, count no further calls. */
	int resume = acted && !(p && p->failing) ? PTRACE_CONT : PTRACE_SYSCALL;

	if (signal == (SIGTRAP | 0x80)) {
		if (p)
			on_call(p);
		ptrace(acted && !(p && p->failing) ? PTRACE_CONT : PTRACE_SYSCALL, pid, 0, 0);
	} else if (event == PTRACE_EVENT_EXEC) {
		if (p && !p->counting) {
			p->counting = 1; /* the program itself begins */
			ptrace(resume, pid, 0, 0);
		} else {
			note("# exec %d\n", p ? (int)(p - processes) : -1);
			ptrace(PTRACE_DETACH, pid, 0, 0);
		}
	} else if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
		ptrace(PTRACE_GETEVENTMSG, pid, 0, &child);
		add(child, 1);
		ptrace(resume, pid, 0, 0);
	} else if (event == PTRACE_EVENT_STOP) {
		if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU)
			ptrace(PTRACE_LISTEN, pid, 0, 0);
		else
			ptrace(resume, pid, 0, 0);
	} else {
		ptrace(resume, pid, 0, signal);
	}
}

static void __attribute__((noreturn)) trace(pid_t pid, int ready)
{
	long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
		       PTRACE_O_TRACECLONE;
	int status, null = open("/dev/null", O_RDWR);

	setsid();
	dup2(null, 0);
	dup2(null, 1);
	dup2(ready, 3);
	dup2(null, 2);
	syscall(SYS_close_range, 4, ~0U, 0);
	if (chdir("/"))
		_exit(97);
	if (*plan.log)
		log_fd = open(plan.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	add(pid, 0);
	if (ptrace(PTRACE_SEIZE, pid, 0, options) || ptrace(PTRACE_INTERRUPT, pid, 0, 0) ||
	    waitpid(pid, &status, __WALL) != pid || ptrace(PTRACE_SYSCALL, pid, 0, 0)) {
		note("# can't trace: %s\n", strerror(errno));
		_exit(96);
	}
	if (write(3, "x", 1) != 1)
		_exit(95);
	close(3);
	while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR)
		if (pid > 0 && WIFSTOPPED(status))
			on_stop(pid, status);
	note("# end\n");
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *rank = getenv("SLURM_PROCID");
	int sync[2];
	pid_t me = getpid(), child;
	char byte;

	(void)argc;
	read_plan();
	argv[0] = plan.real;
	if (plan.rank < 0 || (rank && atoi(rank) == plan.rank)) {
		if (pipe2(sync, O_CLOEXEC))
			fail("pipe2");
		prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
		child = fork();
		if (child == 0) {
			close(sync[0]);
			if (fork() == 0)
				trace(me, sync[1]);
			_exit(0);
		}
		close(sync[1]);
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
		if (read(sync[0], &byte, 1) != 1)
			fail("no tracer");
		close(sync[0]);
	}
	execve(plan.real, argv, environ);
	fail(plan.real);
}
