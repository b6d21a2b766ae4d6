/* SPDX-License-Identifier: Apache-2.0 */
/* What Slurm (or mpirun) tells about this process and its peers. */
#ifndef STEP_H
#define STEP_H

#include <stdbool.h>
#include <sys/types.h>

#include "../agreement.h"
#include "words.h"

struct step {
	char tag[TAG_MAX + 1];
	unsigned peers;
	long rank;	/* -1: none, or not one of the peers' */
	char name[32];	/* what messages call this process */
	pid_t starter;	/* after its end no more peers come; 0: not known */
	bool complete;	/* all peers will come, or end with the starter: no limit of time is needed */
};

/* Find it out, or take it from the words; false if Python is to do it. */
bool step_read(const struct words *w, struct step *s);

#endif
