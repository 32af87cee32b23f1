"""A page in the style of the report: one HTML file that opens anywhere, its tables, its escaping."""
import html
import re
import string
from pathlib import Path


def write_page(path, title, subtitle, answer, sections, banner=""):
    """Write a page.

    Args:
        path: The HTML file.
        title, subtitle: Plain text.
        answer: Sentences, plain text, for the box at the top; the first one stands out.
        sections: HTML.
        banner: HTML of a warning, or nothing.
    """
    page = string.Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title), subtitle=escape(subtitle), banner=banner,
        answer="".join(f"<p>{escape(sentence)}</p>" for sentence in answer), body="\n".join(sections))
    Path(path).write_text(page, encoding="utf-8")


def figure(source, number, caption):
    """A numbered figure from a data URI; the caption's first sentence is its alternative text."""
    return (f'<figure><img src="{source}" alt="{escape(caption.split(".")[0])}">'
            f"<figcaption><b>Figure {number}.</b> {escape(caption)}</figcaption></figure>")


def table(rows, numbers):
    """HTML of rows of strings, header first; `numbers` are right-aligned columns. A repeated first cell is left out."""
    lines = []
    for index, row in enumerate(rows):
        tag, repeated = ("th" if index == 0 else "td"), index > 1 and row[0] == rows[index - 1][0]
        shown = ["" if repeated else row[0], *row[1:]]
        cells = "".join(f"<{tag}{_css(cell, column in numbers)}>{(escape if column in numbers else _breakable)(cell)}</{tag}>"
                        for column, cell in enumerate(shown))
        lines.append(f"<tr{' class=group' * (index > 0 and not repeated)}>{cells}</tr>")
    return f"<div class=wide><table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table></div>"


VERDICTS = {True: "passes", False: "fails", None: "not applicable"}


def audit_rows(label, audit):
    """Rows (label, check, verdict, reason) of a recorded audit."""
    return [(label, check["name"].replace("_", " "), VERDICTS[check["passed"]], check["reason"]) for check in audit["checks"]]


def definitions(entries):
    """HTML of {term: description}, plain text."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries.items()) + "</dl>"


def _css(cell, number):
    faint = ("cannot tell", "reference", "not applicable", "passes")
    firm = ("higher", "lower", "masks", "breaks more", "fails")
    return " class=n" if number else " class=dim" if cell in faint else " class=firm" if cell in firm else ""


def _breakable(cell):
    """Escaped, with places where a long spec may break into lines."""
    return re.sub(r",(?=\S)", ",<wbr>", escape(cell))


def escape(text):
    """Text as it may stand in HTML."""
    return html.escape(str(text))
