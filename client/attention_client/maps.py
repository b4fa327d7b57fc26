"""Attention maps as text; the drawing itself is the wire's, which the service draws with too."""

from __future__ import annotations

from attention_wire.maps import WIDTH, attention_map

__all__ = ["WIDTH", "attention_map"]
