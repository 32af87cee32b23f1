"""The checkpoints of a training that is under way: the last two are kept, and a damaged one is stepped over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.harness.run import checkpoints
from experiments.harness.run.shelf import Shelf
from odenets.errors import InputError


@dataclass(frozen=True)
class Partials:
    """Where a training saves what it needs to go on.

    shelf: where it lies. name: of the case. identity: whose it is, a dict; a state is taken up by its own training only.
    say: called with a sentence that the user should read.
    """

    shelf: Shelf
    name: str
    identity: dict
    say: Callable

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state, then drop all but the last two; OSError, what is there being intact, where the disk is full."""
        self.shelf.put(self.name, checkpoints.pack({"identity": self.identity, "state": state}))

    def latest(self) -> Mapping[str, Any] | None:
        """The newest state that is whole, None where there is none. Damaged files are named and set aside.

        Raises:
            ValueError: It belongs to another training, or has another format.
        """
        found = self.shelf.newest(self.name)
        for sentence in found.damaged:
            self.say(sentence)
        if found.data is None:
            return None
        content = checkpoints.unpack(found.data, found.path)
        theirs = content["identity"]
        changes = [
            f"{key} was {theirs.get(key)!r} and is now {self.identity.get(key)!r}"
            for key in sorted({*theirs, *self.identity})
            if theirs.get(key) != self.identity.get(key)
        ]
        if changes:
            raise InputError(f"{found.path} belongs to another training ({'; '.join(changes)}); choose another --out")
        return content["state"]
