"""Files that say when they are damaged, and what they hold; written whole or not at all; the last two of a training."""

import builtins
import errno

import pytest
import torch

import odenets
from experiments.harness.run import checkpoints, partials, shelf

DESCRIPTION = {
    "model": "small",
    "num_classes": 10,
    "in_channels": 1,
    "scheme": "implicit_euler(tol=0.01)",
    "substeps": 2,
    "dataset": "digits",
    "seed": 3,
    "training": "pgd",
    "epochs": 4,
    "epoch": 3,
    "config": {"test_limit": None},
}


def write(path, **changes):
    torch.manual_seed(0)
    net = checkpoints.build(DESCRIPTION)
    checkpoints.save(path, {**DESCRIPTION, "state_dict": net.state_dict(), **changes})
    return net


def test_a_network_comes_back(tmp_path, device):
    written = write(tmp_path / "a.pt").to(device).eval()
    net, meta = checkpoints.load_net(tmp_path / "a.pt", device)
    x = torch.rand(3, 1, 8, 8, device=device)
    assert torch.equal(net(x), written(x)) and not net.training
    assert meta == {"format": checkpoints.FORMAT, **DESCRIPTION}
    stage = next(iter(odenets.stages(net).values()))
    assert str(stage.scheme) == "implicit_euler(tol=0.01)" and stage.substeps == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_plain_torch_reads_it_too(tmp_path):
    write(tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["seed"] == 3


@pytest.mark.parametrize("place", [0, 100, 5000, -60, -40, -1], ids=str)
def test_one_wrong_bit_anywhere_is_found(place, tmp_path):
    write(tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[place] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(checkpoints.Damaged, match=r"a.pt is damaged"):
        checkpoints.read(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 20, 5000, -1], ids=str)
def test_a_file_cut_off_is_damaged(keep, tmp_path):
    write(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a.pt is damaged"):
        checkpoints.load_net(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 1}, "a.pt has format 1, and this version of odenets reads format 2"),
        ({"model": "resnet18"}, "another architecture than this version's resnet18: blocks.3.layers.0.weight is missing"),
        ({"in_channels": 3}, r"another architecture .*: stem.0.weight has shape \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)"),
        ({"model": "vgg"}, "cannot be loaded by this version of odenets: unknown model 'vgg'; choose from small"),
        ({"num_classes": "ten"}, "cannot be loaded by this version of odenets: "),
        ({"scheme": "magic"}, "cannot be loaded by this version of odenets: unknown scheme 'magic'"),
        ({"state_dict": {"stem.0.weight": 3}}, "stem.0.weight is no tensor"),
        ({"state_dict": {}}, "stem.0.weight is missing"),
    ],
)
def test_another_architecture_or_version_is_refused(changes, sentence, tmp_path):
    write(tmp_path / "a.pt", **changes)
    with pytest.raises(ValueError, match=sentence):
        checkpoints.load_net(tmp_path / "a.pt")


def test_what_holds_no_network_is_refused(tmp_path):
    checkpoints.save(tmp_path / "a.pt", {"model": "small"})
    with pytest.raises(ValueError, match="holds no trained network .num_classes, .* missing"):
        checkpoints.load_net(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError):
        checkpoints.read(tmp_path / "b.pt")


class _FullDisk:
    """A file that takes its first bytes and then finds no room."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(bytes(data[:100]))
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    write(tmp_path / "a.pt")
    before, plain_open = (tmp_path / "a.pt").read_bytes(), builtins.open
    monkeypatch.setattr(
        builtins,
        "open",
        lambda path, mode="r", **kw: _FullDisk(plain_open(path, mode, **kw)) if "w" in mode else plain_open(path, mode, **kw),
    )
    with pytest.raises(OSError, match="cannot save .*a.pt .No space left on device.*--resume goes on"):
        write(tmp_path / "a.pt", seed=4)
    assert (tmp_path / "a.pt").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_nothing_but_data_is_read(tmp_path):
    checkpoints.save(tmp_path / "a.pt", {"code": print})
    with pytest.raises(Exception, match="[Ww]eights.only"):
        checkpoints.read(tmp_path / "a.pt")


def store(folder, said=None, name="case-seed1", **identity):
    say = print if said is None else said.append
    return partials.Partials(shelf.Disk(folder), name, {"dataset": "digits", "model": "small", **identity}, say)


def test_the_last_two_states_of_a_training_are_kept(tmp_path):
    assert store(tmp_path).latest() is None
    for n in range(4):
        store(tmp_path).save({"n": n})
    assert store(tmp_path).latest() == {"n": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"case-seed1.0000000{n}.partial" for n in (3, 4)]
    assert store(tmp_path, name="case-seed").latest() is None
    store(tmp_path, name="case-seed10").save({"n": 10})
    (tmp_path / "case-seed1.00000005.partial.tmp").touch()
    shelf.remove(tmp_path, "case-seed1")
    assert [path.name for path in tmp_path.iterdir()] == ["case-seed10.00000001.partial"]


def test_damaged_states_are_stepped_over_one_by_one(tmp_path):
    said = []
    for n in range(2):
        store(tmp_path).save({"n": n})
    for n, expected in ((2, {"n": 0}), (1, None)):
        (tmp_path / f"case-seed1.0000000{n}.partial").write_bytes(b"half")
        assert store(tmp_path, said).latest() == expected
        assert len(said) == 3 - n and f"0000000{n}.partial is damaged" in said[-1] and "the checkpoint before" in said[-1]
    store(tmp_path).save({"n": 5})
    assert store(tmp_path, said).latest() == {"n": 5} and len(said) == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".damaged", ".damaged", ".partial"]


def test_a_state_of_another_training_or_version_is_refused_and_left(tmp_path, monkeypatch):
    store(tmp_path).save({"n": 0})
    for identity, change in (
        ({"dataset": "mnist"}, "dataset was 'digits' and is now 'mnist'"),
        ({"model": "resnet18"}, "model was 'small' and is now 'resnet18'"),
    ):
        with pytest.raises(ValueError, match=f"00000001.partial belongs to another training .{change}.; choose another --out"):
            store(tmp_path, **identity).latest()
    monkeypatch.setattr(checkpoints, "FORMAT", 3)
    with pytest.raises(ValueError, match="has format 2, and this version of odenets reads format 3"):
        store(tmp_path).latest()
    assert [path.name for path in tmp_path.iterdir()] == ["case-seed1.00000001.partial"]
