"""What the launching process must not load: a second of ray for `--help`, or torch at all."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys, cluster.cli, cluster.demo, cluster.actors, cluster.conformance.command
print([n for n in ('ray', 'torch') if n in sys.modules])
"""


def test_the_launching_process_loads_no_torch_and_no_ray_before_it_needs_it() -> None:
    looked = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True, timeout=60)
    assert looked.stdout.strip() == "[]"
