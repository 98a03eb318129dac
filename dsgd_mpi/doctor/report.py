"""A report for people and for grep: sections of names and values, tables, and finally problems and remedies."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDE = 1000                                 # columns if output is not a terminal: no line is wrapped there


class Report:
    """Prints as it goes, so that a later hang hides nothing that is known; prints nothing unless `talking`."""

    def __init__(self, talking: bool = True) -> None:
        # Open MPI gives its ranks a pseudo-terminal whatever its own output is
        terminal = None if sys.stdin and sys.stdin.isatty() else False
        self.talking = talking
        self.console = Console(quiet=not talking, highlight=False, force_terminal=terminal)
        if not self.console.is_terminal:
            self.console.width = WIDE
        self.problems: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def section(self, title: str, lines: Iterable[tuple[str, object]]) -> None:
        """Values that are None are left out."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=14)
        grid.add_column(overflow="fold")
        for name, value in lines:
            if value is not None:
                grid.add_row(f"  {escape(name)}", escape(str(value)))
        self.print(f"\n[bold]{title}[/bold]", grid)

    def table(self, title: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """All columns but the first hold figures."""
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        for number, name in enumerate(names):
            table.add_column(f"  {name}" if number == 0 else name, justify="right" if number else "left")
        for first, *others in rows:
            table.add_row(f"  {escape(str(first))}", *(escape(str(value)) for value in others))
        self.print(f"\n[bold]{title}[/bold]", table)

    def wrong(self, problem: str, remedy: str) -> None:
        """A problem that prevents a run; `remedy`: what to do."""
        if (problem, remedy) not in self.problems:
            self.problems.append((problem, remedy))

    def note(self, text: str) -> None:
        """Something that does not prevent a run, but that one should know."""
        if text not in self.notes:
            self.notes.append(text)

    def end(self) -> int:
        """Prints problems and remedies; the exit status."""
        if self.notes:
            self.section("worth knowing", [("-", text) for text in self.notes])
        if not self.problems:
            self.print("\n[bold green]nothing is wrong[/]")
            return 0
        count = len(self.problems)
        self.print(f"\n[bold red]{count} thing{'s are' if count > 1 else ' is'} wrong[/]")
        for number, (problem, remedy) in enumerate(self.problems, start=1):
            grid = Table.grid(padding=(0, 2))
            grid.add_row(f"  {number}.", escape(problem))
            grid.add_row("  to do", escape(remedy))
            self.print(grid)
        return 1

    def print(self, *things: object) -> None:
        with self.console.capture() as capture:
            for thing in things:
                self.console.print(thing)
        self.console.file.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())
        self.console.file.flush()
