"""Other servers of models, each in an environment of its own, around the same ONNX session.

Some of them take bodies of nothing but numbers: batch, heads, length and head size, then the
query, the key and the value; their answers are the output and the weights.
"""

from __future__ import annotations

import numpy as np

HEAD = np.dtype("<u4")
MEDIA_TYPE = "application/octet-stream"
