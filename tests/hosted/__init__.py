"""The GPU's sliding window on the processor: the same kernels, compiled by g++.

What passes here is the arithmetic and the order of the work. It proves nothing about CUDA: not
that a device runs the kernels, nor how fast, nor that its threads do not disturb one another.
``tests/gpu/test_sweep.py`` asks the same of a real device.
"""
