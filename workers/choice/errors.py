"""Why there can be nothing to choose."""

from __future__ import annotations

from outrider.errors import InternalError


class UnusableLogits(InternalError):
    """The model's answer is no law: NaN or infinity."""
