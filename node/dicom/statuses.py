"""What an answer to C-STORE means, in words that say what to do (PS3.4 Annex B, PS3.7 Annex C)."""

from __future__ import annotations

from dataclasses import dataclass

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE = 0x0111
INVALID_INSTANCE = 0x0117
CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORISED = 0x0124
UNRECOGNISED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an object was accepted; if not, whether another try can help; and why."""

    accepted: bool
    retryable: bool
    reason: str


def _accepted(reason: str = "") -> Verdict:
    return Verdict(accepted=True, retryable=False, reason=reason)


def _refused(reason: str) -> Verdict:
    return Verdict(accepted=False, retryable=False, reason=reason)


_KNOWN = {
    SUCCESS: _accepted(),
    DUPLICATE: _accepted("the peer has this object already"),
    0xB000: _accepted("stored; the peer changed values to fit its own records (coercion)"),
    0xB006: _accepted("stored; the peer left out elements that it does not keep"),
    0xB007: _accepted("stored; the peer finds that the data set does not fit its SOP class"),
    PROCESSING_FAILURE: _refused("processing failure at the peer: look into the peer's log"),
    INVALID_INSTANCE: _refused("the peer finds the SOP Instance UID invalid"),
    CLASS_NOT_SUPPORTED: _refused(
        "the peer does not store this SOP class: ask its administrator to enable it"
    ),
    NOT_AUTHORISED: _refused(
        "the peer does not allow us to store: ask its administrator for storage rights"
    ),
    0x0210: _refused("the peer saw a message ID twice: look into the peer's log"),
    UNRECOGNISED_OPERATION: _refused("the peer is no storage server: check the peer's port"),
    0x0212: _refused("the peer could not read the request: look into the peer's log"),
}

_RANGES = {
    0xA7: Verdict(
        accepted=False, retryable=True, reason="the peer is out of resources: free its storage"
    ),
    0xA9: _refused(
        "the peer finds that the data set does not match its SOP class: look into the peer's log"
    ),
    0xC0: _refused("the peer cannot understand the data set: look into the peer's log"),
}


def verdict(status: int) -> Verdict:
    """The meaning of any status from 0x0000 to 0xFFFF. An unknown one is a refusal."""
    # Cxxx is one class of failures; the other failures are told apart by their first byte.
    first = 0xC0 if status >> 12 == 0xC else status >> 8
    known = _KNOWN.get(status) or _RANGES.get(first)
    return known or _refused(f"unknown status {status:#06x}: look into the peer's log")
