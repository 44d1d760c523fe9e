"""What is said of a process that has ended."""

from __future__ import annotations

import pytest

from cluster.process import _plain_reason

FIELDS = "\tclass_name: TargetActor\n\tactor_id: 22f0fb8b95c5b90aacfb5abb01000000"


@pytest.mark.parametrize(
    ("account", "reason"),
    [
        (f"The actor died unexpectedly.\n{FIELDS}", "The actor died unexpectedly."),
        (f"The actor died unexpectedly.\n{FIELDS}\nIts node has died.", "Its node has died."),
        ("The actor is dead. Worker exit detail: End of file. Some common causes include: many.", "End of file."),
    ],
)
def test_the_reason_is_the_last_sentence_of_rays_account_and_no_field(account: str, reason: str) -> None:
    assert _plain_reason(RuntimeError(account)) == f"its process ended: {reason}"
