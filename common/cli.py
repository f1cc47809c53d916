"""How every script runs: its command line, `--config`, its device, its seed, and how a mistake ends.

The only module that knows argparse. It imports no torch, so that `--help` answers at once.
"""

import _thread
import argparse
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

from common import amounts
from common.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, takes no abbreviations and knows `--config`."""

    def __init__(self, description: str, script: str | None = None):
        """`script`: the path of the script that this is the command line of; default: what was started."""
        summary, _, rest = description.strip().partition("\n")
        super().__init__(
            prog=script and Path(script).name,
            description=summary,
            epilog=rest,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str):
        if os.environ.get("RANK", "0") != "0":
            _leave_the_word_to_another()  # which has the same command line
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def parse_args(self, args=None, namespace=None):
        """Parses `args` (default: the command line); the values of `--config` come before, so `args` win.

        The result's `command` is the whole line as it was typed, to be kept with what it makes: without
        `--resume`, which changes nothing in that.
        """
        args = list(sys.argv[1:] if args is None else args)
        finder = Parser("finds --config")
        finder.add_argument("--config")
        config, _ = finder.parse_known_args([arg for arg in args if arg not in ("-h", "--help")])
        command = joined(["python", self.prog, *(arg for arg in args if arg != "--resume")])
        if config.config is not None:
            args = self._config_arguments(config.config, args) + args
        parsed = super().parse_args(args, namespace)
        parsed.command = command
        return parsed

    def _config_arguments(self, path: str, given: list[str]) -> list[str]:
        """Turns a YAML mapping into arguments, so that argparse checks types and choices of both alike."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            self.error(f"cannot read --config {path}: {error.strerror}")
        # ValueError: not UTF-8, or a date such as 2001-99-99
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self.error(f"--config {path} is not valid YAML: {' '.join(str(error).split())}")
        if not isinstance(values, dict):
            self.error(f"--config {path} must hold lines of the form 'option: value'")
        options = {text: action for action in self._actions for text in action.option_strings}
        given = {arg.partition("=")[0] for arg in given}
        arguments = []
        for key, value in values.items():
            option = f"--{str(key).replace('_', '-')}"
            if option not in options or option in ("--config", "--help"):
                self.error(f"--config {path}: unknown option {key!r}{did_you_mean(option, options)}")
            if isinstance(value, list | dict) or value is None:
                self.error(f"--config {path}: {key} needs one plain value")
            if options[option].nargs == 0:
                if not isinstance(value, bool):
                    self.error(f"--config {path}: {key} is true or false, not {value!r}")
                arguments += [option] * value
                continue
            # an option that excludes this one and stands on the command line wins over the file
            rivals = [
                group for group in self._mutually_exclusive_groups if options[option] in group._group_actions
            ]
            if not any(
                given & set(action.option_strings) for group in rivals for action in group._group_actions
            ):
                arguments.append(f"{option}={value}")
        return arguments


def number(kind: type, low: float, high: float = math.inf, *, above: bool = False, below: bool = False):
    """An argparse type: a finite `kind` from `low` to `high`; `above`, `below` leave the bound itself out."""
    low_text = f"above {low:g}" if above else f"at least {low:g}"
    high_text = "" if high == math.inf else f" and {'below' if below else 'at most'} {high:g}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            ) from None
        inside = (value > low if above else value >= low) and (value < high if below else value <= high)
        if not (inside and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} must be {low_text}{high_text}")
        return value

    return parse


def amount(kind: str):
    """An argparse type: text that `amounts.read` understands for this kind, with its unit or as a share."""

    def parse(text: str) -> str:
        try:
            amounts.read(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return parse


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda or cuda:N; -1 means cpu and N means cuda:N, as in older tools."""
    if text == "-1":
        return "cpu"
    if text.isdecimal():
        return f"cuda:{int(text)}"
    if text in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N")


def plain_name(text: str) -> str:
    """An argparse type: a word that can stand in a file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", text):
        raise argparse.ArgumentTypeError(f"{text!r} may hold letters, digits and . _ + -, at most 100")
    return text


def new_file(*suffixes: str):
    """An argparse type: a file with one of `suffixes`, in a folder that is there."""

    def parse(text: str) -> str:
        if Path(text).suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(suffixes)}")
        if not Path(text).parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
        return text

    return parse


def start(output_dir: str, device: str, seed: int):
    """Seeds everything, sets the machine up and gives the `torch.device`.

    Raises UserError for a device or a folder of no use.
    """
    from common import machine, seeds

    _check_output_dir(Path(output_dir))
    seeds.seed_everything(seed)
    chosen = pick_device(device)
    machine.set_up(chosen)
    return chosen


def _check_output_dir(folder: Path) -> None:
    """Makes `folder` and writes a file into it, to fail before the training and not after."""
    from common.files import sweep

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        sweep(folder)
    except OSError as error:
        raise UserError(f"cannot write to --output-dir {folder}: {error.strerror}") from None


def pick_device(name: str):
    """The `torch.device` that `name` (see `device_name`) means on this machine. Raises UserError."""
    import torch

    from common import distributed

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.size() > 1 and name.startswith("cuda"):
        if name != "cuda":
            count = distributed.size()
            raise UserError(f"--device {name} is one device for {count} processes: give --device cuda")
        name = f"cuda:{distributed.local_rank()}"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise UserError(
                f"--device {name}: this machine has {count} CUDA devices; --device cpu always works"
            )
    return torch.device(name)


def run(main, parse_args) -> None:
    """Runs a script, stages also in several processes; its `main` gives the exit code, or what it made for 0.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130.
    """
    program = Path(sys.argv[0]).name
    sys.unraisablehook = _interrupt_again
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    resumable = False
    try:
        args = parse_args()
        if resumable := "resume" in args:
            # read when torch is imported: threads that wait in a loop take the cores from a second run
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if resumable and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            status = _run_as_one_of_several(main, args)
        else:
            status = main(args)
    except UserError as error:
        # a loader's worker hands its error on as a traceback in text: the message follows the name
        message = " ".join(str(error).rpartition("UserError: ")[2].split())
        print(f"{program}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = (
            f"the same command{'' if args.resume else ' with --resume'} goes on"
            if resumable
            else "nothing was saved"
        )
        print(f"\n{program}: interrupted; {hint}", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _run_as_one_of_several(main, args):
    """Runs `main` beside the other processes that torchrun started; the first that fails says why."""
    from common import distributed

    try:
        distributed.start()
        status = main(args)
        distributed.stop()
        return status
    except (UserError, KeyboardInterrupt):
        if distributed.fails_first():
            raise
        _leave_the_word_to_another()
    except RuntimeError as error:
        if not distributed.has_lost_another(error):
            raise
        if distributed.fails_first():
            raise UserError("another process has ended; the same command with --resume goes on") from None
        _leave_the_word_to_another()


def _leave_the_word_to_another() -> None:
    """Ends this process without a word, late: torchrun ends all as soon as one has ended."""
    time.sleep(5)
    os._exit(2)


def _interrupt_again(unraisable) -> None:
    """Python drops what is raised in a destructor, Ctrl-C as well: it is raised again a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def joined(words: list[str]) -> str:
    """`words` as one line that this system's shell takes apart again."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
