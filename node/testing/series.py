"""Makes small, valid MR and CT series of any geometry.

The tests need volumes whose place in the patient they know exactly, and the demo needs a study
where no real one may be shipped. What is made here passes dciodvfy without an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from node.dicom.headers import read_instance
from node.domain.job import derived_uid
from node.domain.study import Arrival, Instance
from node.domain.volume import Affine

Vector = tuple[float, float, float]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
"""Image Orientation (Patient) of the usual planes: row and column direction cosines (LPS)."""

_MODALITY: Mapping[str, Mapping[str, Any]] = {
    "MR": {
        "SOPClassUID": MRImageStorage,
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": "SK",
        "ScanOptions": None,
        "MRAcquisitionType": "2D",
        "RepetitionTime": "9000",
        "EchoTime": "120",
        "EchoTrainLength": "16",
        "InversionTime": "2500",
        "FlipAngle": "90",
        "MagneticFieldStrength": "1.5",
    },
    "CT": {"SOPClassUID": CTImageStorage, "KVP": "120", "GantryDetectorTilt": "0"},
}


@dataclass(frozen=True)
class SeriesSpec:
    """One series to make. Lengths in millimetres; patient coordinates are LPS.

    ``spacing`` is between voxel centres along (k, j, i). Slice k lies ``k * spacing[0]`` from
    ``origin`` along the normal of ``orientation`` (row x column); ``tilt_degrees`` shears that
    axis towards the column direction, as a tilted gantry does. ``order`` gives for each Instance
    Number, from 1, the slice that carries it (default: ascending). ``study``, ``series`` and
    ``frame`` are names from which the UIDs are derived: equal names, equal UIDs. ``character_set``
    is the Specific Character Set in which the names are written. ``extra`` is set last on every
    instance by keyword; None as value removes the attribute.
    """

    modality: Literal["MR", "CT"] = "MR"
    description: str = "T2 FLAIR AXIAL"
    body_part: str = "BRAIN"
    orientation: tuple[float, ...] = AXIAL
    origin: Vector = (-100.0, -110.0, -40.0)
    spacing: Vector = (5.0, 1.0, 1.0)
    thickness: float | None = None
    """Slice Thickness; default: the spacing between slices."""
    tilt_degrees: float = 0.0
    order: Sequence[int] = ()
    slope: float | None = None
    """Rescale Slope; None leaves the rescale out of MR and means 1 for CT."""
    intercept: float = 0.0
    bits_stored: int = 0
    """0: all bits of the voxels' type."""
    series_number: int = 1
    study: str = "study"
    series: str = "series"
    frame: str = "frame"
    patient_id: str = "DEMO-1"
    patient_name: str = "Phantom^Demo"
    birth_date: str = "19600401"
    sex: str = "O"
    character_set: str | Sequence[str] = "ISO_IR 192"
    accession_number: str = "ACC1"
    study_description: str = "Brain"
    study_date: str = "20250102"
    study_time: str = "101500"
    transfer_syntax_uid: str = ExplicitVRLittleEndian
    """An uncompressed one; compress afterwards with ``Dataset.compress``."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""
        return derived_uid("study", self.patient_id, self.study)

    @property
    def series_uid(self) -> str:
        """Series Instance UID."""
        return derived_uid("series", self.study_uid, self.series)

    @property
    def frame_of_reference_uid(self) -> str:
        """Frame of Reference UID."""
        return derived_uid("frame of reference", self.study_uid, self.frame)

    @property
    def affine(self) -> Affine:
        """4 x 4: voxel index (k, j, i, 1) of the made series -> LPS millimetres."""
        row, column = np.reshape(np.asarray(self.orientation, np.float64), (2, 3))
        axis = np.cross(row, column) + np.tan(np.radians(self.tilt_degrees)) * column
        affine = np.eye(4)
        affine[:3, 0] = axis * self.spacing[0]
        affine[:3, 1] = column * self.spacing[1]
        affine[:3, 2] = row * self.spacing[2]
        affine[:3, 3] = self.origin
        return affine


def make(spec: SeriesSpec, voxels: NDArray[Any]) -> list[Dataset]:
    """One data set per slice, in order of Instance Number, with file meta information.

    ``voxels`` holds stored values, before slope and intercept, with shape (k, j, i) and an
    integer type of 8 or 16 bits (the IODs of MR and CT allow 16 only: PS3.3 C.8.3.1, C.8.2.1).
    """
    if voxels.ndim != 3 or voxels.dtype.kind not in "iu" or voxels.dtype.itemsize > 2:
        raise ValueError(f"voxels are (k, j, i) integers of 8 or 16 bits, not {voxels.dtype}")
    order = spec.order or range(len(voxels))
    return [_instance(spec, number, k, voxels[k]) for number, k in enumerate(order, start=1)]


def save(datasets: Sequence[Dataset], directory: Path) -> list[Path]:
    """Write each data set as a Part 10 file named by series and instance number."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for dataset in datasets:
        name = f"{dataset.get('SeriesNumber') or 0:03d}-{dataset.get('InstanceNumber') or 0:04d}"
        path = directory / f"{name}-{dataset.SOPInstanceUID[-8:]}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def received(paths: Sequence[Path], received_at: float = 0.0) -> list[Instance]:
    """The instances that an indexer would make of Part 10 files, as if a peer had sent them."""
    return [read_instance(_arrival(path, received_at)) for path in paths]


def _arrival(path: Path, received_at: float) -> Arrival:
    content = path.read_bytes()
    meta = read_file_meta_info(path)
    # The data set begins behind the group that (0002,0000) measures (PS3.10 7.1).
    data_set = content[144 + int(meta.FileMetaInformationGroupLength) :]
    return Arrival(
        sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        sop_class_uid=str(meta.MediaStorageSOPClassUID),
        transfer_syntax_uid=str(meta.TransferSyntaxUID),
        sha256=hashlib.sha256(data_set).hexdigest(),
        peer="modality",
        calling_ae="MODALITY",
        called_ae="NODE",
        address="127.0.0.1",
        received_at=received_at,
        path=path,
    )


def _instance(spec: SeriesSpec, number: int, k: int, pixels: NDArray[Any]) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = spec.character_set
    for attributes in (
        _patient_and_study(spec),
        _series(spec),
        _MODALITY[spec.modality],
        _plane(spec, k),
        _image(spec, number, k, pixels),
        spec.extra,
    ):
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
    for keyword in [keyword for keyword, value in spec.extra.items() if value is None]:
        delattr(dataset, keyword)
    dataset.file_meta = _file_meta(dataset, spec.transfer_syntax_uid)
    return dataset


def _patient_and_study(spec: SeriesSpec) -> dict[str, Any]:
    return {
        "PatientName": spec.patient_name,
        "PatientID": spec.patient_id,
        "PatientBirthDate": spec.birth_date,
        "PatientSex": spec.sex,
        "StudyInstanceUID": spec.study_uid,
        "StudyDate": spec.study_date,
        "StudyTime": spec.study_time,
        "StudyID": "1",
        "StudyDescription": spec.study_description,
        "AccessionNumber": spec.accession_number,
        "ReferringPhysicianName": None,
    }


def _series(spec: SeriesSpec) -> dict[str, Any]:
    return {
        "Modality": spec.modality,
        "SeriesInstanceUID": spec.series_uid,
        "SeriesNumber": spec.series_number,
        "SeriesDescription": spec.description,
        "SeriesDate": spec.study_date,
        "SeriesTime": spec.study_time,
        "BodyPartExamined": spec.body_part,
        "PatientPosition": "HFS",
        "Manufacturer": "Phantom works",
        "ManufacturerModelName": "Phantom",
        "FrameOfReferenceUID": spec.frame_of_reference_uid,
        "PositionReferenceIndicator": None,
    }


def _plane(spec: SeriesSpec, k: int) -> dict[str, Any]:
    position = spec.affine @ (k, 0.0, 0.0, 1.0)
    thickness = spec.spacing[0] if spec.thickness is None else spec.thickness
    plane = {
        "ImageOrientationPatient": _decimals(spec.orientation),
        "ImagePositionPatient": _decimals(position[:3]),
        "PixelSpacing": _decimals(spec.spacing[1:]),
        "SliceThickness": _decimal(thickness),
    }
    # In CT it joined the Image Plane module late, and few scanners write it.
    return plane | ({"SpacingBetweenSlices": _decimal(spec.spacing[0])} if _is_mr(spec) else {})


def _image(spec: SeriesSpec, number: int, k: int, pixels: NDArray[Any]) -> dict[str, Any]:
    bits = pixels.dtype.itemsize * 8
    stored = spec.bits_stored or bits
    return _rescale(spec) | {
        "SOPInstanceUID": derived_uid("instance", spec.series_uid, str(k)),
        "InstanceNumber": number,
        "AcquisitionNumber": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER" if _is_mr(spec) else "AXIAL"],
        "AcquisitionDate": spec.study_date,
        "AcquisitionTime": spec.study_time,
        "ContentDate": spec.study_date,
        "ContentTime": spec.study_time,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": 1 if pixels.dtype.kind == "i" else 0,
        "PixelData": _pixel_bytes(spec, stored, pixels),
    }


def _rescale(spec: SeriesSpec) -> dict[str, Any]:
    if spec.slope is None and _is_mr(spec):
        return {}
    slope = 1.0 if spec.slope is None else spec.slope
    rescale = {"RescaleSlope": _decimal(slope), "RescaleIntercept": _decimal(spec.intercept)}
    return rescale | ({} if _is_mr(spec) else {"RescaleType": "HU"})


def _pixel_bytes(spec: SeriesSpec, stored: int, pixels: NDArray[Any]) -> bytes:
    little = UID(spec.transfer_syntax_uid).is_little_endian
    unsigned = pixels.astype(f"u{pixels.dtype.itemsize}") & np.uint32((1 << stored) - 1)
    content = unsigned.astype(f"{'<' if little else '>'}u{pixels.dtype.itemsize}").tobytes()
    return content + b"\0" * (len(content) % 2)


def _file_meta(dataset: Dataset, transfer_syntax_uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    return meta


def _is_mr(spec: SeriesSpec) -> bool:
    return spec.modality == "MR"


def _decimal(value: float) -> str:
    # DS holds 16 characters (PS3.5 6.2).
    return format_number_as_ds(float(value))


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    return [_decimal(value) for value in values]
