"""The wire and the file: the only place, with outputs, that knows a DICOM library."""

from __future__ import annotations

import logging

# Its import sets the level of its logger, so it comes first.
import pydicom.config

# pydicom quotes odd values in what it logs, and a value may be a patient's.
pydicom.config.logger.setLevel(logging.CRITICAL)
