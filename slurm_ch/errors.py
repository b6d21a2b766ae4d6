# SPDX-License-Identifier: Apache-2.0
"""Every exception that slurm_ch raises on purpose, and every exit code.

    ChError                 a failure of ours                       exit 31
    +-- UsageError          bad option, value or variable           exit 64
    +-- JoinError           peers did not join                      exit 32

A command's own exit status passes through untouched; a command that can't be
executed gives 127 (not found) or 126, as in a shell. If the launcher ends
without a message (killed), its tasks exit with 33.
"""

from __future__ import annotations

from .agreement import EXIT_JOIN, EXIT_SETUP, EXIT_USAGE


class ChError(Exception):
    """A failure with one line of text for people; `code` is the exit status."""

    code = EXIT_SETUP


class UsageError(ChError):
    """The user (or the site) asked for something that makes no sense."""

    code = EXIT_USAGE


class JoinError(ChError):
    """The peers of a join could not all get into one pair of namespaces."""

    code = EXIT_JOIN


def describe(error: BaseException) -> str:
    """Return the line that reports `error` to the user."""
    if isinstance(error, OSError) and not isinstance(error, ChError):
        return os_error_text(error)
    text = str(error) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, OSError):
        text += ": " + (cause.strerror or type(cause).__name__)
    return " ".join(text.split("\n"))


def os_error_text(error: OSError) -> str:
    """Return `path -> path: errno's text`, with as many paths as there are."""
    text = error.strerror or str(error) or type(error).__name__
    names = [str(n) for n in (error.filename, error.filename2) if n is not None]
    return " -> ".join(names) + ": " + text if names else text


def exit_code(error: BaseException) -> int:
    """Return the exit status that `error` stands for."""
    return error.code if isinstance(error, ChError) else EXIT_SETUP
