"""sg3_utils against one LUN: what each tool says of the disk and does to it. 64 MiB, physical blocks of 4096 bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tcmu_retry.scsi.opcodes import TABLE
from tests.vm.lab import SECTOR, Lab, Lun

ILLEGAL, INVALID_OPCODE, NOT_READY, MISCOMPARE, OUT_OF_RANGE = 5, 9, 2, 14, 22  # exit statuses, sg3_utils(8)
BEFORE, AFTER = (letter.encode() * SECTOR for letter in "BX")


@pytest.fixture(scope="module")
def lun(running_lab: Lab) -> Iterator[Lun]:
    with running_lab.scene():
        lun = running_lab.export(running_lab.storage("sg", disk="/dev/vdb"))
        lun.login()
        for name, block in (("before", BEFORE), ("after", AFTER)):
            running_lab.guest.run(f"head -c {SECTOR} /dev/zero | tr '\\0' {chr(block[0])} > /run/{name}")
        running_lab.guest.run(
            "cat /run/before /run/after > /run/both; for i in {1..32}; do cat /run/before; done > /run/medium"
        )
        yield lun


SAYS = {
    "sg_inq": [
        r"PDT=0  RMB=0",
        r"\[SPC-4\]",
        r"3PC=1",
        r"CmdQue=1",
        "identification: TCMU",
        "identification: tcmu-ret",
    ],
    "sg_vpd -a": [
        "Unit serial number: [0-9a-f-]{36}",
        "0x6001405[0-9a-f]{25}",
        "0x[0-9a-f]{16}001405[0-9a-f]{9}0",
        "vendor id: TCMU",
        r"SCSI name string:\s+naa\.6001405[0-9a-f]{25}",
        "Relative target port: 0x1",
        "SIMPSUP=1",
        "Receive copy operating parameters",
        r"\(WSNZ\): 1",
        "Maximum compare and write length: 255 blocks",
        "Maximum transfer length: 4096 blocks",
        "Maximum unmap LBA count: 1048576",
        "Optimal unmap granularity: 8 blocks",
        "Maximum write same length: 0x8000 blocks",
        "Maximum atomic transfer length: 0 blocks",
        "Non-rotating medium",
        r"\(LBPU\): 1",
        r"\(LBPWS10\): 1",
        r"\(LBPRZ\): 1",
        "thin provisioned",
    ],
    "sg_modes -a": ["WP=0, DpoFua=1", "Read-Write error recovery", "Caching", "Control, page_control: current"],
    "sg_opcodes --opcode=0x93": [r"Write same\(16\)", "Usage data: 93 09 ff ff ff ff ff ff ff ff ff ff ff ff 3f 04"],
    "sg_opcodes --tmf": ["Abort task", "Logical unit reset"],
    "sg_readcap --16": [
        "lbpme=1, lbprz=1",
        "blocks=131072",
        "length=512",
        "exponent=3 .so physical block length=4096",
        "LBA=0",
    ],
    "sg_get_lba_status --lba=8": [r"LBA: 0x0000000000000008  blocks:     131064  mapped \(or unknown\)"],
    "sg_luns": ["1 lun entry"],
    "sg_logs -a": ["Supported log pages", "IE asc = 0x0, ascq = 0x0"],
    "sg_rtpg -d": [r"active/optimized\)", "target port count : 01"],
    "sg_persist --report-capabilities": ["Exclusive Access, registrants only: 1"],
    "sg_copy_results --params": ["Maximum segment length: 33554432", "Copy from block device to block device"],
    "sg_senddiag -t": ["GOOD"],
    "sg_reassign --grown": ["Elements in grown defect list: 0"],
}


@pytest.mark.parametrize("command", SAYS)
def test_a_tool_reads_what_the_disk_is(lun: Lun, command: str) -> None:
    done = lun.lab.guest.run(f"{command} {lun.generic} 2>&1")
    missing = [pattern for pattern in SAYS[command] if not re.search(pattern, done.out)]
    assert not missing, done.out


def test_sg_opcodes_lists_the_table(lun: Lun) -> None:
    """Opcode, service action and length of every row of a disk that can discard, and of no other."""
    listed = lun.lab.guest.run(f"sg_opcodes {lun.generic}").out
    found = re.findall(r"^ ([0-9a-f]{2})  {6,8}([0-9a-f]{1,2})? +(\d+)    0,0 ", listed, re.MULTILINE)
    rows = [row for row in TABLE if row.thin is not False]
    assert [(int(opcode, 16), int(action, 16) if action else None, int(size)) for opcode, action, size in found] == [
        (row.opcode, row.action, len(row.usage)) for row in rows
    ]


def test_tools_change_the_medium_as_they_say(lun: Lun) -> None:
    """Blocks 0-31 written; 8-15 unmapped, 16-17 zeroed by WRITE SAME, 18-19 overwritten; 0 swapped; all copied."""
    sg, guest = lun.generic, lun.lab.guest

    def run(command: str, code: int = 0) -> str:
        done = guest.run(command, check=False)
        assert done.code == code, str(done)
        return done.out + done.err

    run(f"sg_dd if=/run/medium of={sg} bs=512 count=32")
    run(f"sg_unmap --lba=8 --num=8 --force {sg}")
    run(f"sg_write_same --16 --unmap --lba=16 --num=2 {sg}")
    run(f"sg_write_same --10 --lba=18 --num=2 --in=/run/after {sg}")
    run(f"sg_write_same --10 --lba=18 --num=0 --in=/run/after {sg}", ILLEGAL)
    run(f"sg_compare_and_write --in=/run/both --lba=0 --num=1 {sg}")
    assert "byte offset: 0" in run(f"sg_compare_and_write --in=/run/both --lba=0 --num=1 {sg}", MISCOMPARE)
    run(f"sg_verify --lba=0 --count=128 {sg}")
    run(f"sg_verify --lba=0 --count=1 --ndo=512 --in=/run/after {sg}")
    run(f"sg_verify --lba=1 --count=1 --ndo=512 --in=/run/after {sg}", MISCOMPARE)
    run(f"sg_verify --lba=131071 --count=2 {sg}", OUT_OF_RANGE)
    assert "1 command" in run(f"sg_xcopy if={sg} skip=0 of={sg} seek=64 count=32 bs=512 id_usage=disable")
    run(f"sg_sync {sg}")
    wanted = AFTER + BEFORE * 7 + bytes(10 * SECTOR) + AFTER * 2 + BEFORE * 12
    assert lun.storage.read(0, 32) == wanted
    assert lun.storage.read(32, 64) == bytes(32 * SECTOR) + wanted


def test_a_stopped_unit_says_how_it_is_started(lun: Lun) -> None:
    sg, guest = lun.generic, lun.lab.guest
    guest.run(f"sg_start --stop {sg}")
    done = guest.run(f"sg_turs -v {sg}", check=False)
    guest.run(f"sg_start --start {sg} && sg_turs {sg}")
    assert done.code == NOT_READY
    assert "initializing command required" in done.err


def test_reservations_come_and_go(lun: Lun) -> None:
    sg, guest = lun.generic, lun.lab.guest
    guest.run(f"sg_persist --out --register --param-sark=0xabc {sg}")
    guest.run(f"sg_persist --out --reserve --param-rk=0xabc --prout-type=5 {sg}")
    assert re.search("Key=0xabc.*Write Exclusive, registrants only", guest.run(f"sg_persist -r {sg}").out, re.DOTALL)
    guest.run(f"sg_persist --out --release --param-rk=0xabc --prout-type=5 {sg}")
    guest.run(f"sg_persist --out --clear --param-rk=0xabc {sg}")
    assert "NO registered reservation keys" in guest.run(f"sg_persist -k {sg}").out


FIELD, IU = "Invalid field in cdb", "Invalid field in command information unit"
MALFORMED = {
    "no such opcode": ("-r 512", "c0 00 00 00 00 00", INVALID_OPCODE, "Invalid command operation code"),
    "no such service action": ("-r 32", "9e 1f" + " 00" * 11 + " 20 00 00", ILLEGAL, f"{FIELD}.*byte 1 bit 4"),
    "no such page": ("-r 512", "12 01 ff 02 00 00", ILLEGAL, f"{FIELD}.*byte 2"),
    "NACA": ("-r 512", "12 00 00 02 00 04", ILLEGAL, f"{FIELD}.*byte 5 bit 2"),
    "RDPROTECT": ("-r 512", "28 e0 00 00 00 00 00 00 01 00", ILLEGAL, f"{FIELD}.*byte 1 bit 7"),
    "more blocks than buffer": ("-r 512", "28 00 00 00 00 00 00 00 02 00", ILLEGAL, IU),
    "data for no block": ("-s 512 -i /run/after", "2a 00 00 00 00 00 00 00 00 00", ILLEGAL, IU),
    "LBA past the end": ("-r 512", "28 00 ff ff ff ff 00 00 01 00", OUT_OF_RANGE, "address out of range"),
    "flush past the end": ("", "35 00 ff ff ff ff 00 00 01 00", OUT_OF_RANGE, "address out of range"),
    "UNMAP past the end": ("-s 24 -i /run/after", "42 00 00 00 00 00 00 00 18 00", OUT_OF_RANGE, "out of range"),
    "copy of nonsense": ("-s 512 -i /run/after", "83" + " 00" * 11 + " 02 00 00 00", ILLEGAL, "Inline data length"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_cdb_is_refused_with_the_field_that_is_wrong(lun: Lun, case: str) -> None:
    options, cdb, code, sense = MALFORMED[case]
    done = lun.lab.guest.run(f"sg_raw {options} {lun.generic} {cdb}", check=False)
    assert done.code == code, str(done)
    assert re.search(f"Illegal Request.*{sense}", done.err, re.DOTALL), done.err
