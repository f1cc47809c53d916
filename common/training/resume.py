"""The state of a run, kept in a file while it runs, so that an interrupted run can be resumed.

`<name>-<digest>.resume` is beside the checkpoints. The digest is of all that determines the result of the
run: an interrupted run is found by its own options, and runs with other options do not interfere.
"""

import hashlib
import json
import time
from pathlib import Path

from common.system import distributed
from common.system.errors import UserError
from common.system.files import atomic_write, load_checked, save_checked

FORMAT = 1
MIN_INTERVAL = 60  # seconds between two states, at least
MAX_TIME_FRACTION = 0.05  # of the time that may be spent on writing them
# options that do not determine the result of a run; and the learning rate, which may be lowered on resuming
IGNORED_OPTIONS = {"cache", "command", "config", "data_dir", "device", "lr", "output_dir", "workers"}


class Progress:
    """The states of a run: one for each call of `fit`, several where pruning has several steps.

    `finished` is the checkpoint that the same run has created before, or None.
    """

    def __init__(self, path: Path | None = None, key: dict | None = None, row: dict | None = None):
        """Starts without a state.

        Args:
            path: The file; without one nothing is written.
            key: What determines the result of the run: see `run_key`.
            row: Its row of the lineage.
        """
        self.path, self.key, self.row = path, key, row
        self.finished: Path | None = None
        self.states: list[dict] = []
        self.current = -1
        self._on_disk = False
        self._written, self._pause = time.monotonic(), MIN_INTERVAL

    def begin(self) -> dict | None:
        """Begins the next call of `fit`: its state, or None where it starts from the beginning."""
        state = self.upcoming()
        self.current += 1
        return state

    def upcoming(self) -> dict | None:
        """The state of the next call of `fit`, or None where it starts from the beginning."""
        return self.states[self.current + 1] if self.current + 1 < len(self.states) else None

    @property
    def epochs_before(self) -> int:
        """The epochs of the earlier calls of `fit`."""
        return sum(state["epoch"] for state in self.states[: self.current])

    def due(self) -> bool:
        """Whether it is time for this process to write a state."""
        writes = self.path is not None and distributed.is_main_process()
        return writes and time.monotonic() - self._written >= self._pause

    def keep(self, state: dict, *, write: bool = True) -> None:
        """Replaces the state of the current call of `fit`.

        Args:
            state: Tensors and plain values.
            write: Whether the file is written too.

        Raises:
            UserError: The file cannot be written; the old one stays.
        """
        self.states[self.current :] = [state]
        if write and self.path is not None and distributed.is_main_process():
            start = time.monotonic()
            content = {"format": FORMAT, "run": self.key, "row": self.row, "rounds": self.states}
            with atomic_write(self.path) as temporary:
                save_checked(content, temporary)
            self._on_disk, self._written = True, time.monotonic()
            self._pause = max(MIN_INTERVAL, (self._written - start) / MAX_TIME_FRACTION)

    def finish(self) -> None:
        """Deletes the file, once the checkpoint is written."""
        if self.path is not None and distributed.is_main_process():
            self.path.unlink(missing_ok=True)

    def hint(self) -> str:
        """How to resume after a failure: "; ..." where a state is on the disk, else ""."""
        if not self._on_disk:
            return ""
        done = _described(self.states)
        return f"; --resume continues from {self.path} ({done}), also with another --lr"


def open_run(folder: str | Path, row: dict, *, resume: bool, images: str) -> Progress:
    """Opens the progress of a run.

    With `resume` it has the states that are on the disk, and its row is that of the run's start, with the
    changes since then; a run that was finished before is not repeated: see `Progress.finished`. Without a
    state the run starts from the beginning, and a message says so.

    Args:
        folder: Where checkpoints are kept.
        row: The result of `lineage.new_row`.
        resume: Whether an interrupted run is resumed.
        images: The fingerprint of those that the result is evaluated on. An interrupted run does not depend
            on them; a finished one has another accuracy with others, and is repeated.

    Returns:
        The progress.

    Raises:
        UserError: There is a state and `resume` is False, or the state cannot be read; or another process has
            other options.
    """
    key = run_key(row)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    if len(set(distributed.all_gather((digest, images)))) > 1:
        raise UserError("the processes differ in their options, images or checkpoints to start from")
    progress = Progress(Path(folder) / f"{row['name']}-{digest}.resume", key, row)
    found = distributed.broadcast(_find(progress, resume, images) if distributed.is_main_process() else None)
    if isinstance(found, Path):
        progress.finished = found
    elif found:
        progress.states, progress._on_disk = found["rounds"], True
        started, lr = found["row"], row["options"]["lr"]
        before = started["options"]["lr"]
        progress.row = started | {"options": started["options"] | {"lr": lr}}
        done = _described(progress.states)
        print(f"resumes {progress.path} ({done})")
        if before != lr:
            progress.row["changes"] = [*started.get("changes", []), {"at": done, "lr": [before, lr]}]
            print(f"note: the learning rate was {before:g} until here and is {lr:g} from here on")
    return progress


def run_key(row: dict) -> dict:
    """What determines the result of a run.

    Args:
        row: Its row of the lineage.

    Returns:
        The parts of the row that count; two runs with the same key have the same result.
    """
    hashes = ("parent_sha256", "teacher_sha256", "pretrained_sha256")
    key = {name: row.get(name) for name in ("stage", "name", "split", *hashes)}
    ignored = set(IGNORED_OPTIONS)
    # a file counts by its content: two spellings of its path are the same run
    if row.get("parent_sha256"):
        ignored |= {"weights", "teacher"}
    if row.get("teacher_sha256"):
        ignored.add("teacher")
    if row.get("pretrained_sha256"):
        ignored.add("pretrained")
    key["options"] = {name: value for name, value in row["options"].items() if name not in ignored}
    return key


def _find(progress: Progress, resume: bool, images: str) -> dict | Path | None:
    """The content of the run's file, or the checkpoint that the run has created before, or None."""
    path = progress.path
    if not path.exists():
        if resume and (finished := _finished(progress, images)):
            print(f"finished before: {finished}")
            return finished
        if resume:
            print("nothing to resume, the run starts from the beginning")
            for other in path.parent.glob(f"{progress.row['name']}-*.resume"):
                print(f"note: {other} is of a run with other options, images or checkpoints to start from")
        return None
    try:
        content = load_checked(path)
        expected = {"format": FORMAT, "run": progress.key}.items()
        if not isinstance(content, dict) or any(content.get(key) != value for key, value in expected):
            raise UserError(f"{path} was not written by this version")
    except UserError as error:
        raise UserError(f"{error}; delete it to start from the beginning") from None
    if not resume:
        raise UserError(
            f"{path} is this run, interrupted ({_described(content['rounds'])}): resume it with --resume, "
            "or delete the file to start from the beginning"
        )
    return content


def _finished(progress: Progress, images: str) -> Path | None:
    """The checkpoint beside `progress` that the same run with the same learning rate has created, if any, and
    evaluated on the same images.
    """
    for path in progress.path.parent.glob(f"{progress.row['name']}_*.pt"):
        try:
            content = load_checked(path)
            row = content["lineage"][-1]
            same = row["options"].get("lr") == progress.row["options"]["lr"]
            same &= content["metrics"]["images"] == images
            if run_key(row) == progress.key and same and "changes" not in row:
                return path
        except (UserError, LookupError, TypeError, AttributeError):  # damaged, or not a stage's checkpoint
            continue
    return None


def _described(states: list[dict]) -> str:
    epochs, steps = sum(state["epoch"] for state in states), states[-1]["step"]
    return f"epochs done: {epochs}{f', and {steps} steps of the next' if steps else ''}"
