"""A script for --sim means what it says, or is refused with the line that makes no sense."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tcmu_retry.daemon.script import Fault, Load, NewLun, Ok, ScriptError, Step, parse
from tcmu_retry.scsi.request import Direction

ROOT = Path(__file__).resolve().parents[3]


def test_a_script_is_its_luns_and_its_steps_by_time() -> None:
    script = parse(
        """
        lun vm1 64M retry_timeout=2m;write.fallback=stop   # two settings
        lun vm2 4096
        45s vm1 ok
        0s vm1 load 200
        5s vm1 error ENOLINK
        20s vm2 delay 1500ms read
        1m repeat
        """
    )
    assert script.luns == (NewLun("vm1", 64 << 20, "retry_timeout=2m;write.fallback=stop"), NewLun("vm2", 4096))
    assert script.steps == (
        Step(0, "vm1", Load(200)),
        Step(5, "vm1", Fault(errno.ENOLINK)),
        Step(20, "vm2", Fault(delay=1.5, directions=frozenset([Direction.READ]))),
        Step(45, "vm1", Ok()),
        Step(60),
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lun vm2", "write lun NAME SIZE"),
        ("lun vm2 5", "not a multiple of 4K"),
        ("lun vm2 many", "size=many is not a size"),
        ("soon vm1 ok", "soon is not a duration"),
        ("5s vm2 ok", "did you mean vm1?"),
        ("5s vm1 eror EIO", "did you mean error?"),
        ("5s vm1 error EWHAT", "EWHAT is not the name of an errno"),
        ("5s vm1 error EIO writes", "writes is not a direction"),
        ("5s vm1 error", "write error ERRNO"),
        ("5s vm1 ok now", "nothing follows ok"),
        ("5s vm1 load fast", "load=fast is not a number"),
        ("5s", "write TIME LUN"),
        ("0s repeat", "repeat needs a time"),
    ],
)
def test_a_bad_line_is_told(line: str, words: str) -> None:
    with pytest.raises(ScriptError, match=words.replace("?", r"\?")) as failure:
        parse(f"lun vm1 64M\n{line}")
    assert "\n" not in str(failure.value)


def test_nothing_comes_after_repeat() -> None:
    with pytest.raises(ScriptError, match="repeat must be the last"):
        parse("lun vm1 64M\n5s repeat\n6s vm1 ok")


def test_the_scripts_of_the_documentation_are_good() -> None:
    scripts = list((ROOT / "docs").glob("*.sim"))
    assert scripts
    for path in scripts:
        assert parse(path.read_text()).luns
