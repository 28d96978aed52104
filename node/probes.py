"""What a network is asked when it is verified: the package's golden inputs, and noise.

The golden inputs say whether the network answers as its maker saw it answer; the noise reaches
parts of it that a few golden inputs leave alone. Both are the same on every machine and every day.

``golden/`` in an engine's folder holds pairs of files, ``input.npy`` with ``expected.npy``,
``input-2.npy`` with ``expected-2.npy`` and so on: the one input tensor of the network and the one
output tensor that the manifest names. Networks of several tensors have ``.npz`` files with arrays
by tensor name instead. The expected answers may be in half precision.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from node.bundle import Bundle
from node.domain.errors import VerificationFailed
from node.domain.tensor import Tensors, TensorSpec
from node.windows import Window

GOLDEN = "golden"
_PLANE, _CUBE = 128, 64
"""Voxels along an axis that nothing fixes, in two and in three dimensions."""
_BLOCKS = 2
_GRAIN = 4.0
"""Deviation of the blobs in voxels: white noise alone leaves coarse layers silent."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One question to a network: arrays by tensor name, and the answer where it is known."""

    name: str
    feeds: Tensors
    expected: Tensors | None = None


def golden(bundle: Bundle, inputs: Sequence[TensorSpec]) -> tuple[Probe, ...]:
    """The golden inputs of a package, each with its expected answer.

    Raises VerificationFailed when a file cannot be read or does not fit the network.
    """
    output = bundle.manifest.output.tensor
    probes = []
    for path in _inputs(bundle.folder / GOLDEN):
        given = _read(path, inputs[0].name)
        feeds = {spec.name: _fed(given, spec, path) for spec in inputs}
        answer = path.with_name(path.name.replace("input", "expected", 1))
        expected = _read(answer, output) if answer.is_file() else None
        probes.append(Probe(f"{GOLDEN}/{path.name}", feeds, expected))
    return tuple(probes)


def golden_digest(bundle: Bundle) -> str:
    """sha256 over the golden files and their names, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted((bundle.folder / GOLDEN).glob("*.np[yz]")):
        digest.update(f"{path.name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def noise(bundle: Bundle, inputs: Sequence[TensorSpec], window: Window) -> Probe:
    """Blobs and grain of deviation 1 in the network's input shape, the same for each package."""
    generator = np.random.default_rng(int(bundle.digest[:16], 16))
    feeds = {
        spec.name: _random(generator, input_shape(bundle, spec, window), spec) for spec in inputs
    }
    return Probe("noise", feeds)


def noise_volumes(
    bundle: Bundle, inputs: Sequence[TensorSpec], window: Window
) -> dict[str, NDArray[Any]]:
    """Volumes (c, k, j, i) by tensor name, half a block larger than one block along each axis."""
    generator = np.random.default_rng(int(bundle.digest[16:32], 16))
    volumes = {}
    for spec in inputs:
        shape = input_shape(bundle, spec, window)
        axes = shape[1:-1] if window.channels_last else shape[2:]
        block = (_BLOCKS, *axes) if window.planar else axes
        channels = shape[-1 if window.channels_last else 1]
        if window.mode == "stack":
            channels //= window.stack
        grown = tuple(length + -(-length // 2) for length in block)
        volumes[spec.name] = _random(generator, (channels, *grown), spec)
    return volumes


def input_shape(bundle: Bundle, spec: TensorSpec, window: Window) -> tuple[int, ...]:
    """The shape of a tensor with a length for every axis that the network leaves open."""
    batch = spec.shape[0] if spec.shape[0] > 0 else min(window.batch, _BLOCKS)
    open_axes = [_CUBE] * 3 if not window.planar else [_PLANE] * 2
    asked = window.patch or (0,) * len(open_axes)
    multiple = window.multiple
    spatial = [
        want or -(-length // multiple) * multiple
        for want, length in zip(asked, open_axes, strict=True)
    ]
    last = window.channels_last
    fixed = spec.shape[1:-1] if last else spec.shape[2:]
    spatial = [have if have > 0 else want for have, want in zip(fixed, spatial, strict=True)]
    channels = spec.shape[-1 if last else 1]
    if channels < 1:
        channels = _channels(bundle, spec.name, window)
    return (batch, *spatial, channels) if last else (batch, channels, *spatial)


def _channels(bundle: Bundle, tensor: str, window: Window) -> int:
    roles = next(one.roles for one in bundle.manifest.inputs if one.tensor == tensor)
    return len(roles) * (window.stack if window.mode == "stack" else 1)


def _random(
    generator: np.random.Generator, shape: tuple[int, ...], spec: TensorSpec
) -> NDArray[Any]:
    """Of a whole-number tensor 0 to 255, of any other about 0 with deviation 1."""
    grain = generator.standard_normal(shape, np.float32)
    smooth = (0.0, 0.0, *[_GRAIN] * (len(shape) - 2))
    blobs = ndimage.gaussian_filter(generator.standard_normal(shape, np.float32), smooth)
    mixed = grain / 2 + blobs / max(float(blobs.std()), 1e-6)
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return np.asarray(mixed.astype(spec.dtype))
    return np.asarray(np.clip(mixed * 64 + 128, 0, 255).astype(spec.dtype))


def _inputs(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.glob("input*.np[yz]") if path.is_file())


def _read(path: Path, only: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by tensor name; a file of one array has that of ``only``."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {only: found}
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise VerificationFailed(
            f"{GOLDEN}/{path.name} cannot be read ({type(error).__name__}): make it again, as "
            f"numpy.save or numpy.savez writes arrays of numbers"
        ) from error


def _fed(given: dict[str, NDArray[Any]], spec: TensorSpec, path: Path) -> NDArray[Any]:
    array = given.get(spec.name)
    numbers = array is not None and array.dtype.kind in "biuf"
    cast = array.astype(spec.dtype) if array is not None and numbers else None
    if cast is None or not spec.admits(cast):
        found = {name: one.shape for name, one in given.items()}
        raise VerificationFailed(
            f"{GOLDEN}/{path.name} holds {found}, the network wants {spec}: make it again for "
            f"this network"
        )
    return cast
