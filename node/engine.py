"""A loaded engine: volumes in, findings out, on the grid of the reference series.

Here the parts meet that know nothing of one another: steps, window and networks are chosen by the
manifest. Whatever goes wrong is an InferenceError that begins with the stage in which it
happened. Nothing depends on the clock or on chance: the same volumes give the same findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from node.alignment import gathered
from node.answers import Labels, channels, labelled, voted
from node.bundle import Bundle
from node.cascade import Box, around
from node.domain.blame import blamed
from node.domain.errors import NotAssessable
from node.domain.volume import Volume
from node.ensemble import Network, looks, mean
from node.findings import Found, Label, Segmented, find
from node.fitting import classes, fitted
from node.labelling import labelling
from node.manifest import Cascade
from node.passage import Passage, passage
from node.progress import Progress as Progress
from node.progress import rising, share
from node.runtimes import Runtime, Session
from node.steps import MaskStep
from node.windows import Activation, Window, activated


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """One or several networks with the steps around them. Not shared between threads.

    ``window`` is the manifest's, with what the network itself fixes. An ensemble has its further
    networks in ``others``; in a cascade ``first`` looks before this engine.
    """

    bundle: Bundle
    session: Session
    window: Window
    others: tuple[Network, ...] = ()
    first: Engine | None = None

    @classmethod
    def load(cls, bundle: Bundle, runtime: Runtime) -> Engine:
        """Load every network and compare it with the manifest.

        Raises InferenceError when one cannot be loaded or does not fit; then none stays loaded.
        """
        name = bundle.manifest.engine.name
        networks: list[Network] = []
        with ExitStack() as loaded:
            first = None if bundle.first is None else cls.load(bundle.first, runtime)
            if first is not None:
                loaded.callback(first.close)
            for model in bundle.models:
                session = runtime.load(model)
                loaded.callback(session.close)
                which = f"model {model.name}" if bundle.manifest.members else "model"
                with blamed(f"engine {name}, {which} against manifest"):
                    networks.append(Network(session, fitted(bundle.manifest, session)))
            loaded.pop_all()
        return cls(bundle, networks[0].session, networks[0].window, tuple(networks[1:]), first)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def networks(self) -> tuple[Network, ...]:
        """Every network of this engine, in the manifest's order."""
        return (Network(self.session, self.window), *self.others)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Everything that is loaded, for the engine that looks first too."""
        before = () if self.first is None else self.first.sessions
        return (*before, *(network.session for network in self.networks))

    def close(self) -> None:
        """Give back what the networks hold, all of them together."""
        with ExitStack() as closing:
            for session in self.sessions:
                closing.callback(session.close)

    def examine(
        self, volumes: Mapping[str, Volume], job_id: str, progress: Progress | None = None
    ) -> Found:
        """The findings, and in words what was left out.

        Raises InferenceError; NotAssessable where the first engine of a cascade found nothing and
        the manifest refuses then.
        """
        return self._found(volumes, self.bundle.manifest.findings, (job_id, rising(progress)))

    def predict(self, volumes: Mapping[str, Volume], progress: Progress | None = None) -> Volume:
        """Probabilities (c, k, j, i) float32 on the grid of the reference role's volume.

        Volumes of other roles are brought to that grid by their place in the patient alone: they
        must share its frame of reference, and movement between the series is not corrected. In a
        cascade nothing is seen outside of the first engine's box. Raises InferenceError.
        """
        own = gathered(volumes, self.bundle.manifest.roles)
        glance = self._glance(own, ("", rising(progress)))
        if glance.nothing:
            source = own[self.bundle.manifest.roles[0]]
            count = max(1, classes(self.bundle.manifest, self.session))
            return source.with_voxels(np.zeros((count, *source.grid.shape), np.float32))
        way = passage(self.bundle.manifest, own, glance.box)
        return self._answer(way, glance.progress).prediction

    def _found(
        self,
        volumes: Mapping[str, Volume],
        wanted: Sequence[Label],
        asked: tuple[str, Progress | None],
    ) -> Found:
        """What there is of the wanted labels; ``asked`` are the job and who is told how far."""
        manifest = self.bundle.manifest
        own = gathered(volumes, manifest.roles)
        glance = self._glance(own, asked)
        notes = tuple(note for note in (self.bundle.together, *glance.notes) if note)
        if glance.nothing:
            return Found((), notes)
        way = passage(manifest, own, glance.box)
        segmented = self._decided(way, glance.progress) or self._judged(way, glance.progress)
        with blamed("findings"):
            found = find(segmented, wanted, manifest.engine.name, asked[0])
        return replace(found, notes=(*notes, *found.notes))

    def _glance(self, own: Mapping[str, Volume], asked: tuple[str, Progress | None]) -> _Glance:
        """Where to look, as the engine says that looks first. Raises NotAssessable."""
        cascade, first = self.bundle.manifest.cascade, self.first
        if first is None or cascade is None:
            return _Glance(progress=asked[1])
        manifest = first.bundle.manifest
        every = manifest.findings
        wanted = [one for one in every if not cascade.labels or one.label in cascade.labels]
        with blamed(f"cascade, {manifest.engine.name}"):
            found = first._found(own, wanted, (asked[0], share(asked[1], 0, 2)))
        grid, reference = own[manifest.roles[0]].grid, own[self.bundle.manifest.roles[0]].grid
        box = around(found.findings, grid, reference, cascade.margin_mm)
        notes = tuple(f"{manifest.engine.name}: {note}" for note in found.notes)
        progress = share(asked[1], 1, 2)
        if box is None:
            words = _blank(cascade, manifest.engine.name)
            nothing = cascade.empty == "nothing"
            if nothing and progress:
                progress(1, 1)
            return _Glance(None, (*notes, words), progress, nothing)
        seen, whole = (" x ".join(map(str, shape)) for shape in (box.shape, reference.shape))
        words = f"looked at {seen} of {whole} voxels, around what {manifest.engine.name} found"
        return _Glance(box, (*notes, words), progress)

    def _decided(self, way: Passage, progress: Progress | None) -> Segmented | None:
        """Labels made where the network computes; None where the probabilities are needed."""
        manifest = self.bundle.manifest
        first, *others = manifest.post
        count = classes(manifest, self.session)
        rule = labelling(manifest, count)
        if rule is None:
            return None
        with blamed("network"):
            network = Network(self.session, self.window)
            made = network.label(way.feeds, manifest.output.tensor, rule, progress)
        if made is None:
            return None
        decided = way.decided(made, first, count)
        return Segmented(
            labels=labelled(others, decided.labels, first=2),
            probability=decided.certainty,
            grid=decided.labels.grid,
            channels=dict.fromkeys(channels(first, count), 0),
        )

    def _judged(self, way: Passage, progress: Progress | None) -> Segmented:
        """Labels made of every class's probability."""
        post = self.bundle.manifest.post
        answer = self._answer(way, progress)
        prediction = answer.prediction
        return Segmented(
            labels=answer.labels(post),
            probability=prediction.voxels,
            grid=prediction.grid,
            channels=channels(post[0], len(prediction.voxels)),
        )

    def _answer(self, way: Passage, progress: Progress | None) -> _Answer:
        """What all networks of this engine say together."""
        manifest = self.bundle.manifest
        output, networks = manifest.output, self.networks
        after: Activation = output.activation if output.activated == "blended" else "none"
        # A mean is that of logits, where logits are blended; else each network's are activated.
        summed = manifest.ensemble.combine == "mean" and len(networks) > 1
        answers = looks(networks, way.feeds, output.tensor, progress, "none" if summed else after)
        if manifest.ensemble.combine == "mean":
            return _Answer(way.back(activated(mean(answers), after if summed else "none")))
        ballots: list[Labels] = []
        voxels = mean(_counted(way.back(answer), manifest.post, ballots) for answer in answers)
        return _Answer(replace(way.whole, voxels=voxels), ballots)


@dataclass(frozen=True, slots=True)
class _Glance:
    """Where an engine looks: in a box, everywhere (None), or nowhere; ``notes`` say why."""

    box: Box | None = None
    notes: tuple[str, ...] = ()
    progress: Progress | None = None
    nothing: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """Probabilities on the source grid, and each network's labels where networks vote."""

    prediction: Volume
    ballots: Sequence[Labels] = ()

    def labels(self, post: Sequence[MaskStep]) -> Labels:
        """Labels (k, j, i) after all steps. Raises InferenceError."""
        if not self.ballots:
            return labelled(post, self.prediction)
        return labelled(post[1:], self.prediction.with_voxels(voted(self.ballots)), first=2)


def _counted(
    prediction: Volume, post: Sequence[MaskStep], ballots: list[Labels]
) -> NDArray[np.float32]:
    """The probabilities of a prediction whose labels are put with the ballots."""
    ballots.append(labelled(post[:1], prediction))
    return prediction.voxels


def _blank(cascade: Cascade, name: str) -> str:
    """What is done where the first engine found nothing to look at. Raises NotAssessable."""
    which = f" with the labels {list(cascade.labels)}" if cascade.labels else ""
    words = f"{name}, which looks first, found nothing{which} in this series"
    if cascade.empty == "refuse":
        raise NotAssessable(f"{words}, so there is no place to look at")
    return f"{words}, so {'all of it' if cascade.empty == 'whole' else 'nothing'} was looked at"
