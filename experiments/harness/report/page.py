"""A page: one HTML file that opens anywhere; beside it its figures as PNG and PDF, its tables as CSV and LaTeX.

What stands on it are objects, and page.html shows them. Text is escaped by the template. Where a sentence of ours carries
markup it is a `Markup`, whose format() escapes its arguments.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure as Drawing
from rich.console import Console

from experiments.harness.command import show_table
from experiments.harness.report.drawing import described, save

FAINT = ("cannot tell", "cannot tell yet", "reference", "no seed in common", "not applicable", "passes")
FIRM = ("more robust", "less robust", "more accurate", "less accurate", "masks", "breaks more", "fails", "supported", "refuted")
NUMBER = re.compile(r"$|[-+\u2212\u2213\[(]*(\d|\u221e|nan|inf)")
LONG = 44  # characters, beyond which a column of LaTeX breaks into lines
TEX = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "\u2013": "--", "\u201c": "``", "\u201d": "''"},
        **{"\u2032": "$'$", "\u2212": "$-$", "\u2082": "$_2$", "\u2080": "$_0$", "\u00b2": "$^2$", "\u207b": "$^{-}$"},
        **{"\u2076": "$^6$", "\u00b0": r"$^\circ$", "\u2016": r"$\|$"},
        **{
            mark: f"$\\{name}$"
            for mark, name in zip(
                "\u03b5\u03bb\u03bc\u03c1\u03b1\u03c3\u2202\u221e\u2264\u2265\u2020\u00d7\u2213\u00b1\u2192",
                "varepsilon lambda mu rho alpha sigma partial infty leq geq dagger times mp pm rightarrow".split(),
            )
        },
    }
)


@dataclass(frozen=True)
class Cell:
    """The text of a cell, its classes of CSS, what it is the header of (of nothing: ""), and how many rows it spans."""

    text: str
    css: str
    scope: str
    span: int


@dataclass(frozen=True)
class Table:
    """Cells under columns. name: of its files. keys: so many first columns name a row; equal first cells stand together.

    caption: what there is to know, below the table. Columns of numbers are set to the right.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    keys: int = 1
    kind = "table"

    @cached_property
    def numbers(self) -> set[int]:
        """The columns in which nothing but numbers and intervals stand."""
        return {j for j in range(self.keys, len(self.columns)) if all(NUMBER.match(str(row[j])) for row in self.rows)}

    def groups(self) -> Iterator[list[list[Cell]]]:
        """What the template shows: rows by their first cell, which stands once."""
        for own in self._grouped():
            yield [
                [self._cell(cell, j, 1 if j else len(own)) for j, cell in enumerate(row) if j or not i]
                for i, row in enumerate(own)
            ]

    def csv(self) -> str:
        """Every cell as it is shown."""
        text = io.StringIO()
        csv.writer(text).writerows([self.columns, *self.rows])
        return text.getvalue()

    def latex(self) -> str:
        """A table of booktabs, with caption and label."""
        lines = [" \\addlinespace\n".join(self._lines(own) for own in self._grouped())]
        return "\n".join(
            (
                "% \\usepackage{booktabs}",
                "\\begin{table}\n\\centering\\small",
                f"\\begin{{tabular}}{{{''.join(map(self._column, range(len(self.columns))))}}}",
                f"\\toprule\n{_row(self.columns)}\n\\midrule",
                *lines,
                f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{tex(_plain(self.caption))}}}",
                f"\\label{{tab:{self.name}}}\n\\end{{table}}\n",
            )
        )

    def show(self, console: Console, title: str) -> Console:
        """In the terminal; returns a console that is wide enough for what goes with it."""
        return show_table(console, title, [self.columns, *self.rows], self.keys)

    def _grouped(self) -> Iterator[list[Sequence[str]]]:
        return (list(own) for _, own in groupby(self.rows, key=lambda row: row[0]))

    def _cell(self, cell: object, column: int, span: int) -> Cell:
        text, number = str(cell), column in self.numbers
        css = "n" if number else "dim" if text in FAINT else "firm" if text in FIRM else ""
        scope = "" if column >= self.keys else "rowgroup" if span > 1 else "row"
        return Cell(text if number else _breakable(text), css, scope, span)

    def _lines(self, own: Sequence[Sequence[str]]) -> str:
        return "\n".join(_row(("" if i else row[0], *row[1:])) for i, row in enumerate(own))

    def _column(self, index: int) -> str:
        longest = max((len(str(row[index])) for row in self.rows), default=0)
        return "r" if index in self.numbers else "p{0.4\\linewidth}" if longest > LONG else "l"


@dataclass(frozen=True)
class Figure:
    """A drawing, its caption, and the name of its files. The alternative text has the numbers that it shows."""

    name: str
    drawing: Drawing
    caption: str
    kind = "figure"

    @property
    def alternative(self) -> str:
        """For those who do not see it."""
        return f"{self.caption.split('.')[0]}. {described(self.drawing)}".strip()


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
class Folded:
    """Parts that are shown when asked for."""

    summary: str
    parts: tuple
    kind = "folded"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def flat(self) -> Iterator:
        """Its parts, those folded away too."""
        for part in self.parts:
            yield from part.parts if isinstance(part, Folded) else (part,)


@dataclass(frozen=True)
class Page:
    """A page. answer: sentences of the box at the top, the first one stands out. sections: None where there is nothing to say.
    banner: a warning, or nothing. notices: what to know before reading, each a sentence."""

    title: str
    subtitle: str
    answer: Sequence[str]
    sections: Sequence[Section | None]
    banner: str = ""
    notices: Sequence[str] = ()

    def write(self, path: Path) -> None:
        """The HTML file, and figures/ and tables/ beside it; what the page of before had there and this one not is removed."""
        path, sections = Path(path), [section for section in self.sections if section]
        parts = [part for section in sections for part in section.flat()]
        pictures = {p.name: save(p.drawing, path.parent / "figures", p.name) for p in parts if isinstance(p, Figure)}
        tables = [part for part in parts if isinstance(part, Table)]
        files = [f"figures/{name}.{form}" for name in pictures for form in ("png", "pdf")]
        files += [f"tables/{table.name}.{form}" for table in tables for form in ("csv", "tex")]
        for stale in _files_of(path) - {*files}:
            Path(path.parent, stale).unlink(missing_ok=True)
        for table in tables:
            (path.parent / "tables").mkdir(exist_ok=True)
            for suffix, text in (("csv", table.csv()), ("tex", table.latex())):
                Path(path.parent, "tables", f"{table.name}.{suffix}").write_bytes(text.encode())
        html = _template().render(page=self, sections=sections, pictures=pictures, numbers=[*pictures], files=files)
        path.write_text(html, encoding="utf-8")


def _files_of(path: Path) -> set[str]:
    """The figures and tables that a page names as its own; none where there is no such page."""
    head = path.read_text(encoding="utf-8")[:20_000] if path.is_file() else ""
    named = re.search(r'<meta name="files" content="([^"]*)">', head)
    return set(re.findall(r"(?:figures|tables)/[^/\s]+", named[1])) if named else set()


def linked(names: Iterable[str]) -> Markup:
    """Links to files beside a page."""
    return Markup(", ").join(Markup('<a href="{0}">{0}</a>').format(name) for name in names)


def tex(text: str) -> str:
    """Text for LaTeX: what it would take for a command or has no letter for is written out."""
    text = str(text).translate(TEX)
    return f"{{}}{text}" if text.startswith(("[", "*")) else text  # after a line break these would be its argument


def _row(cells: Iterable[object]) -> str:
    return " & ".join(tex(str(cell)) for cell in cells) + r" \\"


def _plain(text: str) -> str:
    return text.striptags() if isinstance(text, Markup) else text


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template("page.html")


def _breakable(cell: str) -> Markup:
    """Escaped, with places where a long spec may break into lines."""
    return Markup(re.sub(r",(?=\S)", ",<wbr>", str(escape(cell))))
