"""How far a runtime may be from the reference before it is taken to be wrong: one table.

The reference is the FP32 model by ONNX Runtime on the CPU. The figures were measured where it is
said, and are about three times the largest difference seen on networks of 1 to 13 million weights;
what a network loses of its purpose is for the verification to judge, not for this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What |found - reference| may be at most: absolute + relative * max |reference|."""

    absolute: float
    relative: float
    why: str

    def admits(self, found: NDArray[Any], reference: NDArray[Any]) -> bool:
        """Whether an output is close enough: of the same shape, finite, and within the bound."""
        if found.shape != reference.shape or not np.isfinite(found).all():
            return False
        return self.distance(found, reference) <= 1.0

    def distance(self, found: NDArray[Any], reference: NDArray[Any]) -> float:
        """The largest difference as a share of what is allowed."""
        if not reference.size:
            return 0.0
        wanted = reference.astype(np.float64)
        allowed = self.absolute + self.relative * float(np.abs(wanted).max())
        return float(np.abs(found.astype(np.float64) - wanted).max()) / allowed


_EXACT_ORDER = "sums in another order: 1e-5 to 4e-5 against torch on 2-D and 3-D networks"
_WINOGRAD = "Winograd convolutions: 7e-5 to 3e-4 against torch on 3-D networks"
_BF16 = "8 bits of mantissa: 3e-3 to 1e-2 on DenseNet121 and on two 3-D U-Nets"
_FP16 = "11 bits of mantissa; the bound that NVIDIA uses for parity of FP16 engines"
_TF32_OFF = "FP32 without TF32; other algorithms for convolutions than the CPU's"
_QUANTISED = "8 bits in all: 1.5e-2 to 7.6e-2 on DenseNet121 and on two 3-D U-Nets"

TOLERANCES: Mapping[tuple[str, str], Tolerance] = {
    ("onnx", "fp32"): Tolerance(1e-6, 1e-4, _EXACT_ORDER),
    ("onnx", "fp16"): Tolerance(1e-3, 1e-2, _FP16),
    ("onnx", "int8"): Tolerance(1e-2, 2e-1, _QUANTISED),
    ("openvino", "fp32"): Tolerance(1e-6, 1e-3, _WINOGRAD),
    ("openvino", "bf16"): Tolerance(1e-3, 3e-2, _BF16),
    ("openvino", "fp16"): Tolerance(1e-3, 1e-2, _FP16),
    ("openvino", "int8"): Tolerance(1e-2, 2e-1, _QUANTISED),
    ("tensorrt", "fp32"): Tolerance(1e-5, 1e-3, _TF32_OFF),
    ("tensorrt", "fp16"): Tolerance(1e-2, 1e-2, _FP16),
    ("tensorrt", "int8"): Tolerance(1e-2, 2e-1, _QUANTISED),
    ("tensorrt", "fp8"): Tolerance(1e-2, 2e-1, _QUANTISED),
}
"""By the runtime's key in the registry and the precision of the arithmetic."""
