/* SPDX-License-Identifier: Apache-2.0 */
/* Reports that the plugin was built for another Slurm release.
 *
 * Slurm refuses such a plugin, but its message doesn't name the two releases; 20.11 even
 * accepts it. The constructor below runs before Slurm checks the version.
 */
#include <string.h>

#include "plugin.h"

#define DIGITS(n) '0' + (n) / 10, '0' + (n) % 10

/* `slurm-ch doctor` looks for this in the file. */
static const struct {
	char magic[20];
	char release[6];
} built_for __attribute__((used)) = {
	"slurm_ch for Slurm ",
	{ DIGITS(SLURM_VERSION_MAJOR(SLURM_VERSION_NUMBER)), '.',
	  DIGITS(SLURM_VERSION_MINOR(SLURM_VERSION_NUMBER)), '\0' },
};

/* Weak, because a program other than Slurm may load the file. */
extern long slurm_api_version(void) __attribute__((weak));

/* Slurm's library only tells its API number: 36 is 20.11. */
#define FIRST_API 36
static const char *const releases[] = { "20.11", "21.08", "22.05", "23.02", "23.11", "24.05",
					"24.11", "25.05", "25.11", "26.05", "26.11" };

static const char *version_of_slurm(long api)
{
	size_t n = SLURM_VERSION_MAJOR(api) - FIRST_API;

	/* An unknown or older release: no message is better than a wrong one. */
	return n < sizeof(releases) / sizeof(*releases) ? releases[n] : NULL;
}

static bool other_release;

bool version_is_of_other_release(void)
{
	return other_release;
}

static void __attribute__((constructor)) report_other_release(void)
{
	const char *running = slurm_api_version ? version_of_slurm(slurm_api_version()) : NULL;

	other_release = running && strcmp(running, built_for.release);
	if (other_release)
		complain("this plugin was built for Slurm %s, and this is Slurm %s; "
			 "build and install it anew on this release",
			 built_for.release, running);
}
