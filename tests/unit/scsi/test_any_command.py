"""Whatever bytes come: the short run of what `make fuzz` does for millions."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcmu_retry.pump.native.pump import NativePump
from tcmu_retry.pump.reference import ReferencePump
from tests.fuzz import commands, pumped

CORPUS = sorted((Path(__file__).parents[2] / "fuzz/corpus").iterdir())


@settings(max_examples=2000)
@example(b"")
@given(st.binary(max_size=400))
def test_any_bytes_are_answered_within_the_rules(data: bytes) -> None:
    """No exception, no byte outside the buffers, no LBA outside the medium, no refusal without sense."""
    commands.check(data)


@pytest.mark.parametrize("path", CORPUS, ids=[path.name for path in CORPUS])
def test_the_corpus(path: Path) -> None:
    """What fuzzing found to reach the most, and what once went wrong."""
    assert commands.check(path.read_bytes())


@pytest.mark.parametrize("pump", [ReferencePump, NativePump])
def test_pumps_answer_any_bytes_as_the_disk_does_without_them(pump: type[ReferencePump]) -> None:
    """Status, sense, Data-In and medium are the same through ring and pump: nothing of another command among it."""

    @settings(max_examples=100)
    @given(st.binary(max_size=400))
    def agree(data: bytes) -> None:
        pumped.agree(data, pump)

    agree()
    for path in CORPUS:
        pumped.agree(path.read_bytes(), pump)
