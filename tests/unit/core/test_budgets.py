"""Budgets of held commands: over one the answer is BUSY. Time lines: see `play.py`."""

from __future__ import annotations

import pytest

from tcmu_retry.core.policy import Budgets
from tests.unit.core.play import BLOCK, Play, play


@pytest.mark.parametrize("budgets", [Budgets(held=1), Budgets(held_bytes=BLOCK)])
def test_over_budget_the_answer_is_busy(budgets: Budgets) -> None:
    """Said once, however many are shed."""
    play(
        """
        0    gate w1@0 w2@1 w3@2 ->
        0    io 1 EIO      -> outage_began write
        0    io 2 EIO      -> shed write, 2=BUSY
        0    io 3 EIO      -> 3=BUSY
        0.1  w4@0          -> 4=BUSY
        1    wake          -> try 1
        1    io 1 0        -> recovered write, open
        """,
        budgets=budgets,
    )


def test_over_age_the_answer_is_busy() -> None:
    """However it waits: also in a person's hand, where time-outs stand still."""
    play(
        """
        0    ran w1@0 EIO  -> outage_began write
        2    hold          -> held
        3    w2@5          ->
        10   wake          -> shed write, 1=BUSY
        13   wake          -> 2=BUSY, gave_up write
        """,
        budgets=Budgets(age=10.0),
    )


def test_a_budget_of_0_is_no_budget() -> None:
    """As for max_hold_age and retry_timeout; refused, all would be answered BUSY, which nobody means."""
    play(
        """
        0.0  ran w1@0 EIO  -> outage_began write
        0.1  ran w2@8 EIO  ->
        """,
        budgets=Budgets(held=0, held_bytes=0),
    )


def test_stop_holds_no_more_than_the_budget() -> None:
    play(
        """
        0    ran w1@0 ENOSPC  -> stopped write
        0.1  ran w2@8 ENOSPC  -> shed write, 2=BUSY
        """,
        "fallback=stop retry=false",
        Budgets(held=1),
    )


def test_budgets_count_for_what_comes_after_they_were_set() -> None:
    player = Play()
    player.line("""
        0    ran w1@0 EIO   -> outage_began write
        0.1  ran w2@8 EIO   ->
    """)
    player.engine.set_budgets(Budgets(held=2))
    player.line("0.2  ran w3@16 EIO   -> shed write, 3=BUSY")
