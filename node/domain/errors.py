"""The error tree. Every error says whether trying again can help.

::

    NodeError
    +-- ConfigError            the configuration or a manifest is wrong (lists every fault)
    +-- HeaderError            a header value is missing, not finite or out of range
    |   +-- GeometryError      slices do not form one regular volume
    +-- PixelError             pixel data is absent or cannot be decoded
    +-- IdentityError          patient or study identity disagrees
    +-- SpoolError             the spool could not keep what was received or made
    |   +-- SpoolFull          no space left (retryable)
    |   +-- DigestMismatch     bytes on disk are not the bytes that were recorded
    +-- LedgerError            the ledger could not be read or written
    |   +-- LedgerBusy         locked, or its disk is full or failing for now (retryable)
    |   +-- LedgerBroken       the file is damaged, or another now lies in its place
    +-- JobCancelled           a person cancelled the job while it ran
    +-- SandboxError           the process that reads headers cannot be started (retryable)
    +-- InferenceError         the runtime failed or gave unusable output
    |   +-- RuntimeUnavailable the library, driver or device of a runtime is missing
    |   +-- DeviceMemoryFull   what was asked for does not fit on the device now (retryable)
    |   +-- DeviceLost         the device's state is beyond repair in this process (retryable)
    |   +-- VerificationFailed the network as compiled does not answer as the reference does
    +-- ImportRefused          a model cannot be made into an engine package as it is
    +-- EncodingError          a result object could not be made
    |   +-- ConformanceError   a result object was made but breaks the standard
    +-- ListenError            our own port cannot be opened
    +-- PeerError              talking to another DICOM node failed
        +-- PeerUnreachable    no association: refused, timed out, host unknown (retryable)
        +-- PeerRejected       the peer rejected the association (AE title, limits)
        +-- ContextRejected    the peer accepts no presentation context for what we send
        +-- StatusError        the peer answered with a failure status
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar

_PASSING = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ESTALE,
}


def may_pass(error: OSError) -> bool:
    """Whether the machine is short of something, or a disk away: trying again can help."""
    return error.errno in _PASSING


class NodeError(Exception):
    """Root of every error raised by the node."""

    retryable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong key: where it stands, what is wrong, and what to do.

    ``path`` is dotted with list indices, e.g. ``peer[1].port``; ``line`` is 1-based, 0 if unknown.
    """

    path: str
    message: str
    line: int = 0
    file: str = ""

    def __str__(self) -> str:
        if self.file:
            return f"{self.file}:{self.line}: {self.path}: {self.message}"
        return f"{f'line {self.line}: ' if self.line else ''}{self.path}: {self.message}"


class ConfigError(NodeError):
    """A configuration file or an engine manifest is wrong; ``faults`` lists every wrong key."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class HeaderError(NodeError):
    """A header value is missing, not finite or out of its range."""


class GeometryError(HeaderError):
    """The slices do not form one regular volume; the message says which rule failed."""


class PixelError(NodeError):
    """Pixel data is absent, has the wrong length, or cannot be decoded."""


class IdentityError(NodeError):
    """Patient or study identity disagrees between objects that must share it."""


class SpoolError(NodeError):
    """The spool could not keep an object."""

    retryable = True


class SpoolFull(SpoolError):
    """No space is left on the spool's file system."""


class DigestMismatch(SpoolError):
    """The bytes on disk are not the bytes that were recorded."""

    retryable = False


class LedgerError(NodeError):
    """The ledger could not be read or written."""


class LedgerBusy(LedgerError):
    """The ledger is locked, or its disk is full or failing; trying again may help."""

    retryable = True


class LedgerBroken(LedgerError):
    """The ledger's file is damaged, gone, or replaced; a start of the node makes it anew."""


class JobCancelled(NodeError):
    """A person cancelled the job, or another worker has it now; what was made is dropped."""


class SandboxError(NodeError):
    """The process that reads headers cannot be started; what it was to read waits."""

    retryable = True


class InferenceError(NodeError):
    """The runtime failed, or its output has a wrong shape or is not finite."""


class NotAssessable(InferenceError):
    """The engine cannot assess this study, though nothing is broken; the text says why."""


class RuntimeUnavailable(InferenceError):
    """A library, driver or device is missing; the text names it and what brings it."""


class DeviceMemoryFull(InferenceError):
    """What was asked for does not fit on the device now; a smaller batch or block may."""

    retryable = True


class DeviceLost(InferenceError):
    """The device's state is beyond repair in this process, which has to end and start again."""

    retryable = True


class VerificationFailed(InferenceError):
    """A network as compiled for a device does not answer as its reference does."""


class ImportRefused(NodeError):
    """A trained model cannot be made into an engine package as it is; the text says why."""


class EncodingError(NodeError):
    """A result object could not be made."""


class ConformanceError(EncodingError):
    """A result object breaks the standard; it is not sent."""


class ListenError(NodeError):
    """Our own port cannot be opened: it is taken, reserved, or not this machine's address."""


class PeerError(NodeError):
    """Talking to another DICOM node failed."""


class PeerUnreachable(PeerError):
    """No association could be opened, or it broke; the peer may be down."""

    retryable = True


class PeerRejected(PeerError):
    """The peer rejected the association (unknown AE title, too many associations)."""

    retryable = True


class ContextRejected(PeerError):
    """The peer accepts no presentation context for the object to send."""


class StatusError(PeerError):
    """The peer answered a DIMSE request with a failure status (PS3.7 Annex C)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def transient(self) -> bool:
        """0xA7xx (out of resources) may pass; other failures want a person."""
        return self.status & 0xFF00 == 0xA700
