"""Audit messages against the schema of PS3.15 A.5.1 and the tables of A.5.3, written as checks."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.atna import STUDY_ROOT_FIND, WITHHELD, Origin, Subject, message, when
from node.domain.event import Event, EventKind, one_line
from node.domain.peer import Peer

ORIGIN = Origin("ai-node", "BRAIN", "ward7.example", "4711")
PACS = Peer("pacs", "PACS", "192.0.2.9", 104)
MR = "1.2.840.10008.5.1.4.1.1.4"
SUBJECT = Subject(((MR, 24),), peer=PACS, keys=b"\x08\x00keys")

CODED = {"csd-code", "codeSystemName", "originalText"}
ATTRIBUTES: Mapping[str, tuple[set[str], set[str]]] = {
    "AuditMessage": (set(), set()),
    "EventIdentification": ({"EventDateTime", "EventOutcomeIndicator"}, {"EventActionCode"}),
    "EventID": (CODED, {"displayName"}),
    "EventTypeCode": (CODED, {"displayName"}),
    "EventOutcomeDescription": (set(), set()),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
    ),
    "RoleIDCode": (CODED, {"displayName"}),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {
            "ParticipantObjectTypeCode",
            "ParticipantObjectTypeCodeRole",
            "ParticipantObjectDataLifeCycle",
            "ParticipantObjectSensitivity",
        },
    ),
    "ParticipantObjectIDTypeCode": (CODED, {"displayName"}),
    "ParticipantObjectName": (set(), set()),
    "ParticipantObjectQuery": (set(), set()),
    "ParticipantObjectDetail": ({"type", "value"}, set()),
    "ParticipantObjectDescription": (set(), set()),
    "SOPClass": ({"UID"}, {"NumberOfInstances"}),
}
"""Element -> attributes that it must have, and that it may have besides."""

CHILDREN = {
    "AuditMessage": (
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification "
        "(ParticipantObjectIdentification )*"
    ),
    "EventIdentification": "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    "ActiveParticipant": "(RoleIDCode )*",
    "ParticipantObjectIdentification": (
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*"
    ),
    "ParticipantObjectDescription": "(SOPClass )*",
}
"""Element -> its children in order, as a regular expression."""

VALUES = {
    "EventActionCode": "[CRUDE]",
    "EventDateTime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
    "EventOutcomeIndicator": "0|4|8|12",
    "UserIsRequestor": "true|false",
    "NetworkAccessPointTypeCode": "[1-5]",
    "ParticipantObjectTypeCode": "[1-4]",
    "ParticipantObjectTypeCodeRole": "[1-9]|1[0-9]|2[0-4]",
    "NumberOfInstances": r"\d+",
    "value": "[A-Za-z0-9+/=]*",
    "codeSystemName": "DCM|RFC-3881|99AINODE",
}

TABLES = {
    EventKind.STARTED: ("110100", "E", "110120", ["110150"], []),
    EventKind.STOPPED: ("110100", "E", "110121", ["110150"], []),
    EventKind.SENDING: ("110102", "E", "", ["110153", "110152"], ["110180", "2"]),
    EventKind.INFERRED: ("110103", "R", "", ["110150"], ["110180", "2"]),
    EventKind.RECEIVED: ("110104", "C", "", ["110153", "110152"], ["110180", "2"]),
    EventKind.SENT: ("110104", "R", "", ["110153", "110152"], ["110180", "2"]),
    EventKind.DELIVERY: ("110104", "R", "", ["110153", "110152"], ["110180", "2"]),
    EventKind.QUERIED: ("110112", "E", "", ["110153", "110152"], ["110181"]),
    EventKind.REJECTED: ("110113", "E", "110126", ["110150", ""], ["110182"]),
    EventKind.CONFIGURED: ("110113", "E", "110131", ["110150", ""], ["110182"]),
    EventKind.OPERATOR: ("110113", "E", "110132", ["110150", ""], ["110182"]),
    EventKind.QUARANTINED: ("110113", "E", "110135", ["110150", ""], ["110182"]),
    EventKind.ALARM: ("110113", "E", "ALARM", ["110150", ""], ["110182"]),
}
"""Kind -> EventID, action, type, roles of the participants, kinds of the objects (A.5.3)."""

SILENT = set(EventKind) - set(TABLES)


def event(kind: str, words: str = "24 instances", actor: str = "pacs") -> Event:
    return Event(1_700_000_000.25, kind, "1.2.3", "j", words, actor, "c", 7)


def parsed(content: bytes | None) -> Element:
    assert content is not None
    assert content.startswith(b"<?xml version='1.0' encoding='UTF-8'?>")
    return ElementTree.fromstring(content.decode("utf-8"))  # noqa: S314 - made by the test


def check(element: Element) -> None:
    """The schema, for an element and all within."""
    required, allowed = ATTRIBUTES[element.tag]
    names = set(element.attrib)
    assert required <= names <= required | allowed, element.tag
    children = "".join(f"{child.tag} " for child in element)
    assert re.fullmatch(CHILDREN.get(element.tag, ""), children), (element.tag, children)
    for name, value in element.attrib.items():
        assert re.fullmatch(VALUES.get(name, "(?s).+"), value), (name, value)
    for child in element:
        check(child)


def codes(root: Element, path: str) -> list[str]:
    return [found.attrib["csd-code"] for found in root.findall(path)]


@pytest.mark.parametrize("kind", TABLES)
def test_every_message_fits_the_schema_and_the_table_of_its_kind(kind: EventKind) -> None:
    root = parsed(message(event(kind), SUBJECT, ORIGIN))
    check(root)
    identity, action, kind_code, roles, objects = TABLES[kind]
    assert codes(root, "EventIdentification/EventID") == [identity]
    assert root[0].attrib["EventActionCode"] == action
    assert codes(root, "EventIdentification/EventTypeCode") == [kind_code] * bool(kind_code)
    found = [
        "".join(code.attrib["csd-code"] for code in participant)
        for participant in root.findall("ActiveParticipant")
    ]
    assert found == roles
    path = "ParticipantObjectIdentification/ParticipantObjectIDTypeCode"
    assert codes(root, path) == objects


@pytest.mark.parametrize("kind", sorted(SILENT))
def test_other_kinds_have_no_message(kind: EventKind) -> None:
    assert message(event(kind), SUBJECT, ORIGIN) is None


@pytest.mark.parametrize("kind", [EventKind.DELIVERY, EventKind.SENT, EventKind.RECEIVED])
def test_a_transfer_of_no_study_has_no_message(kind: EventKind) -> None:
    down = Event(1.0, kind, "", "", "archive is down", "archive", "c", 1)
    assert message(down, SUBJECT, ORIGIN) is None


def test_a_transfer_names_both_sides_and_the_study() -> None:
    root = parsed(message(event(EventKind.SENT), SUBJECT, ORIGIN))
    source, destination = root.findall("ActiveParticipant")
    assert source.attrib["UserID"] == "4711"
    assert source.attrib["AlternativeUserID"] == "AETITLES=BRAIN"
    assert source.attrib["NetworkAccessPointTypeCode"] == "1"
    assert destination.attrib == {
        "UserID": "pacs",
        "AlternativeUserID": "AETITLES=PACS",
        "UserIsRequestor": "false",
        "NetworkAccessPointID": "192.0.2.9",
        "NetworkAccessPointTypeCode": "2",
    }
    study, patient = root.findall("ParticipantObjectIdentification")
    assert study.attrib["ParticipantObjectID"] == "1.2.3"
    (described,) = study.iter("SOPClass")
    assert described.attrib == {"UID": MR, "NumberOfInstances": "24"}
    assert patient.attrib["ParticipantObjectID"] == WITHHELD


def test_the_patient_id_is_named_only_where_it_is_handed_in() -> None:
    told = message(event(EventKind.SENT), Subject(patient_id="PAT-7"), ORIGIN)
    patient = parsed(told).findall("ParticipantObjectIdentification")[1]
    assert patient.attrib["ParticipantObjectID"] == "PAT-7"
    assert patient.findtext("ParticipantObjectName") == WITHHELD


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (EventKind.SENT, "0"),
        (EventKind.DELIVERY, "4"),
        (EventKind.REJECTED, "4"),
        (EventKind.QUARANTINED, "4"),
        (EventKind.ALARM, "8"),
        (EventKind.OPERATOR, "0"),
        (EventKind.CONFIGURED, "0"),
    ],
)
def test_the_outcome_says_how_bad_it_is(kind: EventKind, outcome: str) -> None:
    root = parsed(message(event(kind), SUBJECT, ORIGIN))
    assert root[0].attrib["EventOutcomeIndicator"] == outcome


def test_a_rejected_caller_is_named_with_its_title_and_address() -> None:
    rejected = event(EventKind.REJECTED, "no such peer", "SPY@192.0.2.66")
    root = parsed(message(rejected, Subject(), ORIGIN))
    _, caller = root.findall("ActiveParticipant")
    assert caller.attrib["AlternativeUserID"] == "AETITLES=SPY"
    assert caller.attrib["NetworkAccessPointID"] == "192.0.2.66"
    (detail,) = root.iter("ParticipantObjectDetail")
    assert detail.attrib["type"] == "Alert Description"
    assert b64decode(detail.attrib["value"]) == b"no such peer"


def test_a_query_carries_its_keys_and_their_transfer_syntax() -> None:
    root = parsed(message(event(EventKind.QUERIED), SUBJECT, ORIGIN))
    (asked,) = root.findall("ParticipantObjectIdentification")
    assert asked.attrib["ParticipantObjectID"] == STUDY_ROOT_FIND
    assert b64decode(asked.findtext("ParticipantObjectQuery") or "") == SUBJECT.keys
    detail = asked.find("ParticipantObjectDetail")
    assert detail is not None
    assert b64decode(detail.attrib["value"]) == b"1.2.840.10008.1.2.1"


def test_times_are_universal_with_their_fraction() -> None:
    assert when(0.0) == "1970-01-01T00:00:00.000000Z"
    assert when(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"


TEXT = st.text(max_size=40).map(one_line)


@given(kind=st.sampled_from(list(TABLES)), words=TEXT, actor=TEXT, uid=TEXT)
def test_whatever_an_event_says_the_message_stays_well_formed(
    kind: EventKind, words: str, actor: str, uid: str
) -> None:
    told = Event(1.0, kind, uid or "1.2", "", words, actor, "", 1)
    check(parsed(message(told, Subject(), ORIGIN)))
