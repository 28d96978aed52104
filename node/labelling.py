"""Whether labels can be made where the network computes, so that only they come back from there.

A device gives a label and one probability for each voxel, five bytes, instead of four bytes for
every class. That may change no finding by a bit: so it is done only where the steps on the way back
copy voxels, and where no step after it asks for a probability that was left behind.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from node.gpu.canvas import Labelling
from node.manifest import Manifest
from node.steps import MaskStep
from node.steps.masks import Argmax, Threshold
from node.windows import Activation


def labelling(manifest: Manifest, count: int) -> Labelling | None:
    """How a device labels what the manifest's one network says, for findings as by the host.

    ``count`` are its channels, -1: unknown. None where the host must have the probabilities, or
    where they are fewer bytes than labels.
    """
    rule = _rule(manifest.post[0], count, _after(manifest))
    alone = len(manifest.networks) == 1 and manifest.output.activated != "source"
    if rule is None or not alone or count < 2:
        return None
    return rule if _returns(manifest) and _keeps_certainty(manifest, rule, count) else None


def _after(manifest: Manifest) -> Activation:
    output = manifest.output
    return output.activation if output.activated == "blended" else "none"


def _rule(first: MaskStep, count: int, after: Activation) -> Labelling | None:
    """The first mask step as a device knows it."""
    if isinstance(first, Argmax):
        return Labelling(first.labels, certainty=True, after=after)
    if not isinstance(first, Threshold) or first.precedence:
        return None
    values = first.value if isinstance(first.value, tuple) else (first.value,) * count
    # As the device compares: what rounds to 0 is reached where nothing is.
    reachable = all(np.float32(value) > 0 for value in values)
    return Labelling(first.labels, values, certainty=True, after=after) if reachable else None


def _returns(manifest: Manifest) -> bool:
    """Whether labels come back through the steps of the reference role as they are."""
    reference = manifest.roles[0]
    return all(one.step.exact for one in manifest.pre if reference in one.roles)


def _keeps_certainty(manifest: Manifest, rule: Labelling, count: int) -> bool:
    """Whether every voxel of a finding has its own label's probability beside it.

    A step that gives a voxel another label would want that label's probability there; and of two
    channels with one label a finding states the first one's.
    """
    shares = Counter(label for label in rule.table(count).tolist() if label)
    return max(shares.values(), default=0) < 2 and all(step.thins for step in manifest.post[1:])
