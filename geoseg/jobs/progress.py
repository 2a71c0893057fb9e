"""How a run tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, int], None]
"""Called with supertiles finished, all supertiles, and fragments found so far; the first call tells
what earlier runs finished."""
