"""Writes the fixtures of ``test_nnunet.py``: what nnU-Net itself answers, model folders and all.

Run it by hand in a throw-away environment that has nnunetv2, onnx and onnxscript::

    python -m tests.imports.nnunet_reference [case ...]

Each case is a model folder as ``nnUNetv2_train`` leaves it (tiny network, trained for a moment on
a phantom) and ``reference.npz``: the phantom as a scanner would have sent it, and the answer of
``nnUNetPredictor`` on the NIfTI files made of it, brought back to the scanner's grid. nnU-Net sums
logits in half precision; the answer with sums in single precision is kept beside its own, so that
a difference can be told from that rounding. Checkpoints are not kept: the node never reads one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import SimpleITK
import torch
from nnunetv2.inference import predict_from_raw_data as prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling import default_resampling, resample_torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

FIXTURES = Path(__file__).parent / "fixtures" / "nnunet"
EVERY = 29
"""Of the probabilities only every so manieth value is kept, over all channels and voxels."""

Spacing = tuple[float, float, float]
AXIAL = np.eye(3)[:, [2, 1, 0]]
"""Columns: where slices, rows and columns run to in patient coordinates (x, y, z)."""
SAGITTAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])

DEFAULT = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"


@dataclass(frozen=True)
class Case:
    """What is particular to a case; the rest is nnU-Net's default."""

    name: str
    shape: tuple[int, int, int]
    spacing: Spacing
    channels: dict[str, str]
    normalisation: list[str]
    labels: dict[str, Any]
    wanted: list[float]
    patch: list[int]
    configuration: str = "3d_fullres"
    masked: bool = False
    orientation: str = "RAS"
    reader: str = "SimpleITKIO"
    axes: NDArray[np.float64] = field(default_factory=lambda: AXIAL)
    transpose: tuple[int, int, int] = (0, 1, 2)
    strides: list[list[int]] = field(default_factory=lambda: [[1, 1, 1], [2, 2, 2]])
    order: list[int] | None = None
    resampling: str = DEFAULT
    mirror: tuple[int, ...] | None = (0, 1, 2)
    folds: int = 1


ORGANS = {"background": 0, "organ": 1, "lesion": 2}
CASES = [
    Case(
        "ct", (26, 39, 45), (1.7, 1.25, 1.25), {"0": "CT"}, ["CTNormalization"], ORGANS,
        [1.5, 1.4, 1.4], [16, 20, 24],
    ),
    Case(
        # Coarse across sagittal slices: nnU-Net turns that axis to the front.
        "anisotropic", (13, 42, 37), (5.0, 1.1, 1.0), {"0": "T1w", "1": "FLAIR"},
        ["ZScoreNormalization"] * 2, ORGANS, [4.2, 1.2, 1.2], [5, 24, 20], masked=True,
        axes=SAGITTAL, transpose=(2, 0, 1), strides=[[1, 1, 1], [1, 2, 2]],
    ),
    Case(
        "planar", (9, 47, 51), (4.0, 1.0, 1.0), {"0": "MRI"}, ["ZScoreNormalization"], ORGANS,
        [1.3, 1.2], [26, 22], configuration="2d", strides=[[1, 1], [2, 2]], mirror=(0, 1),
        orientation="LPS",
    ),
    Case(
        "regions", (13, 30, 33), (2.2, 2.0, 2.0), {"0": "noNorm"}, ["RescaleTo01Normalization"],
        {"background": 0, "whole": [1, 2], "core": 2}, [2.0, 2.1, 2.1], [16, 16, 16],
        order=[1, 2], resampling=TORCH, mirror=None, reader="SimpleITKIOWithReorient",
        orientation="LAS",
    ),
    Case(
        "folds", (13, 28, 31), (2.0, 2.0, 2.0), {"0": "CT"}, ["CTNormalization"], ORGANS,
        [2.0, 2.0, 2.0], [16, 16, 16], folds=2, mirror=(1, 2), configuration="3d_lowres",
    ),
]  # fmt: skip

RESAMPLINGS: dict[str, tuple[tuple[int, int, int], Spacing, Spacing, dict[str, Any]]] = {
    "cubic": ((7, 12, 11), (1.5, 1.0, 1.1), (1.1, 1.3, 0.9), {}),
    "half": ((5, 9, 7), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), {}),
    "coarse": ((6, 12, 11), (5.0, 1.0, 1.1), (4.0, 1.3, 0.9), {}),
    "coarse-middle": ((12, 5, 9), (1.0, 4.0, 0.9), (1.2, 6.0, 1.0), {}),
    "coarse-last": ((9, 10, 4), (1.0, 1.0, 3.0), (0.9, 1.1, 4.5), {"order_z": 1}),
    "coarse-wanted": ((9, 10, 8), (2.0, 1.0, 1.0), (3.5, 1.0, 1.0), {}),
    "two-coarse": ((11, 5, 4), (1.0, 4.0, 4.0), (0.8, 3.0, 3.5), {}),
    "never": ((5, 11, 10), (4.0, 1.0, 1.0), (3.0, 1.2, 1.1), {"force_separate_z": False}),
    "always": ((5, 11, 10), (1.4, 1.0, 1.0), (0.8, 1.2, 1.1), {"force_separate_z": True}),
    "torch": ((6, 9, 10), (1.5, 1.0, 1.1), (1.1, 1.3, 0.9), {"force_separate_z": False}),
    "torch-coarse": ((6, 9, 10), (5.0, 1.0, 1.1), (4.0, 1.3, 0.9), {"force_separate_z": None}),
}
"""Shape, spacing, wanted spacing, options: what nnU-Net's own functions make of noise."""


@dataclass(frozen=True)
class Phantom:
    """Voxels (c, k, j, i) int16, labels (k, j, i), and where they lie: affine of (k, j, i)."""

    voxels: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


def phantom(case: Case) -> Phantom:
    """A body with an organ and two lesions, none of them in the middle, and air around it."""
    affine = np.eye(4)
    affine[:3, :3] = case.axes * case.spacing
    affine[:3, 3] = (-21.0, 13.5, 140.0)
    points = np.stack(np.indices(case.shape), -1) @ affine[:3, :3].T
    size = np.ptp(points.reshape(-1, 3), axis=0)
    place = (points - points.reshape(-1, 3).min(axis=0)) / size

    def ball(x: float, y: float, z: float, radius: float) -> NDArray[np.bool_]:
        return np.asarray(np.linalg.norm(place - (x, y, z), axis=-1) < radius)

    body, organ = ball(0.47, 0.52, 0.5, 0.46), ball(0.36, 0.6, 0.55, 0.26)
    lesion = ball(0.3, 0.52, 0.5, 0.13) | ball(0.66, 0.33, 0.4, 0.15)
    labels = (organ * 1).astype(np.uint8)
    labels[lesion] = 2
    rng = np.random.default_rng(len(case.name))
    voxels = np.zeros((len(case.channels), *case.shape))
    for number, channel in enumerate(voxels):
        sign = 1 - 2 * (number % 2)
        channel[body] = 300
        channel[organ] = 300 + 140 * sign
        channel[lesion] = 300 + 260 * sign
        channel += rng.integers(-32, 33, case.shape) * body
        if case.normalisation[0] == "CTNormalization":
            channel[~body] = -1000
    return Phantom(voxels.astype(np.int16), labels, affine)


def plans(case: Case, made: Phantom) -> dict[str, Any]:
    """``plans.json`` in the schema of nnU-Net 2, with a network of two small stages."""
    planar = len(case.patch) == 2
    grey = {
        str(number): intensities(made.voxels[number][made.labels > 0])
        for number in range(len(made.voxels))
    }
    back = [case.transpose.index(axis) for axis in range(3)]
    whole = configuration(case)
    # As nnU-Net writes a configuration that differs little from another.
    inherited = {**whole}
    del inherited["architecture"]
    child = {"inherits_from": "parent", "batch_size": 4}
    return {
        "dataset_name": "Dataset901_Phantom",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [case.spacing[a] for a in range(3)],
        "original_median_shape_after_transp": [case.shape[a] for a in range(3)],
        "image_reader_writer": case.reader,
        "transpose_forward": list(case.transpose),
        "transpose_backward": back,
        "configurations": {"parent": whole, case.configuration: child}
        if planar
        else {
            case.configuration: whole,
            "3d_cascade_fullres": {**inherited, "previous_stage": "x"},
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": grey,
    }


def intensities(values: NDArray[np.int16]) -> dict[str, float]:
    """What nnU-Net keeps of the grey values of the labelled voxels."""
    low, middle, high = np.percentile(values, [0.5, 50, 99.5])
    return {
        "max": float(values.max()), "mean": float(values.mean()), "median": float(middle),
        "min": float(values.min()), "percentile_00_5": float(low),
        "percentile_99_5": float(high), "std": float(values.std()),
    }  # fmt: skip


def configuration(case: Case) -> dict[str, Any]:
    """One entry of ``configurations``."""
    rank = len(case.patch)
    plain = {"is_seg": False, "force_separate_z": None}
    data, back = {**plain, "order": 3, "order_z": 0}, {**plain, "order": 1, "order_z": 0}
    if case.resampling == TORCH:
        data = back = {"is_seg": False, "force_separate_z": False}
    return {
        "data_identifier": f"nnUNetPlans_{case.configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": case.patch,
        "median_image_size_in_voxels": [float(n) for n in case.shape[-rank:]],
        "spacing": case.wanted,
        "normalization_schemes": case.normalisation,
        "use_mask_for_norm": [case.masked] * len(case.normalisation),
        "resampling_fn_data": case.resampling,
        "resampling_fn_seg": case.resampling,
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**back, "is_seg": True},
        "resampling_fn_probabilities": case.resampling,
        "resampling_fn_probabilities_kwargs": back,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
                "kernel_sizes": [[3] * rank] * 2,
                "strides": case.strides,
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }


def dataset(case: Case) -> dict[str, Any]:
    """``dataset.json``."""
    sheet: dict[str, Any] = {
        "channel_names": case.channels,
        "labels": case.labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "name": "Phantom",
    }
    if case.order:
        sheet["regions_class_order"] = case.order
    return sheet


def nifti(voxels: NDArray[Any], affine: NDArray[np.float64], orientation: str) -> SimpleITK.Image:
    """A channel (k, j, i) as an image, its axes turned as whoever made the NIfTI file did."""
    image = SimpleITK.GetImageFromArray(voxels)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    return SimpleITK.DICOMOrient(image, orientation)


def turned(array: NDArray[Any], like: SimpleITK.Image, scanner: SimpleITK.Image) -> NDArray[Any]:
    """What lies on the grid of an image, on the scanner's own."""
    image = SimpleITK.GetImageFromArray(array)
    image.CopyInformation(like)
    letters = SimpleITK.DICOMOrientImageFilter_GetOrientationFromDirectionCosines
    back = SimpleITK.DICOMOrient(image, letters(scanner.GetDirection()))
    return np.asarray(SimpleITK.GetArrayFromImage(back))


def trained(case: Case, made: Phantom, folder: Path, fold: int) -> torch.nn.Module:
    """A network that has seen the phantom a few times, and its checkpoint where nnU-Net's lies."""
    torch.manual_seed(7 + fold)
    manager = PlansManager(json.loads((folder / "plans.json").read_text()))
    settings = manager.get_configuration(case.configuration)
    sheet = json.loads((folder / "dataset.json").read_text())
    heads = manager.get_label_manager(sheet).num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(
        manager, settings, len(case.channels), heads, enable_deep_supervision=False
    )
    image, answer = preprocessed(case, made, manager, settings, sheet)
    rng = np.random.default_rng(fold)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(250):
        room = zip(image.shape[1:], window(case), strict=True)
        spots = [int(rng.integers(0, max(n - p, 0) + 1)) for n, p in room]
        part = tuple(slice(s, s + p) for s, p in zip(spots, window(case), strict=True))
        x, y = image[(slice(None), *part)], answer[part]
        fill = [(0, p - n) for n, p in zip(y.shape, window(case), strict=True)]
        x, y = np.pad(x, [(0, 0), *fill]), np.pad(y, fill)
        if len(case.patch) == 2:
            x, y = x[:, 0], y[0]
        loss = lossed(network(torch.from_numpy(x[None])), torch.from_numpy(y[None]), case)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    place = folder / f"fold_{fold}"
    place.mkdir()
    torch.save(
        {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": case.configuration},
            "inference_allowed_mirroring_axes": case.mirror,
        },
        place / "checkpoint_final.pth",
    )
    return network.eval()


def window(case: Case) -> list[int]:
    """The patch with three lengths."""
    return [1, *case.patch] if len(case.patch) == 2 else case.patch


def lossed(logits: torch.Tensor, answer: torch.Tensor, case: Case) -> torch.Tensor:
    """Cross entropy, of classes or of regions."""
    if not case.order:
        weight = torch.tensor([1.0, 2.0, 3.0])
        return torch.nn.functional.cross_entropy(logits, answer.long(), weight)
    regions = torch.stack([answer >= 1, answer >= 2], 1).float()
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, regions)


def preprocessed(
    case: Case, made: Phantom, manager: Any, settings: Any, sheet: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """The phantom and its labels as nnU-Net shows them to a network."""
    images = [nifti(one, made.affine, read_as(case)) for one in made.voxels]
    labels = nifti(made.labels, made.affine, read_as(case))
    stack = np.stack([SimpleITK.GetArrayFromImage(one) for one in images])
    known = {"spacing": list(images[0].GetSpacing())[::-1]}
    answer = SimpleITK.GetArrayFromImage(labels)[None].astype(np.int16)
    image, answer, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        stack, answer, known, manager, settings, sheet
    )
    return image.astype(np.float32), np.maximum(answer[0], 0)


def read_as(case: Case) -> str:
    """How the array lies in which nnU-Net works: as stored, or as its reader turns it."""
    return "RAS" if "Reorient" in case.reader else case.orientation


def exported(network: torch.nn.Module, case: Case, place: Path) -> None:
    """``model.onnx`` with the patch's shape, and what only the checkpoint knows beside it."""
    example = torch.zeros(1, len(case.channels), *case.patch)
    torch.onnx.export(
        network, (example,), str(place / "model.onnx"), dynamo=True, opset_version=18,
        input_names=["image"], output_names=["logits"], external_data=False, verbose=False,
    )  # fmt: skip
    bared(place / "model.onnx")
    beside = {
        "configuration": case.configuration,
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": case.mirror,
    }
    (place / "model.json").write_text(json.dumps(beside, indent=1) + "\n")


def bared(path: Path) -> None:
    """Take out what the exporter wrote down of where each operator came from."""
    model = onnx.load(path)
    for one in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        one.doc_string = ""
        del one.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:], model.graph.value_info[:]
    onnx.save(model, path)


@contextmanager
def single_precision() -> Iterator[None]:
    """nnU-Net's predictor with its sums in single precision; nothing else of it changes."""
    half, gaussian = torch.half, prediction.compute_gaussian
    torch.half = torch.float32
    prediction.compute_gaussian = partial(gaussian, dtype=torch.float32)
    try:
        yield
    finally:
        torch.half, prediction.compute_gaussian = half, gaussian


def predicted(
    case: Case, made: Phantom, folder: Path, files: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """nnU-Net's labels (k, j, i) and probabilities (c, k, j, i) on the scanner's grid."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), tuple(range(case.folds)))
    reader = predictor.plans_manager.image_reader_writer_class()
    image, known = reader.read_images(files)
    labels, probability = predictor.predict_single_npy_array(image, known, None, None, True)
    scanner = nifti(made.labels, made.affine, scanner_letters(made))
    like = SimpleITK.DICOMOrient(scanner, read_as(case))
    return (
        turned(labels.astype(np.uint8), like, scanner),
        np.stack([turned(one, like, scanner) for one in probability]),
    )


def scanner_letters(made: Phantom) -> str:
    """Where the scanner's own columns, rows and slices run to."""
    letters = SimpleITK.DICOMOrientImageFilter_GetOrientationFromDirectionCosines
    axes = made.affine[:3, :3] / np.linalg.norm(made.affine[:3, :3], axis=0)
    return str(letters(axes[:, ::-1].ravel().tolist()))


def write(case: Case) -> str:
    """One case's folder; returns what to look at."""
    made = phantom(case)
    folder = FIXTURES / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans(case, made), indent=1) + "\n")
    (folder / "dataset.json").write_text(json.dumps(dataset(case), indent=1) + "\n")
    for fold in range(case.folds):
        exported(trained(case, made, folder, fold), case, folder / f"fold_{fold}")
    with tempfile.TemporaryDirectory() as place:
        files = [f"{place}/phantom_{number:04}.nii.gz" for number in range(len(made.voxels))]
        for file, channel in zip(files, made.voxels, strict=True):
            SimpleITK.WriteImage(nifti(channel, made.affine, case.orientation), file)
        labels, probability = predicted(case, made, folder, files)
        with single_precision():
            exact, surer = predicted(case, made, folder, files)
    for checkpoint in folder.glob("fold_*/checkpoint_final.pth"):
        checkpoint.unlink()
    np.savez_compressed(
        folder / "reference.npz", voxels=made.voxels, affine=made.affine, labels=labels,
        probability=probability.ravel()[::EVERY], exact_labels=exact,
        exact_probability=surer.ravel()[::EVERY],
    )  # fmt: skip
    alike = np.mean(labels == exact)
    right = np.mean(exact[made.labels > 0] == made.labels[made.labels > 0])
    return f"{case.name}: labels {np.bincount(labels.ravel())}, {alike:.5%} alike, {right:.1%}\n"


def resamplings() -> None:
    """What nnU-Net's resampling makes of noise, there and back."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    kept: dict[str, NDArray[np.float32]] = {}
    rng = np.random.default_rng(3)
    for name, (shape, spacing, wanted, options) in RESAMPLINGS.items():
        source = (rng.integers(-800, 800, (1, *shape)) / 8).astype(np.float32)
        new = default_resampling.compute_new_shape(shape, spacing, wanted)
        if name.startswith("torch"):
            resample, there, back = resample_torch.resample_torch_fornnunet, {}, {}
        else:
            resample = default_resampling.resample_data_or_seg_to_shape
            there, back = ({"order": n, "force_separate_z": None, **options} for n in (3, 1))
        moved = resample(source, new, spacing, wanted, **{**options, **there})
        kept[f"{name}-source"], kept[f"{name}-there"] = source, moved
        kept[f"{name}-back"] = resample(moved, shape, wanted, spacing, **{**options, **back})
    np.savez_compressed(FIXTURES / "resampling.npz", **kept)


if __name__ == "__main__":
    resamplings()
    for chosen in CASES:
        if chosen.name in sys.argv[1:] or not sys.argv[1:]:
            sys.stdout.write(write(chosen))
