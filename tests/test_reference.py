"""The reference names what is exported, and a result says what each of its fields is."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import odenets
import stability

PAGES = "\n".join(path.read_text() for path in Path(__file__).parent.parent.glob("docs/api/*.md"))
RESULTS = {
    f"{package.__name__}.{name}": found
    for package in (odenets, stability)
    for name in package.__all__
    if inspect.isclass(found := getattr(package, name)) and (dataclasses.is_dataclass(found) or hasattr(found, "_fields"))
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_documents_its_fields(name):
    result = RESULTS[name]
    fields = [f.name for f in dataclasses.fields(result)] if dataclasses.is_dataclass(result) else list(result._fields)
    # A field of its own, or one of several that share a word of explanation.
    missing = [field for field in fields if not field.startswith("_") and not re.search(rf"\b{field}\b", result.__doc__)]
    assert not missing, f"{name} does not say what {missing} are"


@pytest.mark.parametrize(
    "name", [f"stability.{name}" for name in stability.__all__ if name not in ("PREDICTORS", "attack_shorthands")]
)
def test_what_is_exported_stands_in_the_reference(name):
    assert re.search(rf"^::: {name}$", PAGES, re.MULTILINE)


def test_what_public_functions_return_is_exported():
    for name in stability.__all__:
        function = getattr(stability, name)
        returned = inspect.signature(function).return_annotation if inspect.isfunction(function) else None
        if dataclasses.is_dataclass(returned):
            assert getattr(stability, returned.__name__, None) is returned, f"stability.{name} returns {returned}"
