"""The execution provider that tests of attention run on.

The CPU's, unless ``ATTENTION_TEST_PROVIDER`` names another, on a machine that has it:

    ATTENTION_TEST_PROVIDER=cuda .venv/bin/pytest tests/attention
"""

from __future__ import annotations

import os

from attention_service.attention.engine import PROVIDERS

PROVIDER = os.environ.get("ATTENTION_TEST_PROVIDER", "cpu")
PROVIDER_NAME = PROVIDERS[PROVIDER]
