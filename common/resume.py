"""What a run has done so far, kept in a file while it goes on, so that an interrupted one goes on from there.

`<name>-<digest>.resume` lies beside the checkpoints. The digest is of all that decides what the run makes: an
interrupted run is found by its own options, and runs with others do not get in each other's way.
"""

import hashlib
import json
import time
from pathlib import Path

from common import distributed
from common.errors import UserError
from common.files import load_checked, save_checked, written_whole

FORMAT = 1
PAUSE = 60  # seconds from one state to the next, at least
SHARE = 0.05  # of the time may go into writing them
# options that do not decide what a run makes; and the learning rate, which one may want to lower on the way
FREE = {"cache", "command", "config", "data_dir", "device", "lr", "output_dir", "workers"}


class Progress:
    """The states of a run's rounds, the calls of `training.fit`: one, or several in pruning step by step.

    Without a `path` nothing is written. `run`: what decides what the run makes; `row`: its row of lineage.
    `finished`: the checkpoint that this very run has made before.
    """

    def __init__(self, path: Path | None = None, run: dict | None = None, row: dict | None = None):
        self.path, self.run, self.row = path, run, row
        self.finished: Path | None = None
        self.rounds: list[dict] = []
        self.current = -1
        self._on_disk = False
        self._written, self._pause = time.monotonic(), PAUSE

    def begin(self) -> dict | None:
        """Enters the next round: its state, or None where it starts from the beginning."""
        state = self.upcoming()
        self.current += 1
        return state

    def upcoming(self) -> dict | None:
        """The state of the next round, or None where it starts from the beginning."""
        return self.rounds[self.current + 1] if self.current + 1 < len(self.rounds) else None

    @property
    def epochs_before(self) -> int:
        """How many epochs the earlier rounds took."""
        return sum(state["epoch"] for state in self.rounds[: self.current])

    def due(self) -> bool:
        """Whether it is time for this process to write a state."""
        mine = self.path is not None and distributed.is_first()
        return mine and time.monotonic() - self._written >= self._pause

    def keep(self, state: dict, *, write: bool = True) -> None:
        """Makes `state` that of this round, and writes the file. Raises UserError, and the old file stays."""
        self.rounds[self.current :] = [state]
        if write and self.path is not None and distributed.is_first():
            start = time.monotonic()
            content = {"format": FORMAT, "run": self.run, "row": self.row, "rounds": self.rounds}
            with written_whole(self.path) as temporary:
                save_checked(content, temporary)
            self._on_disk, self._written = True, time.monotonic()
            self._pause = max(PAUSE, (self._written - start) / SHARE)

    def finish(self) -> None:
        """Deletes the file, once the checkpoint is written."""
        if self.path is not None and distributed.is_first():
            self.path.unlink(missing_ok=True)

    def kept(self) -> str:
        """What to do after a failure: "; ..." where a state is on the disk, else nothing."""
        if not self._on_disk:
            return ""
        done = _described(self.rounds)
        return f"; --resume goes on from {self.path} ({done}), also with another --lr"


def open_run(folder: str | Path, row: dict, *, resume: bool) -> Progress:
    """The progress of the run that `row` (see `checkpoint.lineage_row`) describes: with `resume` as far as it
    came. Its `row` is that of the run's start, with what was changed on the way.

    With `resume` a run that was finished is not done again, see `Progress.finished`; with nothing to go on
    from it starts from the beginning, and says so. Raises UserError
    where there is a state and `resume` is not given, or it cannot be read; and where another process has set
    out to do something else.
    """
    run = _what_decides(row)
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]
    if len(set(distributed.gathered(digest))) > 1:
        raise UserError("the processes have not the same options, pictures and files to start from")
    progress = Progress(Path(folder) / f"{row['name']}-{digest}.resume", run, row)
    content = distributed.from_first(_find(progress, resume) if distributed.is_first() else None)
    if isinstance(content, Path):
        progress.finished = content
    elif content:
        progress.rounds, progress._on_disk = content["rounds"], True
        started, now = content["row"], row["options"]["lr"]
        before = started["options"]["lr"]
        progress.row = started | {"options": started["options"] | {"lr": now}}
        done = _described(progress.rounds)
        print(f"resumes {progress.path} ({done})")
        if before != now:
            progress.row["changes"] = [*started.get("changes", []), {"at": done, "lr": [before, now]}]
            print(f"note: the learning rate was {before:g} until here and is {now:g} from here on")
    return progress


def _what_decides(row: dict) -> dict:
    run = {key: row.get(key) for key in ("stage", "name", "split", "parent_sha256", "teacher_sha256")}
    run["options"] = {key: value for key, value in row["options"].items() if key not in FREE}
    return run


def _finished(progress: Progress) -> Path | None:
    """The checkpoint beside `progress` that the same run with the same learning rate has made, if any."""
    for path in progress.path.parent.glob(f"{progress.row['name']}_*.pt"):
        try:
            made = load_checked(path)["lineage"][-1]
            lr = made["options"].get("lr")
            if (
                _what_decides(made) == progress.run
                and lr == progress.row["options"]["lr"]
                and "changes" not in made
            ):
                return path
        except (UserError, LookupError, TypeError, AttributeError):  # damaged, or no checkpoint of a stage
            continue
    return None


def _find(progress: Progress, resume: bool) -> dict | Path | None:
    path = progress.path
    if not path.exists():
        if resume and (finished := _finished(progress)):
            print(f"finished before: {finished}")
            return finished
        if resume:
            print("nothing to resume, the run starts from the beginning")
            for other in path.parent.glob(f"{progress.row['name']}-*.resume"):
                print(f"note: {other} is of a run with other options, data or files to start from")
        return None
    try:
        content = load_checked(path)
        expected = {"format": FORMAT, "run": progress.run}.items()
        if not isinstance(content, dict) or any(content.get(key) != value for key, value in expected):
            raise UserError(f"{path} is not what this version writes")
    except UserError as error:
        raise UserError(f"{error}; delete it to start from the beginning") from None
    if not resume:
        raise UserError(
            f"{path} is this very run, interrupted ({_described(content['rounds'])}): go on with --resume, "
            "or delete it to start from the beginning"
        )
    return content


def _described(rounds: list[dict]) -> str:
    epochs, steps = sum(state["epoch"] for state in rounds), rounds[-1]["step"]
    return f"epochs done: {epochs}{f', and {steps} steps of the next' if steps else ''}"
