"""Who made a result and when, said in the way that IHE AIR asks for in every object.

The words of the Contributing Equipment item, of the segments' algorithm identification and of the
report's observer come from one place, so that they cannot disagree (AIR table 6.5.3.1-1).
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import UID

from node import __version__
from node.dicom.identity import carry, text
from node.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from node.domain.codes import PROCESSING_EQUIPMENT, Code
from node.domain.errors import EncodingError
from node.domain.finding import Algorithm, Assessment

LONG_STRING = 64
"""Characters that a value of VR LO holds (PS3.5 6.2)."""

LONG_TEXT = 10240
"""Characters that a value of VR LT holds (PS3.5 6.2), such as Algorithm Parameters."""
_TRACES = 512
"""Characters kept free in it for what names the package and the job."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\\]+")
_OFFSET = re.compile(r"([+-])(0\d|1[0-4])([0-5]\d)")


def coded(code: Code) -> CodedConcept:
    """A code sequence item. Raises ValueError when its meaning is longer than 64 characters."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def line(words: str, longest: int = LONG_STRING) -> str:
    """One line of text: no control characters and no backslash, which separates values."""
    return " ".join(_UNPRINTABLE.sub(" ", words).split())[:longest].rstrip()


def person(words: str) -> str:
    """Text as one component of a person name: ``^`` and ``=`` separate name parts (PS3.5 6.2)."""
    # The caret says that the single component is meant as a family name.
    return line(re.sub(r"[\^=]", " ", words), LONG_STRING - 1) + "^"


def legible(assessment: Assessment) -> Algorithm:
    """The algorithm with every text cut to what its attributes hold, and its parameters in full.

    ``parameters`` name the package and the job, so that an object in an archive leads back to
    the model and the inputs behind it; what computed it, the pipeline has named there already.
    Raises EncodingError when a name is missing.
    """
    algorithm = assessment.algorithm
    digest = algorithm.digest.removeprefix("sha256:")
    stated = algorithm.parameters[: LONG_TEXT - _TRACES]
    traces = (stated, f"package sha256 {digest}", f"job {assessment.job_id}")
    named = replace(
        algorithm,
        name=line(algorithm.name),
        version=line(algorithm.version),
        manufacturer=line(algorithm.manufacturer),
        digest=line(digest),
        parameters="; ".join(trace for trace in traces if trace),
    )
    if not (named.name and named.version and named.manufacturer and named.digest):
        raise EncodingError(
            "the engine has no name, version, manufacturer or digest, and every result must say "
            "what made it: complete engine.toml"
        )
    return named


def software(algorithm: Algorithm) -> tuple[str, str]:
    """Software Versions of the equipment that made an object: the engine's and the node's."""
    return (algorithm.version, f"dicom-ai-node {__version__}")


def analysed(assessment: Assessment, header: Dataset) -> datetime:
    """When the analysis began, in the time zone of the source.

    A zone that the source states holds for all of its dates and times, and the result copies
    some of them. Where the source states none they are local times, and this machine's zone is
    taken for the hospital's.
    """
    moment = datetime.fromtimestamp(assessment.analysed_at, UTC)
    return moment.astimezone(_stated_zone(header))


def _stated_zone(header: Dataset) -> tzinfo | None:
    match = _OFFSET.fullmatch(text(header, "TimezoneOffsetFromUTC"))
    if match is None:
        return None
    sign = -1 if match[1] == "-" else 1
    return timezone(sign * timedelta(hours=int(match[2]), minutes=int(match[3])))


def contribution(algorithm: Algorithm, moment: datetime) -> Dataset:
    """The Contributing Equipment item of the engine (IHE AIR 6.5.3.1)."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(PROCESSING_EQUIPMENT)]
    item.Manufacturer = algorithm.manufacturer
    item.ManufacturerModelName = algorithm.name
    item.DeviceSerialNumber = algorithm.digest
    item.SoftwareVersions = algorithm.version
    item.DeviceUID = algorithm.device_uid
    item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = "Analysis by an AI algorithm; not verified by a person"
    return item


def finished(built: Dataset, assessment: Assessment, header: Dataset, description: str) -> Dataset:
    """A plain data set out of what a library built, signed, dated and filed under the source.

    Every date and time that is not the source's own comes from the assessment, and every
    identifier from the job, so that the same assessment gives the same bytes. ``description``
    is the Series Description; "" names the algorithm.
    """
    algorithm = legible(assessment)
    result = Dataset()
    for element in built:
        result.add(element)
    _sign(result, algorithm)
    _date(result, analysed(assessment, header), algorithm)
    result.SeriesDescription = line(description or f"AI {algorithm.name} {algorithm.version}")
    carry(header, result)
    result.file_meta = built.file_meta
    result.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    result.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    return result


def _sign(result: Dataset, algorithm: Algorithm) -> None:
    """General Equipment (PS3.3 C.7.5.1 and C.7.5.2, where every one of these is Type 1)."""
    result.Manufacturer = algorithm.manufacturer
    result.ManufacturerModelName = algorithm.name
    result.DeviceSerialNumber = algorithm.digest
    result.SoftwareVersions = list(software(algorithm))


def _date(result: Dataset, moment: datetime, algorithm: Algorithm) -> None:
    day, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
    for part in ("InstanceCreation", "Series", "Content"):
        setattr(result, f"{part}Date", day)
        setattr(result, f"{part}Time", time)
    result.TimezoneOffsetFromUTC = moment.strftime("%z")
    # One item per algorithm: a library is none, and has no Device UID to name.
    result.ContributingEquipmentSequence = [contribution(algorithm, moment)]
