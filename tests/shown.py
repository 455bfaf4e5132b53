"""What the pages set off from their sentences: commands to be typed, and where each of them is run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "packaging/debian/tcmu-retry.README.Debian"]
COMMANDS = "sh"
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+")


@dataclass(frozen=True)
class Block:
    """One block. language: COMMANDS where it is indented, else what stands behind the fence; section: its heading."""

    page: str
    section: str
    language: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """Commands, one each; what a backslash continues is one."""
        return self.text.replace("\\\n", "").splitlines()


def blocks(page: Path) -> Iterator[Block]:
    """In the order in which they stand on the page."""
    text = page.read_text(encoding="utf-8")
    bare = _FENCED.sub(lambda each: "x" * (len(each[0]) - 1) + "\n", text)
    found = [(each.start(), each[1], each[2]) for each in _FENCED.finditer(text)]
    found += [(each.start(), COMMANDS, each[0]) for each in _INDENTED.finditer(bare)]
    for start, language, block in sorted(found):
        headings = re.findall(r"^#+ (.*)$", bare[:start], re.MULTILINE)
        yield Block(
            str(page.relative_to(ROOT)),
            headings[-1] if headings else "",
            language,
            textwrap.dedent(block).strip() + "\n",
        )


def commands(page: str, *sections: str) -> list[Block]:
    """Those of some sections of a page, for whoever runs them."""
    found = [each for each in blocks(ROOT / page) if each.section in sections and each.language == COMMANDS]
    assert {each.section for each in found} == set(sections), f"{page} has no such section, or no commands in it"
    return found


# Where the commands of a section are run, by page and section. By the D-Bus tier, over a simulated kernel:
SIMULATED = {
    ("docs/operations.md", "Before anything happens"),
    ("docs/operations.md", "An incident"),
    ("docs/operations.md", "Afterwards"),
    ("docs/policies.md", "A maintenance window"),
    ("docs/simulation.md", "Trying it without a kernel"),
}
# In a guest, by a test that has page and section in it:
IN_A_GUEST = {
    ("README.md", "Your own LUN in five minutes"): "tests/soak/pasting.py",
    ("README.md", "With targetcli"): "tests/soak/pasting.py",
    ("docs/operations.md", "A new version"): "tests/soak/test_readme.py",
    ("docs/operations.md", "Other size, other storage"): "tests/soak/test_readme.py",
    ("docs/packages.md", "Debian"): "tests/soak/test_packages.py",
    ("docs/scale-out.md", "One at a time, by Pacemaker"): "tests/soak/test_cluster.py",
}
# By nothing; why.
NOT_RUN = {
    ("README.md", "Two commands"): "targets of make, by which all this is run",
    ("HACKING.md", "Working on tcmu-retry"): "targets of make, by which all this is run",
    ("docs/packages.md", "The wheel"): "`make packages` puts the wheel into an environment elsewhere than in /opt",
    ("docs/tcmu-runner.md", "The move"): "a host with tcmu-runner, which tcmu-retry's package removes",
    ("packaging/debian/tcmu-retry.README.Debian", ""): "tests/soak/test_packages.py restarts the daemon in this way",
}
