/* SPDX-License-Identifier: Apache-2.0 */
/* A fake of the parts of Slurm's SPANK that the plugin uses. The variables here describe the job; the file that
 * includes this decides which calls fail, and keeps the environment. */
#ifndef SPANK_FAKE_H
#define SPANK_FAKE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

static spank_context_t context;
static struct spank_option registered[64];
static int registered_count;
static char **job_env, **job_argv;
static int job_argc, task_id;
static uint32_t job_step, job_tasks, job_id;
static uid_t job_uid;

/* ---- Defined by the file that includes this ---- */

static bool api_fails(void);
static void job_setenv(const char *name, const char *value);
static void job_unsetenv(const char *name);
/* Take the text of an error. */
static void show_error(const char *text);

/* ---- Slurm's functions ---- */

spank_context_t spank_context(void)
{
	return context;
}

spank_err_t spank_option_register(spank_t sp, struct spank_option *o)
{
	(void)sp;
	if (api_fails())
		return ESPANK_ERROR;
	if (registered_count == sizeof(registered) / sizeof(registered[0]))
		abort();
	registered[registered_count++] = *o;
	return ESPANK_SUCCESS;
}

spank_err_t spank_get_item(spank_t sp, spank_item_t item, ...)
{
	va_list args;

	(void)sp;
	if (api_fails())
		return ESPANK_ERROR;
	va_start(args, item);
	switch ((int)item) {
	case S_JOB_ID:
		*va_arg(args, uint32_t *) = job_id;
		break;
	case S_JOB_UID:
		*va_arg(args, uid_t *) = job_uid;
		break;
	case S_JOB_STEPID:
		*va_arg(args, uint32_t *) = job_step;
		break;
	case S_JOB_ENV:
		*va_arg(args, char ***) = job_env;
		break;
	case S_TASK_ID:
		*va_arg(args, int *) = task_id;
		break;
	case S_JOB_LOCAL_TASK_COUNT:
		*va_arg(args, uint32_t *) = job_tasks;
		break;
	case S_JOB_ARGV:
		*va_arg(args, int *) = job_argc;
		*va_arg(args, char ***) = job_argv;
		break;
	default:
		abort();
	}
	va_end(args);
	return ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t sp, const char *name, const char *value, int overwrite)
{
	(void)sp, (void)overwrite;
	if (api_fails())
		return ESPANK_ERROR;
	job_setenv(name, value);
	return ESPANK_SUCCESS;
}

spank_err_t spank_unsetenv(spank_t sp, const char *name)
{
	(void)sp;
	if (api_fails())
		return ESPANK_ERROR;
	job_unsetenv(name);
	return ESPANK_SUCCESS;
}

/* Format the whole message, as Slurm does. */
void slurm_error(const char *format, ...)
{
	char text[16384];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	show_error(text);
}

#endif
