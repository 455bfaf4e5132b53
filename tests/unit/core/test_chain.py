"""The chain of time-outs: what each link lasts, and what is wrong with it."""

from __future__ import annotations

import pytest

from tcmu_retry.core.chain import initiator_link, kernel_links, policy_links, ring_links, session_links
from tcmu_retry.core.initiators import FOR_EVER, PROFILES, parse_profile
from tcmu_retry.core.policy import DEFAULT, change


def test_the_kernels_own_time_out_ends_a_hold() -> None:
    wanted = {"cmd_time_out": "0", "qfull_time_out": "120", "tmr_notification": "1"}
    found = {"cmd_time_out": "30", "qfull_time_out": "120"}
    ends, right, lacking = kernel_links(found, wanted)
    assert (ends.lasts, right.lasts, lacking.lasts) == (30.0, FOR_EVER, FOR_EVER)
    assert ends.wrong == "cmd_time_out must be 0; unexport the LUN and export it again"
    assert right.wrong == ""
    assert (lacking.value, lacking.wrong != "") == ("not readable", True)
    assert not any(link.wrong for link in kernel_links(wanted, wanted))


def test_a_broken_ring_is_a_link_and_a_sound_one_is_none() -> None:
    assert ring_links("") == []
    [broken] = ring_links("the device is held open")
    assert (broken.value, broken.lasts) == ("BUSY", 0.0)
    assert "answered BUSY: the device is held open;" in broken.wrong


def test_a_narrow_window_is_wrong_whoever_has_it() -> None:
    """320: what open-iscsi sends, and what six tries of 32 commands take."""
    wide, narrow = session_links({"iqn.a": (320, None), "iqn.b": (319, 319)})
    assert wide.wrong == ""
    assert "a window below 320 may close" in narrow.wrong
    assert narrow.setting == "window of iqn.b"


def test_a_window_that_aborts_have_narrowed_is_wrong_before_the_next_outage_closes_it() -> None:
    enough, few, closed = session_links({"iqn.a": (512, 320), "iqn.b": (512, 319), "iqn.c": (512, 0)})
    assert (enough.value, enough.wrong) == ("512, 320 left", "")
    assert "aborted commands have left 319 places and the next outage may take 192" in few.wrong
    assert "have left 0 places" in closed.wrong


def test_what_is_not_retried_lasts_nothing_and_what_has_no_time_out_for_ever() -> None:
    policy = change(DEFAULT, {"read.retry": "false", "write.retry_timeout": "0"})
    at_once, for_ever = policy_links(policy, PROFILES["linux"])
    assert (at_once.lasts, at_once.wrong) == (0.0, "")
    assert (for_ever.lasts, for_ever.value) == (FOR_EVER, "0s (for ever)")


def test_busy_is_counted_from_the_first_submission() -> None:
    policy = change(DEFAULT, {"write.retry_timeout": "200s", "write.fallback": "busy"})
    assert "BUSY after 200s is an error at once for linux" in policy_links(policy, PROFILES["linux"])[1].wrong
    assert policy_links(policy, PROFILES["esxi"])[1].wrong  # 200 s is more than it waits, BUSY or not
    assert not policy_links(policy, parse_profile("300s", "initiator"))[1].wrong  # nobody knows of BUSY there


def test_the_initiator_s_link_says_how_long_it_waits_and_what_ends_that() -> None:
    plain = initiator_link(PROFILES["linux"])
    assert (plain.value, plain.lasts) == ("8m", 480)
    assert plain.setting.startswith("linux: sd gives up after six tries of 60 s or 90 s")
    hurried = initiator_link(PROFILES["linux"].at_once("iqn.a has 2 LUNs"))
    assert (hurried.value, hurried.lasts) == ("6m", 360)
    assert "6m only, for aborts are answered at once: iqn.a has 2 LUNs" in hurried.setting
    assert PROFILES["esxi"].at_once("iqn.a has 2 LUNs") is PROFILES["esxi"]
    assert initiator_link(PROFILES["linux-tuned"]).value == "for ever"


def test_an_initiator_is_known_by_name_or_by_how_long_it_waits() -> None:
    assert parse_profile("esxi", "initiator") is PROFILES["esxi"]
    assert parse_profile("90s", "initiator").silence == 90
    assert parse_profile("0", "initiator").silence == FOR_EVER
    with pytest.raises(ValueError, match=r"initiator=esx is neither a known initiator nor a duration .* did you mean"):
        parse_profile("esx", "initiator")
