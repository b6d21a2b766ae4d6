/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a session keyring with a key in it, or looks for that key.
 *
 *   keys hold CMD...   run CMD with such a keyring
 *   keys look          say whether the key is found, and the keyring's number
 */
#include <linux/keyctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEY "slurm-ch-test"

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "hold")) {
		if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 ||
		    syscall(SYS_add_key, "user", KEY, "secret", 6, KEY_SPEC_SESSION_KEYRING) < 0)
			return 3;
		execvp(argv[2], argv + 2);
		return 4;
	}
	printf("%s %ld\n",
	       syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", KEY, 0) < 0 ? "none" : "found",
	       syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
	return 0;
}
