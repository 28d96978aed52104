"""A bare ONNX file: a network with nothing said about what it wants to see or what it means.

What the graph states is taken as it is. What it does not state is guessed by running it on noise
and by the usual conventions, and each guess is marked, with its reason, for the data scientist to
read: nothing of the network's meaning can be seen in its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.anatomy import colour, meaning
from node.bundle import file_digest
from node.domain.errors import ImportRefused
from node.domain.tensor import TensorSpec
from node.form import Form, form
from node.proposal import Block, Guess, Proposal
from node.signature import Signature, external_files, read

_DTYPES = ("float32", "float16", "uint8", "int8", "int16", "int32")
"""Number types that the step ``cast`` can make."""
_COORDINATES = re.compile(r"coord|meshgrid|(^|[_.-])(xyz|grid|position|pos|location)($|[_.\d-])")
_MODALITIES = {
    "CT": re.compile(r"(^|[^a-z])(ct|ncct|cta|hu)($|[^a-z])"),
    "MR": re.compile(r"(^|[^a-z])(mr|mri|flair|t1\w{0,3}|t2\w{0,3}|adc|dwi|swi)($|[^a-z])"),
    "PT": re.compile(r"(^|[^a-z])(pet|pt|suv)($|[^a-z])"),
}
_SEQUENCES = re.compile(r"^(flair|t1c?|t2|adc|dwi|swi|art|ven|portal|delayed)", re.IGNORECASE)
_ABNORMAL = {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Abnormal Structure"}
_LESION = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
_STACK = (
    "{count} channels: neighbouring slices? For other series, or one slice several times, write "
    'mode = "slice" and a role for each channel'
)
_MOST_LABELS = 255
_BATCH = {2: 4, 3: 1}
"""Blocks in one call, for slices and for volumes, where the network takes any number."""
_SPACING = (
    'if the training images were brought to one spacing, write it: [[pre]] kind = "resample", '
    "spacing = [slices, rows, columns] in mm"
)
_WHOLE_SLICES = (
    "slices larger than the network's input are seen in blocks; if it was trained on whole slices "
    'made smaller, add [[pre]] kind = "resample" with the spacing and the shape it saw'
)


@dataclass(frozen=True)
class Bare:
    """An ``.onnx`` file, with its external weights beside it."""

    look_inside: bool = True
    """Whether the package ``onnx``, where it is installed, is asked what the graph ends with."""

    def recognises(self, source: Path) -> bool:
        """Whether it is a file called ``.onnx``."""
        return source.is_file() and source.suffix.lower() == ".onnx"

    def propose(self, source: Path, name: str) -> Proposal:
        """The package that would be made of the file.

        Raises ImportRefused when its inputs are not volumes or slices alone, or its output is not
        one number per class and voxel.
        """
        signature, session = read(source, self.look_inside)
        try:
            _refuse_unusable(signature.inputs)
            found = form(signature, session)
        finally:
            session.close()
        files = _files(source, external_files(source, self.look_inside))
        draft = _Draft(source, name, next(iter(files)), signature, found)
        return Proposal(name, tuple(draft.blocks()), files, notes=tuple(draft.notes()))


def _refuse_unusable(inputs: Sequence[TensorSpec]) -> None:
    """Raises ImportRefused for coordinates, vectors, and number types that no step makes."""
    for one in inputs:
        if _COORDINATES.search(one.name.lower()) or _is_vector(one):
            raise ImportRefused(
                f"the input {one} looks like coordinates, spacing or another number beside the "
                f"image. The node feeds volumes only: compute it inside of the network from the "
                f"shape of the image, or write it there as a constant, and export again. If it "
                f"holds a volume, give the tensor another name"
            )
        if one.dtype not in _DTYPES:
            raise ImportRefused(
                f"the input {one} has a number type that no step makes ({', '.join(_DTYPES)}): "
                f"export the network with float32 inputs"
            )


def _is_vector(one: TensorSpec) -> bool:
    """Beside an image, what has three axes or fewer and ends in 2, 3 or 6 is no image."""
    return len(one.shape) < 4 and bool(one.shape) and one.shape[-1] in {2, 3, 6}


def _files(source: Path, outside: Sequence[str]) -> dict[str, Path]:
    """The package's files by name. Weights outside keep the names that the model knows."""
    absent = [name for name in outside if not (source.parent / name).is_file()]
    if absent:
        raise ImportRefused(f"its weights are absent: put {', '.join(absent)} beside {source.name}")
    if outside:
        return {source.name: source} | {name: source.parent / name for name in outside}
    return {"model.onnx": source}


@dataclass(frozen=True, slots=True)
class _Draft:
    """The manifest in the making."""

    source: Path
    name: str
    model: str
    signature: Signature
    form: Form

    def blocks(self) -> Iterator[Block]:
        """Every table in the order in which a study goes through them."""
        yield self._engine()
        roles = self._roles()
        for role in dict.fromkeys(role for own in roles.values() for role in own):
            yield self._series(role)
        for tensor, own in roles.items():
            yield Block("input", {"tensor": tensor, "roles": self._doubted_roles(own)}, many=True)
        yield from self._pre(roles)
        yield Block("window", self._window())
        yield Block("output", self._output())
        yield Block("post", self._post(), many=True)
        yield from self._findings()

    def notes(self) -> Iterator[str]:
        """What has to be known beside the manifest."""
        if self.form.unused:
            yield f"outputs that are not used: {', '.join(self.form.unused)}"
        if not self.form.planar and not self._numbers("spacing"):
            yield _SPACING
        if self.form.planar and max(self.form.lengths) > 0:
            yield _WHOLE_SLICES

    def _engine(self) -> Block:
        rows: dict[str, Any] = {"name": self.name}
        rows["title"] = self._stated(("title",), self.source.stem[:64], "the file's name")
        rows["version"] = self._stated(("version", "model_version"), "0.1.0", "nothing says it")
        makers = ("manufacturer", "organisation", "organization", "author")
        rows["manufacturer"] = self._stated(makers, "unknown", "who answers for it?")
        rows["licence"] = self._stated(("licence", "license"), "unknown", "under which terms?")
        rows["model"] = self.model
        rows["sha256"] = file_digest(self.source)
        description = " ".join(self.signature.notes.get("description", "").split())
        if description:
            rows["description"] = description[:400]
        return Block("engine", rows, comment=_HEAD)

    def _stated(self, keys: Sequence[str], otherwise: str, why: str) -> Any:
        """What the file's metadata say under one of some keys, or a guess."""
        for key in keys:
            words = " ".join(self.signature.notes.get(key, "").split())
            if words:
                return words[:64]
        return Guess(otherwise, why)

    @property
    def _stack(self) -> int:
        """Slices in a stack; 0 when the channels are no stack."""
        counts = set(self.form.channels.values())
        if not self.form.planar or len(counts) != 1 or self._listed("channels"):
            return 0
        count = counts.pop()
        return count if count > 1 and count % 2 else 0

    def _roles(self) -> dict[str, tuple[str, ...]]:
        """The roles whose volumes are the channels of each input."""
        alone = len(self.form.channels) == 1
        named = [_slug(word) for word in self._listed("channels")]
        roles: dict[str, tuple[str, ...]] = {}
        for tensor, channels in self.form.channels.items():
            count = 1 if self._stack else channels
            stem = "image" if alone else _slug(tensor)
            if alone and len(set(named)) == len(named) == count:
                roles[tensor] = tuple(named)
            elif count == 1:
                roles[tensor] = (stem,)
            else:
                roles[tensor] = tuple(f"{stem}-{number}" for number in range(1, count + 1))
        every = [role for own in roles.values() for role in own]
        if len(set(every)) < len(every):
            numbers = iter(range(1, len(every) + 1))
            return {key: tuple(f"image-{next(numbers)}" for _ in own) for key, own in roles.items()}
        return roles

    def _doubted_roles(self, roles: tuple[str, ...]) -> Any:
        if len(roles) == 1 or self._listed("channels"):
            return list(roles)
        return Guess(list(roles), "which series is which channel? They are numbered as they come")

    def _series(self, role: str) -> Block:
        modality, why = self._modality(role)
        accepts: list[dict[str, Any]] = [{"fact": "Modality", **modality}]
        words = _SEQUENCES.match(role)
        if words:
            accepts.append({"fact": "SeriesDescription", "matches": words[0].lower()})
        return Block("series", {"role": role, "accepts": Guess(accepts, why)}, many=True)

    def _modality(self, role: str) -> tuple[dict[str, str], str]:
        stated = self.signature.notes.get("modality", "").upper()
        modality = {"MRI": "MR", "PET": "PT"}.get(stated, stated)
        if modality in _MODALITIES:
            return {"equals": modality}, "which series exactly? The file says the modality only"
        seen = f"{role} {self.source.stem} {' '.join(self.form.channels)}".lower()
        for modality, pattern in _MODALITIES.items():
            if pattern.search(seen):
                return {"equals": modality}, "by the names of the file and its tensors"
        return {"matches": "^(CT|MR|PT)$"}, "which series? Write modality, body part, orientation"

    def _pre(self, roles: Mapping[str, tuple[str, ...]]) -> Iterator[Block]:
        axes = Guess("LPS", "slices upwards, rows to the back, columns to the patient's left")
        yield Block("pre", {"kind": "orient", "axes": axes}, many=True, comment=_PRE)
        spacing = self._numbers("spacing")
        if spacing:
            order = Guess(spacing, "stated by the file; slices, rows, columns?")
            yield Block("pre", {"kind": "resample", "spacing": order}, many=True)
        whole = all(spec.dtype not in {"float32", "float16"} for spec in self.signature.inputs)
        if not whole:
            yield self._normalisation(next(iter(roles.values()))[0])
        for spec in self.signature.inputs:
            if spec.dtype != "float32":
                own = list(roles[spec.name])
                rows = {"kind": "cast", "roles": own, "dtype": spec.dtype}
                yield Block("pre", rows, many=True)

    def _normalisation(self, role: str) -> Block:
        why = "nothing in the file says how it was trained"
        if self._modality(role)[0].get("equals") == "CT":
            rows = {"kind": Guess("window", why), "centre": Guess(40), "width": Guess(400)}
            return Block("pre", rows, many=True)
        return Block(
            "pre", {"kind": Guess("zscore", why), "foreground": Guess("positive")}, many=True
        )

    def _window(self) -> dict[str, Any]:
        found = self.form
        rows: dict[str, Any] = {"mode": Guess(*self._mode())}
        if found.layout in {"NHWC", "NDHWC"}:
            rows["layout"] = found.layout
        if self._stack:
            rows["stack"] = self._stack
        if max(found.lengths) > 0:
            rows["patch"] = [max(length, 0) for length in found.lengths]
            rows["overlap"] = Guess(0.5, "how far neighbouring blocks share what they see")
        if found.batch == 0:
            rows["batch"] = Guess(_BATCH[len(found.lengths)], "it takes any number")
        if found.multiple > 1:
            rows["multiple"] = Guess(found.multiple, "the smallest that ran on noise")
        return rows

    def _mode(self) -> tuple[str, str]:
        found = self.form
        if found.planar:
            seen = "blocks of a slice" if max(found.lengths) > 0 else "slices of any size"
            if self._stack:
                return "stack", _STACK.format(count=self._stack)
            return "slice", f"it takes {seen}, one at a time"
        if max(found.lengths) > 0:
            return "patch", "it takes blocks of a fixed length; they slide over the volume"
        return "volume", 'it takes any size; for less memory mode = "patch", patch = [96, 96, 96]'

    def _output(self) -> dict[str, Any]:
        doubts = self.form.doubts
        tensor: Any = self.form.output
        activation: Any = self.form.activation
        if "output" in doubts:
            tensor = Guess(tensor, doubts["output"])
        if "activation" in doubts:
            activation = Guess(activation, doubts["activation"])
        return {"tensor": tensor, "activation": activation}

    def _post(self) -> dict[str, Any]:
        if self.form.exclusive:
            return {"kind": "argmax"}
        return {"kind": "threshold", "value": Guess(0.5, "where do you want to operate?")}

    def _findings(self) -> Iterator[Block]:
        first = 1 if self.form.exclusive else 0
        count = self.form.classes - first
        if not 1 <= count <= _MOST_LABELS:
            raise ImportRefused(
                f"the output {self.form.output!r} has {self.form.classes} classes; "
                f"wanted 1 to {_MOST_LABELS} beside the background"
            )
        names = [word[:64] for word in self._listed("labels", "classes", "names")][-count:]
        stated = len(set(names)) == len(names) == count
        for label in range(1, count + 1):
            named = names[label - 1] if stated else ""
            yield Block("finding", {"label": label, **self._meant(label, named)}, many=True)

    def _meant(self, label: int, name: str) -> dict[str, Any]:
        """The name, codes and colour of a finding; without a name all of it is a guess."""
        if not name:
            guess = Guess(f"Finding {label}", "what does this class mean?")
            lesion = Guess(_LESION, "the code of what it finds")
            codes: dict[str, Any] = {"category": Guess(_ABNORMAL, "CID 7150"), "type": lesion}
            return {"name": guess, **codes, "colour": colour(label)}
        known = meaning(name, f"{self.signature.notes.get('title', '')} {self.source.stem}")
        rows: dict[str, Any] = dict(known.rows())
        if known.doubt:
            rows |= {key: Guess(rows[key], known.doubt) for key in ("category", "type")}
        instances = "whole" if known.whole else "components"
        return {"name": name, **rows, "colour": colour(label), "instances": instances}

    def _listed(self, *keys: str) -> list[str]:
        """Words that the metadata list: as JSON (a list or an object by number), or by commas."""
        for key in keys:
            text = self.signature.notes.get(key, "")
            if text:
                return [word for word in map(str.strip, _words(text)) if word]
        return []

    def _numbers(self, key: str) -> list[float]:
        """Three lengths in millimetres; empty when the metadata do not have them."""
        found = re.findall(r"\d+(?:\.\d+)?", self.signature.notes.get(key, ""))
        return [float(one) for one in found] if len(found) == 3 else []


def _words(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.split(",")
    if isinstance(value, dict):
        return [str(word) for _, word in sorted(value.items(), key=_by_number)]
    return [str(word) for word in value] if isinstance(value, list) else [str(value)]


def _by_number(entry: tuple[str, Any]) -> tuple[int, str]:
    key = entry[0]
    return (int(key), key) if key.isdecimal() and len(key) < 10 else (1 << 31, key)


def _slug(words: str) -> str:
    """A name as manifests allow it: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40] or "image"


_HEAD = """\
Proposed from a bare ONNX file. Every value that the file does not state is marked "guessed": put
it right, or take the mark away. What each key means stands in engines/README.md."""
_PRE = "As the training images were prepared, in this order; spatial steps are undone afterwards."
