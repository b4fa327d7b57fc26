"""What an export can fail with: one exception, whose text is meant for the person who asked."""

from __future__ import annotations


class ExportError(Exception):
    """A module could not be exported; the message says why, and what to do about it."""
