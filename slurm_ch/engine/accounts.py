# SPDX-License-Identifier: Apache-2.0
"""The container's /etc/passwd and /etc/group, as text.

The host's own look-up (files, LDAP, ...) gives the names; it happens before
any namespace is entered, so that the image's libraries have no part in it.
"""

from __future__ import annotations

import grp
import pwd

NOBODY = 65534


def _field(text: str) -> str:
    """A colon or newline in a field would start another one."""
    return text.replace(":", " ").replace("\n", " ")


def passwd_text(uid: int, gid: int) -> str:
    """Return /etc/passwd for a container whose user is `uid`:`gid`."""
    lines = []
    if uid != 0:
        lines.append("root:x:0:0:root:/root:/bin/sh")
    if uid != NOBODY:
        lines.append("nobody:x:65534:65534:nobody:/:/bin/false")
    try:
        entry = pwd.getpwuid(uid)
        name, gecos = _field(entry.pw_name), _field(entry.pw_gecos)
    except KeyError:
        name, gecos = "charlie", "Charlie"
    lines.append(f"{name}:x:{uid}:{gid}:{gecos}:/:/bin/sh")
    return "\n".join(lines) + "\n"


def group_text(gid: int) -> str:
    """Return /etc/group for a container whose group is `gid`."""
    lines = []
    if gid != 0:
        lines.append("root:x:0:")
    if gid != NOBODY:
        lines.append("nogroup:x:65534:")
    try:
        name = _field(grp.getgrgid(gid).gr_name)
    except KeyError:
        name = "charliegroup"
    lines.append(f"{name}:x:{gid}:")
    return "\n".join(lines) + "\n"


def user_name(uid: int) -> str:
    """Return the host's name for `uid`, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
