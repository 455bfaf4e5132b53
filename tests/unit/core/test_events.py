"""Codes of events: which begin something, which end it, and by what the journal knows them."""

from __future__ import annotations

import pytest

from tcmu_retry.core import events

CODES = sorted(value for value in vars(events).values() if isinstance(value, str) and value.startswith("TR-"))


def test_what_ends_names_what_began() -> None:
    for end, begun in events.ENDS.items():
        assert events.edge(end) == "end"
        assert {events.edge(code) for code in begun} == {"begin"}
    assert {events.edge(code) for code in CODES} == {"begin", "end", "moment"}


def test_message_ids_are_distinct_and_stay_what_they_are() -> None:
    """Whoever filters the journal by one wrote it into his configuration."""
    found = {events.message_id(code) for code in CODES}
    assert len(found) == len(CODES)
    assert all(len(each) == 32 and int(each, 16) for each in found)
    assert events.message_id("TR-001") == "2c794e34ba04556b9eb1cbccae7372c7"


@pytest.mark.parametrize("code", CODES)
def test_each_code_has_its_explanation(code: str) -> None:
    assert code in events.MEANINGS
