"""Events of the log as DICOM audit messages: PS3.15 section A.5, what IHE ATNA repositories read.

Each kind of event that a hospital must be able to audit has one message here; the others have
none. A message carries no patient's name. The Patient ID is withheld unless it is handed in.

========================  =======================================
event                     message (PS3.15)
========================  =======================================
started, stopped          Application Activity (A.5.3.1)
received, sent, delivery  DICOM Instances Transferred (A.5.3.7)
sending                   Begin Transferring (A.5.3.3)
inferred                  DICOM Instances Accessed (A.5.3.6)
queried                   Query (A.5.3.10)
rejected, quarantined,    Security Alert (A.5.3.11)
alarm, configured,
operator
========================  =======================================
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from xml.etree.ElementTree import Element, SubElement, tostring

from node.domain.codes import Code
from node.domain.event import Event, EventKind
from node.domain.peer import Peer

APPLICATION_ACTIVITY = Code("110100", "DCM", "Application Activity")
BEGIN_TRANSFERRING = Code("110102", "DCM", "Begin Transferring DICOM Instances")
ACCESSED = Code("110103", "DCM", "DICOM Instances Accessed")
TRANSFERRED = Code("110104", "DCM", "DICOM Instances Transferred")
QUERY = Code("110112", "DCM", "Query")
SECURITY_ALERT = Code("110113", "DCM", "Security Alert")

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"

_APPLICATION = Code("110150", "DCM", "Application")
_DESTINATION = Code("110152", "DCM", "Destination Role ID")
_SOURCE = Code("110153", "DCM", "Source Role ID")
_STUDY_UID = Code("110180", "DCM", "Study Instance UID")
_SOP_CLASS_UID = Code("110181", "DCM", "SOP Class UID")
_NODE_ID = Code("110182", "DCM", "Node ID")
_PATIENT_NUMBER = Code("2", "RFC-3881", "Patient Number")

_ALERTS = {
    EventKind.REJECTED: Code("110126", "DCM", "Node Authentication"),
    EventKind.CONFIGURED: Code("110131", "DCM", "Software Configuration"),
    EventKind.OPERATOR: Code("110132", "DCM", "Use of Restricted Function"),
    EventKind.QUARANTINED: Code("110135", "DCM", "Object Security Attributes Changed"),
    # CID 403 is extensible and has no word for this.
    EventKind.ALARM: Code("ALARM", "99AINODE", "Alarm"),
}

SUCCESS, MINOR, SERIOUS = "0", "4", "8"
"""Event Outcome Indicator (RFC 3881 5.1.4)."""

WITHHELD = "withheld"
"""Stands for a Patient ID that the configuration keeps inside this node."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who reports: the audit source's id, our AE title, host and process id."""

    source: str
    ae_title: str
    host: str
    process: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about, as far as the ledger knows it.

    ``sop_classes`` are pairs of SOP Class UID and number of instances (0: not counted);
    ``peer`` is the configured peer that the event's actor names; ``keys`` is the identifier of a
    query, encoded in Explicit VR Little Endian.
    """

    sop_classes: tuple[tuple[str, int], ...] = ()
    patient_id: str = WITHHELD
    peer: Peer | None = None
    keys: bytes = b""


def message(event: Event, subject: Subject, origin: Origin) -> bytes | None:
    """The audit message of an event as an XML document in UTF-8; None where it has none."""
    build = _BUILDERS.get(event.kind)
    if build is None or (event.kind in _ABOUT_STUDIES and not event.study_uid):
        return None
    root = Element("AuditMessage")
    for part in build(event, subject, origin):
        root.append(part)
    # The order of the schema: event, participants, source, objects.
    source = Element("AuditSourceIdentification", {"AuditSourceID": origin.source})
    objects = root.findall("ParticipantObjectIdentification")
    root.insert(len(root) - len(objects), source)
    content: bytes = tostring(root, encoding="UTF-8", xml_declaration=True)
    return content


def _activity(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    started = event.kind == EventKind.STARTED
    kind = (
        Code("110120", "DCM", "Application Start")
        if started
        else Code("110121", "DCM", "Application Stop")
    )
    yield _identification(event, APPLICATION_ACTIVITY, "E", SUCCESS, kind)
    yield _ourselves(origin, _APPLICATION)


def _received(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    yield _identification(event, TRANSFERRED, "C", SUCCESS)
    yield _other(event, subject, _SOURCE, requestor=True)
    yield _ourselves(origin, _DESTINATION)
    yield from _study_and_patient(event, subject)


def _sending(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    yield _identification(event, BEGIN_TRANSFERRING, "E", SUCCESS)
    yield _ourselves(origin, _SOURCE, requestor=True)
    yield _other(event, subject, _DESTINATION)
    yield from _study_and_patient(event, subject)


def _sent(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    outcome = SUCCESS if event.kind == EventKind.SENT else MINOR
    # A sender does not know what the receiver held before, and then says Read (A.5.3.7).
    yield _identification(event, TRANSFERRED, "R", outcome)
    yield _ourselves(origin, _SOURCE, requestor=True)
    yield _other(event, subject, _DESTINATION)
    yield from _study_and_patient(event, subject)


def _accessed(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    yield _identification(event, ACCESSED, "R", SUCCESS)
    yield _ourselves(origin, _APPLICATION, requestor=True)
    yield from _study_and_patient(event, subject)


def _queried(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    yield _identification(event, QUERY, "E", SUCCESS)
    yield _ourselves(origin, _SOURCE, requestor=True)
    yield _other(event, subject, _DESTINATION)
    asked = _object(STUDY_ROOT_FIND, ("2", "3"), _SOP_CLASS_UID)
    _leaf(asked, "ParticipantObjectQuery", b64encode(subject.keys).decode())
    _detail(asked, "TransferSyntax", _EXPLICIT_LITTLE)
    yield asked


def _alert(event: Event, subject: Subject, origin: Origin) -> Iterator[Element]:
    kind = EventKind(event.kind)
    informs = kind in (EventKind.CONFIGURED, EventKind.OPERATOR)
    outcome = SUCCESS if informs else SERIOUS if kind is EventKind.ALARM else MINOR
    yield _identification(event, SECURITY_ALERT, "E", outcome, _ALERTS[kind])
    yield _ourselves(origin, _APPLICATION, requestor=True)
    if event.actor:
        yield _other(event, subject, None)
    alerted = _object(origin.host, ("2", "5"), _NODE_ID)
    _leaf(alerted, "ParticipantObjectName", origin.ae_title)
    _detail(alerted, "Alert Description", event.words)
    yield alerted


_BUILDERS: dict[str, Callable[[Event, Subject, Origin], Iterator[Element]]] = {
    EventKind.STARTED: _activity,
    EventKind.STOPPED: _activity,
    EventKind.RECEIVED: _received,
    EventKind.SENDING: _sending,
    EventKind.SENT: _sent,
    EventKind.DELIVERY: _sent,
    EventKind.INFERRED: _accessed,
    EventKind.QUERIED: _queried,
    **dict.fromkeys(_ALERTS, _alert),
}


_ABOUT_STUDIES = (
    EventKind.RECEIVED,
    EventKind.SENDING,
    EventKind.SENT,
    EventKind.DELIVERY,
    EventKind.INFERRED,
)


def when(at: float) -> str:
    """Seconds since the epoch as UTC, in the form of RFC 3339 and xsd:dateTime."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")[:26] + "Z"


def _identification(
    event: Event, identity: Code, action: str, outcome: str, kind: Code | None = None
) -> Element:
    attributes = {
        "EventActionCode": action,
        "EventDateTime": when(event.at),
        "EventOutcomeIndicator": outcome,
    }
    element = Element("EventIdentification", attributes)
    element.append(_coded("EventID", identity))
    if kind is not None:
        element.append(_coded("EventTypeCode", kind))
    if event.words:
        _leaf(element, "EventOutcomeDescription", event.words)
    return element


def _ourselves(origin: Origin, role: Code, *, requestor: bool = False) -> Element:
    return _participant(
        origin.process, origin.ae_title, origin.host, role=role, requestor=requestor
    )


def _other(
    event: Event, subject: Subject, role: Code | None, *, requestor: bool = False
) -> Element:
    """The event's actor: a peer, a caller as ``AE@address``, or a person."""
    user = event.actor or "unknown"
    if subject.peer is not None:
        peer = subject.peer
        return _participant(user, peer.ae_title, peer.host, role=role, requestor=requestor)
    title, _, address = user.rpartition("@")
    return _participant(user, title, address if title else "", role=role, requestor=requestor)


def _participant(
    user: str, ae_title: str, address: str, *, role: Code | None, requestor: bool
) -> Element:
    attributes = {"UserID": user}
    if ae_title:
        attributes["AlternativeUserID"] = f"AETITLES={ae_title}"
    attributes["UserIsRequestor"] = "true" if requestor else "false"
    if address:
        attributes["NetworkAccessPointID"] = address
        attributes["NetworkAccessPointTypeCode"] = "2" if _is_address(address) else "1"
    element = Element("ActiveParticipant", attributes)
    if role is not None:
        element.append(_coded("RoleIDCode", role))
    return element


def _study_and_patient(event: Event, subject: Subject) -> Iterator[Element]:
    study = _object(event.study_uid, ("2", "3"), _STUDY_UID)
    _leaf(study, "ParticipantObjectName", "study")
    if subject.sop_classes:
        description = SubElement(study, "ParticipantObjectDescription")
        for uid, count in subject.sop_classes:
            number = {"NumberOfInstances": str(count)} if count else {}
            SubElement(description, "SOPClass", {"UID": uid, **number})
    yield study
    patient = _object(subject.patient_id or "unknown", ("1", "1"), _PATIENT_NUMBER)
    _leaf(patient, "ParticipantObjectName", WITHHELD)
    yield patient


def _object(identity: str, codes: tuple[str, str], kind: Code) -> Element:
    attributes = {
        "ParticipantObjectID": identity,
        "ParticipantObjectTypeCode": codes[0],
        "ParticipantObjectTypeCodeRole": codes[1],
    }
    element = Element("ParticipantObjectIdentification", attributes)
    element.append(_coded("ParticipantObjectIDTypeCode", kind))
    return element


def _detail(parent: Element, kind: str, value: str) -> None:
    encoded = b64encode(value.encode()).decode()
    SubElement(parent, "ParticipantObjectDetail", {"type": kind, "value": encoded})


def _leaf(parent: Element, name: str, content: str) -> None:
    SubElement(parent, name).text = content


def _coded(name: str, code: Code) -> Element:
    return Element(
        name,
        {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning},
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
