"""Trained models as people hand them over, so small that they are made in a moment.

Whatever makes one needs torch, and MONAI or nnU-Net: the tests skip with the name of what is not
there. They are run by hand in a throw-away environment that has them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NETWORK = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2],
    "num_res_units": 1,
}  # fmt: skip
PLAN = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
        "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip


def needs(*libraries: str) -> None:
    """Skip where a library is not installed."""
    absent = [name for name in libraries if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: the node exports where it was trained")


def monai_bundle(folder: Path, network: dict[str, Any] | None = None) -> Path:
    """A bundle as MONAI keeps it: configuration, metadata, and a checkpoint."""
    needs("torch", "onnxscript", "monai")
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(3)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    torch.save(UNet(**NETWORK).state_dict(), folder / "models" / "model.pt")
    inference = {
        "imports": ["$import glob"],
        "bundle_root": "/nowhere",
        "patch": [16, 16, 16],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **(network or NETWORK)},
        "network": "$@network_def.to(@device)",
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@patch"},
    }
    metadata = {"network_data_format": {"inputs": {"image": {"num_channels": 1}}}}
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def folds(folder: Path, count: int = 2, wrapped: str = "") -> Path:
    """A model folder as nnU-Net 2 leaves it; ``wrapped`` stands before each weight's name."""
    needs("torch", "onnxscript", "nnunetv2")
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(_plans()))
    (folder / "dataset.json").write_text(json.dumps(_dataset()))
    manager = PlansManager(_plans())
    settings = manager.get_configuration("3d_fullres")
    for number in range(count):
        torch.manual_seed(number)
        network = nnUNetTrainer.build_network_architecture(manager, settings, 1, 3, True)
        place = folder / f"fold_{number}"
        place.mkdir()
        weights = {f"{wrapped}{name}": one for name, one in network.state_dict().items()}
        torch.save(_checkpoint(weights, number), place / "checkpoint_final.pth")
    return folder


def _checkpoint(weights: dict[str, Any], fold: int) -> dict[str, Any]:
    """With what nnU-Net's own has besides: numbers of numpy, a device, the trainer's arguments."""
    import torch

    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice": [[np.float32(0.25)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {
            "plans": _plans(),
            "configuration": "3d_fullres",
            "fold": fold,
            "dataset_json": _dataset(),
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
    }


def _dataset() -> dict[str, Any]:
    return {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def _plans() -> dict[str, Any]:
    resampling = {"is_seg": False, "force_separate_z": None, "order": 3, "order_z": 0}
    back = {"is_seg": False, "force_separate_z": None, "order": 1, "order_z": 0}
    return {
        "dataset_name": "Dataset902_Small",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16, 16, 16],
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**back, "is_seg": True},
                "resampling_fn_probabilities_kwargs": back,
                "architecture": PLAN,
                "batch_dice": True,
            }
        },
    }
