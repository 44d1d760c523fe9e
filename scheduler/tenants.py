"""Who asks: set for each call where the caller is known, read where the request is made."""

from __future__ import annotations

from contextvars import ContextVar

tenant: ContextVar[str] = ContextVar("tenant", default="")
