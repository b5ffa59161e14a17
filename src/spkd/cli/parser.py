"""What the parsers of all commands share: how help looks, and the options that every command has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

_PRINT_CONFIG = (
    "print all options as a file for --config, and exit; with =skip_default only those that differ from the default, "
    "with =skip_unset only those that are set"
)
_USAGES: dict[int | str | None, str] = {None: "{0}", "?": "[{0}]", "+": "{0} [{0} ...]", argparse.PARSER: "{0} ..."}
"""How a usage shows an argument, by how often it may be given."""


class Help(DefaultHelpFormatter):
    """Help without the types of Python, with a default only where there is one, and with a usage of one line."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Leave out the options, which stand below and would fill half a screen."""
        arguments = [one for one in actions if not one.option_strings]
        shown = [_USAGES[one.nargs].format(one.metavar or one.dest) for one in arguments]
        optional = [] if any(one.nargs == argparse.PARSER for one in arguments) else ["[options]"]
        command = self._prog.replace(" [options]", "")
        super().add_usage(" ".join([command, *shown, *optional]), actions, groups, prefix)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = " ".join(action.default) if isinstance(action.default, list) else action.default
        default = f"{default:g}" if isinstance(default, float) else default
        is_said = default is None or default is False or default == argparse.SUPPRESS or "(default:" in text
        return text if is_said else f"{text} (default: {default})"


def new_parser(description: str) -> ArgumentParser:
    """Return the parser of a command, with the options that all have."""
    parser = ArgumentParser(description=description, exit_on_error=False, formatter_class=Help, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="read options from this YAML file")
    for action in parser._actions:
        if "--print_config" in action.option_strings:  # comes with --config
            action.help = _PRINT_CONFIG
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser
