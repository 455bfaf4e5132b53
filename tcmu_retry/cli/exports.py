"""`tcmu-retry export` and `unexport`."""

from __future__ import annotations

from argparse import Namespace

from tcmu_retry.cli import output
from tcmu_retry.cli.client import USAGE, Client, CliError
from tcmu_retry.cli.devices import done
from tcmu_retry.cli.doctor import advise
from tcmu_retry.core.chain import REASONS
from tcmu_retry.core.words import parse_size
from tcmu_retry.dbus._lib import Variant

_NO_BRACKETS = str.maketrans("", "", "[]")


async def export(client: Client, arguments: Namespace) -> None:
    """Make a LUN and its target."""
    request = {
        "name": Variant("s", arguments.name),
        "config": Variant("s", arguments.config),
        "block-size": Variant("t", arguments.block_size),
        "portals": Variant("as", arguments.portal or ["0.0.0.0:3260"]),
        "initiators": Variant("as", arguments.initiator or []),
        "any-initiator": Variant("b", arguments.any_initiator),
        "wwn": Variant("s", arguments.wwn),
        "target": Variant("s", arguments.target),
    }
    if arguments.size:
        try:
            request["size"] = Variant("t", parse_size(arguments.size, "--size"))
        except ValueError as error:
            raise CliError(str(error), USAGE) from None
    made = await client.manager("Export", "a{sv}", request)
    if arguments.json:
        output.as_json(export=made)
        return
    output.pairs([("target", made["iqn"]), ("LUN", made["lun"]), ("WWN", made["wwn"])])
    output.say("\nSet, for holding to be safe:")
    rows = [("  " + where, name, value, REASONS.get(name, "")) for where, name, value in made["settings"]]
    output.table(("  WHERE", "ATTRIBUTE", ">VALUE", "WHY"), rows, "")
    await advise(client, arguments.name, made=True)
    address = next((each for each in made["portals"] if not each.startswith(("0.0.0.0:", "[::]"))), "THIS-HOST:3260")
    output.say("\nAt the initiator:")
    output.say(f"  iscsiadm -m discovery -t sendtargets -p {address}")
    output.say(f"  iscsiadm -m node -T {made['iqn']} -p {address} --login")
    disk = f"ip-{address.translate(_NO_BRACKETS)}-iscsi-{made['iqn']}-lun-{made['lun']}"  # udev's name for it
    output.say(f"  ls -l /dev/disk/by-path/{disk}")


async def unexport(client: Client, arguments: Namespace) -> None:
    """Remove a LUN and its target."""
    await client.manager("Unexport", "s", arguments.name)
    done(arguments)
