# SPDX-License-Identifier: Apache-2.0
"""The exceptions that slurm_ch raises, and its exit codes.

    ChError                 slurm_ch failed                         exit 31
    +-- UsageError          wrong option, value or variable         exit 64
    +-- JoinError           peers did not join                      exit 32

A command's own exit status is passed on unchanged. If a command can't be executed, the
status is 127 (not found) or 126, as in a shell. If the launcher ends without a message,
because it was killed, its tasks exit with 33.
"""

from __future__ import annotations

from .agreement import EXIT_JOIN, EXIT_SETUP, EXIT_USAGE


class ChError(Exception):
    """A failure with a message of one line; `code` is the exit status."""

    code = EXIT_SETUP


class UsageError(ChError):
    """An option, a value or a variable of the user or the site is wrong."""

    code = EXIT_USAGE


class JoinError(ChError):
    """Not all peers of a join could enter the shared namespaces."""

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
    """Return the error's text after its paths: `PATH -> PATH: TEXT`, `PATH: TEXT`, or `TEXT`."""
    text = error.strerror or str(error) or type(error).__name__
    names = [str(n) for n in (error.filename, error.filename2) if n is not None]
    return " -> ".join(names) + ": " + text if names else text


def exit_code(error: BaseException) -> int:
    """Return the exit status for `error`."""
    return error.code if isinstance(error, ChError) else EXIT_SETUP
