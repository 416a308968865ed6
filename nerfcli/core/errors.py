"""The one exception that users see without a traceback.

A message says what is wrong, where (file, key, value), and what to do about it.
"""

from __future__ import annotations


class NerfError(Exception):
    """Bad usage or bad input: printed as one message, exit code 2."""


class BackendUnavailable(NerfError):
    """An explicitly named backend cannot run here; the message says why and what to do."""


class CannotWrite(NerfError):
    """The disk refuses a file, or gives back something else than was written."""


class EmptyField(NerfError):
    """A run, or the part of it that is looked at, shows no surface."""
