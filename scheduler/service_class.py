"""What a service class is worth. Part of the core: no I/O.

The more urgent one of two has the lower number.
"""

from __future__ import annotations

from outrider.v1.inference_pb2 import (
    SERVICE_CLASS_BATCH,
    SERVICE_CLASS_INTERACTIVE,
    SERVICE_CLASS_STANDARD,
    ServiceClass,
)

BY_URGENCY = (SERVICE_CLASS_INTERACTIVE, SERVICE_CLASS_STANDARD, SERVICE_CLASS_BATCH)

# Of a token in the price: one draft node of an interactive row is worth as much as sixteen of a batch row that are as
# likely to be reached.
WEIGHTS: dict[ServiceClass, float] = {
    SERVICE_CLASS_INTERACTIVE: 4.0,
    SERVICE_CLASS_STANDARD: 1.0,
    SERVICE_CLASS_BATCH: 0.25,
}

# What a class that waits is due of the tokens that more urgent ones are served; and in one pass out of so many, its
# prompts come first.
SHARE = 1 / 16
