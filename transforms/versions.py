"""The versions of the libraries that compute pixels."""

from __future__ import annotations

import numpy as np
import PIL
from PIL import features

from joulecache.transforms.jpeg import simplejpeg_version
from joulecache.transforms.kernels import opencv_version
from joulecache.transforms.resizing import resizer


def kernel_versions() -> dict[str, str]:
    """Return the version of each library that computes pixels here; "resizer" is what resizes, with its version.

    "libjpeg_turbo" is the one in Pillow, which decodes what simplejpeg leaves to it. simplejpeg has its own.
    """
    return {
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version_feature("libjpeg_turbo") or "unknown",
        "simplejpeg": simplejpeg_version(),
        "opencv": opencv_version(),
        "resizer": resizer(),
    }
