"""Where Ray may put the workers: pools are named resources, `target` and `draft`, that machines offer.

A target group is a STRICT_PACK placement group, one bundle a rank: its ranks exchange every layer's
activations, so they share a machine. Drafters go wherever there is room for one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config import CellConfig, Device
from cluster.errors import PlacementError

TARGET = "target"
DRAFT = "draft"

_LOOK_EVERY_S = 0.5

Bundle = dict[str, float]  # resource → amount, of one worker


@dataclass(frozen=True)
class Machine:
    """One node of Ray: what it offers in all, in use or not."""

    name: str
    resources: Mapping[str, float]

    def room_for(self, bundle: Bundle) -> int:
        """How many workers of this kind would fit if it were empty."""
        return int(min(self.resources.get(resource, 0.0) // amount for resource, amount in bundle.items()))

    def beside(self, count: int, bundle: Bundle) -> Machine:
        """What it still offers where it holds so many workers of this kind."""
        left = {resource: self.resources[resource] - count * amount for resource, amount in bundle.items()}
        return Machine(self.name, {**self.resources, **left})


def bundle_of(pool: str, device: Device) -> Bundle:
    """What one worker of a pool occupies."""
    return {pool: 1.0} | ({"GPU": 1.0} if device == "cuda" else {})


def local_resources(config: CellConfig) -> dict[str, float]:
    """What this machine must offer for the cell to fit exactly."""
    return {
        TARGET: float(config.target.max_groups * config.target.tensor_parallel),
        DRAFT: float(sum(each.max_workers for each in config.drafters)),
    }


def alive_machines() -> list[Machine]:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [Machine(node["NodeName"], node["Resources"]) for node in nodes if node["Alive"]]


async def machines_with_room(
    config: CellConfig, look: Callable[[], list[Machine]] = alive_machines, look_every_s: float = _LOOK_EVERY_S
) -> list[Machine]:
    """All machines, as soon as the cell fits on them: on Kubernetes they join one by one.

    Raises PlacementError when it still does not after `ray.machines_timeout_s`.
    """
    deadline = time.monotonic() + config.ray.machines_timeout_s
    while True:
        machines = look()
        try:
            check_feasible(config, machines)
            return machines
        except PlacementError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(look_every_s)


def check_feasible(config: CellConfig, machines: Sequence[Machine]) -> None:
    """Raises PlacementError when some worker could never be placed; Ray itself would wait for ever, in silence.

    Where machines are added on demand, those of drafters, and of target groups above the fewest, need not be there yet.
    """
    num_groups = groups_at_once(config)
    rank = bundle_of(TARGET, config.target.device)
    num_ranks = config.target.tensor_parallel
    room = sum(machine.room_for(rank) // num_ranks for machine in machines)
    if room < num_groups:
        each, keys, there = "", "target.tensor_parallel", _offers(machines, rank)
        who = "the target needs"
        if num_groups > 1:
            each, keys, there = " each", "target.groups or target.tensor_parallel", f"{there}: room for {room}"
            who = f"the {num_groups} target groups need"
        raise PlacementError(
            f"{who} {_times(num_ranks, rank)} on one machine{each}, and there is {there}: "
            f"lower {keys}, or start a machine with ray start {_flags(num_ranks, rank)}"
        )
    sections = [] if config.ray.autoscaled else config.drafters
    machines = _beside_target(config, machines)
    devices = [drafter.device for drafter in sections for _ in range(drafter.min_workers)]
    wants: tuple[tuple[Device, int], ...] = (("cuda", devices.count("cuda")), ("cpu", len(devices)))
    for device, wanted in wants:  # one with a GPU takes a place in the pool too
        worker = bundle_of(DRAFT, device)
        if sum(machine.room_for(worker) for machine in machines) < wanted:
            raise PlacementError(
                f"the drafters need {_times(wanted, worker)} in all, and "
                f"beside the target there is {_offers(machines, worker)}: "
                f"configure fewer drafters, or start a machine with ray start {_flags(1, worker)}"
            )


def _beside_target(config: CellConfig, machines: Sequence[Machine]) -> list[Machine]:
    """What the machines offer drafters, with the target groups, for which there is room, where they take the fewest
    places of a drafter with a GPU."""
    rank, num_ranks = bundle_of(TARGET, config.target.device), config.target.tensor_parallel
    drafter = bundle_of(DRAFT, "cuda")
    left = list(machines)

    def lost_places(index: int) -> int:
        return left[index].room_for(drafter) - left[index].beside(num_ranks, rank).room_for(drafter)

    for _ in range(groups_at_once(config)):
        fitting = [index for index, machine in enumerate(left) if machine.room_for(rank) >= num_ranks]
        best = min(fitting, key=lost_places)
        left[best] = left[best].beside(num_ranks, rank)
    return left


def cores_of(config: CellConfig, machines: Sequence[Machine]) -> int:
    """The cores of the smallest machine that could hold the target, as Ray counts them."""
    rank = bundle_of(TARGET, config.target.device)
    fitting = [machine for machine in machines if machine.room_for(rank) >= config.target.tensor_parallel]
    return int(min((machine.resources.get("CPU", 1.0) for machine in fitting), default=1.0))


def groups_together(config: CellConfig, machines: Sequence[Machine]) -> int:
    """The target groups that may come to share a machine."""
    rank = bundle_of(TARGET, config.target.device)
    most = max((machine.room_for(rank) // config.target.tensor_parallel for machine in machines), default=1)
    return min(most, config.target.max_groups)


def groups_at_once(config: CellConfig) -> int:
    """Without so many target groups a cell does not start; the others that it is to start with may come later."""
    return config.target.min_groups if config.ray.autoscaled else config.target.groups


async def reserve_target(config: CellConfig, timeout_s: float) -> Any:
    """A placement group with one bundle per target rank, on one machine.

    Raises PlacementError when the machines are busy for longer than `timeout_s`, or Ray fails.
    """
    import ray

    rank = bundle_of(TARGET, config.target.device)
    making = asyncio.create_task(asyncio.to_thread(_make_group, rank, config.target.tensor_parallel))
    try:
        async with asyncio.timeout(timeout_s):
            group, is_ready = await asyncio.shield(making)
            await asyncio.wrap_future(is_ready.future())
    except BaseException as error:
        making.add_done_callback(_free_made)
        if isinstance(error, ray.exceptions.RayError):
            raise PlacementError(f"Ray failed to place the target: {error}") from error
        if not isinstance(error, TimeoutError):
            raise
        raise PlacementError(
            f"no machine had {_times(config.target.tensor_parallel, rank)} free within {timeout_s:g} s: "
            "another cell holds them; stop it or add a machine"
        ) from None
    return group


def free_target(reservation: Any) -> None:
    """Sooner or later: Ray's head may be away."""
    from ray.util import remove_placement_group

    asyncio.get_running_loop().run_in_executor(None, remove_placement_group, reservation)


def _free_made(making: asyncio.Task[tuple[Any, Any]]) -> None:
    """What nobody waits for any more."""
    if not making.cancelled() and making.exception() is None:
        free_target(making.result()[0])


def _make_group(bundle: Bundle, num_bundles: int) -> tuple[Any, Any]:
    """The group, and a reference to its being ready. Blocks for as long as Ray's head is away."""
    from ray.util import placement_group

    group = placement_group([bundle] * num_bundles, strategy="STRICT_PACK")
    return group, group.ready()


def _times(count: int, bundle: Bundle) -> str:
    return " and ".join(f"{count * amount:g} × {resource}" for resource, amount in bundle.items())


def _offers(machines: Sequence[Machine], bundle: Bundle) -> str:
    if not machines:
        return "no machine"
    return ", ".join(
        f"{machine.name} with " + " and ".join(f"{machine.resources.get(name, 0.0):g} × {name}" for name in bundle)
        for machine in machines
    )


def _flags(count: int, bundle: Bundle) -> str:
    named = ", ".join(f'"{name}": {count * amount:g}' for name, amount in bundle.items() if name != "GPU")
    gpus = f" --num-gpus={count * bundle['GPU']:g}" if "GPU" in bundle else ""
    return f"--resources='{{{named}}}'{gpus}"
