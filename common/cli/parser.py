"""The command line: an `argparse` parser that reads `--config`, and the types of its options.

Imports no torch, so that `--help` prints at once.
"""

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from common.cli import launch
from common.system import units
from common.system.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, accepts no abbreviations and knows `--config`."""

    def __init__(self, description: str, script: str | None = None):
        """Splits a docstring into the texts before and after the options.

        Args:
            description: The docstring of the script.
            script: Its path; None for the program that was started.
        """
        summary, _, rest = description.strip().partition("\n")
        super().__init__(
            prog=script and Path(script).name,
            description=summary,
            epilog=rest,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str):
        """Exits with code 2.

        Args:
            message: What is wrong.
        """
        if os.environ.get("RANK", "0") != "0":
            launch.exit_silently()  # the main process has the same command line
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def parse_args(self, args: list[str] | None = None, namespace=None) -> argparse.Namespace:
        """Parses the command line; the values of `--config` come first, so that the command line wins.

        Args:
            args: The arguments; None for those of the program.
            namespace: As in `argparse`.

        Returns:
            The options, and `command`: the whole line as it was typed, to be stored in the lineage, without
            `--resume`, which does not change the result.
        """
        args = list(sys.argv[1:] if args is None else args)
        finder = Parser("finds --config")
        finder.add_argument("--config")
        config, _ = finder.parse_known_args([arg for arg in args if arg not in ("-h", "--help")])
        command = shell_join(["python", self.prog, *(arg for arg in args if arg != "--resume")])
        if config.config is not None:
            args = self._config_arguments(config.config, args) + args
        parsed = super().parse_args(args, namespace)
        parsed.command = command
        return parsed

    def _config_arguments(self, path: str, given: list[str]) -> list[str]:
        """Turns a YAML mapping into arguments, so that argparse checks types and choices of both."""
        values = self._read_config(path)
        options = {text: action for action in self._actions for text in action.option_strings}
        given = {arg.partition("=")[0] for arg in given}
        arguments = []
        for key, value in values.items():
            option = f"--{str(key).replace('_', '-')}"
            if option not in options or option in ("--config", "--help"):
                self.error(f"--config {path}: unknown option {key!r}{did_you_mean(option, options)}")
            several = options[option].nargs == "+" and isinstance(value, list)
            if any(isinstance(each, list | dict | None) for each in (value if several else [value])):
                self.error(f"--config {path}: {key} needs {'plain values' if several else 'one plain value'}")
            if options[option].nargs == 0:
                if not isinstance(value, bool):
                    self.error(f"--config {path}: {key} is true or false, not {value!r}")
                arguments += [option] * value
                continue
            # an option that excludes this one and is on the command line wins over the file
            rivals = [
                group for group in self._mutually_exclusive_groups if options[option] in group._group_actions
            ]
            if not any(
                given & set(action.option_strings) for group in rivals for action in group._group_actions
            ):
                arguments += [option, *map(str, value)] if several else [f"{option}={value}"]
        return arguments

    def _read_config(self, path: str) -> dict:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            self.error(f"cannot read --config {path}: {error.strerror}")
        # ValueError: not UTF-8, or a date such as 2001-99-99
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self.error(f"--config {path} is not valid YAML: {' '.join(str(error).split())}")
        if not isinstance(values, dict):
            self.error(f"--config {path} must contain lines of the form 'option: value'")
        return values


def number(
    kind: type, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Callable[[str], float]:
    """An argparse type: a finite number in a range.

    Args:
        kind: int or float.
        low: The lowest value.
        high: The highest value.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.

    Returns:
        The function that parses a text.
    """
    low_text = f"above {low:g}" if above else f"at least {low:g}"
    high_text = "" if high == math.inf else f" and {'below' if below else 'at most'} {high:g}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'an integer' if kind is int else 'a number'}"
            ) from None
        inside = (value > low if above else value >= low) and (value < high if below else value <= high)
        if not (inside and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} must be {low_text}{high_text}")
        return value

    return parse


def amount(*kinds: str) -> Callable[[str], str]:
    """An argparse type: text that `units.parse` accepts.

    Args:
        *kinds: Of which it must accept one; see there.

    Returns:
        The function that checks a text and returns it.
    """

    def parse(text: str) -> str:
        errors = []
        for kind in kinds:
            try:
                units.parse(kind, text)
                return text
            except ValueError as error:
                errors.append(str(error))
        raise argparse.ArgumentTypeError(errors[0])

    return parse


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda or cuda:N; -1 means cpu and N means cuda:N, as in older tools.

    Args:
        text: The argument.

    Returns:
        auto, cpu, cuda or cuda:N.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if text == "-1":
        return "cpu"
    if text.isdecimal():
        return f"cuda:{int(text)}"
    if text in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N")


def plain_name(text: str) -> str:
    """An argparse type: a word that can be part of a file name.

    Args:
        text: The argument.

    Returns:
        The argument.

    Raises:
        ArgumentTypeError: It contains other characters, or more than 100.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", text):
        raise argparse.ArgumentTypeError(f"{text!r} may contain letters, digits and . _ + -, at most 100")
    return text


def new_file(*suffixes: str) -> Callable[[str], str]:
    """An argparse type: a file to write, in a folder that exists.

    Args:
        *suffixes: Those that are allowed, in lower case.

    Returns:
        The function that checks a path and returns it.
    """

    def parse(text: str) -> str:
        if Path(text).suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(suffixes)}")
        if not Path(text).parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
        return text

    return parse


def new_folder(text: str) -> str:
    """An argparse type: a folder to write, in a folder that exists.

    Args:
        text: The argument.

    Returns:
        The argument.

    Raises:
        ArgumentTypeError: There is something of that name, or no folder to write it into.
    """
    if os.path.lexists(text):
        raise argparse.ArgumentTypeError(f"{text} exists: remove it, or name another folder")
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return text


def shell_join(words: list[str]) -> str:
    """Writes a command line.

    Args:
        words: The program and its arguments.

    Returns:
        One line, quoted for the shell of this system.
    """
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
