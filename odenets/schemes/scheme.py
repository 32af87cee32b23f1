"""What every scheme offers, to the integrator, to the stability analysis and to the tests."""

from abc import ABC, abstractmethod
from dataclasses import fields, replace

import torch

from odenets.solve.transforms import dual_level, transforming
from odenets.specs import canonical

GRADIENTS = ("exact", "unrolled", "detached")
SOLVE_COST = 15  # evaluations, for each stage that is solved


class Scheme(ABC):
    """A time-stepping scheme for y' = f(t, y): immutable, without parameters to train, compared by its spec.

    Subclasses are frozen dataclasses (`eq=False`) and provide, as fields or properties:

    name: Real name, as `list_schemes()` gives it.
    order: Classical order; None where undefined.
    implicit: Whether a step solves an equation.
    stages, evaluations: Stages of a step, and evaluations of f that an explicit step takes (None where a solve decides).
    source: Book or article.
    """

    tableau = None
    # What a scheme is: whoever treats schemes differently asks here, never for a name, a type or an exception.
    iterates = False  # evaluates f again and again at moving points, so that f must be a pure function
    looks_at_values = False  # decides by the values of tensors what to compute, which torch.export cannot record
    previous = 0  # how many steps before the current one a multistep scheme uses
    has_R = True  # a step on y' = lambda y multiplies by some R(h lambda)
    analytic = True  # R is analytic, so that a step's Jacobian on a linear field has the eigenvalues R(h lambda)
    adaptive = False  # chooses its step sizes from the data
    gradients = ("exact",)  # of `GRADIENTS`, those that differ for it
    moves = ()  # of a splitting scheme, the steps that a step is composed of; see `Splitting`

    @abstractmethod
    def step(self, f, t, y, h, gradient="exact", record=None):
        """One step of size h from (t, y).

        Args:
            f: Vector field (t, y) -> dy/dt, (B, ...) -> (B, ...), each sample on its own.
            t: Time, a float or a 0-dim tensor.
            y: State, (B, ...).
            h: Step size, a float or a 0-dim tensor.
            gradient: "exact", "unrolled" or "detached"; see `odenets.set_gradient`.
            record: `Record` that receives a `Solution` for each equation solved, forward or backward; or None.

        Returns:
            The state at t + h, (B, ...).
        """

    @abstractmethod
    def amplification(self, z):
        """R(z): the growth of one step on y' = lambda y, z = h lambda. Complex array in, complex array of that shape out."""

    @property
    def one_step(self):
        """Whether the next state depends on the present one alone."""
        return self.previous == 0

    @property
    def solves(self):
        """Whether a step is computed to a tolerance by a solve that may fail, and says so in its statistics."""
        return "tol" in self.parameters

    @property
    def cost(self):
        """What a step costs, roughly, in evaluations of f: for an order of work, not for a promise."""
        return SOLVE_COST * self.stages if self.evaluations is None else self.evaluations

    @property
    def parameters(self):
        """{name: (value, default)} in declared order: what the spec may say. By default the fields of the dataclass."""
        return {field.name: (getattr(self, field.name), field.default) for field in fields(self)}

    def stepper(self):
        """A function with the signature of `step` for one walk through a stage; multistep schemes keep their history in it."""
        return self.step

    def tightened(self, tol, max_iterations):
        """The same scheme, solving to `tol` (or its own, if smaller), stopping by residual and recording failures."""
        loose = {"on_failure": "record", "fixed": False}
        if "tol" not in self.parameters:
            return self  # it solves nothing
        changes = {"tol": min(tol, self.tol), "max_iterations": max(max_iterations, self.max_iterations), **loose}
        return replace(self, **{key: value for key, value in changes.items() if key in self.parameters})

    def __str__(self):
        """Canonical spec: the real name and the parameters that differ from their default, in declared order."""
        return canonical(self.name, self.parameters)

    def __eq__(self, other):
        return isinstance(other, Scheme) and str(self) == str(other)

    def __hash__(self):
        return hash(str(self))


def with_backward_of(predictor, value):
    """`value`, differentiated as if it were `predictor`: the detached gradient of the authors' code."""
    watched = predictor.requires_grad or transforming() or dual_level()
    return predictor + (value - predictor).detach() if watched else value.detach()


def combine(y, h, coefficients, vectors):
    """y + h * sum_i coefficients_i vectors_i, skipping zeros; y may be None for 0."""
    for coefficient, vector in zip(coefficients, vectors):
        if coefficient != 0:
            weight = h * coefficient
            if y is None:
                y = vector * weight
            elif isinstance(weight, float):
                y = torch.add(y, vector, alpha=weight)
            else:
                y = y + weight * vector
    return y
