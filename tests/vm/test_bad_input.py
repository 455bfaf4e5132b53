"""Bad input gets one sentence and the documented exit status, and leaves nothing half-made."""

from __future__ import annotations

import pytest

from tests.vm.lab import START, Lab

BAD = {
    "no such file": (["/run/nothing.img"], "/run/nothing.img"),
    "no absolute path": (["nothing.img"], "nothing.img"),
    "unknown key": (["/dev/vdb;retry_timeuot=5s"], "did you mean retry_timeout"),
    "bad unit": (["/dev/vdb;retry_timeout=5parsecs"], "5parsecs"),
    "bad word": (["/dev/vdb;fallback=reprot"], "did you mean report"),
    "an action that reads lack": (["/dev/vdb;read.fallback=readonly"], "readonly"),
    "data loss unasked": (["/dev/vdb;fallback=ignore"], "allow_data_loss"),
    "not a multiple of the block size": (["/dev/vdb", "--size", "1000001"], "multiple of the block size"),
    "larger than the storage": (["/dev/vdb", "--size", "20T"], "more than"),
    "odd block size": (["/dev/vdb", "--block-size", "1000"], "block-size"),
    "bad portal": (["/dev/vdb", "--portal", "localhost"], "portal"),
    "bad initiator": (["/dev/vdb", "--initiator", "somebody"], "initiator"),
    "unknown device file": (["nosuchname"], "nosuchname"),
}


def configured(lab: Lab) -> str:
    return lab.guest.run("ls -d /sys/kernel/config/target/core/user_*/* /sys/kernel/config/target/iscsi/iqn*; true").out


@pytest.mark.parametrize("case", BAD)
def test_a_bad_export_is_one_sentence_and_leaves_nothing(lab: Lab, case: str) -> None:
    arguments, word = BAD[case]
    before = configured(lab)
    result = lab.call("export", "bad", *arguments, *([] if case == "bad initiator" else ["--any-initiator"]))
    assert result.code == 1, str(result)
    assert word in result.err
    assert result.err.startswith("tcmu-retry: ")
    assert result.err.count("\n") == 1
    assert configured(lab) == before


def test_a_bad_toml_key_is_named_with_its_file(lab: Lab) -> None:
    lab.guest.run("mkdir -p /etc/tcmu-retry/devices.d")
    lab.guest.run(
        'printf \'path = "/dev/vdb"\\n[write]\\nretry_timeuot = "5s"\\n\' > /etc/tcmu-retry/devices.d/odd.toml'
    )
    result = lab.call("export", "odd", "odd", "--any-initiator")
    assert result.code == 1
    assert "write.retry_timeuot" in result.err
    lab.guest.run("rm /etc/tcmu-retry/devices.d/odd.toml")


def test_targetcli_s_way_to_a_missing_file_is_refused_and_leaves_nothing(lab: Lab) -> None:
    """`create` by configfs, as targetcli and rtslib do it: the kernel passes our refusal on."""
    done = lab.guest.run(
        "cd /sys/kernel/config/target/core && mkdir -p user_77/missing && cd user_77/missing &&"
        " echo dev_config=retry//run/nothing.img > control && echo dev_size=1048576 > control;"
        " echo 1 > enable; echo code $?; cat enable; cd ..; rmdir missing; cd ..; rmdir user_77"
    )
    assert "code 1" in done.out
    assert "No such file" in done.err
    assert "missing: it cannot be made: /run/nothing.img" in lab.daemon_log()


def test_unknown_luns_and_settings_have_their_exit_status(lab: Lab) -> None:
    assert lab.call("device", "show", "nobody").code == 5
    assert lab.call("unexport", "nobody").code == 5
    assert lab.call("device", "shwo").code == 2
    lun = lab.export(lab.storage("status", 8))
    before = lab.json("policy", "show", lun.name)
    for setting in ("retry_timeout=never", "fallback=readonly", "retrytimeout=5s"):
        result = lab.call("policy", "set", lun.name, "retry_interval=5s", setting)
        assert result.code == 1
        assert result.err.count("\n") == 1
    assert lab.json("policy", "show", lun.name) == before


def test_a_second_daemon_says_why_it_does_not_start(lab: Lab) -> None:
    import sys

    done = lab.guest.run([sys.executable, "-m", "tcmu_retry.retryd"], timeout=START, check=False, **lab.environment)
    assert done.code == 1
    assert "another tcmu-retryd is running" in done.err


def test_a_wwn_that_is_none_is_refused(lab: Lab) -> None:
    result = lab.call("export", "bad", "/dev/vda", "--any-initiator", "--wwn", "0815")
    assert result.code == 1
    assert "0815 is no WWN" in result.err
