"""A drafter of the user's own: the example of docs/drafters.md, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from outrider.errors import InvalidRequest
from tests.draft.drafting import Driver
from workers.choice.params import ChoiceParams
from workers.draft.drafter import DrafterSpec, Resources, load_drafter

DOCS = Path(__file__).parents[2] / "docs" / "drafters.md"


@pytest.fixture
def stutter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "stutter.py").write_text(example[1] + "\n\nclass Half:\n    def __init__(self, resources): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stutter", raising=False)


@pytest.mark.usefixtures("stutter")
def test_the_example_of_the_documentation_drafts() -> None:
    driver = Driver(load_drafter(DrafterSpec.parse("mine=class:stutter:Stutter"), Resources()))
    driver.open(1, ChoiceParams(), [4, 7], 3)
    driver.finish()
    assert driver.told[1].standing() == [(7,), (7, 7), (7, 7, 7)]

    driver.order(1, [7], 3)
    driver.finish()
    assert driver.told[1].standing() == [(7,), (7, 7), (7, 7, 7)]


@pytest.mark.usefixtures("stutter")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("stutter", "class:MODULE:NAME"),
        ("nowhere:Class", "can't be imported"),
        ("stutter:Nobody", "can't be imported"),
        ("stutter:Half", "lacks kind, model"),
    ],
)
def test_what_is_no_drafter_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        load_drafter(DrafterSpec.parse(f"class:{source}"), Resources())
