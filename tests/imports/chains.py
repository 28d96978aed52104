"""What MONAI itself is asked to compute, and what our translation of it has to give as well.

Shared by the script that runs MONAI (``monai_reference.py``) and by the test; it holds plain
configuration only.
"""

from __future__ import annotations

from typing import Any

Table = dict[str, Any]

SHAPE = (13, 16, 9)
"""Voxels of the image along MONAI's axes (columns, rows, slices)."""
SPACING = (1.31, 0.93, 2.17)
"""mm along these; with rounder numbers voxels would lie half-way between two others, where the
nearest one is a matter of the last bit."""
ROI = (12, 10, 8)
CLASSES = 3


def step(named: str, keys: Any = "image", **options: Any) -> Table:
    return {"_target_": named, **({"keys": keys} if keys is not None else {}), **options}


def post(name: str, **options: Any) -> Table:
    return step(name, "pred", **options)


RAS = step("Orientationd", axcodes="RAS")
SPACED = step("Spacingd", pixdim=[1.0, 1.1, 1.7], mode="bilinear")
INVERT = post("Invertd", transform="@preprocessing", orig_keys="image", nearest_interp=False)
NEAREST = {**INVERT, "nearest_interp": True}
SOFTMAX = post("Activationsd", softmax=True)
ARGMAX = post("AsDiscreted", argmax=True)

TRANSFORMS: dict[str, list[Table]] = {
    "orientation": [RAS],
    "orientation other": [step("Orientationd", axcodes="PIL")],
    "spacing finer": [RAS, step("Spacingd", pixdim=[1.0, 0.8, 1.9], mode="bilinear")],
    "spacing coarser": [RAS, step("Spacingd", pixdim=[2.9, 2.3, 3.1], mode="bilinear")],
    "spacing one axis": [RAS, step("Spacingd", pixdim=[-1, 0, 3.0], mode="bilinear")],
    "spacing nearest": [RAS, step("Spacingd", pixdim=[1.03, 1.11, 1.7], mode="nearest")],
    "spacing before orientation": [SPACED, RAS],
    "range clipped": [
        step("ScaleIntensityRanged", a_min=-100, a_max=350, b_min=-1, b_max=1, clip=True)
    ],
    "range open": [step("ScaleIntensityRanged", a_min=-100, a_max=350, b_min=0, b_max=2)],
    "range bare": [step("ScaleIntensityRanged", a_min=-100, a_max=350)],
    "scale": [step("ScaleIntensityd", minv=-1.0, maxv=1.0)],
    "scale factor": [step("ScaleIntensityd", minv=None, maxv=None, factor=0.3)],
    "percentiles": [
        step("ScaleIntensityRangePercentilesd", lower=2, upper=97, b_min=0, b_max=1, clip=True)
    ],
    "percentiles open relative": [
        step("ScaleIntensityRangePercentilesd", lower=5, upper=90, b_min=1, b_max=3, relative=True)
    ],
    "normalize": [step("NormalizeIntensityd")],
    "normalize nonzero": [step("NormalizeIntensityd", nonzero=True, channel_wise=True)],
    "normalize given": [step("NormalizeIntensityd", subtrahend=80.0, divisor=120.0)],
    "shift": [step("ShiftIntensityd", offset=12.5)],
    "threshold": [step("ThresholdIntensityd", threshold=20.0, above=True, cval=20.0)],
    "crop foreground": [RAS, step("CropForegroundd", source_key="image")],
    "crop foreground margin": [
        RAS,
        step("CropForegroundd", source_key="image", margin=[2, 9, 1], allow_smaller=False),
    ],
    "crop foreground divisible": [
        RAS,
        step(
            "CropForegroundd", source_key="image", margin=1, allow_smaller=True,
            k_divisible=[4, 5, 4], mode="edge",
        ),
    ],
    "spatial pad": [RAS, step("SpatialPadd", spatial_size=[20, 15, 12], mode="edge")],
    "spatial pad end": [
        RAS,
        step("SpatialPadd", spatial_size=[20, -1, 12], method="end", mode="constant", value=-7),
    ],
    "divisible pad": [RAS, step("DivisiblePadd", k=[8, 1, 5], mode="edge")],
    "pad or crop": [RAS, step("ResizeWithPadOrCropd", spatial_size=[10, 21, 6])],
    "centre crop": [RAS, step("CenterSpatialCropd", roi_size=[8, 7, -1])],
    "resize area": [RAS, step("Resized", spatial_size=[20, 9, -1])],
    "resize": [RAS, step("Resized", spatial_size=[20, 9, 6], mode="trilinear")],
}  # fmt: skip
"""Transforms before the network, by what they show."""

LABELS: dict[str, list[Table]] = {
    "largest": [post("KeepLargestConnectedComponentd")],
    "largest of one label by faces": [
        post("KeepLargestConnectedComponentd", applied_labels=[2], connectivity=1)
    ],
    "largest together": [post("KeepLargestConnectedComponentd", independent=False)],
    "two largest": [post("KeepLargestConnectedComponentd", num_components=2, connectivity=1)],
    "holes": [post("FillHolesd")],
    "holes by faces": [post("FillHolesd", applied_labels=[1], connectivity=1)],
    "small": [post("RemoveSmallObjectsd", min_size=6, independent_channels=False)],
    "small by corners": [
        post("RemoveSmallObjectsd", min_size=6, connectivity=3, independent_channels=False)
    ],
}
"""Transforms of labels, on a label map of 0, 1 and 2."""

PREPARED = [
    RAS, SPACED,
    step("ScaleIntensityRanged", a_min=-100, a_max=350, b_min=0, b_max=1, clip=True),
]  # fmt: skip


def sliding(**options: Any) -> Table:
    return {"_target_": "SlidingWindowInferer", "roi_size": list(ROI), **options}


CHAINS: dict[str, Table] = {
    "as spleen": {
        "preprocessing": PREPARED,
        "inferer": sliding(sw_batch_size=4, overlap=0.5),
        "postprocessing": [SOFTMAX, INVERT, ARGMAX],
    },
    "as whole body": {
        "preprocessing": [
            # Away from 0: beside air of exactly 0 MONAI's interpolation leaves 1e-15, which its
            # NormalizeIntensity then takes for tissue.
            step("ShiftIntensityd", offset=7.3),
            RAS, SPACED, step("NormalizeIntensityd", nonzero=True),
            step("ScaleIntensityd", minv=-1.0, maxv=1.0),
        ],
        "inferer": sliding(
            roi_size=[12, 19, 13], overlap=0.25, mode="gaussian", padding_mode="replicate"
        ),
        "postprocessing": [SOFTMAX, ARGMAX, NEAREST],
    },
    "cropped, padded, cleaned": {
        "preprocessing": [
            *PREPARED,
            step("CropForegroundd", source_key="image", margin=1, allow_smaller=False),
            step("SpatialPadd", spatial_size=[18, 18, 14]),
        ],
        "inferer": sliding(overlap=0.6, mode="gaussian", sigma_scale=0.2),
        "postprocessing": [
            SOFTMAX, INVERT, ARGMAX, post("KeepLargestConnectedComponentd"), post("FillHolesd"),
        ],
    },
    "activated late": {
        "preprocessing": PREPARED,
        "inferer": sliding(roi_size=[22, 10, 12], overlap=0.4),
        "postprocessing": [INVERT, SOFTMAX, ARGMAX],
    },
    "no orientation, painted": {
        "preprocessing": [step("NormalizeIntensityd", nonzero=True, channel_wise=True)],
        "inferer": sliding(sw_batch_size=2, overlap=0.5),
        "postprocessing": [
            post("Activationsd", sigmoid=True), INVERT, post("AsDiscreted", threshold=0.5),
            post(
                "Lambdad",
                func="$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, "
                "torch.where(x[[1]] > 0, 2, 0)))",
            ),
        ],
    },
    "resized": {
        "preprocessing": [
            RAS, step("Resized", spatial_size=[16, 10, 12], mode="trilinear"),
            step("ScaleIntensityRangePercentilesd", lower=2, upper=98, b_min=0, b_max=1),
        ],
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": [SOFTMAX, INVERT, ARGMAX],
    },
    "resized by area": {
        "preprocessing": [
            RAS, step("Resized", spatial_size=[8, 20, 9]), step("ScaleIntensityd"),
        ],
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": [SOFTMAX, INVERT, ARGMAX],
    },
    "two series": {
        "preprocessing": [
            step("Orientationd", ["image", "other"], axcodes="RAS"),
            step("Spacingd", ["image", "other"], pixdim=[1.0, 1.1, 1.7], mode=["bilinear"] * 2),
            step("NormalizeIntensityd", "other"),
            step("ScaleIntensityRanged", a_min=-100, a_max=350, b_min=0, b_max=1, clip=True),
            step("ConcatItemsd", ["other", "image"], name="image"),
            step("ScaleIntensityd", minv=-0.5, maxv=1.5),
            step("CropForegroundd", source_key="image", select_fn="$lambda x: x > 0.4"),
        ],
        "inferer": sliding(sw_batch_size=3, overlap=0.5),
        "postprocessing": [SOFTMAX, INVERT, ARGMAX],
    },
    "slices": {
        "preprocessing": [RAS, SPACED, step("ScaleIntensityd")],
        "inferer": {
            "_target_": "SliceInferer", "roi_size": [9, 8], "spatial_dim": 1, "overlap": 0.5,
        },
        "postprocessing": [SOFTMAX, INVERT, ARGMAX],
    },
    "slices, no orientation": {
        "preprocessing": [step("ScaleIntensityd")],
        "inferer": {"_target_": "SliceInferer", "roi_size": [9, 8], "spatial_dim": 2},
        "postprocessing": [SOFTMAX, INVERT, ARGMAX],
    },
}  # fmt: skip
"""Whole bundles on a network of two layers."""


NETWORKS = {"blocks": (3, 1), "slices": (2, 1), "two": (3, 2)}
"""Spatial axes and input channels of the networks."""


def network_of(chain: Table) -> str:
    """Which network a chain has."""
    if str(chain["inferer"]["_target_"]) == "SliceInferer":
        return "slices"
    joins = any(one["_target_"] == "ConcatItemsd" for one in chain["preprocessing"])
    return "two" if joins else "blocks"
