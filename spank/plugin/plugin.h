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

/* Print a line for the user, if Slurm can reach the user; otherwise it is in the node's log. */
#define complain(...) slurm_error("slurm_ch: " __VA_ARGS__)

/* version.c: whether this is a plugin for another Slurm */
bool version_is_of_other_release(void);

/* submitter.c: "srun", "sbatch" or "salloc", whatever the program is called */
const char *submitter(void);

/* anchor.c: relative paths in defaults of steps, made absolute; by the place of paths in an option's value */
enum paths { PATHS_NONE, PATHS_IMAGE, PATHS_DIRECTORY, PATHS_DIRECTORIES, PATHS_FILE, PATHS_BINDS, PATHS_DEVICES };
bool is_reference(const char *image);
char *anchored(enum paths kind, const char *value, const char *directory);
int anchor_defaults(spank_t sp, char **env);
int anchor_own_defaults(void);

/* options.c: in srun, sbatch and salloc, what is given */
int options_register(spank_t sp, int ac, char **av);
void options_free(void);
bool options_remote_saw_option(void);

/* request.c: the request that is made of it */
int request_post_opt(int ac, char **av);
void request_free(void);

/* components.c: an srun of several components */
int components_add(char **request);
void components_free(void);
char *component_request(spank_t sp, const char *text, char **env);

/* precheck.c: the request, before it waits in the queue */
struct pin {
	char *image;   /* the reference with its digest; NULL: nothing is known of it */
	char *located; /* HOST:PATH of the image's file, or NULL */
};
void precheck_request(const char *request, const char *image, bool plain, int ac, char **av, struct pin *pin);

char *precheck_broadcast(const char *request, const char *job, int ac, char **av);

/* broadcast.c: the image on the nodes' own disks, for the job */
void broadcast_in_job(char **request, int ac, char **av);
int broadcast_local_user_init(spank_t sp, int ac, char **av);
void broadcast_remove(uid_t uid, uint32_t job, int ac, char **av);

/* command_guard.c: a node without this plugin must not run the command on the host */
int guard_local_user_init(spank_t sp, int ac, char **av);
bool guard_is(const char *word);

/* multi_prog.c: a command of its own for each task */
bool is_multi_prog(int argc, char **argv);
bool multi_prog_goes_through(const char *text, const char *path);
int multi_prog_guard(char **argv, int ac, char **av);

/* site_arguments.c: where a part is, by plugstack.conf or beside this plugin */
char *site_path(const char *key, const char *beside, int ac, char **av);
bool site_says_yes(const char *key, int ac, char **av);

/* step_facts.c: what the launcher and the checker are told */
FILE *step_facts(int *fd, const char *request, char **env, int ac, char **av);

/* broker_allowed.c: whether Slurm's commands may be called inside */
char *broker_allowed(const char *request, bool batch, int ac, char **av);

/* request_lines.c */
const char *last_line(const char *text, const char *key, size_t *n);

/* saver.c: whether, and where, the container is to be saved */
int saver_tell(spank_t sp, const char *request, bool batch, int ac, char **av);

/* batch_script.c: a script that was submitted past this plugin */
bool batch_script_asks(const char *path);
bool batch_script_says(const char *path, bool is(const char *word));

/* beside_pyxis.c: whether that plugin is loaded too, which has the same options */
bool beside_pyxis(void);

/* other_container.c: Slurm's own --container */
bool other_container(int command_words);

/* job_end.c: on a node, when a job is over */
void job_end(spank_t sp, int ac, char **av);

/* variable.c: the job's environment */
const char *variable(char **env, const char *name);

/* node.c: in slurmstepd and the tasks */
int node_init_post_opt(spank_t sp);
int node_user_init(void);
int node_task_init(spank_t sp, int ac, char **av);
int node_task_post_fork(void);
int node_task_exit(spank_t sp);
void node_free(void);

#endif
