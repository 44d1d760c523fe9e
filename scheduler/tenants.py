"""Whose request it is: set by the gate for the length of a call, read wherever that matters. Empty: nobody is asked."""

from __future__ import annotations

from contextvars import ContextVar

tenant: ContextVar[str] = ContextVar("tenant", default="")
