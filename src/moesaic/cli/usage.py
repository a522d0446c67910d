"""What a wrong command line raises; stands alone, so that it can be caught before anything else is imported."""

from __future__ import annotations


class UsageError(Exception):
    """The command line itself is wrong; exit code 2."""
