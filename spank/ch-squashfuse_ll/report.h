/* SPDX-License-Identifier: Apache-2.0 */
/* Reports of a damaged image. */
#ifndef REPORT_H
#define REPORT_H

/* Look up the image's name and connect to the log; call this while files can still be opened. */
void report_open(int image);

#endif
