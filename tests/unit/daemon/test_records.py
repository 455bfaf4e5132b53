"""What storage a LUN had outlives the daemon and the host's uptime, and never gets in a LUN's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcmu_retry.backends.base import Identity
from tcmu_retry.daemon.records import Record, Records

RECORD = Record("/srv/vm1.img;health=down", Identity("file", 1 << 30, "fs:1:2"), can_discard=True)


def test_a_record_is_found_by_name_and_configuration(tmp_path: Path) -> None:
    Records(tmp_path / "luns").keep("vm/1 ü", RECORD)
    later = Records(tmp_path / "luns")
    assert later.find("vm/1 ü", RECORD.config) == RECORD
    assert later.find("vm/1 ü", "/srv/other.img") is None
    assert later.find("vm2", RECORD.config) is None
    assert [path.parent for path in (tmp_path / "luns").iterdir()] == [tmp_path / "luns"]


def test_a_dropped_record_is_gone(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.keep("vm1", RECORD)
    records.drop("vm1")
    records.drop("vm1")
    assert records.find("vm1", RECORD.config) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"config": "x", "identity": {"kind": 1}, "can_discard": true}', "\0"]
)
def test_a_damaged_record_is_none(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "vm1.json").write_text(text)
    assert Records(tmp_path).find("vm1", "x") is None
    assert "is no record of LUN vm1" in caplog.text


def test_a_place_that_cannot_be_written_is_said_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    Records(tmp_path / "file").keep("vm1", RECORD)
    assert "cannot be written" in caplog.text
