import dataclasses

import numpy as np
import pytest

from odenets.schemes import tableaux
from odenets.schemes.tableau import Tableau, density, order_defects, rooted_trees, size

MEMBERS = [
    tableaux.rkc1(3, 0),
    tableaux.rkc1(12),
    tableaux.rkc2(2),
    tableaux.rkc2(9, 0),
    tableaux.theta(0.3),
    tableaux.theta(0.8),
    tableaux.theta(1),
]
ALL = [*(entry if isinstance(entry, Tableau) else entry() for entry in tableaux.CATALOGUE), *MEMBERS]


def test_rooted_trees_are_counted_as_in_the_literature():
    # Hairer, Norsett, Wanner I (1993), table II.2.1.
    assert [len(rooted_trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert all(size(tree) == 6 for tree in rooted_trees(6))


def test_density_of_tall_and_bushy_trees():
    tall = ((((),),),)
    assert density(tall) == 24 and density(((), (), ())) == 4


@pytest.mark.parametrize("tableau", ALL, ids=lambda t: f"{t.name}-{t.stages}")
def test_every_coefficient_is_pinned(tableau):
    """Changing any one entry of A or b by 1e-6 raises: no tableau of the catalogue has an entry that cannot be checked."""

    def perturbed(name, index, change):
        values = np.array(getattr(tableau, name))
        values[index] += change
        return {name: values}

    survivors = []
    for name in ("A", "b"):
        for index in np.ndindex(getattr(tableau, name).shape):
            for change in (1e-6, -1e-6):
                try:
                    dataclasses.replace(tableau, **perturbed(name, index, change))
                except ValueError:
                    continue
                survivors.append((name, index, change))
    assert survivors == []


@pytest.mark.parametrize("tableau", ALL, ids=lambda t: f"{t.name}-{t.stages}")
def test_order_is_neither_over_nor_understated(tableau):
    for wrong in (tableau.order + 1, tableau.order - 1):
        if wrong > 0:
            with pytest.raises(ValueError, match="order"):
                dataclasses.replace(tableau, order=wrong)


@pytest.mark.parametrize("tableau", ALL, ids=lambda t: f"{t.name}-{t.stages}")
def test_stability_polynomials_agree_with_the_determinant_formula(tableau):
    # Hairer & Wanner II, proposition IV.3.2: R = det(I - zA + z 1 b^T) / det(I - zA), an independent construction.
    generator = np.random.default_rng(0)
    z = generator.normal(size=40) + 1j * generator.normal(size=40)
    ones = np.ones(tableau.stages)
    for value in z:
        Q = np.eye(tableau.stages) - value * tableau.A
        expected = np.linalg.det(Q + value * np.outer(ones, tableau.b)) / np.linalg.det(Q)
        assert abs(tableau.amplification(value) - expected) < 1e-11 * max(1, abs(expected))


@pytest.mark.parametrize("tableau", ALL, ids=lambda t: f"{t.name}-{t.stages}")
def test_amplification_approximates_the_exponential_to_its_order(tableau):
    z = (0.05 if tableau.order < 5 else 0.5) * np.exp(1j * np.linspace(0, 6, 7))
    coarse, fine = (np.abs(tableau.amplification(x) - np.exp(x)).max() for x in (z, z / 2))
    assert np.log2(coarse / fine) > tableau.order + 1 - 0.2


def test_infinite_at_a_pole():
    implicit_euler = tableaux.IMPLICIT_EULER
    assert np.isinf(implicit_euler.amplification(1.0)) and implicit_euler.r_at_infinity == 0


def test_blocks_of_a_mixed_tableau():
    # An explicit stage, then two coupled ones (Lobatto IIIA of order 4).
    A = [[0, 0, 0], [5 / 24, 1 / 3, -1 / 24], [1 / 6, 2 / 3, 1 / 6]]
    lobatto = Tableau("lobatto_iiia4", A, [1 / 6, 2 / 3, 1 / 6], 4, "Hairer & Wanner II, table IV.5.7", "coupled", r_infinity=1)
    assert lobatto.blocks == ((0, 1), (1, 3)) and np.allclose(lobatto.c, [0, 1 / 2, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"A": [[0, 0], [1, 0]], "b": [1 / 2, 0.6]}, "order 1"),
        ({"A": [[0, 0], [1, 0]], "b": [0, 1]}, "order 2"),
        ({"A": [[0, 1], [1, 0]], "b": [1 / 2, 1 / 2]}, "zero pattern"),
        ({"A": [[0, 0], [np.nan, 0]], "b": [1 / 2, 1 / 2]}, "finite"),
        ({"A": [[0, 0]], "b": [1 / 2, 1 / 2]}, r"\(s, s\)"),
        ({"A": [[0, 0], [1, 0]], "b": [1 / 2, 1 / 2], "structure": "full"}, "structure is"),
    ],
)
def test_a_wrong_tableau_says_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        Tableau(**{"name": "mine", "order": 2, "source": "nowhere", **settings})


def test_order_defect_of_a_known_typing_error():
    # Gauss 4 with both nodes equal: order 1 survives, order 2 does not (a bug that once shipped in a solver library).
    A = np.array([[1 / 4, 1 / 4], [1 / 4, 1 / 4]])
    assert order_defects(A, np.array([1 / 2, 1 / 2]), 1) < 1e-12 and order_defects(A, np.array([1 / 2, 1 / 2]), 3) > 1e-3
