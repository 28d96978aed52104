"""What the distribution carries beside its code: engines, the commented configuration, units.

In a wheel they lie in ``node/shipped_files``; in a checkout at the top level.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The shipped folder ``engines``, ``config`` or ``systemd``."""
    installed = _PACKAGE / "shipped_files" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
