"""Write docs/openapi.json, which a test compares with the app's own document."""

from __future__ import annotations

import json
from pathlib import Path

from attention_service.api.app import create_app
from attention_service.settings import Settings

document = create_app(Settings(provider="cpu")).openapi()
path = Path(__file__).parents[1] / "docs" / "openapi.json"
path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
