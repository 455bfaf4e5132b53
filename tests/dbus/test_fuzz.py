"""Every method of the service, called with whatever its signature lets through: an answer in time, an error with a name
that the XML lists, no traceback, and no policy changed by half.

TCMU_RETRY_FUZZ is how many calls; `make fuzz` makes 5,000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcmu_retry.core.policy import CLASSES, DEFAULT, KEYS, SETTINGS, change, flatten
from tcmu_retry.dbus._lib import Variant
from tcmu_retry.dbus.interface import Method, own
from tcmu_retry.dbus.names import device_name, device_path
from tests.dbus.caller import DEVICES, MANAGER, NAME, Caller, CallFailed
from tests.dbus.conftest import World

CALLS = int(os.environ.get("TCMU_RETRY_FUZZ", "300"))
LUNS = ("vm1", "vm2", "w-3", "nobody")
KINDS = ("NotFound", "InvalidArgument", "InvalidPolicy", "Busy", "BackendUnavailable", "NotAuthorized")

TEXTS = st.text(max_size=12).map(lambda text: text.replace("\0", ""))
RANGES = {"y": (0, 2**8), "n": (-(2**15), 2**15), "q": (0, 2**16), "i": (-(2**31), 2**31), "u": (0, 2**32)}
RANGES |= {"x": (-(2**63), 2**63), "t": (0, 2**64)}


@dataclass(frozen=True)
class Call:
    path: str
    interface: str
    method: Method
    body: tuple[Any, ...]


def values(signature: str) -> st.SearchStrategy[Any]:
    """Values of one complete type."""
    if signature in RANGES:
        low, high = RANGES[signature]
        return st.integers(low, high - 1) | st.integers(0, 3)
    match signature:
        case "b":
            return st.booleans()
        case "d":
            return st.floats() | st.sampled_from([0.0, 0.05, 1e300, 5e-324])
        case "ay":
            return st.binary(max_size=4)
        case "s":
            return TEXTS | st.sampled_from(LUNS)
        case "v":
            return st.deferred(variants)
        case "a{sv}":
            return st.dictionaries(keys(), st.deferred(variants), max_size=3) | POLICIES | OPTIONS | REQUESTS
    assert signature.startswith("a"), f"the fuzzer does not know the type {signature} yet"
    return st.just([]) | st.lists(values(signature[1:]), max_size=4)


def variants() -> st.SearchStrategy[Variant]:
    signatures = st.sampled_from([*RANGES, "b", "d", "s", "as", "at", "ay", "v", "a{sv}", "aas"])
    return signatures.flatmap(lambda signature: values(signature).map(lambda value: Variant(signature, value)))


def keys() -> st.SearchStrategy[str]:
    sides = st.sampled_from(["", "read.", "write.", *(f"write.classes.{name}." for name in CLASSES), "classes.x."])
    return TEXTS | st.builds(str.__add__, sides, st.sampled_from(KEYS))


NUMBERS = ["0", "1", "500ms", "2m", "-1s", "1e309", "nan", "9" * 400 + "s"]
ACTIONS = ["true", "report", "ignore", "stop", "readonly", "offline", "busy", "retry", "auto", "medium", "gone"]
WORDS = st.sampled_from(NUMBERS + ACTIONS)
POLICIES = st.dictionaries(
    keys() | st.sampled_from(SETTINGS), WORDS.map(lambda word: Variant("s", word)) | st.deferred(variants), max_size=4
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dry-run": values("b").map(lambda value: Variant("b", value)),
        "persist": values("b").map(lambda value: Variant("b", value)),
        "reset": values("b").map(lambda value: Variant("b", value)),
        "if-generation": st.integers(0, 20).map(lambda value: Variant("t", value)),
    },
)
REQUESTS = st.fixed_dictionaries(
    {"name": st.sampled_from(LUNS).map(lambda name: Variant("s", name))},
    optional={
        "config": (TEXTS | st.sampled_from(["/dev/null", "/", "/nothing", "vm1", "/x;retry=2"])).map(
            lambda text: Variant("s", text)
        ),
        "size": st.integers(0, 2**64 - 1).map(lambda size: Variant("t", size)),
        "portals": st.lists(TEXTS, max_size=2).map(lambda texts: Variant("as", texts)),
    },
)


def arguments(method: Method) -> st.SearchStrategy[tuple[Any, ...]]:
    types = []
    rest = method.inputs
    while rest:
        end = rest.index("}") + 1 if rest.startswith("a{") else 1 + (rest[0] == "a")
        types.append(rest[:end])
        rest = rest[end:]
    return st.tuples(*map(values, types))


def calls() -> st.SearchStrategy[Call]:
    places = ((f"{NAME}.Manager", [MANAGER]), (f"{NAME}.Device", [device_path(lun) for lun in (*LUNS, *LUNS[:3])]))
    return st.one_of(
        st.builds(Call, st.sampled_from(paths), st.just(interface), st.just(method), arguments(method))
        for interface, paths in places
        for method in own(interface).methods.values()
    )


@pytest.fixture
def caller(world: World) -> Iterator[Caller]:
    with Caller(world.address) as made:
        yield made


def prepare(world: World, caller: Caller) -> dict[str, tuple[int, dict[str, str]]]:
    """All LUNs there, each with a command that is held or about to be; their policies."""
    there = policies(caller)
    for name in LUNS[:3]:
        if name not in there:
            file = world.directory / f"{name}.img"
            file.write_bytes(bytes(8 << 20))
            config = f"{file};error.errno=EIO;retry_interval=50ms"
            request = {"name": Variant("s", name), "config": Variant("s", config), "any-initiator": Variant("b", True)}
            caller.call(MANAGER, f"{NAME}.Manager", "Export", "a{sv}", request)
            world.write(name, 0)
    return policies(caller)


def policies(caller: Caller) -> dict[str, tuple[int, dict[str, str]]]:
    objects = caller.call("/org/tcmu/Retry1", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    luns = [item[f"{NAME}.Device"] for path, item in objects.items() if path.startswith(DEVICES)]
    return {lun["Name"].value: (lun["PolicyGeneration"].value, lun["Policy"].value) for lun in luns}


def test_any_call_is_answered_with_a_named_error_or_done_whole(world: World, caller: Caller) -> None:
    outcomes: dict[str, int] = {}

    @settings(
        max_examples=CALLS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls())
    def fuzz(call: Call) -> None:
        before = prepare(world, caller)
        try:
            answer = caller.call(call.path, call.interface, call.method.name, call.method.inputs, *call.body)
        except CallFailed as failure:
            outcomes[failure.name] = outcomes.get(failure.name, 0) + 1
            assert failure.name in [f"{NAME}.Error.{kind}" for kind in KINDS], failure
            assert failure.text
            assert policies(caller) == before
            return
        outcomes["done"] = outcomes.get("done", 0) + 1
        after = policies(caller)
        if call.method.name != "SetPolicy":
            assert all(after[name] == before[name] for name in after.keys() & before.keys())
            return
        name = device_name(call.path)
        how = call.body[1]
        if "dry-run" in how and how["dry-run"].value:
            assert after == before
        else:
            assert after[name][1] == answer
            assert (after[name][0] != before[name][0]) == (after[name][1] != before[name][1])
        assert flatten(change(DEFAULT, answer)) == answer, "what is shown can be set"
        assert {**after, name: None} == {**before, name: None}

    fuzz()
    assert outcomes["done"] > CALLS // 8, outcomes
    assert outcomes[f"{NAME}.Error.InvalidPolicy"], outcomes
    assert "Traceback" not in world.said()
