"""`make opcodes`: docs/opcodes.md, the commands of the disk, from the table that dispatches them."""

from __future__ import annotations

from pathlib import Path

from tcmu_retry.scsi.opcodes import TABLE, Command

HEAD = """# Commands

Written by `make opcodes` from `tcmu_retry/scsi/opcodes.py`; do not edit. From the same table come dispatch, the check
of the CDB, REPORT SUPPORTED OPERATION CODES, the fuzzer's commands and the test that every row has a test.

*CDB*: the opcode, then the bits that are looked at; any other bit is refused with INVALID FIELD IN CDB. *Needs*:
`read` a unit that is started, `write` one that is writable, too. Rows that the kernel answers never come to us. With
*thin* and *thick* a row is there only where the storage can discard, or cannot.

| command | opcode | CDB | needs | answered by | |
|---|---|---|---|---|---|
"""


def page() -> str:
    return HEAD + "".join(map(_row, TABLE))


def _row(row: Command) -> str:
    opcode = f"{row.opcode:02X}h" + ("" if row.action is None else f"/{row.action:02X}h")
    who = "us" if row.handler else "the kernel"
    thin = {None: "", True: "thin", False: "thick"}[row.thin]
    return f"| {row.name} | {opcode} | `{row.usage.hex(' ')}` | {row.access.value} | {who} | {thin} |\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
