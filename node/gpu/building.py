"""From a network to a plan: what the library's parser and builder do, and a process of its own.

Building takes seconds to many minutes, may need gigabytes and may crash, so it runs as
``python -m node.gpu.building``: one order as JSON on standard input (``Recipe.order``), lines of
JSON on standard output, ``{"progress": 0..1, "phase": text}`` on the way and at the end
``{"done": {...}}`` or ``{"failed": {"error": class of node.domain.errors, "reason": text}}``.
SIGTERM cancels; what it leaves then is nothing. Whatever the libraries print goes to standard
error.

Precision lies in the network: the builder only compiles. A network that is not of the precision
that was asked for is refused, for nothing else would tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from node.domain.errors import InferenceError, JobCancelled, NodeError
from node.gpu.cuda import open_device
from node.gpu.libraries import Library, load_library
from node.gpu.progress import Report, monitor, unreported
from node.gpu.recipe import Precision, Profile, Recipe, Settings, read_order

_INCOMPLETE = "check that the file is complete, or export it again"
_HALVES = {"HALF", "BF16"}
_QUANTISED = {"QUANTIZE", "DEQUANTIZE"}


@dataclass(frozen=True, slots=True)
class Built:
    """A plan and what the builder said of it; memory in bytes."""

    plan: bytes
    digest: str
    """sha256 of the plan."""
    version: str
    """Of the library that built it."""
    activation: int
    """Device memory that one context will want, as predicted; 0 when it was not told."""
    weights: int
    """Device memory of the weights, as predicted; 0 when it was not told."""
    layers: int
    """Layers of the network as it was parsed."""
    seconds: float
    warnings: tuple[str, ...] = ()


def build(
    library: Library,
    recipe: Recipe,
    report: Report = unreported,
    cancelled: Callable[[], bool] = bool,
    timing_cache: Path | None = None,
) -> Built:
    """Compile a network.

    ``timing_cache`` is read and written (TensorRT only; TensorRT-RTX has none). Raises
    InferenceError with the nodes that the library does not know, RuntimeUnavailable without a
    driver where one is needed, and JobCancelled.
    """
    began = time.monotonic()
    api = library.api
    with library.calls("starting a builder"):
        builder = api.Builder(library.logger)
        strongly_typed = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(strongly_typed)
        parser = api.OnnxParser(network, library.logger)
    report(0.0, "reading the network")
    _parse(library, parser, recipe.model)
    if not network.num_outputs:
        raise InferenceError(f"{recipe.model.name} holds no network; {_INCOMPLETE}")
    _refuse_other_precision(network, recipe)
    with library.calls("setting up the builder"):
        config = _configured(library, builder, network, recipe)
        config.progress_monitor = watching = monitor(api, report, cancelled)
    with library.calls("building the plan"), _timing(library, config, timing_cache):
        made = None if cancelled() else builder.build_serialized_network(network, config)
        if watching.stopped or (made is None and cancelled()):
            raise JobCancelled(f"building the plan of {recipe.model.name} was cancelled")
        if made is None:
            raise library.failure(f"building the plan of {recipe.model.name}")
    return _described(library, bytes(made), network.num_layers, time.monotonic() - began)


def _described(library: Library, plan: bytes, layers: int, seconds: float) -> Built:
    facts = library.journal.facts
    return Built(
        plan=plan,
        digest=hashlib.sha256(plan).hexdigest(),
        version=library.version,
        activation=facts.get("Total Activation Memory", 0),
        weights=facts.get("Total Weights Memory", 0),
        layers=layers,
        seconds=round(seconds, 3),
        warnings=library.journal.warnings(),
    )


def _parse(library: Library, parser: Any, model: Path) -> None:
    """Read the file, with the weights that lie beside it."""
    if not model.is_file():
        raise InferenceError(f"there is no model file {model}")
    with library.calls(f"reading {model.name}"):
        if parser.parse_from_file(str(model)):
            return
        faults = [_fault(parser.get_error(number)) for number in range(parser.num_errors)]
    if not faults:
        raise library.failure(f"reading {model.name}")
    raise InferenceError(
        f"{library.title} cannot compile {model.name}: {'; '.join(dict.fromkeys(faults))}"
    )


def _fault(error: Any) -> str:
    """One error of the parser: which node, and why."""
    told = " ".join(str(error.desc()).split())
    if error.func() == "importInput":
        return (
            f"the input {error.file()!r} has a number type that it lacks, such as int16: export "
            f"the network with FP32 inputs ({_reason(told)})"
        )
    if "Failed to parse the ONNX model" in told:
        told = f"it is no ONNX model; {_INCOMPLETE}"
    if "Plugin not found" in told:
        told = "it does not know this operator; export the network without it"
    operator, node = error.node_operator(), error.node_name()
    return f"node {node!r} ({operator}): {_reason(told)}" if operator else _reason(told)


def _reason(told: str) -> str:
    """What an assertion of the parser says in words, without what it asserts."""
    quoted = re.search(r'&& "([^"]+)"', told)
    words = quoted[1] if quoted else told
    if words.startswith("Assertion failed"):
        words = words.rpartition(": ")[2]
    return words.rstrip(". ")[:300]


def _refuse_other_precision(network: Any, recipe: Recipe) -> None:
    found = precision(network)
    if found != recipe.precision:
        raise InferenceError(
            f"{recipe.model.name} is a network of precision {found}, not {recipe.precision}: "
            f"precision lies in the network; name it as what it is (model.onnx for fp32, "
            f"model.fp16.onnx, model.int8.onnx) and choose that precision"
        )


def precision(network: Any) -> Precision:
    """What a parsed network computes in: the least precise type that it uses."""
    halves = False
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type.name in _QUANTISED:
            return "int8"
        outputs = (layer.get_output(output) for output in range(layer.num_outputs))
        halves = halves or any(one is not None and one.dtype.name in _HALVES for one in outputs)
    return "fp16" if halves else "fp32"


def _configured(library: Library, builder: Any, network: Any, recipe: Recipe) -> Any:
    api, settings = library.api, recipe.settings
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace)
    config.builder_optimization_level = settings.level
    if settings.tf32:
        config.set_flag(api.BuilderFlag.TF32)
    else:
        config.clear_flag(api.BuilderFlag.TF32)
    if library.rtx and settings.capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capability(api, settings.capability), 0)
    profiles = profiled(network, recipe)
    if profiles:
        optimization = builder.create_optimization_profile()
        for one in profiles:
            optimization.set_shape(one.tensor, one.smallest, one.usual, one.largest)
        if config.add_optimization_profile(optimization) < 0:
            raise library.failure("setting the lengths of free axes")
    return config


def _capability(api: Any, capability: str) -> Any:
    """The one to build for; of one that has no name here, the library itself may speak."""
    name = f"SM{capability.replace('.', '')}"
    return getattr(api.ComputeCapability, name, api.ComputeCapability.CURRENT)


def profiled(network: Any, recipe: Recipe) -> tuple[Profile, ...]:
    """The lengths of every input with free axes.

    Raises InferenceError when an input has free axes beside its batch and no profile, and when a
    profile does not fit.
    """
    given = {profile.tensor: profile for profile in recipe.profiles}
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    unknown = sorted(given.keys() - {one.name for one in inputs})
    if unknown:
        raise InferenceError(
            f"there are profiles for {unknown}; the network's inputs are "
            f"{sorted(one.name for one in inputs)}"
        )
    free = [one for one in inputs if -1 in tuple(one.shape)]
    batch = recipe.settings.batch
    return tuple(
        _fitted(given.get(one.name) or _batched(one.name, tuple(one.shape), batch), one)
        for one in free
    )


def _batched(name: str, shape: tuple[int, ...], batch: int) -> Profile:
    """From one to the largest batch, where nothing but the batch is free."""
    if -1 in shape[1:]:
        raise InferenceError(
            f"the input {name!r} has free axes {shape} (-1) beside its batch: give the runtime "
            f"their lengths, profiles.{name} = [smallest, usual, largest]"
        )
    rest = shape[1:]
    return Profile(name, (1, *rest), (batch, *rest), (batch, *rest))


def _fitted(profile: Profile, tensor: Any) -> Profile:
    shape = tuple(tensor.shape)
    rows = (profile.smallest, profile.usual, profile.largest)
    whole = all(len(row) == len(shape) for row in rows)
    if not whole or not all(
        0 < low <= usual <= high and length in {-1, low} and length in {-1, high}
        for length, low, usual, high in zip(shape, *rows, strict=True)
    ):
        raise InferenceError(
            f"the profile of {tensor.name!r}, {rows}, does not fit its shape {shape} (-1: free): "
            f"every row needs all axes, smallest <= usual <= largest, and the fixed lengths as "
            f"they are"
        )
    return profile


@contextmanager
def _timing(library: Library, config: Any, path: Path | None) -> Iterator[None]:
    """What was measured of kernels before spares measuring it again, and repeats the choice."""
    if path is None or library.rtx:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        # Damaged, or of another device or version: measured anew.
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    _write(path, bytes(config.get_timing_cache().serialize()))


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, and for nobody else: a plan is code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".building-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def fulfil(
    order: Mapping[str, Any], report: Report, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Build what an order asks for and write it to its ``out``.

    Returns what ``done`` tells: ``Built`` without the plan, with "out" and "size" in bytes.
    """
    recipe, out, timing_cache = read_order(order)
    library = load_library(recipe.flavour)
    with _on_device(library, recipe.settings):
        built = build(library, recipe, report, cancelled, timing_cache)
    report(1.0, "writing the plan")
    try:
        _write(out, built.plan)
    except OSError as error:
        raise InferenceError(f"the plan cannot be written to {out}: {error}") from error
    told = {name: value for name, value in asdict(built).items() if name != "plan"}
    return {"out": str(out), "size": len(built.plan), **told}


@contextmanager
def _on_device(library: Library, settings: Settings) -> Iterator[None]:
    """The device's context around the build, where it needs one.

    TensorRT-RTX needs none for a capability that it knows: the device's memory stays free.
    """
    elsewhere = library.rtx and _capability(library.api, settings.capability).name != "CURRENT"
    if settings.device is None or elsewhere:
        yield
        return
    device = open_device(settings.device)
    try:
        yield
    finally:
        device.close()


class Voice:
    """Lines of JSON on what was standard output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, **words: Any) -> None:
        """One line, at once; nobody may be listening any more."""
        try:
            self._stream.write(json.dumps(words) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            return

    def report(self, fraction: float, phase: str) -> None:
        """Progress."""
        self.say(progress=round(fraction, 4), phase=phase)


def main() -> int:
    """Fulfil the order on standard input; 0 when the plan is written."""
    cancelled = _cancellation()
    voice = Voice(_private_output())
    try:
        voice.say(done=fulfil(_order(sys.stdin), voice.report, cancelled.is_set))
    except NodeError as error:
        voice.say(failed={"error": type(error).__name__, "reason": str(error)})
        return 1
    return 0


def _order(stream: TextIO) -> dict[str, Any]:
    try:
        order = json.load(stream)
    except ValueError as error:
        raise InferenceError(f"the order to build a plan is no JSON: {error}") from error
    if not isinstance(order, dict):
        raise InferenceError("the order to build a plan is no JSON object")
    return order


def _private_output() -> TextIO:
    """Standard output for us alone: the libraries print to it, so theirs becomes stderr."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


def _cancellation() -> threading.Event:
    """Set by SIGTERM.

    Python's own handlers do not run while the builder does, so a thread reads what the signal
    itself writes.
    """
    asked = threading.Event()
    ours, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # it does not end us

    def wait() -> None:
        while signal.SIGTERM not in os.read(ours, 1):
            continue
        asked.set()

    threading.Thread(target=wait, daemon=True, name="cancellation").start()
    return asked


if __name__ == "__main__":
    sys.exit(main())
