"""What a cell is made of: read once, from a TOML file and flags, and never changed.

    [ray]        address, machines_timeout_s, start_timeout_s, drain_s, …
    [scheduler]  listen, max_running_requests, …
    [target]     model, tensor_parallel, dtype, …
    [[drafters]] kind, source, name, …
    [restarts]   max_restarts, window_s, …
    [tls]        certificate, key, ca, …
    [auth]       tokens_file
    [autoscale]  enabled, dry_run, …

A flag wins over the file, the file over the defaults below. Where neither names a target nor drafters, the default
model's own drafters take the place of `ngram` (default_model.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster.complaint import explain
from cluster.errors import ConfigError
from outrider.connection import has_port, is_loopback
from outrider.rpc import DEFAULT_PORT
from outrider.tls import CELL_NAME

DEFAULT_CACHE_DIR = Path("~/.cache/outrider")

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DrafterKind = Literal[
    "ngram", "suffix", "model", "universal", "class"
]  # workers/draft/drafter.py has what each of them is
SOURCES: dict[str, str] = {  # of kinds that need one
    "model": "PATH_OR_HUB_NAME",
    "universal": "PATH_OR_HUB_NAME",
    "class": "MODULE:NAME",
}
TEXT_SEARCHES = ("ngram", "suffix")  # kinds without a model
OPTIONAL_SOURCES: dict[str, str] = {"suffix": "shared"}


def _host_and_port(address: str) -> str:
    if not has_port(address):
        raise ValueError('it must be "host:port", for example "127.0.0.1:50051"')
    return address


Address = Annotated[str, AfterValidator(_host_and_port)]
# The cell's processes have other working directories than the one that reads the file.
File = Annotated[Path, Field(strict=False), AfterValidator(lambda file: file.expanduser().absolute())]


class Section(BaseModel):
    """Frozen, strict about types, and closed: an unknown key is an error, since it is a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RaySection(Section):
    address: Address | None = Field(default=None, description="of a running Ray; unset: one is started here")
    machines_timeout_s: float = Field(
        default=0.0, ge=0, description="for machines with room for the cell to join; 0: an error at once without"
    )
    autoscaled: bool = Field(
        default=False, description="machines are added for drafters that wait for one; the cell starts without them"
    )
    start_timeout_s: Seconds = Field(default=600.0, description="for all workers to be healthy")
    drain_s: Seconds = Field(default=30.0, description="for running requests, once a stop was asked for")


class SchedulerSection(Section):
    listen: Address = Field(
        default=f"127.0.0.1:{DEFAULT_PORT}", description="where clients come to; port 0 picks a free one"
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="of the same host, for Prometheus; 0 picks a free one; unset: none"
    )
    max_running_requests: Count = Field(default=32, description="on each target group")
    max_queued_requests: Count = 256
    max_nodes: int = Field(default=8, ge=0, description="draft nodes of one request in one pass")
    draft_wait_s: float | None = Field(
        default=None, ge=0, description="a row waits so long for its draft, and verifies all of it; unset: as it pays"
    )
    pass_timeout_s: Seconds = Field(default=60.0, description="until a target without an answer counts as hung")
    allow_lossy: bool = Field(default=False, description="acceptance rules that change the law, for those who ask")


class TargetSection(Section):
    model: str | None = Field(default=None, min_length=1, description="folder, GGUF file, hub name; unset: a small one")
    groups: Count = Field(default=1, description="target groups, each with all of the model and ranks of its own")
    min_groups: Count = Field(
        default_factory=lambda own: own["groups"], description="with [autoscale]: never fewer; unset: `groups`"
    )
    max_groups: Count = Field(
        default_factory=lambda own: own["groups"], description="with [autoscale]: never more; unset: `groups`"
    )
    tensor_parallel: Count = Field(default=1, description="number of ranks that share the model")
    dtype: Dtype = "auto"
    device: Device = "cpu"
    kv_cache_bytes: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="of each rank; unset: by device"
    )
    threads: Count | None = Field(default=None, description="of each rank; unset: a fair share of the cores")
    compiled: bool = Field(default=True, description="the forward: starts later, runs faster; on one CPU rank")
    exact: bool = Field(default=False, description="same logits in every pass, also in bfloat16, or no start")
    profile_s: float = Field(
        default=3.0, ge=0, description="for measuring, once, how long passes take; 0: not measured"
    )
    price_per_hour: float = Field(
        default=0.0, ge=0, description="of all ranks of `groups` groups; only ratios count, in any currency"
    )

    @model_validator(mode="after")
    def _has_bounds_in_order(self) -> Self:
        if {"min_groups", "max_groups"} <= self.model_fields_set and self.min_groups > self.max_groups:
            raise ValueError(f"min_groups is {self.min_groups}: it must not exceed max_groups, {self.max_groups}")
        at_start = f"groups is {self.groups}: the cell starts with so many"
        if self.groups < self.min_groups:
            raise ValueError(f"{at_start}, and min_groups is {self.min_groups}: raise groups, or lower min_groups")
        if self.groups > self.max_groups:
            raise ValueError(f"{at_start}, and max_groups is {self.max_groups}: lower groups, or raise max_groups")
        return self

    @model_validator(mode="after")
    def _is_exact_only_where_it_can_be(self) -> Self:
        if self.exact and (self.device != "cpu" or self.dtype == "float16"):
            where = f"device {self.device!r} and dtype {self.dtype!r}: it is for CPUs, in float32 or bfloat16"
            raise ValueError(f"exact is true with {where}; set these, or leave `exact` out")
        return self

    @property
    def is_scaled(self) -> bool:
        return self.min_groups < self.max_groups


class DrafterSection(Section):
    kind: DrafterKind
    source: str | None = Field(
        default=None,
        min_length=1,
        description="of model, universal: folder, GGUF file or hub name; of class: MODULE:NAME",
    )
    name: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="letters, digits, ., _ and -; unset: the kind, numbered",
    )
    dtype: Literal[Dtype, "int8"] = Field(default="auto", description="auto: int8 on a CPU, else the checkpoint's")
    device: Device = "cpu"
    kv_cache_bytes: Annotated[int, Field(gt=0)] | None = None
    threads: Count | None = None
    compiled: bool = True
    min_workers: int = Field(default=1, ge=0, description="so many are started, and never fewer are kept")
    max_workers: Count = Field(default=1, description="with [autoscale]: never more than these")
    price_per_hour: float = Field(default=0.0, ge=0, description="of one worker")

    @model_validator(mode="after")
    def _has_bounds_in_order(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers is {self.min_workers}: it must not exceed max_workers, {self.max_workers}")
        return self

    @model_validator(mode="after")
    def _has_a_source_if_it_needs_one(self) -> Self:
        kind, source = self.kind, self.source
        if kind in SOURCES and source is None:
            way_out = f"set `source`, or write --drafter {kind}:{SOURCES[kind]}"
            raise ValueError(f'a drafter of kind "{kind}" needs a source: {way_out}')
        if kind not in SOURCES and source not in (None, OPTIONAL_SOURCES.get(kind)):
            allowed = f', or make it "{OPTIONAL_SOURCES[kind]}"' if kind in OPTIONAL_SOURCES else ""
            raise ValueError(f'a drafter of kind "{kind}" has no source {source!r}: leave `source` out{allowed}')
        return self

    @model_validator(mode="after")
    def _has_a_gpu_only_if_it_uses_one(self) -> Self:
        if self.device == "cuda" and self.kind in TEXT_SEARCHES:
            raise ValueError(f"a drafter of kind {self.kind!r} has no use for device 'cuda': leave `device` out")
        if self.device == "cuda" and self.dtype == "int8" and self.kind != "class":
            way_out = "leave `dtype` out, or `device`"
            raise ValueError(f"dtype 'int8' is for CPUs, and the drafter is on device 'cuda': {way_out}")
        return self

    @property
    def spec(self) -> str:
        """The drafter as a drafter worker reads it: "NAME=ngram" or "NAME=model:SOURCE"."""
        return f"{self.name}={self.kind}" + (f":{self.source}" if self.source is not None else "")


class RestartSection(Section):
    max_restarts: int = Field(default=5, ge=0, description="of one worker within the window; then it is given up")
    window_s: Seconds = 300.0
    first_backoff_s: float = Field(default=0.2, ge=0, description="doubles with every restart in the window")
    max_backoff_s: Seconds = 30.0


class TlsSection(Section):
    """PEM files, on every machine of the cell under the same paths; they may be replaced at any time."""

    certificate: File = Field(description="of this machine's processes, for servers and clients")
    key: File = Field(description="of the certificate, without a password")
    ca: File = Field(description="who must have signed the certificates of all others")
    name: str = Field(default=CELL_NAME, min_length=1, description="DNS name that all certificates of the cell bear")
    require_client_certificate: bool = Field(default=False, description="of clients too, signed by `ca`")


class AuthSection(Section):
    tokens_file: File = Field(description="who may ask: made with `outriderd token`; may be changed at any time")


class AutoscaleSection(Section):
    enabled: bool = Field(
        default=False, description="add and remove drafters, by what they are worth, and target groups, by what waits"
    )
    dry_run: bool = Field(default=False, description="decide and show, and do nothing")
    period_s: Seconds = Field(default=5.0, description="between two decisions")
    min_gain: float = Field(default=0.02, gt=0, description="share of goodput that a drafter must add, free or not")
    hysteresis: float = Field(default=0.2, ge=0, lt=1, description="up: so much above break-even; down: so much below")
    up_cool_down_s: float = Field(default=15.0, ge=0, description="after any change, before more are added")
    down_cool_down_s: float = Field(default=120.0, ge=0, description="after any change, before one is removed")
    give_up_s: Seconds = Field(default=180.0, description="for what is added to start; then it is not wanted any more")
    drain_s: Seconds = Field(default=10.0, description="for the requests of what goes to leave it")


class CellConfig(Section):
    """Everything that `outriderd up` can be told."""

    ray: RaySection = RaySection()
    scheduler: SchedulerSection = SchedulerSection()
    target: TargetSection = TargetSection()
    drafters: tuple[DrafterSection, ...] = Field(
        default=(DrafterSection(kind="ngram"),), strict=False, validate_default=True
    )
    restarts: RestartSection = RestartSection()
    tls: TlsSection | None = None
    auth: AuthSection | None = None
    autoscale: AutoscaleSection = AutoscaleSection()
    cache_dir: Path = Field(default=DEFAULT_CACHE_DIR, strict=False, validate_default=True)

    @field_validator("cache_dir")
    @classmethod
    def _is_absolute(cls, cache_dir: Path) -> Path:
        return cache_dir.expanduser().absolute()

    @field_validator("drafters")
    @classmethod
    def _have_names_of_their_own(cls, drafters: tuple[DrafterSection, ...]) -> tuple[DrafterSection, ...]:
        taken = [drafter.name for drafter in drafters if drafter.name]
        for name in taken:
            if taken.count(name) > 1:
                raise ValueError(f"two drafters are named {name!r}: give each its own name")
        named = []
        for drafter in drafters:
            name = drafter.name or _free_name(drafter.kind, taken)
            taken.append(name)
            named.append(drafter.model_copy(update={"name": name}))
        return tuple(named)

    @model_validator(mode="after")
    def _sends_no_token_in_the_clear(self) -> Self:
        listen = self.scheduler.listen
        if self.auth is not None and self.tls is None and not is_loopback(listen):
            way_out = "set [tls], or listen on 127.0.0.1"
            raise ValueError(f"with auth.tokens_file and no [tls], scheduler.listen {listen!r} shows tokens: {way_out}")
        return self

    @model_validator(mode="after")
    def _scales_only_what_it_is_told_to(self) -> Self:
        if self.target.is_scaled and not self.autoscale.enabled:
            way_out = "set autoscale.enabled, or leave min_groups and max_groups out"
            bounds = f"target.min_groups is {self.target.min_groups} and target.max_groups {self.target.max_groups}"
            raise ValueError(f"{bounds}, and nothing scales the groups: {way_out}")
        for drafter in self.drafters:
            if not self.autoscale.enabled and (drafter.min_workers, drafter.max_workers) != (1, 1):
                way_out = "set autoscale.enabled, or leave min_workers and max_workers out"
                raise ValueError(f"drafter {drafter.name!r} has bounds, and nothing scales it: {way_out}")
        if self.autoscale.enabled and self.scheduler.draft_wait_s is not None:
            raise ValueError("autoscale.enabled needs the scheduler's price: leave scheduler.draft_wait_s out")
        return self


def load_config(file: Path | None, flags: Mapping[str, Any]) -> CellConfig:
    """The cell that a TOML file describes, with `flags` on top: {"target": {"dtype": …}, "drafters": […]}.

    Raises ConfigError, which names the key, the value and the way out.
    """
    settings = _read_toml(file) if file else {}
    for section, values in flags.items():
        if isinstance(values, Mapping) and isinstance(settings.get(section, {}), Mapping):
            settings[section] = {**settings.get(section, {}), **values}
        else:
            settings[section] = values
    try:
        return CellConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explain(CellConfig, error.errors()[0])) from None


def parse_drafter(flag: str) -> dict[str, str]:
    """One `--drafter` flag as a [[drafters]] entry: "ngram", "model:PATH", "NAME=ngram", "NAME=model:PATH", …

    Raises ConfigError for anything else.
    """
    head, colon, source = flag.partition(":")
    name, equals, kind = head.rpartition("=")
    is_complete = bool(source) if kind in SOURCES else not colon or source == OPTIONAL_SOURCES.get(kind)
    if kind not in get_args(DrafterKind) or (equals and not name) or not is_complete:
        raise ConfigError(
            f"--drafter is {flag!r}: it must be ngram, suffix, suffix:shared, model:PATH_OR_HUB_NAME, "
            "universal:PATH_OR_HUB_NAME, class:MODULE:NAME, or NAME= before one of these; none: no drafter at all"
        )
    return {"kind": kind} | ({"source": source} if source else {}) | ({"name": name} if name else {})


def parse_drafters(flags: Sequence[str]) -> list[dict[str, str]]:
    """All `--drafter` flags; "none" alone means that the target decodes alone. Raises ConfigError."""
    if set(flags) == {"none"}:
        return []
    if "none" in flags:
        raise ConfigError("--drafter is 'none', and others are given too: give it alone, or leave it out")
    return [parse_drafter(flag) for flag in flags]


def _free_name(kind: str, taken: Sequence[str]) -> str:
    name, number = kind, 1
    while name in taken:
        number += 1
        name = f"{kind}-{number}"
    return name


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config is {str(file)!r}: {error.strerror}; give a TOML file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config is {str(file)!r}: it is not TOML: {error}") from error
