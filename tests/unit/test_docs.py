"""What the documents show is what the code has."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tcmu_retry.core.events import MEANINGS
from tcmu_retry.core.initiators import FOR_EVER, PROFILES
from tcmu_retry.core.outage import TABLE
from tcmu_retry.core.policy import CLASSES, QEMU, SETTINGS, Fallback
from tcmu_retry.daemon.config import OWN, Source
from tcmu_retry.dbus.interface import own
from tcmu_retry.dbus.names import ACTION, DEVICE, MANAGER
from tests.shown import ROOT, blocks


def diagram() -> str:
    lines = ["stateDiagram-v2", "    [*] --> online"]
    lines += [f"    {old.value} --> {new.value}: {trigger.value}" for (old, trigger), new in TABLE.items()]
    return "\n".join(lines)


def test_the_picture_of_an_outage_is_the_table() -> None:
    text = (ROOT / "docs/outage.md").read_text()
    [shown] = re.findall(r"```mermaid\n(.*?)\n```", text, re.DOTALL)
    assert shown == diagram(), f"put this into docs/outage.md:\n{diagram()}"


def test_the_page_of_commands_is_the_table_of_opcodes() -> None:
    page = runpy.run_path(str(ROOT / "docs/opcodes.py"))["page"]()
    assert (ROOT / "docs/opcodes.md").read_text() == page, "run `make opcodes`"


def test_the_readme_names_every_setting_and_fallback() -> None:
    text = (ROOT / "README.md").read_text()
    for word in (*SETTINGS, "path", *OWN, *(fallback.value for fallback in Fallback)):
        assert f"`{word}`" in text, word


def test_polkit_knows_the_actions_of_the_d_bus_methods() -> None:
    methods = [*own(MANAGER).methods.values(), *own(DEVICE).methods.values()]
    text = (ROOT / "packaging/polkit/org.tcmu.retry1.policy").read_text()
    assert {f"{ACTION}.{method.access}" for method in methods} - {f"{ACTION}.look"} == set(
        re.findall(r'<action id="([^"]+)">', text)
    )


def test_every_event_is_explained_in_full_sentences() -> None:
    for code, meaning in MEANINGS.items():
        assert re.fullmatch(r"TR-\d{3}", code)
        assert meaning.explain.endswith(".")


def test_every_test_that_the_compatibility_table_names_exists() -> None:
    text = (ROOT / "docs/qemu-retry.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)`", text))
    assert len(named) > 10
    for name in named:
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`(\w+/test_\w+\.py)[`:]", text):
        assert list((ROOT / "tests").rglob(path)), path


@pytest.mark.parametrize("page", ["HACKING.md", "docs/architecture.md"])
def test_every_file_and_folder_that_a_page_for_contributors_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`([a-z][\w-]*/[\w/.-]*)`", text) + re.findall(r"^([\w-]+/[\w/.-]*) ", text, re.MULTILINE)
    assert len(named) > 10
    for path in named:
        assert path.startswith("build/") or (ROOT / path).exists() or (ROOT / "tcmu_retry" / path).exists(), path


def test_the_configuration_that_replaces_libvirt_s_means_the_same(tmp_path: Path) -> None:
    """The guide's file, read by the daemon: 2 s, 10 s, both directions, then report."""
    [shown] = [block.text for block in blocks(ROOT / "docs/qemu-retry.md") if block.language == "toml"]
    (tmp_path / "devices.d").mkdir()
    (tmp_path / "devices.d/vm1.toml").write_text(shown)
    config = Source(tmp_path).device("vm1")
    assert config.path == "/srv/vm1.img"
    for settings in (config.policy.read, config.policy.write):
        assert (settings.retry, settings.fallback) == (True, Fallback.REPORT)
        assert (settings.retry_interval, settings.retry_timeout) == (2, 10)


def test_the_guide_s_limits_of_initiators_are_those_that_doctor_knows() -> None:
    text = (ROOT / "docs/initiators.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+? \| [^|]+?) \|", text, re.MULTILINE))

    def shown(seconds: float | None) -> str:
        return "not known" if seconds is None else "no limit" if seconds == FOR_EVER else f"{seconds:g} s"

    for name, profile in PROFILES.items():
        assert rows[name] == f"{shown(profile.silence)} | {shown(profile.busy)}"


def test_the_policies_by_use_are_read_by_the_daemon(tmp_path: Path) -> None:
    shown = [block.text for block in blocks(ROOT / "docs/policies.md") if block.language == "toml"]
    assert len(shown) == 4
    (tmp_path / "devices.d").mkdir()
    for block in shown:
        (tmp_path / "devices.d/vm1.toml").write_text(block)
        assert Source(tmp_path).device("vm1").path.endswith("/vm1")


def test_the_site_s_reference_has_every_setting() -> None:
    pages = runpy.run_path(str(ROOT / "docs/reference.py"))["PAGES"]
    settings = "\n".join(pages["settings"]())
    for word in (*SETTINGS, "path", *OWN, *CLASSES, *QEMU):
        assert f"`{word}`" in settings, word


def test_each_page_of_the_site_s_reference_has_its_place_and_says_something() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    for name, page in reference["PAGES"].items():
        assert f"reference/{name}.md" in site
        assert len("\n".join(page()).splitlines()) > 10, name
