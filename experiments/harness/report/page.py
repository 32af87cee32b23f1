"""A page in the style of the report: one HTML file that opens anywhere. What stands on it are objects; page.html shows them.

Text is escaped by the template. Where a sentence of ours carries markup it is a `Markup`, whose format() escapes its arguments.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from experiments.harness.run.schema import AuditResult

VERDICTS = {True: "passes", False: "fails", None: "not applicable"}
FAINT = ("cannot tell", "cannot tell yet", "reference", "not applicable", "passes")
FIRM = ("more robust", "less robust", "more accurate", "less accurate", "masks", "breaks more", "fails")


@dataclass(frozen=True)
class Cell:
    """The text of a cell and its classes of CSS."""

    text: str
    css: str


@dataclass(frozen=True)
class Row:
    """The cells of a row; grouped: a line above parts it from the rows before."""

    cells: tuple[Cell, ...]
    header: bool
    grouped: bool


@dataclass(frozen=True)
class Table:
    """Rows of strings, the header first; `numbers` are right-aligned columns. A first cell that repeats is left out."""

    rows: Sequence[Sequence[str]]
    numbers: Iterable[int] = ()
    kind = "table"

    def lines(self) -> list[Row]:
        """What the template shows."""
        numbers, lines = set(self.numbers), []
        for index, row in enumerate(self.rows):
            repeated = index > 1 and row[0] == self.rows[index - 1][0]
            shown = ["" if repeated else row[0], *row[1:]]
            cells = tuple(
                Cell(str(cell) if column in numbers else _breakable(cell), _css(cell, column in numbers))
                for column, cell in enumerate(shown)
            )
            lines.append(Row(cells, index == 0, index > 0 and not repeated))
        return lines


@dataclass(frozen=True)
class Figure:
    """A numbered figure from a data URI; the caption's first sentence is its alternative text."""

    source: str
    caption: str
    number: int | None = None
    kind = "figure"

    @property
    def alternative(self) -> str:
        """For those who do not see it."""
        return f"{f'Figure {self.number}. ' if self.number else ''}{self.caption.split('.')[0]}"


@dataclass(frozen=True)
class Text:
    """A paragraph; note: in small print."""

    text: str
    note: bool = False
    kind = "text"


@dataclass(frozen=True)
class Listed:
    """A list of sentences."""

    items: Sequence[str]
    kind = "list"


@dataclass(frozen=True)
class Terms:
    """{term: description}."""

    terms: Mapping[str, str]
    kind = "terms"


@dataclass(frozen=True)
class Code:
    """A command, as it was typed."""

    text: str
    kind = "code"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple


def write_page(
    path: Path, title: str, subtitle: str, answer: Iterable[str], sections: Iterable[Section | None], banner: str = ""
) -> None:
    """Write a page.

    Args:
        path: The HTML file.
        title, subtitle: Of the page.
        answer: Sentences for the box at the top; the first one stands out.
        sections: None where a run has nothing to say in one.
        banner: A warning, or nothing.
    """
    page = _template().render(
        title=title,
        subtitle=subtitle,
        banner=banner,
        answer=list(answer),
        sections=[section for section in sections if section],
    )
    Path(path).write_text(page, encoding="utf-8")


def audit_rows(label: str, audit: AuditResult) -> list[tuple[str, str, str, str]]:
    """Rows (label, check, verdict, reason) of a recorded audit."""
    return [(label, check.name.replace("_", " "), VERDICTS[check.passed], check.reason) for check in audit.checks]


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template("page.html")


def _css(cell: str, number: bool) -> str:
    return "n" if number else "dim" if cell in FAINT else "firm" if cell in FIRM else ""


def _breakable(cell: str) -> Markup:
    """Escaped, with places where a long spec may break into lines."""
    return Markup(re.sub(r",(?=\S)", ",<wbr>", str(escape(cell))))
