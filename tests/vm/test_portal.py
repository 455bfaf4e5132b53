"""Commands held for a dead connection must not keep anybody else from logging in."""

from __future__ import annotations

import time

from tests.vm.lab import AT_ONCE, OTHER, SOON, Lab


def test_another_initiator_logs_in_while_a_dead_one_s_commands_are_held(lab: Lab) -> None:
    """0 s  reads are held    its process is killed (the socket closes)    another initiator logs in at once."""
    lun = lab.export(lab.storage("portal"), "health=good")
    url = f"iscsi://127.0.0.1/{lun.iqn}/0"
    reader = lab.guest.start(f"exec iscsi-perf -i iqn.2026-11.org.example:dying -t 1000 {url}", "perf.log")
    time.sleep(2)
    lun.storage.fail()
    lun.wait_held()
    lab.guest.run(f"kill -9 {reader}; sleep 1")
    began = time.monotonic()
    lab.guest.run(f"iscsi-inq -i {OTHER} {url}", timeout=30)
    assert time.monotonic() - began < AT_ONCE
    lun.storage.back()


def test_a_connection_that_goes_silently_is_replaced(lab: Lab) -> None:
    """The initiator's own re-login, and another's, both get through while its old commands are held."""
    lun = lab.lun("silent", timeout=300)
    lun.storage.fail()
    lun.write(0, "silent", "silent.log")
    lun.wait_held()
    # Half of the connection is cut by the initiator itself: it drops the session and logs in again.
    lab.guest.run("iscsiadm -m session -R >/dev/null; ss -K dport = 3260 >/dev/null; true")
    began = time.monotonic()
    lab.guest.run(f"iscsi-inq -i {OTHER} iscsi://127.0.0.1/{lun.iqn}/0", timeout=40)
    assert time.monotonic() - began < AT_ONCE
    lun.storage.back()
    lab.cli("queue", "retry", "silent")
    assert lab.wait_end("silent.log", SOON) == 0
    assert lun.storage.read(0, 1).startswith(b"silent")
