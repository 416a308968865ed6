"""Posed photos to radiance fields, and fields to videos, numbers and shapes."""

import os

from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.settings import load_config

__version__ = "0.1.0"
__all__ = ["Config", "NerfError", "__version__", "load_config"]

# torch's idle OpenMP threads would spin on the cores that the compiled kernels' own threads
# use between torch's calls; it is read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
