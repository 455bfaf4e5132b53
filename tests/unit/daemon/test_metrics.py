"""Metrics: read back by the format's parser, all of them documented, and what rules and dashboard ask for exists."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import runpy
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIServer

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tcmu_retry.core import events
from tcmu_retry.daemon import scrape as scrape_server
from tcmu_retry.daemon.api import DeviceStatus, Notice, Watcher
from tcmu_retry.daemon.metrics import Metrics
from tests.statuses import DOWN, WELL
from tests.vm.guest import free_port

ROOT = Path(__file__).resolve().parents[3]


class FakeDevice:
    name = 'vm"1\\'  # what a label must escape

    def status(self) -> DeviceStatus:
        return replace(
            WELL,
            name=self.name,
            write=DOWN,
            held=7,
            held_bytes=3584,
            oldest_held=12.0,
            in_flight=2,
            hung=1,
            hold_reason="moving",
            backend_error="gone",
        )

    def statistics(self) -> dict[str, int]:
        return {"reads": 1, "writes": 2, "others": 3, "read_bytes": 512, "written_bytes": 1024, "errors": 9}


class FakeService:
    version = "1.2.3"

    def __init__(self) -> None:
        self.all = [FakeDevice()]

    def devices(self) -> list[FakeDevice]:
        return self.all

    def watch(self, watcher: Watcher) -> None:
        self.removed, self.notice = watcher.removed, watcher.notice


def scrape(use: Callable[[FakeService, Metrics], None] = lambda service, metrics: None) -> dict[tuple[Any, ...], float]:
    """All samples by name and labels, parsed from what a scraper's thread gets while the main loop runs."""

    async def main() -> str:
        service = FakeService()
        metrics = Metrics(service)  # type: ignore[arg-type]
        use(service, metrics)
        return (await asyncio.to_thread(generate_latest, metrics.registry)).decode()

    return parsed(asyncio.run(main()))


def parsed(text: str) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_lun_in_an_outage_as_numbers() -> None:
    found = scrape()
    device = ("device", FakeDevice.name)
    assert found["tcmu_retry_held_commands", device] == 7
    assert found["tcmu_retry_held_oldest_age_seconds", device] == 12.0
    assert found["tcmu_retry_outage_age_seconds", device, ("direction", "write")] == 12.5
    assert found["tcmu_retry_outage_age_seconds", device, ("direction", "read")] == 0
    assert found["tcmu_retry_state", device, ("direction", "write"), ("state", "down")] == 1
    assert found["tcmu_retry_state", device, ("direction", "write"), ("state", "online")] == 0
    assert found["tcmu_retry_transferred_bytes_total", device, ("op", "write")] == 1024
    assert found["tcmu_retry_io_errors_total", device] == 9
    assert found["tcmu_retry_backend_open", device] == 0
    assert found["tcmu_retry_held_by_person", device] == 1
    assert found["tcmu_retry_build_info", ("version", "1.2.3")] == 1


def test_events_and_outages_are_counted_and_go_with_their_lun() -> None:
    recovered = Notice(events.RECOVERED, "vm1", "", 0.0, {"direction": "write", "seconds": 40.0, "repeated": 3})

    def happen(service: FakeService, metrics: Metrics) -> None:
        service.notice(recovered)
        service.notice(Notice(events.RECOVERED, "vm2", "", 0.0, {"direction": "read", "seconds": 1.0}))
        service.notice(Notice(events.HELD, "vm2", "", 0.0, {"reason": "x"}))
        service.removed("vm2")

    found = scrape(happen)
    assert found["tcmu_retry_events_total", ("code", "TR-004"), ("device", "vm1")] == 3
    labels = (("device", "vm1"), ("direction", "write"))
    assert found["tcmu_retry_outage_duration_seconds_bucket", *labels, ("le", "30.0")] == 0
    assert found["tcmu_retry_outage_duration_seconds_bucket", *labels, ("le", "60.0")] == 1
    assert not any(("device", "vm2") in key for key in found)


def test_it_is_served_over_http_and_written_whole(tmp_path: Path) -> None:
    async def main() -> tuple[str, str]:
        metrics = Metrics(FakeService())  # type: ignore[arg-type]
        port = free_port()
        metrics.listen(f"127.0.0.1:{port}")
        address = f"http://127.0.0.1:{port}/metrics"
        answer = await asyncio.to_thread(lambda: urllib.request.urlopen(address, timeout=10).read().decode())
        path = tmp_path / "tcmu-retry.prom"
        await metrics.write(path)
        written = path.read_text()
        await metrics.close(path)
        assert not path.exists()
        return answer, written

    answer, written = asyncio.run(main())
    assert parsed(answer).keys() == parsed(written).keys() == scrape().keys()
    assert len(parsed(written)) >= 30


def test_with_no_file_descriptor_left_a_scraper_waits_and_no_processor_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection cannot be accepted and stays where it is; with a descriptor it is answered."""
    count, tried = 0, threading.Event()
    accept = WSGIServer.get_request

    def counted(server: WSGIServer) -> tuple[Any, Any]:
        nonlocal count
        count += 1
        tried.set()
        return accept(server)

    monkeypatch.setattr(WSGIServer, "get_request", counted)
    port = free_port()
    scrape_server.serve("127.0.0.1", port, CollectorRegistry())
    with socket.socket() as scraper:
        scraper.settimeout(10)
        low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Path("/dev/null").open() as lowest:
            free = lowest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, high))
        try:
            scraper.connect(("127.0.0.1", port))
            assert tried.wait(10)
            time.sleep(0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))
        assert count == 1
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"200 OK" in scraper.recv(100)


@pytest.mark.parametrize("where", ["9724", "localhost:http", ""])
def test_a_place_to_listen_that_is_none_gets_a_sentence(where: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="is not ADDRESS:PORT"):
            Metrics(FakeService()).listen(where)  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_main_loop_that_hangs_costs_the_scraper_its_answer_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcmu_retry.daemon.metrics.GATHER_SECONDS", 0.05)
    failed: list[BaseException] = []

    async def main() -> None:
        metrics = Metrics(FakeService())  # type: ignore[arg-type]

        def ask() -> None:
            try:
                generate_latest(metrics.registry)
            except TimeoutError as error:
                failed.append(error)

        asker = threading.Thread(target=ask)
        asker.start()
        asker.join()  # the loop stands still meanwhile

    asyncio.run(main())
    assert len(failed) == 1


def names() -> set[str]:
    def happen(service: FakeService, metrics: Metrics) -> None:
        service.notice(Notice(events.RECOVERED, "vm1", "", 0.0, {"direction": "write", "seconds": 40.0}))

    return {key[0] for key in scrape(happen) if not key[0].endswith("_created")}


def test_every_metric_is_documented_and_no_other() -> None:
    page = re.compile(r"^\| `(tcmu_retry_\w+)`", re.MULTILINE)
    documented = set(page.findall((ROOT / "docs/metrics.md").read_text()))
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))["PAGES"]["metrics"]
    assert set(page.findall("\n".join(reference()))) == documented
    histogram = "tcmu_retry_outage_duration_seconds"
    assert documented == {histogram if name.startswith(histogram) else name for name in names()}


@pytest.mark.parametrize("file", ["prometheus/tcmu-retry.rules.yml", "grafana/tcmu-retry.json"])
def test_rules_and_dashboard_ask_for_what_exists(file: str) -> None:
    text = (ROOT / "packaging" / file).read_text()
    if file.endswith(".json"):
        board = SimpleNamespace(**json.loads(text))
        assert len({panel["id"] for panel in board.panels}) == len(board.panels) > 5
    asked = set(re.findall(r"tcmu_retry_\w+", text))
    assert asked
    assert asked <= names()
    for code in re.findall(r"TR-\d+", text):
        assert code in events.MEANINGS
