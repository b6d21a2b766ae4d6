# SPDX-License-Identifier: Apache-2.0
"""The container's /etc/passwd and /etc/group: the image's entries and one for the container's user.

The host's name service (files, LDAP, ...) provides the names. It is asked before
any namespace is entered, so that no library of the image is involved.
"""

from __future__ import annotations

import grp
import pwd

NOBODY = 65534


def field(text: str) -> str:
    """Return `text` with colons and newlines, which separate fields and lines, replaced by blanks."""
    return text.replace(":", " ").replace("\n", " ")


def user_line(uid: int, gid: int, home: str) -> str:
    """Return the line of /etc/passwd for the container's user."""
    try:
        entry = pwd.getpwuid(uid)
        name, gecos = field(entry.pw_name), field(entry.pw_gecos)
    except KeyError:
        name, gecos = "charlie", "Charlie"
    return f"{name}:x:{uid}:{gid}:{gecos}:{field(home)}:/bin/sh"


def group_line(gid: int) -> str:
    """Return the line of /etc/group for the container's group."""
    try:
        name = field(grp.getgrgid(gid).gr_name)
    except KeyError:
        name = "charliegroup"
    return f"{name}:x:{gid}:"


def passwd_text(uid: int, line: str) -> str:
    """Return a complete /etc/passwd: root, nobody, and the container user's `line`."""
    lines = [] if uid == 0 else ["root:x:0:0:root:/root:/bin/sh"]
    if uid != NOBODY:
        lines.append("nobody:x:65534:65534:nobody:/:/bin/false")
    return "\n".join([*lines, line]) + "\n"


def group_text(gid: int, line: str) -> str:
    """Return a complete /etc/group: root, nogroup, and the container's group's `line`."""
    lines = [] if gid == 0 else ["root:x:0:"]
    if gid != NOBODY:
        lines.append("nogroup:x:65534:")
    return "\n".join([*lines, line]) + "\n"


def merged(text: str, line: str, whole: str) -> str:
    """Return an image's passwd or group `text` with the container user's `line` added.

    An image without the file gets `whole`. The line goes first, because look-ups use the first entry
    that has the name or number; the image's lines are kept. If the image already has an entry with
    this name and number, only its primary group and home are changed.
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
