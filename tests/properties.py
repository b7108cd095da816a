"""How many examples a property test takes; all else is in the profile of `conftest.py`."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """Settings for `count` examples of a property."""
    return settings(max_examples=count)
