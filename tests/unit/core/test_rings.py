"""A ring that is lost, and what an earlier process left in one. Time lines: see `play.py`."""

from __future__ import annotations

from tcmu_retry.core.policy import Budgets
from tests.unit.core.play import Play, play


def test_with_a_ring_all_its_commands_are_gone_and_the_outage_goes_on() -> None:
    """Held, or waiting behind another: none is answered or tried again; what comes after is untried until it ends."""
    engine = play("""
        0    lost EIO       -> outage_began read, down read, outage_began write, down write
        0.1  w1@0           ->
        0.2  w2@0           ->
        0.3  ring           ->
        0.4  w3@8           ->
        0.5  reopen 0       -> recovered read, try 3
        0.6  io 3 0         -> recovered write, open
    """)
    assert engine.held() == []


def test_a_ring_that_is_lost_while_its_only_command_is_out_leaves_nothing_to_do() -> None:
    engine = play("""
        0    ran w1@0 EIO   -> outage_began write
        1    wake           -> try 1
        1.1  ring           -> gave_up write, open
        1.1  idle           ->
        1.2  w2@0           -> try 2
    """)
    assert engine.held() == []


def test_what_an_earlier_process_held_is_tried_at_once_and_times_out_from_its_first_failure() -> None:
    play(
        """
        100    left w1@0 2 EIO 50  -> outage_began write, try 1
        100.5  io 1 EIO            ->
        110    tick                -> 1=02/04/03, gave_up write
        """,
        "retry_timeout=60s",
    )


def test_what_an_earlier_process_held_keeps_its_order() -> None:
    play("""
        100  gate                  ->
        100  left w1@0 2 EIO 50    -> outage_began write, try 1
        100  left w2@0 1 EIO 60    ->
        101  io 1 0                -> try 2
        102  io 2 0                -> recovered write, open
    """)


def test_what_an_earlier_process_held_waits_while_the_storage_is_not_open() -> None:
    play("""
        100  lost ENODEV           -> outage_began read, down read, outage_began write, down write
        100  left w1@0 2 EIO 50    ->
        101  reopen 0              -> recovered read, try 1
        101  io 1 0                -> recovered write, open
    """)


def test_what_an_earlier_process_held_is_refused_where_all_is_refused() -> None:
    play(
        """
        100  ran w1@0 EIO          -> stopped write, 1=07/27/00
        100  left w2@9 1 EIO 50    -> 2=07/27/00
        """,
        "write.fallback=readonly write.retry=false",
    )


def test_budgets_hold_for_what_an_earlier_process_held() -> None:
    player = Play(budgets=Budgets(held_bytes=1))
    player.line("100  left w1@0 2 EIO 50  -> shed write, 1=BUSY")
