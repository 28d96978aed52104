"""Imports: what makes an engine package of a trained model, as its maker left it.

To add one: a frozen dataclass in a sibling file, and one line in ``IMPORTS``. An import reads and
translates; it never executes anything of what it reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from node.imports.bare import Bare
from node.imports.monai import Monai
from node.imports.nnunet import Nnunet
from node.proposal import Proposal


class Import(Protocol):
    """One way in which trained models are handed over."""

    def recognises(self, source: Path) -> bool:
        """Whether a file or folder looks like one of these; cheap, raises nothing."""

    def propose(self, source: Path, name: str) -> Proposal:
        """The package that would be made of it, called ``name``.

        Raises ImportRefused with everything that cannot be translated, and what to do about it.
        """


IMPORTS: dict[str, type[Import]] = {
    "onnx": Bare,
    "nnunet": Nnunet,
    "monai": Monai,
}
