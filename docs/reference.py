"""What the site is built from: reference.py DIRECTORY gathers the pages and writes those that the sources tell.

mkdocs-material: the pages are plain Markdown, read on any forge too, and the diagrams need nothing drawn by hand.
"""

from __future__ import annotations

import argparse
import errno
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from tcmu_retry.backends import filters
from tcmu_retry.backends.filters import delay, error
from tcmu_retry.cli import grammar
from tcmu_retry.core.errors import ErrorClass, ReportAs, classify, report
from tcmu_retry.core.events import MEANINGS
from tcmu_retry.core.policy import DEFAULT, QEMU, flatten
from tcmu_retry.daemon import metrics
from tcmu_retry.dbus.interface import own
from tcmu_retry.dbus.names import ACCESS, DEVICE, MANAGER
from tcmu_retry.retryd import parser as daemon_parser
from tcmu_retry.scsi.request import Direction

ROOT = Path(__file__).resolve().parents[1]
manual = runpy.run_path(str(ROOT / "packaging/manual.py"))


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def command_line() -> Iterator[str]:
    yield "# Command line"
    for parser in (grammar.build(), daemon_parser()):
        for verb in manual["leaves"](parser):
            described: argparse.ArgumentParser = verb
            yield f"\n## `{described.prog}`\n\n{described.description or ''}\n"
            yield f"    {manual['usage'](described)}"
            rows = manual["arguments"](described).items()
            if rows:
                yield from table(("argument", "meaning"), ((code(term), text) for term, text in rows))


def settings() -> Iterator[str]:
    policy, lun = readme_tables("Policy")
    yield "# Settings\n\nWhere they are written and which counts: [README](../index.md#policy)."
    yield f"\n## Policy\n\n{policy}"
    yield f"\n## A LUN\n\n{lun}"
    yield "\n## Every key of a policy\n\nAs `tcmu-retry policy show` has it, with what counts where nothing is said."
    yield from table(("key", "default"), ((code(key), code(value)) for key, value in flatten(DEFAULT).items()))
    yield "QEMU's words, which are translated: " + ", ".join(map(code, QEMU)) + "."
    yield "\n## Classes of errors\n\nWith what `report` tells the initiator of them where `report_as` is `auto`."
    yield from table(("class", "errno", "read", "write"), classes())
    yield "## Failing and waiting on purpose"
    for name, filter_keys in (("error", error.KEYS), ("delay", delay.KEYS)):
        described = (filters.KNOWN[name].__doc__ or "").split(" Raises ")[0]
        yield f"\n{described}\n\nKeys: " + ", ".join(code(f"{name}.{key}") for key in filter_keys) + "."


def readme_tables(section: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0].replace("](docs/", "](../")
    return re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE)


def classes() -> Iterator[tuple[str, ...]]:
    codes: dict[ErrorClass, list[int]] = {group: [] for group in ErrorClass}
    for number in sorted(errno.errorcode):
        if classify(number) is not ErrorClass.UNKNOWN:
            codes[classify(number)].append(number)
    codes[ErrorClass.UNKNOWN] = [errno.EIO]
    for group, numbers in codes.items():
        names = ", ".join(code(errno.errorcode[number]) for number in numbers)
        names += " and every other" if group is ErrorClass.UNKNOWN else ""
        yield code(group.value), names, *(reported(group, numbers, direction) for direction in Direction)


def reported(group: ErrorClass, numbers: list[int], direction: Direction) -> str:
    """As key/ASC/ASCQ: one for all, or one each."""
    if group is ErrorClass.RESERVATION:
        return "RESERVATION CONFLICT"
    told = [report(number, direction, ReportAs.AUTO) for number in numbers]
    shown = [f"{sense.key:02X}/{sense.asc:02X}/{sense.ascq:02X}" for sense in told]
    return ", ".join(shown if len(set(shown)) > 1 else shown[:1])


def events() -> Iterator[str]:
    yield "# Events\n\n`tcmu-retry explain CODE` tells the same."
    for number, meaning in MEANINGS.items():
        yield f"\n## {number}\n\n*{meaning.summary}*\n\n{meaning.explain}"


def measured() -> Iterator[str]:
    yield "# Metrics\n\nUnits, types and labels: [metrics](../metrics.md)."
    counters = {f"{name}_total": text for name, (text, _) in metrics.COUNTERS.items()}
    found = metrics.GAUGES | metrics.SIDED | {metrics.STATE: metrics.STATE_HELP} | counters
    found |= {f"{metrics.EVENTS}_total": metrics.EVENTS_HELP, metrics.OUTAGES: metrics.OUTAGES_HELP}
    found |= {f"{metrics.BUILD}_info": metrics.BUILD_HELP}
    yield from table(("metric", "meaning"), ((code(name), text) for name, text in found.items()))


def bus() -> Iterator[str]:
    yield "# D-Bus\n\nMade from the XML that the daemon is held to."
    for name in (MANAGER, DEVICE):
        # The interface as the service reads it; what is written above an element is its description.
        text = (ROOT / f"tcmu_retry/dbus/{name}.xml").read_text(encoding="utf-8")
        parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
        interface = ET.fromstring(text, parser).find("interface")
        assert interface is not None
        yield f"\n## `{own(name).name}`"
        said = ""
        for element in interface:
            if element.tag is ET.Comment:
                said = "\n".join(line.strip() for line in (element.text or "").strip("\n").splitlines()).strip()
                continue
            if element.tag in ("method", "property", "signal"):
                yield f"\n### {element.attrib['name']}\n\n{element.tag} " + ", ".join(signature(element))
                if said:
                    yield "\n```text\n" + said + "\n```"
            said = ""


def signature(element: ET.Element) -> Iterator[str]:
    if element.tag == "property":
        yield code(element.attrib["type"])
    for argument in element.iter("arg"):
        yield f"{argument.get('direction', 'out')} {code(argument.get('name', '') + ': ' + argument.attrib['type'])}"
    for note in element.iter("annotation"):
        if note.attrib["name"] == ACCESS:
            yield f"access {code(note.attrib['value'])}"


PAGES = {
    "command-line": command_line,
    "settings": settings,
    "events": events,
    "metrics": measured,
    "d-bus": bus,
}


def listing(page: Path, heading: str, source: Path, prefix: str) -> None:
    """A page of links to all pages of a directory, by their titles."""
    titles = [
        f"- [{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}]({prefix}{path.name})"
        for path in sorted(source.glob("*.md"))
    ]
    page.write_text(f"# {heading}\n\n" + "\n".join(titles) + "\n", encoding="utf-8")


def gather(directory: Path) -> None:
    """The whole site's Markdown."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(ROOT / "docs", directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, file in (("index", "README"), ("hacking", "HACKING"), ("changelog", "CHANGELOG")):
        text = (ROOT / f"{file}.md").read_text(encoding="utf-8").replace("](docs/)", "](outage.md)")
        text = re.sub(r"\]\(docs/", "](", text)
        text = text.replace("](HACKING.md)", "](hacking.md)").replace("](CHANGELOG.md)", "](changelog.md)")
        (directory / f"{name}.md").write_text(text, encoding="utf-8")
    listing(directory / "decisions.md", "Decisions", ROOT / "docs/decisions", "decisions/")
    listing(directory / "pages.md", "All pages", ROOT / "docs", "")
    (directory / "reference").mkdir()
    for name, page in PAGES.items():
        (directory / f"reference/{name}.md").write_text("\n".join(page()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
