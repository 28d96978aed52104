"""MONAI bundles: what stands in one, and what the node does in its place, step by step.

Read from the top: ``translation`` is the whole of it; ``transforms``, ``finishing`` and ``inferer``
are the tables of what MONAI calls its steps; ``workflow`` and ``expression`` read a configuration
without running anything; ``imprint`` is who made it, and ``parcel`` the folder or zip it came in.
"""
