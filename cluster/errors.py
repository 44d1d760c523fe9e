"""What goes wrong with a cell as a whole.

OutriderError
└── ClusterError
    ├── ConfigError      a setting is wrong; the message names key, value and way out
    ├── FetchError       the default model can't be had
    ├── PlacementError   the machines do not offer what the cell asks for
    └── WorkerFailed     a process of the cell did not start, died, or was given up
"""

from __future__ import annotations

from outrider.errors import OutriderError


class ClusterError(OutriderError):
    """Base of all errors that starting, watching and stopping a cell raise on purpose."""


class ConfigError(ClusterError):
    pass


class FetchError(ClusterError):
    pass


class PlacementError(ClusterError):
    pass


class WorkerFailed(ClusterError):
    pass
