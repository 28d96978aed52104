"""Decodes encapsulated pixels, several slices at once.

The order of the slices, their values and the words of an error do not depend on how many are
decoded at once. What a codestream states is compared with its header before a decoder sees it.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from node.dicom.codestream import codecs, decoded_quickly, refuse_other_size
from node.dicom.headers import where
from node.dicom.layout import DECODING_COSTS, MOST_BYTES, Layout
from node.domain.errors import PixelError
from node.domain.study import Instance

_MOST_WORKERS = 16
"""Beyond it the reading of headers, which holds the interpreter's lock, leaves no gain."""

# The faster plugin where there are two, as measured; JPEG has one that may be shipped.
_PLUGINS = (
    (JPEGLSTransferSyntaxes, "pyjpegls"),
    (JPEG2000TransferSyntaxes, "pylibjpeg"),
    (JPEGTransferSyntaxes, "gdcm"),
    ([RLELossless], "pylibjpeg"),
)
# What pydicom and its plugins raise on a codestream that is none.
_UNDECODABLE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

Values = NDArray[Any]


def in_order(
    read: Callable[[Instance, Layout], Values],
    instances: Sequence[Instance],
    layouts: Sequence[Layout],
) -> Generator[Values, None, None]:
    """What ``read`` makes of each slice, in their order, while the next ones are being read.

    The first slice is alone, so that what cannot be read costs little. As many are read at once
    as there are cores and as fit into the memory of one; an error is raised at its slice's turn.
    """
    pairs = zip(instances, layouts, strict=True)
    for pair in islice(pairs, 1):
        yield read(*pair)
    pending: deque[Future[Values]] = deque()
    workers = _workers(layouts)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decoding")
    try:
        for pair in pairs:
            pending.append(pool.submit(read, *pair))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decoder_of(instance: Instance) -> Decoder:
    """pydicom's decoder of the instance's transfer syntax; PixelError where there is none."""
    uid = UID(instance.transfer_syntax_uid)
    try:
        decoder = get_decoder(uid)
    except NotImplementedError as error:
        raise PixelError(f"no decoder is known for transfer syntax {uid.name}") from error
    if not decoder.is_available:
        raise PixelError(
            f"no decoder is installed for {uid.name}; it needs "
            f"{' or '.join(decoder.missing_dependencies)}"
        )
    return decoder


def decoded(encapsulated: bytes, instance: Instance, layout: Layout) -> Values:
    """The stored values (rows, columns) of a slice's encapsulated Pixel Data (PS3.5 A.4).

    Raises PixelError with the name of the transfer syntax when it cannot be decoded.
    """
    decoder = decoder_of(instance)
    try:
        codestream = next(generate_frames(encapsulated, number_of_frames=1))
        refuse_other_size(codestream, layout)
    except (*_UNDECODABLE, StopIteration) as error:
        raise _undecodable(decoder, instance, [str(error)]) from error
    values = decoded_quickly(codestream, decoder.UID, layout, codecs())
    if values is None:
        values = _tried(decoder, encapsulated, instance, layout)
    if values.shape != (layout.rows, layout.columns):
        raise PixelError(
            f"{where(instance)} decodes to {values.shape}; wanted ({layout.rows}, {layout.columns})"
        )
    return np.require(values.astype(layout.dtype, copy=False), requirements="W")


def _workers(layouts: Sequence[Layout]) -> int:
    cores = len(os.sched_getaffinity(0))
    most = max(layout.length for layout in layouts) * DECODING_COSTS
    return max(1, min(cores, _MOST_WORKERS, MOST_BYTES // most))


def _tried(decoder: Decoder, encapsulated: bytes, instance: Instance, layout: Layout) -> Values:
    """What the first plugin makes that can: each takes codestreams that another refuses."""
    preferred = next((name for known, name in _PLUGINS if decoder.UID in known), "")
    said = []
    for plugin in sorted(decoder.available_plugins, key=lambda name: name != preferred):
        try:
            values, _ = decoder.as_array(
                encapsulated, raw=True, decoding_plugin=plugin, **_options(layout)
            )
        except _UNDECODABLE as error:
            said.append(str(error).splitlines()[-1])
        else:
            return values
    raise _undecodable(decoder, instance, said)


def _undecodable(decoder: Decoder, instance: Instance, said: list[str]) -> PixelError:
    return PixelError(
        f"{decoder.UID.name} could not be decoded in {where(instance)}: "
        f"{'; '.join(' '.join(one.split()) for one in said)[:300]}; have the peer send it "
        "uncompressed"
    )


def _options(layout: Layout) -> dict[str, Any]:
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
        "allow_excess_frames": False,
    }
