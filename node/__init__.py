"""The DICOM AI node: receives studies, runs a CNN engine, sends SEG and SR back.

The tour starts in :mod:`node.pipeline`; what each layer may import stands in ``pyproject.toml``.
"""

__version__ = "0.1.0"
