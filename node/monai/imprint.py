"""Who a MONAI bundle says it is: its name, its terms, its images and what it finds, as tables.

A bundle's metadata.json is written for people; what follows from its words is marked as guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.anatomy import colour, meaning
from node.monai.finishing import Channel
from node.proposal import Block, Guess

_LONGEST = 64
"""Characters of an LO attribute."""
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "US": "US"}
_BODY_PARTS = (
    ("brain|brats|glioma|hippocamp", "brain|head|skull|neuro"),
    ("prostate", "prostate|pelvis"),
    ("lung|thora|chest", "chest|thorax|lung"),
    ("cardi|ventric|heart|atri", "heart|cardi|chest|thorax"),
    ("spleen|liver|pancrea|abdom|kidney|renal|btcv|hepat|colon", "abd|liver|spleen|kidney|pancrea"),
    ("breast|mammo", "breast"),
)
"""What the words about a model say, and what Body Part Examined has then."""
_SEQUENCES = (
    (r"flair", "flair|dark.?fluid|tirm"),
    (r"t1.?(c|ce|gd|post|k)|contrast", r"t1.*(gd|ce|km|\+c|post|contrast)|(gd|ce|km|post).*t1"),
    (r"t1", "t1|mprage|spgr"),
    (r"t2", "t2"),
    (r"adc", "adc|apparent"),
    (r"dwi|diffusion", "dwi|diff"),
    (r"swi", "swi|suscept"),
)
"""What a channel is called, and how such series are described."""
_ARTERIAL = (
    (r"arter", "arter"),
    (r"ven|portal", "portal|ven"),
    (r"excret|delay|late", "excret|delay|late|uro"),
)


@dataclass(frozen=True, slots=True)
class Imprint:
    """``metadata.json`` of a bundle; ``licence`` is the text of its LICENSE, where there is one."""

    table: Mapping[str, Any]
    licence: str = ""

    def word(self, *keys: str, longest: int = 4_000) -> str:
        """The first text among some keys, on one line."""
        for key in keys:
            value = self.table.get(key)
            if isinstance(value, str) and value.strip():
                return " ".join(value.split())[:longest].strip()
        return ""

    @property
    def subject(self) -> str:
        """What the model is about, in its own words."""
        return " ".join((self.word("name"), self.word("task"), self.word("description")))

    def format(self, side: str) -> Mapping[str, Any]:
        """What ``network_data_format`` says of the network's first input or output."""
        formats = self.table.get("network_data_format")
        tensors = formats.get(side) if isinstance(formats, Mapping) else None
        if not isinstance(tensors, Mapping):
            return {}
        first = next((one for one in tensors.values() if isinstance(one, Mapping)), None)
        return first or {}

    def channels(self, side: str) -> dict[int, str]:
        """The names of the channels by their number, from ``channel_def`` or ``label_def``."""
        form = self.format(side)
        names = form.get("channel_def") or form.get("label_def")
        if not isinstance(names, Mapping):
            return {}
        return {int(key): str(name) for key, name in names.items() if _is_number(str(key))}

    def identity(self, name: str, model: str, digest: str) -> Block:
        """``[engine]``."""
        rows: dict[str, Any] = {"name": name}
        title = self.word("name", "task", longest=_LONGEST)
        rows["title"] = title or Guess(name, "the bundle has no name")
        version = self.word("version", longest=_LONGEST)
        rows["version"] = version or Guess("1", "the bundle names no version")
        maker = self.word("authors", longest=_LONGEST)
        rows["manufacturer"] = maker or Guess("unknown", "who answers for it?")
        rows["licence"] = self._licence()
        rows |= {"model": model, "sha256": digest}
        if self.word("description"):
            rows["description"] = self.word("description")
        return Block("engine", rows, comment=_HEAD)

    def _licence(self) -> Any:
        text = f"{self.word('license', 'licence')} {self.licence[:2_000]}"
        for pattern, expression in _LICENCES:
            if re.search(pattern, text, re.IGNORECASE):
                return Guess(expression, "by the words of its LICENSE; of the weights, too?")
        return Guess("unknown", "under which terms? Read the bundle's LICENSE")

    def series(self, roles: Sequence[str]) -> Iterator[Block]:
        """``[[series]]``: one role for each channel of the network."""
        for role in roles:
            accepts = self._conditions(role, several=len(roles) > 1)
            why = "metadata.json names no conditions; test it on studies of yours"
            yield Block("series", {"role": role, "accepts": Guess(accepts, why)}, many=True)

    def _conditions(self, role: str, several: bool) -> list[dict[str, Any]]:
        stated = str(self.format("inputs").get("modality", "")).upper()
        conditions: list[dict[str, Any]] = [_modality(stated, self.subject)]
        words = next((body for said, body in _BODY_PARTS if _said(said, self.subject)), "")
        if words:
            part = {"fact": "BodyPartExamined", "matches": words}
            absent = {"fact": "BodyPartExamined", "present": False}
            conditions.append({"any_of": [part, absent], "reason": "another body part"})
        if several:
            known = (*_SEQUENCES, *_ARTERIAL)
            described = next((text for said, text in known if _said(said, role)), re.escape(role))
            conditions.append({"fact": "SeriesDescription", "matches": described})
        conditions.append({"fact": "slices", "at_least": 8, "reason": "too few slices"})
        conditions.append({"fact": "ImageType", "contains": "ORIGINAL", "score": 2.0})
        return conditions

    def findings(self, channels: Sequence[Channel]) -> Iterator[Block]:
        """``[[finding]]``: one for each label, with codes by its name."""
        seen: set[str] = set()
        for order, channel in enumerate(channels):
            name = " ".join(channel.name.replace("_", " ").split())[:_LONGEST]
            name = name if name and name not in seen else f"{name[:58]} {channel.label}".strip()
            seen.add(name)
            yield Block("finding", self._finding(channel, name, order), many=True)

    def _finding(self, channel: Channel, name: str, order: int) -> dict[str, Any]:
        found = meaning(channel.name, self.subject)
        rows: dict[str, Any] = {"label": channel.label}
        unnamed = channel.name == f"label {channel.label}"
        rows["name"] = Guess(name, "metadata.json names no such channel") if unnamed else name
        for key, code in found.rows().items():
            doubt = found.doubt if key in {"category", "type"} else ""
            rows[key] = Guess(code, doubt) if doubt else code
        rows["colour"] = colour(order)
        if found.whole:
            rows["instances"] = Guess("whole", "a structure, of which there is one")
        return rows

    def card(self) -> str:
        """The beginning of a model card: what the bundle says of itself, and what is missing."""
        parts = [f"# {self.word('name', 'task') or 'Model card'}", self.word("description")]
        for heading, keys in _CARD:
            text = self.word(*keys) or _listed(self.table.get(keys[0]))
            parts.append(f"## {heading}\n\n{text or _MISSING}")
        whole = "\n\n".join(part for part in parts if part) + "\n"
        return whole.encode(errors="replace").decode()  # JSON has halves of characters


def _is_number(key: str) -> bool:
    """Whether it can be a channel's: digits that Python reads, and no more than any needs."""
    return key.isdecimal() and len(key) < 10


def _modality(stated: str, subject: str) -> dict[str, Any]:
    if stated in _MODALITIES:
        return {"fact": "Modality", "equals": _MODALITIES[stated]}
    for word, modality in _MODALITIES.items():
        if re.search(rf"\b{word}\b", subject):
            return {"fact": "Modality", "equals": modality}
    return {"fact": "Modality", "one_of": ["CT", "MR"]}


def _said(pattern: str, words: str) -> bool:
    return re.search(pattern, words, re.IGNORECASE) is not None


def _listed(value: Any) -> str:
    """A table or a list of the metadata as lines of a card."""
    if isinstance(value, Mapping):
        return "\n".join(f"- {key}: {one}" for key, one in value.items())
    if isinstance(value, list):
        return "\n".join(f"- {one}" for one in value)
    return ""


_LICENCES = (
    (r"apache license", "Apache-2.0"),
    (r"\bMIT license|permission is hereby granted, free of charge", "MIT"),
    (r"attribution-noncommercial-sharealike|by-nc-sa", "CC-BY-NC-SA-4.0"),
    (r"attribution-noncommercial|by-nc", "CC-BY-NC-4.0"),
    (r"creative commons attribution|cc.by.4", "CC-BY-4.0"),
)

_MISSING = "Not stated by the bundle: to be written before the engine goes live."

_CARD = (
    ("Intended use", ("intended_use",)),
    ("Training data", ("data_source",)),
    ("Images it takes", ("image_classes",)),
    ("What it finds", ("pred_classes",)),
    ("How well it does, as its makers say", ("eval_metrics",)),
    ("Limits", ("limits",)),
    ("Literature", ("references",)),
)

_HEAD = """\
Translated from a MONAI bundle. Every value that the bundle does not state is marked "guessed":
put it right, or take the mark away. What each key means stands in engines/README.md."""
