"""`tcmu-retry policy …`: what is done with commands that fail."""

from __future__ import annotations

from argparse import Namespace

from tcmu_retry.cli import output
from tcmu_retry.cli.client import USAGE, Client, CliError
from tcmu_retry.cli.doctor import advise
from tcmu_retry.dbus._lib import Variant
from tcmu_retry.dbus.names import DEVICE


async def show(client: Client, arguments: Namespace) -> None:
    """The effective policy."""
    properties = await client.properties(arguments.name, DEVICE)
    _print(arguments, properties["Policy"], properties["PolicyGeneration"])


async def set_policy(client: Client, arguments: Namespace) -> None:
    """Change all of it or nothing."""
    changes = {}
    for setting in arguments.settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise CliError(f"{setting} is not KEY=VALUE", USAGE)
        changes[key] = Variant("s", value)
    options = {"dry-run": Variant("b", arguments.dry_run), "persist": Variant("b", arguments.persist)}
    if arguments.if_generation is not None:
        options["if-generation"] = Variant("t", arguments.if_generation)
    policy = await client.device(arguments.name, "SetPolicy", "a{sv}a{sv}", changes, options)
    _print(arguments, policy, None)
    if not arguments.dry_run:
        await advise(client, arguments.name)


async def reset(client: Client, arguments: Namespace) -> None:
    """Back to the policy as it is configured."""
    options = {"reset": Variant("b", True), "persist": Variant("b", arguments.persist)}
    policy = await client.device(arguments.name, "SetPolicy", "a{sv}a{sv}", {}, options)
    _print(arguments, policy, None)


async def check(client: Client, arguments: Namespace) -> None:
    """Say what is wrong with a configuration string."""
    problem = await client.manager("CheckConfig", "s", arguments.config)
    if problem:
        raise CliError(problem)
    if arguments.json:
        output.as_json(valid=True)
    else:
        output.say(f"{arguments.config} is valid")


def _print(arguments: Namespace, policy: dict[str, str], generation: int | None) -> None:
    if arguments.json:
        more = {} if generation is None else {"generation": generation}
        output.as_json(policy=policy, **more)
    else:
        output.pairs(sorted(policy.items()))
