"""Reading command lines: lists, schemes, devices; bad input is one clear sentence and exit code 2."""

import argparse
import functools
import math
import re
import sys
from argparse import Action
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, overload, runtime_checkable

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import odenets
import stability
from odenets.errors import InputError, Unsolved
from odenets.solve.precision import float32_products

EXAMPLES = "examples:"
# The sections of --help that scripts share; each option stands in one of them.
COMPARED, DATA, TRAINING, SEEDS, ATTACKS, RUN = (
    "what is compared",
    "data",
    "training",
    "seeds, time and verdicts",
    "attacks, predictors and audit",
    "the run",
)
Number = TypeVar("Number", int, float)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)  # to be copied as they are


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one sentence.

    Args:
        prog: Name of the script.
        doc: Its docstring: the first paragraph is the description, the lines of commands are the examples.
        description: In its place.
    """

    _section: Any = None

    def __init__(self, prog: str, doc: str | None = None, description: str | None = None) -> None:
        described, *rest = (doc or "").split("\n\n")
        lines = [line.strip() for line in "\n".join(rest).splitlines() if line.startswith("    python ")]
        epilog = "\n  ".join([EXAMPLES, *lines]) if lines else None
        super().__init__(prog, description=description or described, epilog=epilog, allow_abbrev=False, formatter_class=_Help)

    def section(self, title: str) -> None:
        """Options added from here on stand under a title of --help, beside those that were added under it before."""
        known = {group.title: group for group in self._action_groups}
        self._section = known.get(title) or self.add_argument_group(title)

    def add_argument(self, *names: Any, **settings: Any) -> Action:
        """As argparse has it, into the section at hand."""
        return self._section.add_argument(*names, **settings) if self._section else super().add_argument(*names, **settings)

    def format_usage(self) -> str:
        """The arguments in their order, for the options stand below."""
        arguments = [str(action.metavar or action.dest).upper() for action in self._get_positional_actions()]
        return f"usage: {' '.join([self.prog, *arguments])} [--option VALUE ...]\n"

    def format_help(self) -> str:
        """The usage above the sections."""
        self.usage = self.format_usage().removeprefix("usage: ").strip()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


@runtime_checkable
class Main(Protocol):
    """The main of a script."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Its exit code."""
        ...


def run_cli(main: Main) -> Main:
    """Wrap a script's main(argv=None): errors that are expected become one sentence on stderr and exit code 2.

    What it computes in float32 is float32: no TF32, which GPUs take for convolutions by default.

    Expected are those of `odenets.errors`, which are written to be read, and what the system says of files and processes. Any
    other exception, a ValueError too, is a fault of the program and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            with float32_products("ieee"):
                return main(argv)
        except (InputError, Unsolved, OSError) as error:
            told = str(error)
            if isinstance(error, OSError) and error.filename and error.strerror:
                told = f"{error.filename}: {error.strerror}"
            print(f"{Path(sys.argv[0]).name}: {told}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; what was written stays, --resume goes on from there", file=sys.stderr)
            sys.exit(130)

    return wrapped


def split_top_level(text: str) -> list[str]:
    """Split on commas outside parentheses; empty pieces are dropped."""
    pieces, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def parse_schemes(text: str) -> list[odenets.Scheme]:
    """Schemes of a comma-separated list of specs, or of "all"; refuses an empty list and one scheme named twice."""
    specs = odenets.list_schemes() if text.strip() == "all" else split_top_level(text)
    if not specs:
        raise InputError(f"--schemes is empty; choose from {', '.join(odenets.list_schemes())}")
    schemes = []
    for spec in specs:
        scheme = odenets.get_scheme(spec)
        if scheme in schemes:
            raise InputError(f"scheme {spec!r} stands twice in --schemes (as {scheme})")
        schemes.append(scheme)
    return schemes


def parse_fields(text: str) -> list[str]:
    """Canonical specs of a comma-separated list of fields; refuses an empty list and one field named twice."""
    fields = [str(odenets.get_field(spec)) for spec in split_top_level(text)]
    if not fields:
        raise InputError(f"--fields is empty; choose from {', '.join(odenets.list_fields())}")
    for field in fields:
        if fields.count(field) > 1:
            raise InputError(f"field {field!r} stands twice in --fields")
    return fields


ATTACK_CHOICE = f"{', '.join(stability.attack_shorthands())}, N being a number of steps, queries or draws, such as pgd20"


def parse_attacks(text: str) -> list[str]:
    """Canonical names of the attacks of a comma-separated list, without repetitions; refuses an empty list."""
    names = [str(stability.get_attack(piece)) for piece in split_top_level(text)]
    if not names:
        raise InputError(f"--attacks is empty; choose from {ATTACK_CHOICE}")
    return list(dict.fromkeys(names))


def parse_predictors(text: str) -> list[str]:
    """Names of the predictors of a user's own in a comma-separated list, without repetitions; ours are always measured."""
    names = [stability.get_predictor(piece).name for piece in split_top_level(text)]
    return [name for name in dict.fromkeys(names) if name not in stability.PREDICTORS]


def parse_numbers(text: str, option: str, kind: type[Number], minimum: float) -> list[Number]:
    """Distinct numbers of a comma-separated list, each at least `minimum`, in the order given; floats may be 8/255."""
    wanted, numbers = f"{'whole numbers' if kind is int else 'numbers'} separated by commas", list[Number]()
    for piece in split_top_level(text):
        number = _number(piece, option, kind, minimum, wanted)
        if number in numbers:
            raise InputError(f"{option} names {piece} twice")
        numbers.append(number)
    if not numbers:
        raise InputError(f"{option} is empty; give numbers separated by commas, each at least {minimum}")
    return numbers


@overload
def parse_one(text: str, option: str, kind: type[Number], minimum: float) -> Number: ...
@overload
def parse_one(text: None, option: str, kind: type[Number], minimum: float) -> None: ...
def parse_one(text: str | None, option: str, kind: type[Number], minimum: float) -> Number | None:
    """One number, or None where `text` is None."""
    if text is None:
        return None
    return _number(text.strip(), option, kind, minimum, "one whole number" if kind is int else "one number")


def _number(piece: str, option: str, kind: type[Number], minimum: float, wanted: str) -> Number:
    try:
        above, slash, below = piece.partition("/")
        number = kind(float(above) / float(below) if slash and kind is float else piece)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{option} takes {wanted}, got {piece!r}") from None
    if not (number >= minimum and math.isfinite(number)):
        raise InputError(f"{option} must be finite and at least {minimum}, got {piece}")
    return number


def parse_duration(text: str | None, option: str) -> float | None:
    """Seconds of 30s, 5m, 1h30m, or None where `text` is None."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:([0-9]{1,5})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?", text.strip())
    seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1))) if found else 0
    if not seconds:
        raise InputError(f"{option} takes a time such as 30s, 5m or 1h30m, got {text!r}")
    return float(seconds)


def parse_choice(value: str, option: str, valid: Iterable[str]) -> None:
    """Refuse what is not among the valid values."""
    if value not in valid:
        raise InputError(f"unknown {option} {value!r}; choose from {', '.join(valid)}")


def parse_names(text: str, option: str, valid: Iterable[str]) -> list[str]:
    """Valid names of a comma-separated list, without repetitions; refuses an empty list."""
    names, valid = list(dict.fromkeys(split_top_level(text))), tuple(valid)
    for name in names:
        parse_choice(name, option, valid)
    if not names:
        raise InputError(f"{option} is empty; choose from {', '.join(valid)}")
    return names


def parse_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"unknown device {name!r}; choose auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name!r} was asked for, but torch finds no CUDA here; choose auto or cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; choose auto, cpu or cuda, or one of several as in cuda:0") from None


def tell(console: Console, sentence: str) -> None:
    """Print a sentence as it is, in one line where the output is a file."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def conclude(console: Console, sentences: Iterable[str], page: str, path: Path) -> None:
    """The end of what a script says: sentences, and where its page lies."""
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False)
    tell(console, f"{page}: {path.resolve()}")


def show_table(console: Console, title: str, rows: Sequence[Sequence[object]], keys: int) -> Console:
    """Print rows of cells, the header first, and return a console that is wide enough for a pipe.

    Numbers are never cut off: what is long in the first `keys` columns, which name a row, breaks into lines; columns in which
    nothing stands are left out, and a first cell that repeats the one above it.
    """
    header, *body = [[str(cell) for cell in row] for row in rows]
    kept = [index for index in range(len(header)) if index < keys or any(row[index] not in ("", "0.0") for row in body)]
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for index in kept:
        table.add_column(header[index], no_wrap=index >= keys, overflow="fold", justify="left" if index < keys else "right")
    for before, row, after in zip([header, *body], body, [*body[1:], header]):
        cells = ("" if index == 0 and row[0] == before[0] else row[index] for index in kept)
        table.add_row(*cells, end_section=row[0] != after[0])
    wide = console if console.is_terminal else Console(width=170)
    wide.print(table)
    return wide
