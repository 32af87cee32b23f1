"""The judge of attacks: it projects, counts, spends nothing on what has fallen, and can be taken up where it was left."""

from functools import partial

import pytest
import torch
from attack_problems import conv_net, hilly_net, images, linear_net

import stability
from stability import Linf

X, Y, LOGITS = images(2), torch.tensor([0, 1]), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [lambda net, x, y: x[:, :, :1]]),
            "returned .*1, 1, 4.; it was",
        ),
        *[
            (
                lambda found=found: stability.worst_case(linear_net(), X, Y, Linf(0.1), [("odd", lambda net, x, y: found)]),
                sentence,
            )
            for found, sentence in (
                (None, "'odd' returned NoneType"),
                (X.numpy(), "'odd' returned ndarray"),
                (X.to(torch.complex64), "'odd' returned torch.complex64"),
            )
        ],
        *[
            (lambda found=found: stability.worst_case(linear_net(), X, Y, Linf(0.1), [], lambda x: found), sentence)
            for found, sentence in (
                (LOGITS, "must return .logits, trusted., got Tensor"),
                ((LOGITS, True), "trusted.*got bool"),
                ((LOGITS, Y == Y[:, None]), r"bool \(2,\), got torch.bool \(2, 2\)"),
                ((LOGITS, Y), "got torch.int64"),
                ((LOGITS[:1], None), "must return logits"),
                ((LOGITS / 0, Y == 1), "NaN"),
            )
        ],
        (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), stability.pgd), "attacks must be a list"),
        (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [("a", stability.pgd, 1)]), "callable.*got \\('a', "),
        (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [], batch_size=0), "batch_size"),
        (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [], state={}), "must be a WorstCase, got dict"),
        (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [("nan", lambda net, x, y: x / 0)]), "'nan'"),
        (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), ["pgd20"]), "callable.*'pgd20'"),
        (lambda: stability.fgsm(linear_net(), X, Y, Linf(0.1), batch_size=0), "batch_size"),
        (lambda: stability.audit(linear_net(), X, Y, 0.1), "threat must be"),
        (lambda: stability.worst_case(linear_net(), X, Y, 0.1, []), "threat must be"),
        *[
            (
                lambda attack=attack: attack(linear_net(), X, Y, 0.1),
                r"threat must be a threat model such as Linf\(8/255\).*got 0.1",
            )
            for attack in (stability.fgsm, stability.pgd, stability.apgd, stability.noise)
        ],
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def threshold(x):
    """Class 1 where the mean exceeds 1/2."""
    mean = x.flatten(1).mean(1)
    return torch.stack([torch.full_like(mean, 0.5), mean], 1)


def test_the_judge_projects_counts_and_passes_on_survivors_only():
    x = torch.tensor([0.3, 0.45, 0.6, 0.2])[:, None, None].repeat(1, 1, 2)
    y = torch.zeros(4, dtype=torch.int64)
    seen = []

    def brighten(net, x, y):  # far out of the ball: counts for no more than the ball allows
        seen.append(len(x))
        return torch.ones_like(x)

    def remember(net, x, y, indices):
        seen.append(indices.tolist())
        return x

    remember.takes_indices = True
    result = stability.worst_case(threshold, x, y, Linf(0.1), [("brighten", brighten), remember])
    assert seen == [3, [0, 3]]
    assert result.broken_by.tolist() == [-1, 0, -2, -1] and result.robust.tolist() == [True, False, False, True]
    assert result.names == ("brighten", "remember") and not result.untrusted.any()
    assert (result.x_adv - x).abs().max() <= 0.1 * (1 + 1e-6) and torch.equal(result.x_adv[0], x[0])


def test_an_untrusted_image_counts_as_broken():
    x = torch.tensor([0.1, 0.2, 0.3])[:, None].repeat(1, 2)

    def judge(x):
        return threshold(x), x[:, 0] < 0.25

    y = torch.zeros(3, dtype=torch.int64)
    result = stability.worst_case(threshold, x, y, Linf(0.1), [lambda net, x, y: x + 0.08], judge)
    assert result.untrusted.tolist() == [False, True, True] and result.broken_by.tolist() == [-1, 0, -2]


def test_logits_that_are_not_trusted_may_be_nan():
    x = torch.tensor([0.1, 0.2])[:, None].repeat(1, 2)
    logits, trusted = threshold(x), torch.tensor([True, False])
    logits[1] = torch.nan
    result = stability.worst_case(threshold, x, torch.tensor([0, 0]), Linf(0.1), [], lambda x: (logits, trusted))
    assert result.broken_by.tolist() == [-1, -2] and result.untrusted.tolist() == [False, True]


def test_an_image_within_the_ball_is_judged_bit_for_bit():
    net, x = conv_net(), images(dtype=torch.float32)
    y = net(x).argmax(1)
    edge = 0.5 * x + 0.25  # moves by exactly epsilon, which the attacks themselves keep a rounding error away from
    result = stability.worst_case(net, 0.5 * x, y, Linf(0.25), [lambda net, x, y: x + 0.25])
    tried = result.broken_by != -2
    assert torch.equal(result.x_adv[tried], edge[tried]) and tried.any()
    attack = partial(stability.pgd, threat=Linf(8 / 255), steps=3)
    result = stability.worst_case(net, x, y, Linf(8 / 255), [attack])
    assert result.names == ("pgd",) and torch.equal(result.x_adv, attack(net, x, y))


THREAT = Linf(0.05)
SEQUENCE = [
    (name, partial(attack, threat=THREAT, **settings))
    for name, attack, settings in (
        ("few", stability.pgd, {"steps": 2}),
        ("noise", stability.noise, {"draws": 20}),
        ("auto", stability.apgd, {"steps": 10}),
        ("square", stability.square, {"queries": 50}),
    )
]


@pytest.mark.parametrize("cut", [0, 1, 3, 4])
def test_going_on_from_a_state_is_as_good_as_never_having_stopped(cut, tmp_path):
    net, x = hilly_net(), images(128)
    y = net(x).argmax(1)
    y[:5] = (y[:5] + 1) % 5
    whole = stability.worst_case(net, x, y, THREAT, SEQUENCE)
    assert len(whole.broken_by.unique()) >= 4, "several attacks found something"
    torch.save(vars(stability.worst_case(net, x, y, THREAT, SEQUENCE[:cut])), tmp_path / "state.pt")
    state = stability.WorstCase(**torch.load(tmp_path / "state.pt", weights_only=True))
    kept, evaluated = {key: value.clone() for key, value in vars(state).items() if isinstance(value, torch.Tensor)}, []

    def counting(x):
        evaluated.append(len(x))
        return net(x)

    resumed = stability.worst_case(counting, x, y, THREAT, SEQUENCE[cut:], state=state)
    assert resumed.names == whole.names == ("few", "noise", "auto", "square")
    for key in ("robust", "broken_by", "untrusted", "x_adv"):
        assert torch.equal(getattr(resumed, key), getattr(whole, key)), key
        assert torch.equal(getattr(state, key), kept[key]), "the state itself is left alone"
    assert max(evaluated, default=0) <= int(state.robust.sum()), "nothing is spent on what has fallen"


def test_a_state_of_other_images_or_another_threat_is_refused():
    net, x = hilly_net(), images(8)
    y = net(x).argmax(1)
    state = stability.worst_case(net, x, y, THREAT, [("edge", partial(stability.noise, threat=THREAT, where="edge"))])
    nearly = x.clone()
    nearly[3] = nearly[3] * 0.999
    # A larger ball above all: its attacks would be spared, and the survivors of the smaller one counted.
    for images_, threat in (
        (x.flip(0), THREAT),
        (x[:4], THREAT),
        (x.float(), THREAT),
        (x, Linf(0.01)),
        (nearly, THREAT),
        (x, Linf(0.06)),
        (x, stability.L2(5.0)),
    ):
        with pytest.raises(ValueError, match="other images, other labels or another threat"):
            stability.worst_case(net, images_, y[: len(images_)], threat, [], state=state)
    with pytest.raises(ValueError, match="other labels"):
        stability.worst_case(net, x, (y + 1) % 5, THREAT, [], state=state)


def test_a_state_without_attacks_serves_every_threat_and_nobody_else():
    net, x = hilly_net(), images(16)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    clean, judged = stability.worst_case(net, x, y, Linf(0.0), []), []

    def counting(x):
        judged.append(len(x))
        return net(x), None

    for threat in (THREAT, stability.L2(0.3)):
        attack = [("edge", partial(stability.noise, threat=threat, where="edge", draws=5))]
        found = stability.worst_case(net, x, y, threat, attack, counting, state=clean)
        alone = stability.worst_case(net, x, y, threat, attack)
        assert torch.equal(found.broken_by, alone.broken_by) and torch.equal(found.x_adv, alone.x_adv)
        assert found.question == alone.question != clean.question and judged.pop() == 15 and not judged
        assert stability.worst_case(net, x, y, threat, [], state=found).question == found.question
        with pytest.raises(ValueError, match="other images, other labels or another threat"):
            stability.worst_case(net, x, y, Linf(0.0), [], state=found)
    with pytest.raises(ValueError, match="other images"):
        stability.worst_case(net, x.flip(0), y, THREAT, [], state=clean)


def test_only_what_says_so_is_told_who_the_images_are():
    """A parameter that happens to be called so says nothing; a partial says what its function does."""
    given = []

    def silent(net, x, y, indices=None):
        given.append(indices)
        return x

    def speaking(net, x, y, indices):
        given.append(indices.tolist())
        return x

    speaking.takes_indices = True
    x, y = images(3), torch.zeros(3, dtype=torch.int64)
    net = linear_net()
    y = net(x).argmax(1)
    y[1] = (y[1] + 1) % 3
    plain = partial(speaking, indices=torch.tensor([7, 8]))
    for attack in (silent, speaking, partial(speaking), plain):
        stability.worst_case(net, x, y, Linf(0.1), [attack])
    assert given == [None, [0, 2], [0, 2], [7, 8]]


def test_a_judge_that_takes_labels_is_given_them():
    x = torch.tensor([0.1, 0.2, 0.7])[:, None].repeat(1, 2)

    class Asked:
        takes_labels = True

        def __call__(self, x, y):
            asked.append(y.tolist())
            return threshold(x), None

    asked, y = [], torch.zeros(3, dtype=torch.int64)
    stability.worst_case(threshold, x, y, Linf(0.1), [lambda net, x, y: x], Asked())
    assert asked == [[0, 0, 0], [0, 0]]
