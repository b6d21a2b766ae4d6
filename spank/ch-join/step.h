/* SPDX-License-Identifier: Apache-2.0 */
/* What Slurm or mpirun reports about this process and its peers. */
#ifndef STEP_H
#define STEP_H

#include <stdbool.h>
#include <sys/types.h>

#include "../agreement.h"
#include "words.h"

struct step {
	char tag[TAG_MAX + 1];
	unsigned peers;
	long rank;	/* -1: none that tells it from its peers */
	char name[32];	/* what messages call this process */
	pid_t starter;	/* no more peers come after this process has ended; 0: not known */
	bool complete;	/* every peer comes, or ends with the starter: so no time limit is needed */
};

/* Fill in `s`, from the words or the environment; return false if it is left to Python. */
bool step_read(const struct words *w, struct step *s);

#endif
