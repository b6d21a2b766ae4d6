/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin's parts and what they share. */
#ifndef PLUGIN_H
#define PLUGIN_H

#include <stdbool.h>
#include <stdio.h>
#include <slurm/slurm.h>
#include <slurm/spank.h>

#include "../agreement.h"
#include <sys/syscall.h>

#ifndef SYS_close_range /* a C library older than Linux 5.9; the number is every architecture's */
#define SYS_close_range 436
#endif

#include "../common/facts.h"

/* Print a message for the user if Slurm can reach the user; otherwise it goes to the node's log. */
#define complain(...) slurm_error("slurm_ch: " __VA_ARGS__)

/* version.c: whether this plugin was built for another Slurm release than this one */
bool version_is_of_other_release(void);

/* submitter.c: "srun", "sbatch" or "salloc", even if the program has another name */
const char *submitter(void);

/* command_line.c: the words of this process's command line, NULL after the last; NULL if they can't be read; one block
 * of memory, freed by the caller */
char **command_line(void);

/* anchor.c: make relative paths in the defaults of steps absolute; `kind` tells where in a value the paths are */
enum paths { PATHS_NONE, PATHS_IMAGE, PATHS_DIRECTORY, PATHS_DIRECTORIES, PATHS_FILE, PATHS_BINDS, PATHS_DEVICES };
bool is_reference(const char *image);
char *anchor_paths(enum paths kind, const char *value, const char *directory);
int anchor_defaults(spank_t sp, char **env);
int anchor_own_defaults(void);

/* options.c: register the options and collect their values */
int options_register(spank_t sp, int ac, char **av);
void options_free(void);
bool options_remote_saw_option(void);

/* request.c: make a request of the options, in srun, sbatch and salloc */
int request_post_opt(int ac, char **av);
void request_free(void);

/* components.c: combine and separate the requests of an srun of several components */
int components_add(char **request);
void components_free(void);
char *component_request(spank_t sp, const char *text, char **env);

/* precheck.c: check a request before the job is queued, find out what its reference means, have its image copied */
struct pin {
	char *image;   /* the reference with its digest; NULL: not known */
	char *located; /* HOST:PATH of the image's file, or NULL */
};
void precheck_request(const char *request, const char *image, bool plain, int ac, char **av, struct pin *pin);
char *precheck_broadcast(const char *request, const char *job, int ac, char **av);

/* checker.c: run the checker, and read its verdict */
#define VERDICT_SIZE 8192
bool run_checker(const char *request, const char *job, bool pulls, int ac, char **av, char *verdict);

/* broadcast.c: have the image copied to the nodes' own disks, and remove the copies */
void broadcast_in_job(char **request, int ac, char **av);
int broadcast_local_user_init(spank_t sp, int ac, char **av);
void broadcast_remove(uid_t uid, uint32_t job, int ac, char **av);

/* command_guard.c: prevent a node without this plugin from running the command on the host */
int guard_local_user_init(spank_t sp, int ac, char **av);
bool guard_is(const char *word);

/* multi_prog.c: guard the commands of --multi-prog */
bool is_multi_prog(int argc, char **argv);
bool multi_prog_goes_through(const char *text, const char *path);
int multi_prog_guard(char **argv, int ac, char **av);

/* site_arguments.c: plugstack.conf's arguments, such as the path of a part */
char *site_path(const char *key, const char *beside, int ac, char **av);
bool site_says_yes(const char *key, int ac, char **av);

/* step_facts.c: begin the facts for the launcher or the checker */
FILE *step_facts(int *fd, const char *request, char **env, int ac, char **av);

/* broker_allowed.c: whether Slurm's commands may be called in the container */
char *broker_allowed(const char *request, bool batch, int ac, char **av);

/* request_lines.c: find an option in a request */
const char *last_line(const char *text, const char *key, size_t *n);

/* saver.c: tell ch-join whether and where to save the container */
int set_saver_variable(spank_t sp, const char *request, bool batch, int ac, char **av);

/* batch_script.c: look for options in a script's #SBATCH lines */
bool batch_script_has_ours(const char *path);
bool batch_script_has(const char *path, bool is(const char *word));

/* pyxis_loaded.c: whether the plugin pyxis, which has the same options, is loaded too */
bool is_pyxis_loaded(void);

/* other_container.c: whether Slurm's own --container is requested as well */
bool other_container(int command_words);

/* job_end.c: on a node, clean up when a job is over */
void job_end(spank_t sp, int ac, char **av);

/* variable.c: a variable of the job's environment, or NULL */
const char *variable(char **env, const char *name);

/* prepend.c: put ch-join in front of a task's command */
int prepend_ch_join(spank_t sp, int id, char **env, const char *path, const char *broker);

/* node.c: in slurmstepd and the tasks */
int node_init_post_opt(spank_t sp);
int node_user_init(void);
int node_task_init(spank_t sp, int ac, char **av);
int node_task_post_fork(void);
int node_task_exit(spank_t sp);
void node_free(void);

#endif
