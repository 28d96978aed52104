"""A loaded engine: volumes in, findings out, on the grid of the reference series.

Here the parts meet that know nothing of one another: steps, window and network are chosen by the
manifest. Whatever goes wrong is an InferenceError that begins with the stage in which it
happened. Nothing depends on the clock or on chance: the same volumes give the same findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from node.bundle import Bundle
from node.domain.errors import InferenceError
from node.domain.sampling import index_matrix, resampled
from node.domain.tensor import TensorSpec
from node.domain.volume import Grid, Volume
from node.domain.voxels import finite
from node.findings import Found, Segmented, find
from node.manifest import Input, Manifest
from node.runtimes import Runtime, Session
from node.steps import MASKS, STEPS, MaskStep, Step
from node.steps.intensity import Cast
from node.steps.masks import Argmax, Threshold
from node.windows import Window, predict

Progress = Callable[[int, int], None]
"""Called with the blocks done and the blocks to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """A network with the steps around it. Not shared between threads.

    ``window`` is the manifest's, with what the network itself fixes.
    """

    bundle: Bundle
    session: Session
    window: Window

    @classmethod
    def load(cls, bundle: Bundle, runtime: Runtime) -> Engine:
        """Load the network and compare it with the manifest.

        Raises InferenceError when it cannot be loaded or does not fit.
        """
        session = runtime.load(bundle.model)
        try:
            with _stage(f"engine {bundle.manifest.engine.name}, model against manifest"):
                return cls(bundle, session, _fitted(bundle.manifest, session))
        except InferenceError:
            session.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the network holds."""
        self.session.close()

    def examine(
        self, volumes: Mapping[str, Volume], job_id: str, progress: Progress | None = None
    ) -> Found:
        """The findings, and in words what was left out. Raises InferenceError."""
        manifest = self.bundle.manifest
        prediction = self.predict(volumes, progress)
        labels = _labelled(manifest.post, prediction)
        with _stage("findings"):
            segmented = Segmented(
                labels=labels,
                probability=prediction.voxels,
                grid=prediction.grid,
                channels=_channels(manifest.post[0], len(prediction.voxels)),
            )
            return find(segmented, manifest.findings, manifest.engine.name, job_id)

    def predict(self, volumes: Mapping[str, Volume], progress: Progress | None = None) -> Volume:
        """Probabilities (c, k, j, i) float32 on the grid of the reference role's volume.

        Volumes of other roles are brought to that grid by their place in the patient alone: they
        must share its frame of reference, and movement between the series is not corrected.
        Raises InferenceError.
        """
        manifest = self.bundle.manifest
        aligned = _aligned(volumes, manifest.roles)
        prepared = {role: _prepared(manifest, role, one) for role, one in aligned.items()}
        _refuse_other_grids(prepared)
        feeds = {one.tensor: _channelled(one, prepared) for one in manifest.inputs}
        with _stage("network"):
            voxels = predict(
                self.session.infer, feeds, self.window, manifest.output.tensor, progress
            )
        reference = prepared[manifest.roles[0]]
        return _returned(replace(reference.volume, voxels=voxels), reference, aligned)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A role's volume after its steps; ``way`` has each step with the grid before it."""

    volume: Volume
    way: tuple[tuple[str, Step, Grid], ...] = ()

    def after(self, name: str, step: Step) -> _Prepared:
        """One step further."""
        return _Prepared(step.forward(self.volume), (*self.way, (name, step, self.volume.grid)))


def _aligned(volumes: Mapping[str, Volume], roles: tuple[str, ...]) -> dict[str, Volume]:
    """Every role's volume on the grid of the first role's."""
    missing = [role for role in roles if role not in volumes]
    if missing:
        raise InferenceError(f"no volume was given for the role {', '.join(missing)}")
    first = roles[0]
    aligned: dict[str, Volume] = {}
    for role in roles:
        with _stage(f"volume of role {role}"):
            volume = volumes[role].with_voxels(finite(volumes[role].voxels))
            aligned[role] = volume if role == first else _onto(volume, aligned[first], first)
    return aligned


def _onto(volume: Volume, reference: Volume, role: str) -> Volume:
    """A volume on the grid of another series in the same frame of reference."""
    own, other = volume.frame_of_reference_uid, reference.frame_of_reference_uid
    if not own or own != other:
        raise InferenceError(
            f"its frame of reference is {'another than' if own else 'unknown, not'} that of "
            f"{role}: the two series share no coordinates. Register them first, or send series of "
            f"one examination"
        )
    if _same(volume.grid, reference.grid):
        return volume
    if not _overlap(volume.grid, reference.grid):
        raise InferenceError(f"it covers no part of the series of {role}")
    return resampled(volume, reference.grid, order=1, value=float(volume.voxels.min()))


def _same(grid: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels, to a thousandth of a millimetre."""
    return grid.shape == other.shape and np.allclose(grid.affine, other.affine, rtol=0, atol=1e-3)


def _overlap(grid: Grid, reference: Grid) -> bool:
    """Whether the box around a reference grid meets a grid."""
    lengths = np.array(grid.shape)
    corners = [(*np.multiply(place, np.array(reference.shape) - 1), 1) for place in _CORNERS]
    inside = (index_matrix(grid.affine, reference.affine) @ np.array(corners, float).T)[:3]
    return bool((inside.max(axis=1) >= -0.5).all() and (inside.min(axis=1) <= lengths - 0.5).all())


_CORNERS = tuple(product((0, 1), repeat=3))


def _prepared(manifest: Manifest, role: str, volume: Volume) -> _Prepared:
    """A role's volume through all of its steps."""
    prepared = _Prepared(volume)
    for number, preparation in enumerate(manifest.pre, 1):
        name = f"pre step {number} ({_kind(STEPS, preparation.step)})"
        if role in preparation.roles:
            with _stage(f"{name} of role {role}"):
                prepared = prepared.after(name, preparation.step)
    return prepared


def _refuse_other_grids(prepared: Mapping[str, _Prepared]) -> None:
    (first, reference), *others = prepared.items()
    for role, one in others:
        grid, wanted = one.volume.grid, reference.volume.grid
        if not _same(grid, wanted):
            raise InferenceError(
                f"pre steps: they leave {role} on a grid of {grid.shape} (k, j, i) and {first} on "
                f"one of {wanted.shape}, or elsewhere; a step that follows the image's content "
                f"(crop_foreground, a centre of foreground) fits engines of one role only"
            )


def _channelled(one: Input, prepared: Mapping[str, _Prepared]) -> NDArray[np.generic]:
    """The volumes of a tensor's roles as its channels, (c, k, j, i)."""
    parts = [prepared[role].volume.voxels for role in one.roles]
    return np.concatenate([part.reshape(-1, *part.shape[-3:]) for part in parts])


def _returned(prediction: Volume, reference: _Prepared, aligned: Mapping[str, Volume]) -> Volume:
    """The prediction through all steps in reverse, on the reference's source grid."""
    for name, step, before in reversed(reference.way):
        with _stage(f"{name}, backward"):
            prediction = step.backward(prediction, before)
    source = next(iter(aligned.values()))
    if not _same(prediction.grid, source.grid):
        raise InferenceError(
            f"pre steps, backward: they end on a grid of {prediction.grid.shape} (k, j, i) that is "
            f"not the source's ({source.grid.shape})"
        )
    return replace(prediction, sources=source.sources)


def _labelled(post: tuple[MaskStep, ...], prediction: Volume) -> NDArray[np.uint8]:
    """Labels (k, j, i) from probabilities."""
    for number, step in enumerate(post, 1):
        with _stage(f"post step {number} ({_kind(MASKS, step)})"):
            prediction = step.apply(prediction)
    if prediction.voxels.ndim != 3 or prediction.voxels.dtype != np.uint8:
        raise InferenceError("post steps: they give no labels; begin with threshold or argmax")
    return prediction.voxels


def _channels(first: MaskStep, count: int) -> dict[int, int]:
    """Label -> the channel that it was made of, as the step that makes labels says."""
    if not isinstance(first, Threshold | Argmax):
        return {}
    start = 0 if isinstance(first, Argmax) else 1
    labels = first.labels or tuple(range(start, start + count))
    return {label: channel for channel, label in reversed(list(enumerate(labels))) if label}


def _fitted(manifest: Manifest, session: Session) -> Window:
    """The window with what the network fixes. Raises InferenceError when the two do not fit."""
    inputs = {spec.name: spec for spec in session.inputs}
    outputs = {spec.name: spec for spec in session.outputs}
    declared = sorted(one.tensor for one in manifest.inputs)
    if declared != sorted(inputs):
        raise InferenceError(
            f"the network takes the tensors {sorted(inputs)}, the [[input]] tables name {declared}"
        )
    if manifest.output.tensor not in outputs:
        raise InferenceError(
            f"the network gives the tensors {sorted(outputs)}, [output] names "
            f"{manifest.output.tensor!r}"
        )
    window = _activated(manifest)
    for one in manifest.inputs:
        window = window.fitted(inputs[one.tensor].shape)
        _refuse_other_input(one, inputs[one.tensor], manifest)
    _rehearse(manifest, outputs[manifest.output.tensor].shape)
    return window


def _activated(manifest: Manifest) -> Window:
    """Blocks are blended as probabilities: the window makes them, as the output says."""
    activation = manifest.output.activation
    if activation == "none":
        return manifest.window
    return replace(manifest.window, logits=True, exclusive=activation == "softmax")


def _refuse_other_input(one: Input, spec: TensorSpec, manifest: Manifest) -> None:
    window = manifest.window
    wanted = len(one.roles) * (window.stack if window.mode == "stack" else 1)
    channels = spec.shape[-1 if window.channels_last else 1]
    if channels not in {-1, wanted}:
        raise InferenceError(
            f"the network wants {spec}, that is {channels} channels; {len(one.roles)} roles in "
            f"window mode {window.mode!r} make {wanted}"
        )
    for role in one.roles:
        if _dtype(manifest, role) != spec.dtype:
            raise InferenceError(
                f"the network wants {spec}, the pre steps make {_dtype(manifest, role)} of {role}; "
                f'end them with kind = "cast", dtype = "{spec.dtype}"'
            )


def _dtype(manifest: Manifest, role: str) -> str:
    """The number type of a role's volume after its steps: every step but a cast gives float32."""
    steps = [one.step for one in manifest.pre if role in one.roles]
    return steps[-1].dtype if steps and isinstance(steps[-1], Cast) else "float32"


def _rehearse(manifest: Manifest, shape: tuple[int, ...]) -> None:
    """The post steps on an empty prediction: what does not fit the network shows at once."""
    classes = shape[-1 if manifest.window.channels_last else 1] if len(shape) > 1 else -1
    if classes < 1:
        return
    empty = np.zeros((classes, 2, 2, 2), np.float32)
    _labelled(manifest.post, Volume(empty, np.eye(4)))
    channels = _channels(manifest.post[0], classes)
    for label in manifest.findings:
        if channels and label.label not in channels:
            raise InferenceError(
                f"the finding {label.name!r} is label {label.label}, but the network's {classes} "
                f"channels give the labels {sorted(channels)}"
            )


def _kind(registry: Mapping[str, type[object]], step: object) -> str:
    return next((kind for kind, member in registry.items() if type(step) is member), "unknown")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Whatever fails inside becomes an InferenceError that begins with the stage."""
    try:
        yield
    except InferenceError as error:
        raise InferenceError(f"{name}: {error}") from error
    except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
        raise InferenceError(f"{name}: {type(error).__name__}: {error}") from error
