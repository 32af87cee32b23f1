"""Differentiable roots: the solver finds them, the implicit function theorem differentiates them."""
import torch
from torch.autograd.graph import get_gradient_edge

from odenets.solve.krylov import gmres, jacobian_products
from odenets.solve.precision import without_autocast
from odenets.solve.transforms import dual_level, transforming


def root(residual, guess, solver, samples=(), scale=None, floor=0.0, record=None):
    """Solve residual(z) = 0 and let gradients pass through the solution, not through the iterations.

    With residual(z(p), p) = 0, dz/dp = -(d residual/dz)^-1 d residual/dp: the backward pass is one linear solve with
    the transposed Jacobian, however long the forward solve took, and memory does not grow with its iterations.

    Args:
        residual: (B, ...) -> (B, ...), each sample on its own, pure. Parameters reached by closure get gradients.
        guess: Starting point, (B, ...). Receives no gradient.
        solver: Its tolerance bounds the relative residual of each sample, and that of the backward solve.
        samples: Tensors (B, ...) passed on to `residual` after z; they get gradients too. Whatever in the closure differs
            from sample to sample belongs here, since the solver calls `residual` for those still unsolved only.
        scale, floor: See `Solver.__call__`.
        record: List that receives the `Solution` of the forward solve and of each backward solve.

    Returns:
        The root, (B, ...). First derivatives only, in reverse and in forward mode.

    Source: Bai, Kolter, Koltun (2019), theorem 1; Hairer & Wanner II, IV.8 for the stopping rule.
    """
    with torch.no_grad():
        solution = solver(residual, guess.detach(), tuple(sample.detach() for sample in samples), scale, floor)
    if record is not None:
        record.append(solution._replace(value=None))
    return implicit_function(residual, solution.value, samples, solver.tol, solver.max_iterations, record)


def implicit_function(residual, value, samples, tol, max_iterations, record=None):
    """Give a root found elsewhere, without a graph, the derivatives of the implicit function; see `root`.

    Args:
        residual, samples: As in `root`.
        value: The root, (B, ...).
        tol, max_iterations: Of the backward solve.
        record: As in `root`.
    """
    inside, dual = transforming(), dual_level()
    if not (torch.is_grad_enabled() or inside or dual):
        return value
    z = value.detach()
    if not inside:
        z.requires_grad_()
    with torch.enable_grad():
        r = residual(z, *samples)
    if not (inside or dual or _has_other_leaves(r, z)):
        return value
    fixed = tuple(sample.detach() for sample in samples)
    return _ImplicitFunction.apply(r, z.detach(), _Jacobian(residual, r, z, fixed, tol, max_iterations, record, inside))


def _has_other_leaves(r, z):
    """Whether the graph of r ends in any leaf but z; if not, the root is a constant and must not require gradients."""
    seen, nodes = set(), [r.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if hasattr(node, "variable") and node.variable is not z:
            return True
        seen.add(node)
        nodes.extend(parent for parent, _ in node.next_functions)
    return False


class _Jacobian:
    """Solves with J = d residual/dz at the root, and with its transpose."""

    def __init__(self, residual, r, z, samples, tol, max_iterations, record, transforming):
        self.residual, self.z, self.samples = residual, z, samples
        # The edges of the graph, not the tensor: nobody needs the value of the residual again.
        self.edges = None if transforming else (get_gradient_edge(r), get_gradient_edge(z))
        self.tol, self.max_iterations, self.record, self.transforming = tol, max_iterations, record, transforming

    def solve(self, b):
        """x with J x = b."""
        return self._gmres(self._products()[0], b)

    def solve_transposed(self, b):
        """x with J^T x = b; outside transforms on the very graph that the rest of the backward pass uses."""
        if self.transforming:
            return self._gmres(self._products()[1], b)
        return self._gmres(lambda w: torch.autograd.grad(*self.edges, w, retain_graph=True)[0], b)

    def _products(self):
        with without_autocast(self.z):
            return jacobian_products(lambda z: self.residual(z, *self.samples), self.z.detach())

    def _gmres(self, product, b):
        def apply(v):
            return product(v.view(b.shape)).reshape(v.shape)

        with without_autocast(b):  # a backward pass may run within a context that the forward solve had left
            solution = gmres(apply, b.flatten(1), self.tol, self.max_iterations)
        if self.record is not None:
            self.record.append(solution._replace(value=None))
        return solution.value.view(b.shape)


class _ImplicitFunction(torch.autograd.Function):
    """The value z; derivatives as if z were -J^-1 r, r being the residual at z as a function of everything else."""

    @staticmethod
    def forward(r, z, jacobian):
        # The very memory that r's graph holds; a transform may not see a view of an input.
        return z.clone() if transforming() else z.view_as(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.jacobian = inputs[2]

    @staticmethod
    def backward(ctx, g):
        u = -ctx.jacobian.solve_transposed(g.detach())
        return (_FirstOrderOnly.apply(u, g) if g.requires_grad else u), None, None

    @staticmethod
    def jvp(ctx, r_tangent, z_tangent, _):
        return -ctx.jacobian.solve(r_tangent)


class _FirstOrderOnly(torch.autograd.Function):
    """u, which depends on g by a solve that records nothing: to differentiate it again is an error, not a wrong number."""

    @staticmethod
    def forward(u, g):
        return u.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("an implicit step has first derivatives only; for products with its Jacobian use torch.func.jvp")
