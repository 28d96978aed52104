"""Whose images these are: one patient's, or two patients' under one study.

A study is one patient's (PS3.3 A.1.2). Where two images of a study name different patients, one of
them is in the wrong folder, and a result made from both would be somebody's wrong diagnosis.

The key is a digest for each part of the identity, so that the ledger compares patients without
another copy of their names. What an image leaves out agrees with everything, except for the name
and the ID: secondary captures and old devices write no birth date and no issuer, but every image
of a study states the same name and ID, or none of them does.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping

from node.domain.study import Fact

PARTS = ("PatientID", "PatientName", "IssuerOfPatientID", "PatientBirthDate")
"""What tells patients apart (PS3.3 C.7.1.1), in the order of the key."""

_STRICT = 2
_DIGITS = 16
_ABSENT = "-" * _DIGITS
_SPACE = re.compile(r"\s+")


def patient_key(facts: Mapping[str, Fact]) -> str:
    """The identity in header facts: 64 characters, 16 for each of ``PARTS``."""
    return "".join(_digest(_normal(keyword, facts.get(keyword, ""))) for keyword in PARTS)


def agree(one: str, other: str) -> bool:
    """Whether two keys may be one patient's. A key that is "" is unknown and agrees with all."""
    if not one or not other:
        return True
    pairs = list(zip(_split(one), _split(other), strict=True))
    return all(mine == theirs for mine, theirs in pairs[:_STRICT]) and all(
        mine == theirs or _ABSENT in (mine, theirs) for mine, theirs in pairs[_STRICT:]
    )


def merged(one: str, other: str) -> str:
    """The key of two that agree: what one of them leaves out is the other's."""
    if not one or not other:
        return one or other
    return "".join(
        theirs if mine == _ABSENT else mine
        for mine, theirs in zip(_split(one), _split(other), strict=True)
    )


def _split(key: str) -> list[str]:
    return [key[at : at + _DIGITS] for at in range(0, _DIGITS * len(PARTS), _DIGITS)]


def _digest(text: str) -> str:
    if not text:
        return _ABSENT
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _normal(keyword: str, value: Fact) -> str:
    """A value without what differs between devices that mean the same."""
    if isinstance(value, tuple):
        value = "\\".join(map(str, value))
    text = _SPACE.sub(" ", unicodedata.normalize("NFKC", str(value))).strip(" \0")
    if keyword != "PatientName":
        return text
    # The first group that is there: some devices leave out the ideographic and phonetic ones.
    groups = [group.strip("^ ") for group in text.split("=")]
    parts = next((group for group in groups if group), "").casefold().split("^")
    return "^".join(part.strip() for part in parts)
