"""How every script starts and ends: its device, its seed, its processes, and how an error is reported.

Imports torch only inside functions, so that `--help` prints at once.
"""

import _thread
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.system.errors import UserError

if TYPE_CHECKING:
    import torch

BROKEN_PIPE = 141  # the exit code of a program that SIGPIPE has ended
OUT_OF_MEMORY = (
    "the device has not enough memory; try a smaller --batch-size or --image-size, or --device cpu"
)


def start(output_dir: str, device: str, seed: int) -> "torch.device":
    """Seeds all random numbers, sets up the device, and checks that the output folder can be written.

    Args:
        output_dir: Created where it is missing.
        device: See `device_name` in `parser`.
        seed: From 0 to 2**32 - 1.

    Returns:
        The device.

    Raises:
        UserError: The device is missing, or the folder cannot be written.
    """
    from common.system import hardware, seeding

    _check_output_dir(Path(output_dir))
    seeding.seed_everything(seed)
    chosen = pick_device(device)
    hardware.set_up(chosen)
    return chosen


def _check_output_dir(folder: Path) -> None:
    """Creates `folder` and writes a file into it, to fail before the training and not after."""
    from common.system.files import remove_stale_files

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        remove_stale_files(folder)
    except OSError as error:
        raise UserError(f"cannot write to --output-dir {folder}: {error.strerror}") from None


def require_single_process() -> None:
    """Refuses to run in several processes.

    Raises:
        UserError: torchrun has started several.
    """
    from common.system import distributed

    if distributed.world_size() > 1:
        raise UserError(f"{Path(sys.argv[0]).name} is one process; torchrun can run the stages")


def pick_device(name: str) -> "torch.device":
    """Finds the device that an option names.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Returns:
        The device; of several processes with CUDA each has its own.

    Raises:
        UserError: This machine has no such device.
    """
    import torch

    from common.system import distributed

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.world_size() > 1 and name.startswith("cuda"):
        if name != "cuda":
            count = distributed.world_size()
            raise UserError(f"--device {name} is one device for {count} processes: use --device cuda")
        name = f"cuda:{distributed.local_rank()}"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise UserError(
                f"--device {name}: this machine has {count} CUDA devices; --device cpu always works"
            )
    return torch.device(name)


def run(main: Callable, parse_args: Callable) -> None:
    """Runs a script and exits; stages also run in several processes.

    A `UserError`, or a device without enough memory, becomes one line on stderr and exit code 2, Ctrl-C exit
    code 130, a closed pipe exit code 141 without a message.

    Args:
        main: main(args) returns the exit code; any other value is exit code 0.
        parse_args: parse_args() reads the command line.
    """
    program = Path(sys.argv[0]).name
    sys.unraisablehook = _interrupt_again
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names may contain what the terminal cannot show
    resumable = False
    try:
        args = parse_args()
        if resumable := "resume" in args:
            # read when torch is imported: threads that wait in a loop take the cores from a second run
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        status = _run_escaped(main, args, resumable)
    except BrokenPipeError:
        # the reader of a pipe, such as head, has ended: what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except (UserError, RuntimeError) as error:
        if not (isinstance(error, UserError) or _is_out_of_memory(error)):
            raise
        # a loader's worker passes its error on as the text of a traceback: the message follows the name
        message = " ".join(str(error).rpartition("UserError: ")[2].split())
        if _is_out_of_memory(error):
            message = f"{OUT_OF_MEMORY}{'; the same command with --resume continues' if resumable else ''}"
        print(f"{program}: error: {_escape(message)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = (
            f"the same command{'' if args.resume else ' with --resume'} continues"
            if resumable
            else "nothing was saved"
        )
        print(f"\n{program}: interrupted; {hint}", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _run_escaped(main: Callable, args, stage: bool):
    """Runs `main`, in one process or as one of several; what it prints has no control characters."""
    from common.system.terminal import escaped_output

    with escaped_output():
        several = stage and int(os.environ.get("WORLD_SIZE", 1)) > 1
        status = _run_as_one_of_several(main, args) if several else main(args)
        sys.stdout.flush()  # here, and not when Python ends, a closed pipe can be told
    return status


def _escape(message: str) -> str:
    from common.system.terminal import escape

    return escape(message)


def _is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, without importing it


def _run_as_one_of_several(main: Callable, args):
    """Runs `main` beside the other processes that torchrun started; the first that fails reports why."""
    from common.system import distributed

    try:
        distributed.start()
        status = main(args)
        distributed.stop()
        return status
    except (UserError, KeyboardInterrupt):
        if distributed.is_first_to_fail():
            raise
        exit_silently()
    except RuntimeError as error:
        if not distributed.is_connection_error(error):
            raise
        if distributed.is_first_to_fail():
            raise UserError("another process has ended; the same command with --resume continues") from None
        exit_silently()


def exit_silently() -> None:
    """Ends this process without a message, late: torchrun ends all processes as soon as one has ended."""
    time.sleep(5)
    os._exit(2)


def _interrupt_again(unraisable) -> None:
    """Python drops what is raised in a destructor, Ctrl-C too: it is raised again a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)
