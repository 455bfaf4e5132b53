"""A policy that promises more than the initiator waits for is said so: when the LUN comes, and when it is changed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tcmu_retry.core import events
from tcmu_retry.core.initiators import PROFILES
from tcmu_retry.scsi.unit import DiskIdentity
from tests.unit.daemon.rig import Rig, served

RULE = Path(__file__).resolve().parents[3] / "packaging/udev/60-tcmu-retry-initiator.rules"


def warnings(rig: Rig) -> list[str]:
    return [notice.message for notice in rig.notices if notice.code == events.PROMISES_TOO_MUCH]


def test_it_is_said_when_the_policy_is_changed_and_not_again() -> None:
    """8 min are what plain Linux waits; each direction is a promise of its own."""

    async def story() -> None:
        async with served() as rig:
            assert warnings(rig) == []
            await rig.policy(retry_timeout="8m")
            await rig.policy(dry_run=True, write__retry_timeout="10m")
            assert warnings(rig) == []
            await rig.policy(write__retry_timeout="10m")
            [said] = warnings(rig)
            assert "write.retry_timeout=10m is more than linux waits (8m)" in said
            await rig.policy(write__retry_timeout="10m")
            assert len(warnings(rig)) == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("initiator", "policy", "said"),
    [
        ("linux", {"retry_timeout": "9m"}, 2),
        ("windows", {"read.retry_timeout": "61s"}, 1),
        ("esxi", {"retry_timeout": "140s"}, 0),
        ("linux-tuned", {"retry_timeout": "9999m"}, 0),
        ("linux", {"write.retry_timeout": "200s", "write.fallback": "busy"}, 1),
        ("linux", {"retry_timeout": "0"}, 0),
    ],
)
def test_it_is_said_when_the_lun_comes(initiator: str, policy: dict[str, str], said: int) -> None:
    """retry_timeout=0 promises nothing: the initiator ends it, whenever that is."""

    async def story() -> None:
        async with served(policy=policy, initiator=PROFILES[initiator]) as rig:
            assert len(warnings(rig)) == said
            assert all(initiator in warning for warning in warnings(rig))

    asyncio.run(story())


def test_the_udev_rule_is_for_our_luns_and_the_profile_names_it() -> None:
    text = RULE.read_text()
    identity = DiskIdentity("serial", "name")
    assert set(re.findall(r'vendor}=="(.*?)\*"', text)) == {identity.vendor}
    assert set(re.findall(r'model}=="(.*?)\*"', text)) == {identity.product}
    assert RULE.name in PROFILES["linux-tuned"].because
    assert 'ATTR{timeout}="86400"' in text
    assert 'ATTR{max_retries}="-1"' in text
