"""What cannot become a LUN is refused before LIO's configuration is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcmu_retry.daemon import export
from tcmu_retry.daemon.api import ApiError, ExportRequest

GOOD = ExportRequest("vm1", "/srv/vm1.img", any_initiator=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "a b"}, "'a b' is no name for a LUN"),
        ({"wwn": "0815"}, "0815 is no WWN"),
        ({"target": "vm1"}, "vm1 is no target's name, such as iqn.2026-11.org.example:vm1"),
        ({"block_size": 513}, "block-size 513"),
        ({"any_initiator": False}, "nobody could log in"),
        ({"initiators": ["me"]}, "me is not an initiator's name"),
        ({"portals": []}, "a target needs a portal"),
        ({"portals": ["here"]}, "here is not a portal"),
        ({"size": 1 << 21}, "size 2097152 is more than the 1048576 bytes"),
        ({"size": 1000}, "give --size 512"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_a_sentence(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ApiError) as refusal:
        export.export(replace(GOOD, **wrong), lambda: (1 << 20, 512))  # type: ignore[arg-type]
    assert refusal.value.kind == "InvalidArgument"
    assert said in str(refusal.value)


def test_a_lun_has_its_storage_s_blocks_or_larger_ones() -> None:
    def storage() -> tuple[int, int]:
        return 1 << 20, 4096

    assert export._fitted(GOOD, storage).block_size == 4096
    with pytest.raises(ApiError, match="give --block-size 4096, or leave it out"):
        export.export(replace(GOOD, block_size=512), storage)
