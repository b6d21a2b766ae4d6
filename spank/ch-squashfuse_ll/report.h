/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of the server while it serves. */
#ifndef REPORT_H
#define REPORT_H

/* To be called while files can still be opened. */
void report_open(int image);

#endif
