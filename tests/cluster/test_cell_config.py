"""What can be said in the file and by flags, and how a mistake is answered."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from cluster.cli import app
from cluster.config import CellConfig, DrafterKind, load_config, parse_drafter, parse_drafters
from cluster.default_model import DEFAULT_DRAFTERS
from cluster.errors import ConfigError
from cluster.server_configs import scheduler_config
from workers.draft.drafter import KINDS

EXACT = {"exact": True}
ON_GPU = {"device": "cuda"}
IN_BYTES = {"source": "a.b:C", "device": "cuda", "dtype": "int8"}

FULL_FILE = """
cache_dir = "/var/cache/outrider"

[ray]
start_timeout_s = 60

[scheduler]
listen = "0.0.0.0:7000"
max_nodes = 4

[target]
model = "org/model"
tensor_parallel = 2
dtype = "float32"

[[drafters]]
kind = "ngram"

[[drafters]]
kind = "model"
source = "/models/small"
name = "small"
threads = 3

[restarts]
max_restarts = 1
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "cell.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_and_flags_there_is_one_rank_of_the_default_model_and_an_ngram_drafter() -> None:
    config = load_config(None, {})
    assert config.target.model is None
    assert config.target.tensor_parallel == 1
    assert [drafter.spec for drafter in config.drafters] == ["ngram=ngram"]
    assert config.cache_dir == Path("~/.cache/outrider").expanduser()


@pytest.mark.parametrize(
    ("flag", "default"),
    [
        ("tensor_parallel", str(CellConfig().target.tensor_parallel)),
        ("dtype", CellConfig().target.dtype),
        ("device", CellConfig().target.device),
        ("compiled", "compiled" if CellConfig().target.compiled else "not compiled"),
        ("listen", CellConfig().scheduler.listen),
        ("drafter", "draft (a small model) and suffix with the default target, else ngram"),
    ],
)
def test_the_help_of_a_flag_says_its_default(flag: str, default: str) -> None:
    up = get_command(app).commands["up"]  # type: ignore[attr-defined]
    [help_text] = [each.help for each in up.params if each.name == flag]
    assert re.search(rf"Default: {re.escape(default)}\b", help_text)


def test_the_drafters_where_none_is_named_are_those_that_the_help_tells() -> None:
    assert [drafter.name for drafter in DEFAULT_DRAFTERS] == ["draft", "suffix"]
    assert [drafter.name for drafter in CellConfig().drafters] == ["ngram"]


def test_every_kind_of_drafter_that_a_worker_has_can_be_configured() -> None:
    assert set(get_args(DrafterKind)) == set(KINDS)


def test_every_section_is_read_from_the_file(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, FULL_FILE), {})
    assert config.ray.start_timeout_s == 60
    assert (config.scheduler.listen, config.scheduler.max_nodes) == ("0.0.0.0:7000", 4)
    assert (config.target.model, config.target.tensor_parallel, config.target.dtype) == ("org/model", 2, "float32")
    assert [(d.spec, d.threads) for d in config.drafters] == [("ngram=ngram", None), ("small=model:/models/small", 3)]
    assert config.restarts.max_restarts == 1
    assert config.cache_dir == Path("/var/cache/outrider")


def test_the_readmes_file_starts_as_it_stands_with_nothing_to_download_but_the_default_model(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    config = load_config(written(tmp_path, text), {})
    assert config.target.model is None
    assert (config.target.tensor_parallel, config.target.dtype) == (2, "float32")
    assert [drafter.source for drafter in config.drafters] == [None]


def test_flags_win_over_the_file_and_leave_the_rest_of_a_section_alone(tmp_path: Path) -> None:
    flags = {"target": {"tensor_parallel": 4}, "drafters": parse_drafters(["none"])}
    config = load_config(written(tmp_path, FULL_FILE), flags)
    assert (config.target.tensor_parallel, config.target.dtype) == (4, "float32")
    assert config.drafters == ()


@pytest.mark.parametrize(
    ("flag", "entry"),
    [
        ("ngram", {"kind": "ngram"}),
        ("model:/a/b.gguf", {"kind": "model", "source": "/a/b.gguf"}),
        ("model:org/name", {"kind": "model", "source": "org/name"}),
        ("fast=model:C=d:e", {"kind": "model", "source": "C=d:e", "name": "fast"}),
        ("n3=ngram", {"kind": "ngram", "name": "n3"}),
        ("suffix", {"kind": "suffix"}),
        ("suffix:shared", {"kind": "suffix", "source": "shared"}),
        ("own=class:package.module:Name", {"kind": "class", "source": "package.module:Name", "name": "own"}),
    ],
)
def test_a_drafter_flag_says_the_same_as_an_entry_of_the_file(flag: str, entry: dict[str, str]) -> None:
    assert parse_drafter(flag) == entry


@pytest.mark.parametrize(
    "flag",
    ["", "ngrams", "ngram:x", "ngram:", "model", "model:", "class", "suffix:", "suffix:x", "=ngram", "a=b", "none"],
)
def test_any_other_drafter_flag_is_refused_with_the_forms_that_work(flag: str) -> None:
    with pytest.raises(ConfigError, match=r"--drafter is .*model:PATH_OR_HUB_NAME"):
        parse_drafter(flag)


def test_no_drafter_and_a_drafter_can_not_both_be_meant() -> None:
    with pytest.raises(ConfigError, match="--drafter is 'none', and others are given too"):
        parse_drafters(["none", "ngram"])


def test_drafters_without_a_name_get_the_first_free_one() -> None:
    entries = [{"kind": "ngram"}, {"kind": "ngram"}, {"kind": "ngram", "name": "ngram-2"}]
    assert [drafter.name for drafter in load_config(None, {"drafters": entries}).drafters] == [
        "ngram",
        "ngram-3",
        "ngram-2",
    ]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"target": {"tensor_parallel": 0}}, ["target.tensor_parallel is 0", "greater than or equal to 1"]),
        ({"target": {"tensor_parallel": "2"}}, ["target.tensor_parallel is '2'", "valid integer"]),
        ({"target": {"profile_s": -1.0}}, ["target.profile_s is -1.0", "greater than or equal to 0"]),
        ({"target": {"dtype": "fp32"}}, ["target.dtype is 'fp32'", "'float32'"]),
        ({"target": {"tensor_paralel": 2}}, ["target.tensor_paralel is unknown", "did you mean 'tensor_parallel'?"]),
        ({"traget": {}}, ["traget is unknown", "did you mean 'target'?"]),
        ({"scheduler": {"listen": "50051"}}, ["scheduler.listen is '50051'", "127.0.0.1:50051"]),
        ({"scheduler": {"listen": "host:99999"}}, ["scheduler.listen is 'host:99999'", '"host:port"']),
        ({"drafters": [{"kind": "model"}]}, ["drafters.0", "set `source`", "--drafter model:PATH"]),
        ({"drafters": [{"kind": "ngram", "source": "x"}]}, ["drafters.0", "leave `source` out"]),
        ({"drafters": [{"kind": "suffix", "source": "x"}]}, ["drafters.0", 'or make it "shared"']),
        ({"drafters": [{"kind": "eagle"}]}, ["drafters.0.kind is 'eagle'", "'ngram'"]),
        ({"drafters": [{}]}, ["drafters.0.kind is missing"]),
        ({"drafters": [{"kind": "ngram", "nmae": "x"}]}, ["drafters.0.nmae is unknown", "did you mean 'name'?"]),
        ({"drafters": [{"kind": "ngram", "name": "a b"}]}, ["drafters.0.name is 'a b': it must match", "digits"]),
        (
            {"drafters": [{"kind": "model", "source": ""}]},
            ["drafters.0.source is '': it must have at least 1 character"],
        ),
        ({"drafters": {"kind": "ngram"}}, ["drafters is {'kind': 'ngram'}: it must be a list: write [[drafters]]"]),
        ({"drafters": [{"kind": "ngram", "name": "a"}] * 2}, ["drafters is", "two drafters are named 'a'"]),
        ({"ray": {"address": "auto"}}, ["ray.address is 'auto'", '"host:port"']),
        ({"ray": {"drain_s": -1.0}}, ["ray.drain_s is -1.0", "greater than 0"]),
        ({"ray": {"drain_s": inf}}, ["ray.drain_s is inf", "a finite number"]),
        ({"autoscale": {"drain_s": inf}}, ["autoscale.drain_s is inf", "a finite number"]),
        ({"scheduler": {"pass_timeout_s": inf}}, ["scheduler.pass_timeout_s is inf", "a finite number"]),
        ({"restarts": {"max_restarts": -1}}, ["restarts.max_restarts is -1"]),
        ({"target": 3}, ["target is 3"]),
        ({"target": {"min_groups": 0}}, ["target.min_groups is 0", "greater than or equal to 1"]),
        ({"target": {"min_groups": 3, "max_groups": 2}}, ["min_groups is 3", "must not exceed max_groups, 2"]),
        ({"target": {"min_groups": 2}}, ["groups is 1", "min_groups is 2", "raise groups, or lower min_groups"]),
        ({"target": {"groups": 3, "max_groups": 2}}, ["groups is 3", "max_groups is 2", "or raise max_groups"]),
        ({"target": EXACT | {"dtype": "float16"}}, ["target", "exact is true", "dtype 'float16'", "leave `exact` out"]),
        ({"target": EXACT | {"device": "cuda"}}, ["target", "exact is true", "device 'cuda'", "leave `exact` out"]),
        ({"drafters": [ON_GPU | {"kind": "ngram"}]}, ["drafters.0", "'ngram'", "device 'cuda'", "leave `device` out"]),
        ({"drafters": [ON_GPU | {"kind": "suffix"}]}, ["drafters.0", "'suffix'", "'cuda'", "leave `device` out"]),
        ({"drafters": [IN_BYTES | {"kind": "model"}]}, ["drafters.0", "dtype 'int8'", "'cuda'", "leave `dtype` out"]),
        ({"drafters": [IN_BYTES | {"kind": "universal"}]}, ["drafters.0", "dtype 'int8'", "leave `dtype` out"]),
        ({"target": {"max_groups": 2}}, ["target.max_groups 2", "nothing scales the groups", "set autoscale.enabled"]),
    ],
)
def test_a_wrong_setting_is_answered_in_one_line_with_key_value_and_way_out(
    settings: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, settings)
    message = raised.value.message
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"target": EXACT},
        {"target": EXACT | {"dtype": "bfloat16"}},
        {"target": ON_GPU | {"dtype": "float16"}},
        {"drafters": [ON_GPU | {"kind": "model", "source": "m"}]},
        {"drafters": [{"kind": "model", "source": "m", "dtype": "int8"}]},
        {"drafters": [IN_BYTES | {"kind": "class"}]},  # it makes of its dtype what it likes
    ],
)
def test_what_some_machine_can_run_is_taken(settings: dict[str, Any]) -> None:
    load_config(None, settings)


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        ({}, (1, 1, 1)),
        ({"groups": 2}, (2, 2, 2)),
        ({"max_groups": 3}, (1, 1, 3)),
        ({"groups": 2, "min_groups": 1}, (1, 2, 2)),
    ],
)
def test_the_bounds_of_target_groups_are_their_number_unless_they_are_named(
    given: dict[str, int], bounds: tuple[int, int, int]
) -> None:
    target = load_config(None, {"target": given, "autoscale": {"enabled": True}}).target
    assert (target.min_groups, target.groups, target.max_groups) == bounds


@pytest.mark.parametrize("port", [None, 0, 9464])
def test_the_scheduler_is_told_where_its_metrics_are_read(port: int | None) -> None:
    config = load_config(None, {"scheduler": {"metrics_port": port}})
    assert scheduler_config(config, "127.0.0.1:0").metrics_port == port


def test_a_metrics_port_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="metrics_port"):
        load_config(None, {"scheduler": {"metrics_port": 65536}})


def test_a_file_that_is_not_there_or_not_toml_is_answered_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config is .*nowhere\.toml.*No such file"):
        load_config(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match=r"--config is .*cell\.toml.*not TOML"):
        load_config(written(tmp_path, "[target\n"), {})


def test_a_config_can_not_be_changed() -> None:
    config = CellConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.target.dtype = "float32"  # type: ignore[misc]
