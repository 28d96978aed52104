"""Whether a network fits its manifest: tensors, channels, number types, labels.

Asked once, when an engine is loaded, so that a study never meets an engine that cannot work.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from node.answers import channels, labelled
from node.domain.errors import InferenceError
from node.domain.tensor import TensorSpec
from node.domain.volume import Volume
from node.manifest import Input, Manifest
from node.runtimes import Session
from node.sight import Window
from node.steps.intensity import Cast


def fitted(manifest: Manifest, session: Session) -> Window:
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
    _rehearse(manifest, classes(manifest, session))
    return window


def classes(manifest: Manifest, session: Session) -> int:
    """How many channels the network's answer has; -1 where it does not say."""
    shapes = [one.shape for one in session.outputs if one.name == manifest.output.tensor]
    axis = -1 if manifest.window.channels_last else 1
    return shapes[0][axis] if shapes and len(shapes[0]) > 1 else -1


def _activated(manifest: Manifest) -> Window:
    """Where blocks are blended as probabilities the window makes them, as the output says."""
    output = manifest.output
    if output.activation == "none" or output.activated != "blocks":
        return manifest.window
    return replace(manifest.window, logits=True, exclusive=output.activation == "softmax")


def _refuse_other_input(one: Input, spec: TensorSpec, manifest: Manifest) -> None:
    window = manifest.window
    wanted = len(one.roles) * (window.stack if window.mode == "stack" else 1)
    taken = spec.shape[-1 if window.channels_last else 1]
    if taken not in {-1, wanted}:
        raise InferenceError(
            f"the network wants {spec}, that is {taken} channels; {len(one.roles)} roles in "
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


def _rehearse(manifest: Manifest, count: int) -> None:
    """The post steps on an empty prediction: what does not fit the network shows at once."""
    if count < 1:
        return
    empty = np.zeros((count, 2, 2, 2), np.float32)
    labelled(manifest.post, Volume(empty, np.eye(4)))
    known = channels(manifest.post[0], count)
    for label in manifest.findings:
        if known and label.label not in known:
            raise InferenceError(
                f"the finding {label.name!r} is label {label.label}, but the network's {count} "
                f"channels give the labels {sorted(known)}"
            )
