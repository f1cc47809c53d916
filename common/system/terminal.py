"""Progress on the terminal."""

from collections.abc import Iterable

from tqdm import tqdm

from common.system import distributed


def progress_bar(items: Iterable | None = None, **options) -> tqdm:
    """A progress bar in the main process, where stderr is a terminal; elsewhere nothing is drawn.

    Args:
        items: What is iterated over; None for a bar that is updated by hand.
        **options: Those of `tqdm`.

    Returns:
        The `tqdm` object; it is removed from the terminal when it is done.
    """
    hidden = None if distributed.is_main_process() else True  # None: tqdm looks for a terminal
    return tqdm(items, dynamic_ncols=True, leave=False, disable=hidden, **options)
