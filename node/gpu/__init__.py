"""The GPU: its device, its kernels, and networks compiled for it.

Nothing outside of this folder imports a GPU library, and nothing here does at import time.
"""
