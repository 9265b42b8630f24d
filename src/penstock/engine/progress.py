"""The progress bar of LLM.generate, on standard error and only where somebody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(total: int, *, is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Gives `advance(num_finished, num_tokens)`, both since last called. Imports rich only for a bar."""
    if not is_shown or not sys.stderr.isatty():
        yield lambda _finished, _tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("requests", total=total, tokens=0)
        total_tokens = 0

        def advance(num_finished: int, num_tokens: int) -> None:
            nonlocal total_tokens
            total_tokens += num_tokens
            progress.update(bar, advance=num_finished, tokens=total_tokens)

        yield advance
