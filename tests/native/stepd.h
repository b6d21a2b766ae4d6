/* SPDX-License-Identifier: Apache-2.0 */
/* The fake as slurmstepd: checks what the plugin does to the process that has loaded it.
 *
 *   fake state CMD      every callback, the process compared before and after
 *   fake bare CALLBACK  one callback under a filter: which system calls it makes
 *   fake memory CMD     a thousand steps in one process
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <locale.h>
#include <sanitizer/lsan_interface.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

/* libasan has this function, but only clang has the header. Weak, because tests/chaos builds this without sanitizers. */
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

#define STEPS 1000

/* ---- The process's state ---- */

struct state {
	char **environ_at, *locale;
	uint64_t environment, signals;
	sigset_t blocked;
	mode_t umask;
	char directory[4096];
	int threads, descriptors, dumpable, children, priority;
	struct rlimit limits[RLIM_NLIMITS];
	struct itimerval timer;
};

static uint64_t mix(uint64_t sum, const void *data, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sum = (sum ^ ((const unsigned char *)data)[i]) * 1099511628211ull;
	return sum;
}

static int entries(const char *path)
{
	DIR *d = opendir(path);
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void take(struct state *s)
{
	memset(s, 0, sizeof(*s));
	s->environ_at = environ;
	for (char **e = environ; *e; e++)
		s->environment = mix(s->environment, *e, strlen(*e) + 1);
	for (int number = 1; number < NSIG; number++) {
		struct sigaction action = { .sa_flags = 0 };

		sigaction(number, NULL, &action);
		s->signals = mix(s->signals, &action.sa_handler, sizeof(action.sa_handler));
	}
	s->locale = setlocale(LC_ALL, NULL);
	sigprocmask(SIG_SETMASK, NULL, &s->blocked);
	s->umask = umask(0);
	umask(s->umask);
	if (!getcwd(s->directory, sizeof(s->directory)))
		abort();
	s->threads = entries("/proc/self/task");
	s->descriptors = descriptors();
	s->dumpable = prctl(PR_GET_DUMPABLE);
	s->priority = getpriority(PRIO_PROCESS, 0);
	s->children = waitpid(-1, NULL, WNOHANG) >= 0;
	for (int i = 0; i < (int)RLIM_NLIMITS; i++)
		getrlimit(i, &s->limits[i]);
	getitimer(ITIMER_REAL, &s->timer);
}

static void compare(const char *callback, const struct state *before, int more_descriptors)
{
	struct state now;

	take(&now);
#define SAME(member) \
	if (memcmp(&now.member, &before->member, sizeof(now.member))) \
	printf("%s: " #member " changed\n", callback)
	SAME(environ_at);
	SAME(environment);
	SAME(signals);
	SAME(locale);
	SAME(blocked);
	SAME(umask);
	SAME(directory);
	SAME(threads);
	SAME(dumpable);
	SAME(children);
	SAME(priority);
	SAME(limits);
	SAME(timer);
	if (now.descriptors != before->descriptors + more_descriptors)
		printf("%s: %d descriptors more\n", callback, now.descriptors - before->descriptors);
}

static int state(char **argv, int argc)
{
	char *av[] = { "bind=/x" };
	struct state before;
	int more = getenv("SLURM_CH_REQUEST") ? 2 : 0;

	setlocale(LC_ALL, "C.UTF-8");
	context = S_CTX_REMOTE;
	job_tasks = 2;
	job_argv = argv;
	job_argc = argc;
	copy_environment();
	take(&before);
	slurm_spank_init(NULL, 1, av);
	compare("init", &before, 0);
	slurm_spank_init_post_opt(NULL, 1, av);
	compare("init_post_opt", &before, more);
	slurm_spank_user_init(NULL, 1, av);
	compare("user_init", &before, more);
	for (int i = 0; i < 2; i++)
		slurm_spank_task_post_fork(NULL, 1, av);
	compare("task_post_fork", &before, 0);
	slurm_spank_exit(NULL, 1, av);
	compare("exit", &before, 0);
	return 0;
}

/* ---- Its system calls ---- */

/* Any call but these few kills the process. */
static void allow(const int *numbers, size_t count)
{
	struct sock_filter code[64] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
	struct sock_fprog program = { .filter = code };
	size_t n = 1;

	for (size_t i = 0; i < count; i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, numbers[i], 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	program.len = n;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		abort();
}

static int bare(char **argv)
{
	static const int sockets[] = { SYS_exit_group, SYS_getpid, SYS_fstat, SYS_newfstatat,
				       SYS_close, SYS_socketpair, SYS_sendmsg };
	static const int closing[] = { SYS_exit_group, SYS_getpid, SYS_fstat, SYS_newfstatat, SYS_close };
	static const int ending[] = { SYS_exit_group, SYS_fstat, SYS_newfstatat, SYS_shutdown, SYS_recvfrom };
	char *words[] = { "/bin/true", NULL };
	int rc;

	context = S_CTX_REMOTE;
	job_argv = words;
	job_argc = 1;
	job_tasks = 1;
	copy_environment();
	if (!strcmp(argv[0], "init")) {
		allow(sockets, 1);
		rc = slurm_spank_init(NULL, 0, NULL);
		syscall(SYS_exit_group, rc);
	}
	slurm_spank_init(NULL, 0, NULL);
	if (!strcmp(argv[0], "init_post_opt")) {
		allow(sockets, getenv("FAKE_NOTHING") ? 1 : 7);
		rc = slurm_spank_init_post_opt(NULL, 0, NULL);
		syscall(SYS_exit_group, rc);
	}
	slurm_spank_init_post_opt(NULL, 0, NULL);
	if (!strcmp(argv[0], "user_init")) {
		allow(closing, 2);
		rc = slurm_spank_user_init(NULL, 0, NULL);
		syscall(SYS_exit_group, rc);
	}
	call(slurm_spank_user_init, 0, NULL);
	if (!strcmp(argv[0], "task_exit")) {
		allow(ending, 5);
		rc = slurm_spank_task_exit(NULL, 0, NULL);
		syscall(SYS_exit_group, rc);
	}
	allow(closing, 5);
	rc = !strcmp(argv[0], "exit") ? slurm_spank_exit(NULL, 0, NULL) : slurm_spank_task_post_fork(NULL, 0, NULL);
	syscall(SYS_exit_group, rc);
	return 1;
}

/* ---- Its memory ---- */

static int memory(char **argv, int argc)
{
	size_t settled = 0;
	struct state before;

	job_tasks = 1;
	job_argv = argv;
	job_argc = argc;
	copy_environment();
	take(&before);
	for (int i = 0; i < STEPS; i++) {
		context = S_CTX_REMOTE;
		registered_count = 0;
		calls = 0;
		/* Let calls fail now and then. */
		fail_at = i % 3 ? 0 : 1 + i % 90;
		slurm_spank_init(NULL, 0, NULL);
		slurm_spank_init_post_opt(NULL, 0, NULL);
		slurm_spank_user_init(NULL, 0, NULL);
		slurm_spank_task_post_fork(NULL, 0, NULL);
		slurm_spank_exit(NULL, 0, NULL);
		if (i == 9)
			settled = __sanitizer_get_current_allocated_bytes();
	}
	printf("%zd bytes more\n", (ssize_t)(__sanitizer_get_current_allocated_bytes() - settled));
	compare("memory", &before, 0);
	return __lsan_do_recoverable_leak_check();
}
