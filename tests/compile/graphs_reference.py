"""Writes the graphs of ``test_graphs.py``: published networks, exported as the node exports them.

Run it by hand in a throw-away environment with torch, onnxscript, monai and
dynamic_network_architectures::

    python -m tests.compile.graphs_reference

The networks are those of MONAI (Apache-2.0, github.com/Project-MONAI/MONAI) and of nnU-Net's
dynamic_network_architectures (Apache-2.0, github.com/MIC-DKFZ/dynamic-network-architectures), with
few channels; only their graphs are kept. What was used is written into each as its producer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.networks.nets import UNETR, DenseNet121, DynUNet, SegResNet, UNet

from node.tracing import trace
from tests.compile.graphs import FIXTURES, bared


@dataclass(frozen=True)
class Published:
    """A network, how it is built, and (channels, *patch) of what it takes."""

    name: str
    build: Callable[[], torch.nn.Module]
    block: tuple[int, ...]
    source: str = "monai"


def _nnunet(kind: Any, depth: dict[str, Any]) -> torch.nn.Module:
    """As nnU-Net's planner writes it down: 3d_fullres, instance norm, leaky ReLU."""
    return kind(
        input_channels=1,
        n_stages=5,
        features_per_stage=[8, 16, 32, 32, 32],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[[1, 3, 3], *[[3, 3, 3]] * 4],
        strides=[[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3],
        num_classes=3,
        n_conv_per_stage_decoder=[1, 1, 1, 1] if kind is ResidualEncoderUNet else [2, 2, 2, 2],
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
        **depth,
    )


def published() -> Iterator[Published]:
    """Every network."""
    cube = (1, 64, 64, 64)
    levels: dict[str, Any] = {"channels": (8, 16, 32, 64, 128), "strides": (2, 2, 2, 2)}
    plain: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    yield Published("monai-unet", lambda: UNet(**plain, **levels, num_res_units=2), cube)
    yield Published(
        "monai-unet-batch", lambda: UNet(**plain, **levels, num_res_units=2, norm="batch"), cube
    )
    yield Published("monai-segresnet", lambda: SegResNet(**plain, init_filters=8), cube)
    yield Published(
        "monai-dynunet",
        lambda: DynUNet(
            **plain,
            kernel_size=[3, 3, 3, 3],
            strides=[1, 2, 2, 2],
            upsample_kernel_size=[2, 2, 2],
            filters=[8, 16, 32, 64],
            res_block=True,
            deep_supervision=True,
        ),
        cube,
    )
    yield Published(
        "monai-densenet121",
        lambda: DenseNet121(
            spatial_dims=2, in_channels=1, out_channels=2, init_features=16, growth_rate=8
        ),
        (1, 224, 224),
    )
    yield Published(
        "monai-unetr",
        lambda: UNETR(
            in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=8, hidden_size=96,
            mlp_dim=192, num_heads=4,
        ),
        (1, 32, 32, 32),
    )  # fmt: skip
    dna = "dynamic_network_architectures"
    patch = (1, 32, 64, 64)
    yield Published(
        "nnunet-plain",
        lambda: _nnunet(PlainConvUNet, {"n_conv_per_stage": [2] * 5}),
        patch,
        dna,
    )
    yield Published(
        "nnunet-residual",
        lambda: _nnunet(ResidualEncoderUNet, {"n_blocks_per_stage": [1, 2, 2, 2, 2]}),
        patch,
        dna,
    )


def main() -> None:
    """Write all graphs."""
    for one in published():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as place:
            traced = trace(one.build(), one.block, Path(place) / "model.onnx")
            model = onnx.load(str(traced.path))
        bare = bared(model)
        del bare.graph.value_info[:]
        bare.producer_name = f"{one.source} {version(one.source.replace('_', '-'))}"
        bare.producer_version = f"torch {version('torch')}"
        path = FIXTURES / f"{one.name}.graph"
        path.write_bytes(bare.SerializeToString())
        notes = "; ".join(traced.notes)
        print(f"{path.name}: {path.stat().st_size} bytes, {traced.difference:.2g} {notes}")  # noqa: T201


if __name__ == "__main__":
    main()
