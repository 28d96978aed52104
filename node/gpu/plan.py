"""A plan on its device: what it takes and gives, and one run of it in the device's stream.

The scratch memory of a network is ours to give: all networks of a device share one block of it,
since they run one after the other in one stream. A plan that does not load is an InferenceError,
after which the cache puts it aside; without memory, driver or device it is one of the errors that
say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from node.domain.errors import InferenceError
from node.domain.tensor import TensorSpec
from node.gpu.device import Block, Device
from node.gpu.libraries import Library

Shapes = Mapping[str, tuple[int, ...]]
"""Lengths of tensors by name, without -1."""


class Scratch:
    """One block for whatever runs now; it grows to what the largest network wants."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._block: Block | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self._block.size if self._block else 0

    def reserve(self, size: int) -> int:
        """The address of at least so many bytes. Raises DeviceMemoryFull."""
        if self._block is None or self._block.size < size:
            self.free()
            self._block = self._device.allocate(size)
        return self._block.address

    def free(self) -> None:
        """Give it back, once nothing runs that uses it."""
        if self._block is not None:
            self._device.synchronise()
            block, self._block = self._block, None
            block.free()


@dataclass(frozen=True, slots=True)
class Ranges:
    """The lengths that the inputs may have: smallest and largest, by name."""

    smallest: Shapes
    largest: Shapes

    def admit(self, shapes: Shapes) -> bool:
        """Whether all inputs lie within."""
        return all(
            len(self.smallest[name]) == len(shape)
            and all(
                low <= length <= high
                for low, length, high in zip(
                    self.smallest[name], shape, self.largest[name], strict=True
                )
            )
            for name, shape in shapes.items()
        )


class Plan:
    """A network compiled for a device. Used by the thread that owns the device."""

    inputs: tuple[TensorSpec, ...]
    """-1 where an axis is free."""
    outputs: tuple[TensorSpec, ...]
    """-1 where an axis is free."""
    ranges: Ranges

    def __init__(self, library: Library, device: Device, runtime: Any, content: bytes) -> None:
        """Load a plan. Raises InferenceError when it is not one for this library and device."""
        self._library = library
        self._device = device
        self._engine, self._context = _loaded(library, runtime, content)
        specs = _specs(library, self._engine)
        self.inputs = tuple(spec for spec, given in specs if given)
        self.outputs = tuple(spec for spec, given in specs if not given)
        self.ranges = _ranges(self._engine, self.inputs)
        self._size = len(content)
        self._scratch: Scratch | None = None
        self._set: dict[str, tuple[int, ...]] = {}
        self._workspace = int(self._engine.device_memory_size_v2)

    def sharing(self, scratch: Scratch) -> Plan:
        """The plan, which from now on takes its scratch memory from there."""
        self._scratch = scratch
        return self

    @property
    def weights(self) -> int:
        """Bytes of the device that the network itself takes, as the library tells.

        Older TensorRT 10 does not: then the plan's own size, which is more.
        """
        engine, api = self._live(), self._library.api
        if not hasattr(engine, "get_engine_stat"):
            return self._size
        return int(engine.get_engine_stat(api.EngineStat.TOTAL_WEIGHTS_SIZE))

    @property
    def workspace(self) -> int:
        """Bytes of scratch memory that a run wants for the largest inputs; each run gets them."""
        return self._workspace

    @property
    def scratch(self) -> int:
        """Bytes that a run may yet ask of the device: what the shared block lacks."""
        return max(self.workspace - (self._scratch.size if self._scratch else 0), 0)

    @property
    def smallest_batch(self) -> int:
        """The fewest blocks that one run takes."""
        return max((shape[0] for shape in self.ranges.smallest.values() if shape), default=1)

    @property
    def max_batch(self) -> int:
        """The most blocks that one run takes."""
        return min((shape[0] for shape in self.ranges.largest.values() if shape), default=1)

    def shapes(self, inputs: Shapes) -> Shapes:
        """The outputs' lengths for these inputs. Raises InferenceError when they do not fit."""
        self._live()
        self._shape(inputs)
        found = {one.name: tuple(self._context.get_tensor_shape(one.name)) for one in self.outputs}
        for name, shape in found.items():
            if -1 in shape:
                raise InferenceError(
                    f"the lengths of the output {name!r} depend on what the network finds; leave "
                    f"such layers (NonZero, NonMaxSuppression) to the steps after it"
                )
        return found

    def run(self, addresses: Mapping[str, int], inputs: Shapes) -> None:
        """Queue one run in the device's stream: every tensor by its address.

        Does not wait for it. Raises InferenceError, DeviceMemoryFull or DeviceLost.
        """
        self._live()
        self._shape(inputs)
        context = self._context
        if self._scratch is not None and self._workspace:
            address = self._scratch.reserve(self._workspace)
            context.set_device_memory(address, self._scratch.size)
        for spec in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(spec.name, addresses[spec.name]):
                raise self._failure(f"giving it the tensor {spec.name!r}")
        with self._library.calls("running a plan"):
            if not context.execute_async_v3(self._device.stream):
                raise self._failure("running a plan")

    def close(self) -> None:
        """Let go of the network, when what runs is done; twice is no error."""
        if self._engine is None:
            return
        try:
            self._device.synchronise()
        finally:
            self._context = None  # before the engine that it belongs to
            self._engine = None

    def _live(self) -> Any:
        if self._engine is None:
            raise InferenceError("the network is closed; load it again")
        return self._engine

    def _shape(self, inputs: Shapes) -> None:
        """Tell the context the lengths of the inputs."""
        wanted = {name: tuple(shape) for name, shape in inputs.items()}
        if wanted == self._set:
            return
        if not self.ranges.admit(wanted):
            raise InferenceError(
                f"the plan takes inputs from {dict(self.ranges.smallest)} to "
                f"{dict(self.ranges.largest)}, it was given {wanted}; widen the runtime's batch "
                f"or profiles"
            )
        self._set = {}
        with self._library.calls("setting the lengths of the inputs"):
            for name, shape in wanted.items():
                if not self._context.set_input_shape(name, shape):
                    raise self._failure(f"setting the lengths of {name!r}")
            missing = self._context.infer_shapes()
            if missing:
                raise InferenceError(f"the plan also needs the lengths of {sorted(missing)}")
        self._set = wanted

    def _failure(self, doing: str) -> InferenceError:
        """Why a call failed; DeviceLost when nothing will work any more."""
        error = self._library.failure(doing)
        self._device.synchronise()
        return error


def _loaded(library: Library, runtime: Any, content: bytes) -> tuple[Any, Any]:
    """The engine and a context whose scratch memory we give."""
    managed = library.api.ExecutionContextAllocationStrategy.USER_MANAGED
    with library.calls("loading a plan"):
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise library.failure("loading a plan")
        context = engine.create_execution_context(managed)
        if context is None:
            raise library.failure("making a context for a plan")
    return engine, context


def _specs(library: Library, engine: Any) -> list[tuple[TensorSpec, bool]]:
    """Every tensor, with whether it is an input."""
    found = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        if engine.is_shape_inference_io(name):
            raise InferenceError(
                f"the tensor {name!r} tells the network a shape; export it with lengths that "
                f"follow from its inputs"
            )
        spec = TensorSpec(name, tuple(engine.get_tensor_shape(name)), _dtype(library, engine, name))
        given = engine.get_tensor_mode(name) == library.api.TensorIOMode.INPUT
        found.append((spec, given))
    return found


def _dtype(library: Library, engine: Any, name: str) -> str:
    kind = engine.get_tensor_dtype(name)
    try:
        return str(np.dtype(library.api.nptype(kind)).name)
    except TypeError as error:
        raise InferenceError(
            f"the tensor {name!r} is {kind.name}, which numpy has not: export the network with "
            f"FP32 inputs and outputs"
        ) from error


def _ranges(engine: Any, inputs: tuple[TensorSpec, ...]) -> Ranges:
    """Of the first profile; an input without free axes has none."""
    smallest, largest = {}, {}
    for spec in inputs:
        rows = engine.get_tensor_profile_shape(spec.name, 0) if -1 in spec.shape else [spec.shape]
        smallest[spec.name], largest[spec.name] = tuple(rows[0]), tuple(rows[-1])
    return Ranges(smallest, largest)
