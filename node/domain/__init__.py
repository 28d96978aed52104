"""The ground: the nouns of the flow, as frozen dataclasses.

Imports the standard library and numpy only; no DICOM, network, database or GPU library.
"""
