"""What of NVIDIA is on this machine, asked by a process that may hang or crash instead of us.

A broken driver can hang in its first call, or end the process. So ``python -m node.gpu.probing``
looks, step by step, and tells each finding as a line of JSON; whoever asked reads what came before
the end, and knows by the last step begun where it ended.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.gpu.cuda import kernel_driver, open_device
from node.gpu.device import Card, number_as_the_driver
from node.gpu.libraries import FLAVOURS, Library, load_library
from node.gpu.recipe import Flavour

_PATIENCE = 120.0
"""Seconds; building a first plan loads gigabytes of kernels."""

_STALE = 60.0
"""Seconds after which a driver may have been repaired."""

_GRACE = 5.0
"""Seconds in which a killed process has to be gone."""

_MAJOR, _MINOR = 75, 76
"""CUDA's numbers of the attributes that make the compute capability."""

_NO_DRIVER = "install NVIDIA's driver 580 or newer and check with nvidia-smi that it sees the card"


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found, and in sentences what is missing."""

    libraries: Mapping[str, str]
    """Flavour -> version of the libraries that load."""
    runs: Flavour | None
    """The flavour that built and loaded a plan on the device; None: none did."""
    driver: str
    """The driver and the CUDA version up to which it works; empty without one."""
    devices: tuple[Card, ...]
    pycuda: str
    """Its version; empty when it cannot be used."""
    missing: tuple[str, ...]
    """One sentence for each missing piece: what, and what brings it; the first matters most."""

    @property
    def reason(self) -> str:
        """Why no plan can run; empty when one can."""
        return "" if self.runs else next(iter(self.missing), "no TensorRT could be tried")

    def version(self) -> str:
        """The library that runs, in words; empty when none does."""
        return f"{FLAVOURS[self.runs]} {self.libraries[self.runs]}" if self.runs else ""


_NOTHING = Probe(libraries={}, runs=None, driver="", devices=(), pycuda="", missing=())


def probe(device: int = 0, flavour: Flavour | None = None, patience: float = _PATIENCE) -> Probe:
    """Look in another process, at most ``patience`` seconds.

    ``flavour`` restricts which library is tried on the device. Never raises: what cannot be found
    out is a sentence in ``missing``. What runs is remembered, what does not for a minute.
    """
    key = (device, flavour)
    at, found = _answers().get(key, (0.0, None))
    if found is None or (found.runs is None and time.monotonic() - at > _STALE):
        found = _asked(device, flavour, patience)
        _answers()[key] = (time.monotonic(), found)
    return found


@cache
def _answers() -> dict[tuple[int, Flavour | None], tuple[float, Probe]]:
    """What was found, and when."""
    return {}


def _asked(device: int, flavour: Flavour | None, patience: float) -> Probe:
    words = [sys.executable, "-m", "node.gpu.probing", str(device), flavour or ""]
    child = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        output, _ = child.communicate(timeout=patience)
        ended = "" if child.returncode == 0 else f"ended with {child.returncode}"
    except subprocess.TimeoutExpired:
        output = _killed(child)
        ended = f"did not answer within {patience:g} s"
    return understood(output.decode(errors="replace").splitlines(), ended)


def _killed(child: subprocess.Popen[bytes]) -> bytes:
    """What a child said until it was killed; one that hangs in the kernel is left behind."""
    child.kill()
    try:
        return child.communicate(timeout=_GRACE)[0]
    except subprocess.TimeoutExpired as error:
        return error.output or b""


def understood(lines: Sequence[str], ended: str = "") -> Probe:
    """The probe from the lines that were told, and how the asking ended if not well."""
    found, step, absent = _NOTHING, "starting", []
    for line in lines:
        word = _word(line)
        step = word.get("step", step)
        if "absent" in word:
            absent.append(word["absent"])
        found = _with(found, word)
    if ended:
        absent.insert(0, f"{step} {ended}: NVIDIA's driver or library is broken; {_NO_DRIVER}")
    if not found.libraries:
        return replace(found, missing=(*absent,))
    # One of the two libraries is enough, so the other's absence says the least.
    last = [one for one in absent if one.startswith(tuple(FLAVOURS.values()))]
    return replace(found, missing=(*(one for one in absent if one not in last), *last))


def _word(line: str) -> dict[str, Any]:
    """A line that is no JSON comes from a library."""
    try:
        word = json.loads(line)
    except ValueError:
        return {}
    return word if isinstance(word, dict) else {}


def _with(found: Probe, word: Mapping[str, Any]) -> Probe:
    """What is known after one more line."""
    if "library" in word:
        return replace(found, libraries={**found.libraries, word["library"]: word["version"]})
    if "device" in word:
        card = word["device"]
        known = Card(**{**card, "capability": tuple(card["capability"])})
        return replace(found, devices=(*found.devices, known))
    names = ("runs", "driver", "pycuda")
    return replace(found, **{name: word[name] for name in names if name in word})


def main() -> int:
    """Look, and tell it on standard output."""
    index, flavour = int(sys.argv[1]), sys.argv[2]
    for word in _look(index, [one for one in FLAVOURS if flavour in {"", one}]):
        sys.stdout.write(json.dumps(word) + "\n")
        sys.stdout.flush()
    return 0


def _look(index: int, flavours: Sequence[Flavour]) -> Iterator[dict[str, Any]]:
    libraries = []
    for flavour in flavours:
        yield {"step": f"loading {FLAVOURS[flavour]}"}
        try:
            libraries.append(load_library(flavour))
            yield {"library": flavour, "version": libraries[-1].version}
        except RuntimeUnavailable as error:
            yield {"absent": str(error)}
    complete = True
    for step, told in (
        ("asking the NVIDIA driver", _driver()),
        ("looking for pycuda", _pycuda()),
    ):
        yield {"step": step}
        try:
            yield from told
        except RuntimeUnavailable as error:
            complete = False
            yield {"absent": str(error)}
    if complete and libraries:
        yield from _trials(index, libraries)


def _driver() -> Iterator[dict[str, Any]]:
    """The driver and its devices, without pycuda. Raises RuntimeUnavailable."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeUnavailable(
            f"no usable NVIDIA driver: its libcuda.so.1 is missing; {_NO_DRIVER}"
        ) from error
    number_as_the_driver()
    _succeed(cuda, cuda.cuInit(0))
    number, count = ctypes.c_int(), ctypes.c_int()
    _succeed(cuda, cuda.cuDriverGetVersion(ctypes.byref(number)))
    _succeed(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    works = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    module = kernel_driver()
    driver = f"{module} ({works})" if module else works
    yield {"driver": driver}
    if not count.value:
        raise RuntimeUnavailable(f"the NVIDIA driver {driver} sees no GPU; {_NO_DRIVER}")
    for index in range(count.value):
        yield {"device": asdict(_card(cuda, index, driver))}


def _card(cuda: ctypes.CDLL, index: int, driver: str) -> Card:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    _succeed(cuda, cuda.cuDeviceGet(ctypes.byref(device), index))
    _succeed(cuda, cuda.cuDeviceGetName(name, len(name), device))
    _succeed(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device))
    _succeed(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device))
    _succeed(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    title = name.value.decode(errors="replace")
    return Card(index, title, (major.value, minor.value), driver, memory.value)


def _succeed(cuda: ctypes.CDLL, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        words = (text.value or b"unknown").decode(errors="replace")
        raise RuntimeUnavailable(
            f"no usable NVIDIA driver (CUDA error {code}: {words}); {_NO_DRIVER}"
        )


def _pycuda() -> Iterator[dict[str, Any]]:
    """Whether it is installed. Raises RuntimeUnavailable when not."""
    try:
        yield {"pycuda": importlib.metadata.version("pycuda")}
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeUnavailable(
            "pycuda is not installed: the extra dicom-ai-node[tensorrt] brings it; it is compiled "
            "on installing, which needs g++ and the CUDA toolkit"
        ) from error


def _trials(index: int, libraries: Sequence[Library]) -> Iterator[dict[str, Any]]:
    """Each library has to build and load a plan on the device, until one can."""
    yield {"step": f"opening GPU {index}"}
    try:
        device = open_device(index)
    except InferenceError as error:
        yield {"absent": str(error)}
        return
    try:
        for library in libraries:
            yield {"step": f"trying {library.title} on {device.card.name}"}
            try:
                _try(library, device.card)
            except InferenceError as error:
                yield {"absent": _refused(library, device.card, error)}
                continue
            yield {"runs": library.flavour}
            return
    finally:
        device.close()


def _refused(library: Library, card: Card, error: InferenceError) -> str:
    major, minor = card.capability
    return (
        f"{library.title} does not run on {card.name} (compute capability {major}.{minor}, driver "
        f"{card.driver}): {error}"
    )


def _try(library: Library, card: Card) -> None:
    """A plan of one layer. Raises InferenceError with what the library says against it."""
    api = library.api
    with library.calls("starting a builder"):
        builder = api.Builder(library.logger)
        typed = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        given = network.add_input("x", api.float32, (1, 8))
        network.mark_output(network.add_activation(given, api.ActivationType.RELU).get_output(0))
        config = builder.create_builder_config()
        if library.rtx:
            name = "SM{}{}".format(*card.capability)
            one = getattr(api.ComputeCapability, name, api.ComputeCapability.CURRENT)
            config.num_compute_capabilities = 1
            config.set_compute_capability(one, 0)
    with library.calls("building a plan of one layer"):
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise library.failure("building a plan of one layer")
    with library.calls("loading a plan of one layer"):
        if api.Runtime(library.logger).deserialize_cuda_engine(plan) is None:
            raise library.failure("loading a plan of one layer")


if __name__ == "__main__":
    sys.exit(main())
