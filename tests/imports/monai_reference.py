"""Makes ``fixtures/monai.npz``: what MONAI itself makes of a small volume.

Run it where torch and monai are, in an environment that is thrown away afterwards::

    pip install torch monai==1.6.1 nibabel scikit-image scipy .
    python -m tests.imports.monai_reference

The file holds two images with their affine, a label map, tiny networks, for each entry of
``chains.py`` the voxels that MONAI gives, and what it reads of DICOM files. The test compares ours.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from tests.imports.acquired import SERIES, saved
from tests.imports.chains import (
    CHAINS,
    CLASSES,
    LABELS,
    NETWORKS,
    SHAPE,
    SPACING,
    TRANSFORMS,
    network_of,
)

PLACE = Path(__file__).parent / "fixtures" / "monai.npz"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's patient coordinates to those of MONAI, and back."""


def place() -> np.ndarray:
    """Affine of the image in DICOM's coordinates: an axial series, turned and flipped a little."""
    turn = np.deg2rad(7)
    axes = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(SPACING)
    affine[:3, 3] = (-9.0, 14.0, -31.0)
    return affine


def picture() -> np.ndarray:
    """An image without any symmetry, with air of exactly 0 around it; int16."""
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    waves = 90 * np.sin(i / 1.9 + k / 3) + 60 * np.cos(j / 2.3 - i / 5) + 25 * k
    ball = 320 * np.exp(-((i - 8) ** 2 + (j - 5) ** 2 + 2.5 * (k - 3) ** 2) / 9)
    image = np.rint(waves + ball + np.random.default_rng(4).normal(0, 9, SHAPE))
    body = ((i - 6) / 6.2) ** 2 + ((j - 8) / 6.9) ** 2 + ((k - 4.4) / 4.1) ** 2 < 1
    return np.where(body, image, 0).astype(np.int16)


def drawing() -> np.ndarray:
    """Labels 0, 1 and 2 in parts of many sizes, some with holes and some touching by corners."""
    rng = np.random.default_rng(11)
    labels = np.where(rng.random(SHAPE) < 0.16, rng.integers(1, 3, SHAPE), 0)
    labels[1:7, 2:8, 1:6] = 1
    labels[3, 4, 3] = 0
    labels[4, 4, 4] = 0
    labels[8:12, 9:14, 2:7] = 2
    labels[9:11, 11, 4] = 0
    labels[10, 12, 5] = 1
    # Parts of second size; of equal ones it would be chance which MONAI keeps.
    labels[0:3, 12:16, 0:3] = 1
    labels[10:13, 0:4, 0:2] = 2
    return labels.astype(np.uint8)


def weights(name: str) -> dict[str, np.ndarray]:
    """A convolution of 3 voxels along each axis, a ReLU and a mixture; nothing in it is even."""
    dims, channels = NETWORKS[name]
    # Seeds with which every chain gives every label to a good part of the voxels.
    rng = np.random.default_rng({"slices": 24, "blocks": 28, "two": 7}[name])
    spread = 2.0 / 3 ** (dims / 2)
    return {
        f"first {name}": rng.normal(0, spread, (4, channels, *[3] * dims)).astype(np.float32),
        f"bias {name}": rng.normal(0, 0.2, 4).astype(np.float32),
        f"second {name}": rng.normal(0, 2.0, (CLASSES, 4, *[1] * dims)).astype(np.float32),
        f"shift {name}": rng.normal(0, 0.3, CLASSES).astype(np.float32),
    }


def network(name: str) -> Any:
    held = {part.split()[0]: torch.from_numpy(array) for part, array in weights(name).items()}
    convolve = torch.nn.functional.conv3d if NETWORKS[name][0] == 3 else torch.nn.functional.conv2d

    def run(tensor: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(
            convolve(torch.as_tensor(tensor), held["first"], held["bias"], padding=1)
        )
        return convolve(hidden, held["second"], held["shift"])

    return run


def loaded() -> dict[str, MetaTensor]:
    """Both series, as LoadImaged and EnsureChannelFirstd leave them."""
    first, other = picture().astype(np.float32), second().astype(np.float32)
    return {
        "image": MetaTensor(torch.from_numpy(first[None]), LPS @ place()),
        "other": MetaTensor(torch.from_numpy(other[None]), LPS @ place()),
    }


def second() -> np.ndarray:
    """Another image of the same patient, on the same grid; int16."""
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return np.rint(70 * np.cos(i / 2.7 + j / 3.1) - 11 * k + 40 * np.sin(k + j)).astype(np.int16)


def read(name: str) -> MetaTensor:
    """A DICOM series as MONAI reads it, in patient directions R, A, S."""
    with TemporaryDirectory() as folder:
        saved(name, Path(folder))
        chain = [
            {"_target_": "LoadImaged", "keys": "image", "reader": "PydicomReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        ]
        return composed(chain)({"image": folder})["image"]


def composed(transforms: list[dict[str, Any]]) -> Any:
    parser = ConfigParser({"all": {"_target_": "Compose", "transforms": transforms}})
    return parser.get_parsed_content("all")


def ran(chain: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities on the source grid as far as the chain has them, and labels."""
    parser = ConfigParser(
        {
            "preprocessing": {"_target_": "Compose", "transforms": chain["preprocessing"]},
            "inferer": chain["inferer"],
            "postprocessing": {"_target_": "Compose", "transforms": chain["postprocessing"]},
        }
    )
    prepared = parser.get_parsed_content("preprocessing")(loaded())
    inferer = parser.get_parsed_content("inferer")
    answer = inferer(prepared["image"][None], network(network_of(chain)))[0]
    steps = parser.get_parsed_content("postprocessing").transforms
    state = {"image": prepared["image"], "pred": answer}
    soft, labelled = np.zeros(0, np.float32), False
    for one in steps:
        state = one(state)
        labelled = labelled or "AsDiscrete" in type(one).__name__
        if state["pred"].shape == (CLASSES, *SHAPE) and not labelled:
            soft = np.asarray(state["pred"], np.float32)
    return soft, np.asarray(state["pred"][0]).astype(np.uint8)


def made() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"image": picture(), "place": place(), "labels": drawing()}
    arrays["other"] = second()
    for name in NETWORKS:
        arrays |= weights(name)
    for name, transforms in TRANSFORMS.items():
        result = composed(transforms)(loaded())["image"]
        arrays[f"transform/{name}"] = np.asarray(result[0], np.float32)
        arrays[f"place/{name}"] = LPS @ np.asarray(result.affine, np.float64)
    for name, transforms in LABELS.items():
        labels = MetaTensor(torch.from_numpy(drawing()[None].astype(np.float32)), LPS @ place())
        cleaned = composed(transforms)({"pred": labels})["pred"]
        arrays[f"labels/{name}"] = np.asarray(cleaned[0]).astype(np.uint8)
    for name in SERIES:
        volume = read(name)
        arrays[f"dicom/{name}"] = np.asarray(volume[0]).astype(np.int16)
        arrays[f"dicom place/{name}"] = LPS @ np.asarray(volume.affine, np.float64)
    for name, chain in CHAINS.items():
        arrays[f"soft/{name}"], arrays[f"hard/{name}"] = ran(chain)
    return arrays


if __name__ == "__main__":
    PLACE.parent.mkdir(exist_ok=True)
    np.savez_compressed(PLACE, monai=np.array(monai.__version__), **made())
