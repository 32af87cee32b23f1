"""Share a network that a run has trained, or take one in: a checkpoint as a folder of JSON and safetensors, and back.

    python experiments/share.py runs/compare/checkpoints/implicit_euler-substeps1-seed0.pt shared/implicit
    python experiments/share.py shared/implicit implicit.pt
    python experiments/evaluate.py shared/implicit --attacks pgd20

odenets.ODEResNet.from_pretrained reads the folder, which can be put on the Hugging Face hub as it is. Needs the extra hub.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.harness.command import Parser, run_cli
from experiments.harness.run.sharing import adopt, share
from odenets.errors import InputError


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("share.py", __doc__)
    parser.add_argument("source", help="a run's checkpoints/NAME.pt, or a folder that was made of one")
    parser.add_argument("target", help="the folder, or the checkpoint NAME.pt, that is written; it must not exist")
    args = parser.parse_args(argv)
    source, target = Path(args.source), Path(args.target)
    if not source.exists():
        raise InputError(f"there is no {source}; give a checkpoint or a folder that was made of one")
    if target.exists():
        raise InputError(f"{target} exists; choose another name")
    if source.is_dir() != (target.suffix == ".pt"):
        raise InputError(f"{target} should be {'a checkpoint NAME.pt' if source.is_dir() else 'a folder'}, as {source} is not")
    target.parent.mkdir(parents=True, exist_ok=True)
    (adopt if source.is_dir() else share)(source, target)
    print(f"Written: {target.resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
