# SPDX-License-Identifier: Apache-2.0
"""The container's /etc/passwd and /etc/group: the image's, and whoever runs in the container.

The host's own look-up (files, LDAP, ...) gives the names; it happens before
any namespace is entered, so that the image's libraries have no part in it.
"""

from __future__ import annotations

import grp
import pwd

NOBODY = 65534


def field(text: str) -> str:
    """Return `text` without what would start another field or line."""
    return text.replace(":", " ").replace("\n", " ")


def user_line(uid: int, gid: int, home: str) -> str:
    """Return the line of passwd for the container's user."""
    try:
        entry = pwd.getpwuid(uid)
        name, gecos = field(entry.pw_name), field(entry.pw_gecos)
    except KeyError:
        name, gecos = "charlie", "Charlie"
    return f"{name}:x:{uid}:{gid}:{gecos}:{field(home)}:/bin/sh"


def group_line(gid: int) -> str:
    """Return the line of group for the container's group."""
    try:
        name = field(grp.getgrgid(gid).gr_name)
    except KeyError:
        name = "charliegroup"
    return f"{name}:x:{gid}:"


def passwd_text(uid: int, line: str) -> str:
    """Return a whole /etc/passwd for the container's user, whose `line` it ends with."""
    lines = [] if uid == 0 else ["root:x:0:0:root:/root:/bin/sh"]
    if uid != NOBODY:
        lines.append("nobody:x:65534:65534:nobody:/:/bin/false")
    return "\n".join([*lines, line]) + "\n"


def group_text(gid: int, line: str) -> str:
    """Return a whole /etc/group for the container's group, whose `line` it ends with."""
    lines = [] if gid == 0 else ["root:x:0:"]
    if gid != NOBODY:
        lines.append("nogroup:x:65534:")
    return "\n".join([*lines, line]) + "\n"


def merged(text: str, line: str, whole: str) -> str:
    """Return an image's passwd or group with its container's user in it; `text` itself if they are.

    `line` is the user's, `whole` a file for an image that has none. The user's line comes
    first, because the first one with a name or a number counts; all others stay. An entry of the
    image's that is the user's anyway stays too, but for its home.
    """
    if not text.strip():
        return whole
    name, _, number, *rest = line.split(":")
    lines = text.split("\n")
    for index, one in enumerate(lines):
        fields = one.split(":")
        if fields[0] == name or (len(fields) > 2 and fields[2] == number):
            if fields[0] == name and fields[2:3] == [number] and len(fields) == len(rest) + 3:
                if len(fields) > 5:
                    fields[3], fields[5] = rest[0], rest[2]
                return "\n".join([*lines[:index], ":".join(fields), *lines[index + 1 :]])
            break
    return f"{line}\n{text}"


def user_name(uid: int) -> str:
    """Return the host's name for `uid`, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
