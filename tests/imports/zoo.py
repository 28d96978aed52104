"""Published MONAI bundles, as far as their translation depends on it.

Each is a minimal reproduction, in our own words, of the configuration of a bundle of the MONAI
Model Zoo (Apache-2.0) or of one that was built after it: the transforms with their options, the
inferer, the network's class and channels, and what metadata.json says of channels. Expressions
stand as they do there, for these are what has to be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Table = dict[str, Any]

DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
SAVE = {"_target_": "SaveImaged", "keys": "pred", "meta_keys": "pred_meta_dict"}


def step(name: str, keys: Any = "image", **options: Any) -> Table:
    """A component of a configuration."""
    return {"_target_": name, **({"keys": keys} if keys is not None else {}), **options}


def load(**options: Any) -> Table:
    return step("LoadImaged", **options)


def orient(codes: str = "RAS", keys: Any = "image") -> Table:
    return step("Orientationd", keys, axcodes=codes)


def spacing(*pixdim: float, keys: Any = "image") -> Table:
    return step("Spacingd", keys, pixdim=list(pixdim), mode="bilinear")


def scaled(low: float, high: float) -> Table:
    return step("ScaleIntensityRanged", a_min=low, a_max=high, b_min=0, b_max=1, clip=True)


def after(name: str, **options: Any) -> Table:
    return step(name, "pred", **options)


def inverted(nearest: bool = False, **options: Any) -> Table:
    return after(
        "Invertd",
        transform="@preprocessing",
        orig_keys="image",
        nearest_interp=nearest,
        to_tensor=True,
        **options,
    )


SOFTMAX = after("Activationsd", softmax=True)
SIGMOID = after("Activationsd", sigmoid=True)
ARGMAX = after("AsDiscreted", argmax=True)
FIRST = step("EnsureChannelFirstd")
TYPE = step("EnsureTyped")


def window(*roi: int, **options: Any) -> Table:
    return {"_target_": "SlidingWindowInferer", "roi_size": list(roi), **options}


def patches(overlap: float, **options: Any) -> Table:
    return window(96, 96, 96, sw_batch_size=4, overlap=overlap, **options)


def network(name: str, outputs: Any, inputs: Any = 1, **options: Any) -> Table:
    return {"_target_": name, "in_channels": inputs, "out_channels": outputs, **options}


@dataclass(frozen=True)
class Bundle:
    """A bundle and what its translation comes to.

    ``refused`` are the places and classes that have no counterpart, in order; empty where all of
    it translates. ``pre`` and ``post`` are the kinds of steps.
    """

    name: str
    net: Table
    pre: list[Any]
    inferer: Table
    post: list[Any]
    labels: dict[str, str] = field(default_factory=dict)
    channels: dict[str, str] = field(default_factory=lambda: {"0": "image"})
    modality: str = "CT"
    task: str = ""
    extra: Table = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    pre_kinds: tuple[str, ...] = ()
    post_kinds: tuple[str, ...] = ("argmax",)
    remarks: int = 0

    def configuration(self) -> Table:
        """inference.json."""
        return {
            "imports": ["$import glob", "$import os"],
            "bundle_root": ".",
            "dataset_dir": "/nowhere",
            "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
            "device": DEVICE,
            "network_def": self.net,
            "network": "$@network_def.to(@device)",
            "preprocessing": {"_target_": "Compose", "transforms": self.pre},
            "dataset": {
                "_target_": "Dataset",
                "data": "$[{'image': i} for i in @datalist]",
                "transform": "@preprocessing",
            },
            "inferer": self.inferer,
            "postprocessing": {"_target_": "Compose", "transforms": self.post},
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "inferer": "@inferer",
                "postprocessing": "@postprocessing",
            },
            "run": ["$@evaluator.run()"],
            **self.extra,
        }

    def metadata(self) -> Table:
        """metadata.json."""
        inputs = {"modality": self.modality, "channel_def": self.channels}
        inputs["num_channels"] = len(self.channels)  # type: ignore[assignment]
        outputs = {"num_channels": len(self.labels), "channel_def": self.labels}
        return {
            "name": self.name,
            "version": "0.1.0",
            "authors": "MONAI team",
            "task": self.task or self.name,
            "description": f"A reproduction of {self.name}",
            "intended_use": "This is an example, not to be used for diagnostic purposes",
            "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
        }


def numbered(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


USUAL = ("orient", "resample", "clip", "rescale")


def abdominal(name: str, net: Table, labels: dict[str, str], **other: Any) -> Bundle:
    """Spleen and its relatives: oriented, spaced, windowed; softmax, inverted, argmax."""
    low, high = other.pop("grey", (-57, 164))
    pixdim = other.pop("pixdim", (1.5, 1.5, 2.0))
    return Bundle(
        name,
        net,
        [load(), FIRST, orient(), spacing(*pixdim), scaled(low, high), TYPE],
        patches(other.pop("overlap", 0.5)),
        [SOFTMAX, inverted(), ARGMAX, SAVE],
        labels,
        pre_kinds=USUAL,
        **other,
    )
