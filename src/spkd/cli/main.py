"""Parse the command line, call a command, and turn errors into one line and an exit code.

Nothing heavy is imported before a command runs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from spkd import __version__
from spkd.cli import commands, exporting, options
from spkd.cli.parser import Help
from spkd.errors import PEER_LOST, InputError, PeerLost, RunFailed, nearest, one_line, printable
from spkd.machine import is_follower, is_launched
from spkd.training.devices import is_full_memory, leave


@dataclass(frozen=True)
class Command:
    """A command: its line in the list, its options, what it does, and what adds its actions where it has any."""

    summary: str
    parser: Callable[[], ArgumentParser]
    call: Callable[[Namespace], int]
    actions: Callable[[ArgumentParser], None] | None = None


COMMANDS: Mapping[str, Command] = {
    "distill": Command(
        "train a small network with the help of a large one",
        options.distill_parser,
        commands.distill,
    ),
    "train": Command("train a network alone, without a teacher", options.train_parser, commands.train),
    "compare": Command(
        "compare methods over several seeds, with a statistical test", options.compare_parser, commands.compare
    ),
    "reproduce": Command(
        "run the paper's experiments, with their tables and figures", options.reproduce_parser, commands.reproduce
    ),
    "status": Command("show how far a comparison or another study has got", options.status_parser, commands.status),
    "tape": Command(
        "record what a teacher says once, and play it to many students",
        options.tape_parser,
        commands.tape,
        options.add_tape_actions,
    ),
    "evaluate": Command("measure how good a trained network is", options.evaluate_parser, commands.evaluate),
    "predict": Command("classify images with a trained network", options.predict_parser, commands.predict),
    "taps": Command("list the layers that can be compared, and the pairs chosen", options.taps_parser, commands.taps),
    "export": Command("write a trained network to a file to deploy", options.export_parser, exporting.export),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: the run failed. 2: bad input. 3: stopped in time, with a checkpoint. 4: of one of several processes,
    another was lost. 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _name_user()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # where not all signs can be shown
    if "--debug" in given:
        return _call([one for one in given if one != "--debug"], given)
    try:
        code = _call(given, given)
        sys.stdout.flush()
        return code
    except ArgumentError as error:
        return _fail(_one_line(str(error.message), given), 2)
    except InputError as error:
        return _fail(str(error), 2)
    except PeerLost as error:
        return _fail(str(error), PEER_LOST)
    except RunFailed as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # `head`, say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_full_memory(error):
            return _fail(
                f"the device's memory is full ({one_line(error)}); smaller images, or a CPU, need less of it", 1
            )
        return _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1)
    finally:
        _let_go_of_logs()


def _name_user() -> None:
    """Have a name for a user whom the system does not know, as in a container: PyTorch before 2.13 asks for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = "user"


def _call(given: Sequence[str], handed_on: Sequence[str]) -> int:
    parsed = _parser().parse_args(_with_config_first(given))
    options = parsed[parsed.command]
    chosen = options[options.action] if "action" in options else options
    for name, value in chosen.items():
        chosen[name] = _without_tilde(value)
    if "devices" in chosen and chosen.devices > 1 and not is_launched():
        from spkd.training.launch import launch

        resumed = "--resume continues from its last checkpoint" if "resume" in chosen else "the same command continues"
        return launch(main, handed_on, chosen.devices, resumed)
    with contextlib.ExitStack() as stack:
        if is_follower():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        code = COMMANDS[parsed.command].call(options)
        leave()
        return code


def _with_config_first(given: Sequence[str]) -> list[str]:
    """Return the same with ``--config`` directly behind the command, so that what is typed goes over what a file says.

    >>> _with_config_first(["train", "--seed", "1", "--config", "a.yaml"])
    ['train', '--config', 'a.yaml', '--seed', '1']
    """
    command = next((place for place, word in enumerate(given) if word in COMMANDS), len(given))
    behind = command + len(_command_words(given)) if command < len(given) else command
    files: list[str] = []
    others: list[str] = []
    words = iter(given[behind:])
    for word in words:
        if word == "--config":
            files += [word, *itertools.islice(words, 1)]
        else:
            (files if word.startswith("--config=") else others).append(word)
    return [*given[:behind], *files, *others]


def _without_tilde(value: object) -> object:
    """Return a text, or a list of them, with ``~`` as the home folder, which a shell leaves in ``--out=~/runs``."""
    if isinstance(value, list):
        return [_without_tilde(one) for one in value]
    is_below_home = isinstance(value, str) and (value == "~" or value.startswith("~/"))
    return str(Path(str(value)).expanduser()) if is_below_home else value


def _fail(line: str, code: int) -> int:
    with contextlib.suppress(OSError):  # a log on a full disk: the code is still told
        print(f"spkd: error: {printable(' '.join(line.split()))}", file=sys.stderr, flush=True)
    return code


def _let_go_of_logs() -> None:
    """Have what a full disk did not take of a log forgotten: Python would try again at its end, and exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="spkd",
        description="Make a small image classifier out of a large one, by similarity-preserving knowledge "
        "distillation. `spkd distill` without options does the whole job on handwritten digits.",
        version=__version__,
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    see = "`spkd COMMAND --help` shows the options of each."
    subparsers = parser.add_subcommands(
        required=True, dest="command", metavar="COMMAND", title="commands", description=see
    )
    parsers = {name: command.parser() for name, command in COMMANDS.items()}
    for name, command in COMMANDS.items():
        subparsers.add_subcommand(name, parsers[name], help=command.summary)
    for name, command in COMMANDS.items():
        if command.actions is not None:
            command.actions(parsers[name])
    return parser


def _one_line(message: str, given: Sequence[str]) -> str:
    """Rewrite an argument parser's message as a line with the option, what came, and the nearest names."""
    if match := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        return _unknown_option(match[1].split("=")[0], given)
    if match := re.search(r"does not accept option '([^']*)'", message):
        return f"in the file of --config: {_unknown_option('--' + match[1], given)}"
    if match := re.search(r"invalid choice: '([^']*)'", message):
        known = options.tape_actions() if given[:1] == ["tape"] else COMMANDS
        return f"unknown command {match[1]!r}: there are {', '.join(known)}.{nearest(match[1], known)}"
    if match := re.search(r"following arguments are required: (?:\w+\.)*(\w+)$", message):
        return f"give the {match[1]}: see `spkd {' '.join(_command_words(given))} --help`"
    if "but it was not provided" in message:
        known = options.tape_actions() if given[:1] == ["tape"] else COMMANDS
        return f"no command given: there are {', '.join(known)}; see `spkd --help`"
    if match := re.search(r"File does not exist: (.*)", message):
        return f"--config: there is no file {match[1]}"
    if match := re.search(r"Problems parsing config: (.*)|Unexpected config: (.*)", message, re.DOTALL):
        return f"--config: the file is not a list of `option: value` lines: {match[1] or match[2]}"
    key = re.search(r'[Pp]arser key "([^"]+)"', message)
    value = re.search(r"(?:Given value|Got value): (.*)", message)
    if key and value:
        return _bad_value(key[1].split(".")[-1], value[1].strip(), message)
    return message


def _bad_value(option: str, value: str, message: str) -> str:
    if choices := re.search(r"Literal\[([^\]]*)\]", message):
        known = [choice.strip(" '") for choice in choices[1].split(",")]
        return f"--{option} must be one of {', '.join(known)}, not {value!r}.{nearest(value, known)}"
    kinds = {"int": "a whole number", "float": "a finite number", "str": "text", "bool": "true or false"}
    found = [kinds[kind] for kind in re.findall(r"<class '(\w+)'>", message) if kind in kinds]
    return f"--{option} must be {found[0] if found else 'another value'}, not {value!r}"


def _unknown_option(name: str, given: Sequence[str]) -> str:
    command = next((word for word in given if word in COMMANDS), None)
    if command is None:
        return f"unknown option {name}; see `spkd --help`"
    words = _command_words(given)
    parser = options.tape_actions()[words[1]] if len(words) > 1 else COMMANDS[command].parser()
    known = [option for action in parser._actions for option in action.option_strings]
    called = " ".join(words)
    return f"`spkd {called}` has no option {name}.{nearest(name, known)} See `spkd {called} --help`"


def _command_words(given: Sequence[str]) -> list[str]:
    """Return the command that is given, and its action where it has any."""
    command = next(word for word in given if word in COMMANDS)
    actions = options.tape_actions() if command == "tape" else {}
    return [command, *(word for word in given if word in actions)][:2]
