"""The wire and the file: the only place, with outputs, that knows a DICOM library."""
