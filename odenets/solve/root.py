"""Differentiable roots: the solver finds them, the implicit function theorem differentiates them, as often as wanted.

With residual(z(p), p) = 0, dz = -J^-1 (d residual/dp) dp. A backward pass is the solve J^T u = -g and the product
(d residual/dp)^T u. To differentiate it again, u is the root of J^T u + g, and the product is taken at a root with derivatives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from odenets.solve.attached import Lowered, attached_at_levels, attached_to_dual
from odenets.solve.krylov import gmres
from odenets.solve.log import Adjoint, Record
from odenets.solve.precision import unrounded
from odenets.solve.products import jacobian_products
from odenets.solve.rows import as_rows
from odenets.solve.solution import Solution
from odenets.solve.transforms import dual_level, tangents, transforming
from odenets.types import PerSample, Product, State

Residual = Callable[..., State]  # (z, *samples) -> (B, ...)
Log = Record | list[Solution]


def root(
    residual: Residual,
    guess: State,
    solver: Any,
    samples: Sequence[Tensor] = (),
    scale: PerSample | None = None,
    floor: PerSample | float = 0.0,
    record: Log | None = None,
) -> State:
    """Solve residual(z) = 0 and let gradients pass through the solution, not through the iterations.

    The backward pass is one linear solve with the transposed Jacobian, however long the forward solve took, and memory does
    not grow with its iterations.

    Args:
        residual: (B, ...) -> (B, ...), each sample on its own, pure. Parameters reached by closure get gradients.
        guess: Starting point, (B, ...). Receives no gradient.
        solver: Its tolerance bounds the relative residual of each sample, and that of the backward solve.
        samples: Tensors (B, ...) passed on to `residual` after z; they get gradients too. Whatever in the closure differs
            from sample to sample belongs here, since the solver calls `residual` for those still unsolved only.
        scale, floor: See `Solver.__call__`.
        record: List that receives the `Solution` of the forward solve and of each backward solve.

    Returns:
        The root, (B, ...). Derivatives of every order in reverse and in forward mode, mixed as wanted, each from solves to
        the same tolerance; those above the first cost some evaluations more.

    Source: Bai, Kolter, Koltun (2019), theorem 1; Hairer & Wanner II, IV.8 for the stopping rule.
    """
    with torch.no_grad():
        solution = solver(residual, guess.detach(), tuple(sample.detach() for sample in samples), scale, floor)
    if record is not None:
        record.append(solution._replace(value=None))
    return implicit_function(residual, solution.value, samples, solver.tol, solver.max_iterations, record)


def implicit_function(
    residual: Residual,
    value: State,
    samples: Sequence[Tensor],
    tol: float,
    max_iterations: int,
    record: Log | None = None,
    without: int | None = None,
    stop: str = "sample",
    adjoint: Adjoint | None = None,
) -> State:
    """Give a root found elsewhere, without a graph, the derivatives of the implicit function; see `root`.

    Args:
        residual, samples: As in `root`.
        value: The root, (B, ...).
        tol, max_iterations: Of the backward solve.
        record: As in `root`.
        without: Number of a transform's level at which it shall be a constant, or None.
        stop: When the backward solve ends, "sample" or "batch"; see `gmres`.
        adjoint: Where the backward solve starts, and where it leaves its solution; None: it starts at zero.
    """
    equation = _Equation(residual, tol, max_iterations, record, stop, adjoint)
    if transforming():
        return attached_at_levels(equation, value.detach(), samples, without)
    if not (torch.is_grad_enabled() or dual_level()):
        return value
    value = value.detach()  # of the tangents too, which a solve may leave
    with tangents(False):
        z = _recorded(equation, value, samples) if torch.is_grad_enabled() else value
    return attached_to_dual(equation, z, samples) if dual_level() else z


def _recorded(equation: "_Equation", value: State, samples: Sequence[Tensor]) -> State:
    """The root with its derivatives for torch.autograd."""
    z = value.detach()
    z.requires_grad_()
    first = torch._C._autograd._get_sequence_nr()
    # An accelerator's backward passes run in threads of their own, whose nodes are numbered from elsewhere.
    with torch.autograd.set_multithreading_enabled(False):
        r = equation.residual(z, *samples)
    inputs, hidden = _inputs(r, z, samples, first, equation.residual)
    if not (inputs or hidden):
        return value  # a constant, which must not require gradients
    # The edges of the graph, not the tensor: nobody needs the value of the residual again.
    edges = get_gradient_edge(r), get_gradient_edge(z)
    return _ImplicitFunction.apply(r, z.detach(), _Graph(equation, z, samples, edges, inputs, hidden), *inputs)


class _Equation:
    """residual(z, *samples) = 0, and solves with J = d residual/dz at a point, which are constants to autograd."""

    def __init__(
        self,
        residual: Residual,
        tol: float,
        max_iterations: int,
        record: Log | None,
        stop: str,
        adjoint: Adjoint | None = None,
    ) -> None:
        self.residual, self.tol, self.max_iterations, self.record, self.stop = residual, tol, max_iterations, record, stop
        self.adjoint = adjoint
        self.maps_closure = False  # whether torch.func.vmap maps over tensors in the closure

    def lowered(self) -> "_Equation":
        """The same, for rules of derivatives under transforms."""

        def residual(*tensors: Tensor) -> Tensor:
            with Lowered():
                return self.residual(*tensors)

        return _Equation(residual, self.tol, self.max_iterations, self.record, self.stop)

    def root(self, value: State, samples: Sequence[Tensor], without: int | None = None) -> State:
        """The root `value`, differentiable in the samples and in the closure."""
        settings = self.tol, self.max_iterations, self.record, without, self.stop
        return implicit_function(self.residual, value.detach(), samples, *settings)

    def solve(self, z: State, samples: Sequence[Tensor], b: State, transposed: bool, without: int | None = None) -> State:
        """x with J x = b, or J^T x = b; differentiable in z, the samples, b and the closure."""
        with torch.no_grad(), tangents(False):
            products = jacobian_products(lambda z: self.residual(z, *(s.detach() for s in samples)), z.detach())
            x = self.gmres(products[transposed], b.detach())
        return self.linear(x, z, samples, b, transposed, without)

    def linear(
        self, x: State, z: State, samples: Sequence[Tensor], b: State, transposed: bool, without: int | None = None
    ) -> State:
        """The same for a solution x found before: the root of J x - b is an implicit function too."""

        def residual(x: State, b: State, z: State, *samples: Tensor) -> State:
            return jacobian_products(lambda z: self.residual(z, *samples), z)[transposed](x) - b

        return _Equation(residual, self.tol, self.max_iterations, self.record, self.stop).root(x, (b, z, *samples), without)

    def gmres(
        self,
        product: Callable[[State], State],
        b: State,
        start: State | None = None,
        narrowed: Callable[[Tensor], Callable[[State], State]] | None = None,
    ) -> State:
        """x with product(x) = b; `start` and `narrowed` as in `gmres`, for states."""

        def on_rows(product: Callable[[State], State]) -> Product:
            return lambda v: as_rows(product(v.view(len(v), *b.shape[1:])))

        def for_rows(rows: Tensor) -> Product:
            assert narrowed is not None  # it is called where there is one
            return on_rows(narrowed(rows))

        given: dict[str, Any] = {"start": None if start is None else as_rows(start), "narrowed": narrowed and for_rows}
        with unrounded(b):  # a backward pass may run within a context that the forward solve had left
            solution = gmres(on_rows(product), as_rows(b), self.tol, self.max_iterations, stop=self.stop, **given)
        if self.record is not None:
            self.record.append(solution._replace(value=None))
        return solution.value.view(b.shape).detach()


class _Graph:
    """An equation at its root, where torch.autograd records: the graph of the residual, and what that graph hangs on."""

    def __init__(
        self,
        equation: _Equation,
        z: State,
        samples: Sequence[Tensor],
        edges: tuple[GradientEdge, GradientEdge],
        inputs: tuple[Tensor, ...],
        hidden: bool,
    ) -> None:
        self.equation, self.z, self.samples = equation, z, samples
        self.edges, self.inputs, self.hidden = edges, inputs, hidden

    def solve_transposed(self, b: State) -> State:
        """u with J^T u = b, on the very graph that the rest of the backward pass uses; a constant."""

        def product(w: State) -> State:
            return torch.autograd.grad(*self.edges, w, retain_graph=True)[0]

        adjoint = self.equation.adjoint
        u = self.equation.gmres(product, b.detach(), None if adjoint is None else adjoint.start(len(b)), self._narrowed)
        if adjoint is not None:
            adjoint.end(u)
        return u

    def _narrowed(self, rows: Tensor) -> Callable[[State], State]:
        """The product with J^T for some samples, on a graph of their own."""
        z, *samples = (tensor.detach()[rows] for tensor in (self.z, *self.samples))
        with torch.enable_grad():
            r = self.equation.residual(z.requires_grad_(), *samples)
        return lambda w: torch.autograd.grad(r, z, w, retain_graph=True)[0]

    def gradients(self, u: State, g: State) -> tuple[Tensor | None, ...]:
        """(d residual/d input)^T u for each input, itself differentiable in g, the inputs, and the root that they make.

        The graph at hand stands at a constant root, so the residual is recorded again, at one with derivatives.
        """
        if self.hidden:
            raise RuntimeError(
                "an implicit step is differentiated again, but its field holds a computed tensor that "
                "only an autograd.Function in it uses: pass it through a torch function first"
            )
        equation, again, gate = self.equation, torch.is_grad_enabled(), _Gate()
        with torch.enable_grad():
            z = equation.root(self.z, self.samples)
            u = equation.linear(u, z, self.samples, -g, True)
            z_in, *samples_in = (_Passage.apply(tensor, gate) for tensor in (z, *self.samples))
            r = equation.residual(z_in, *samples_in)
            inside = {id(sample): own for sample, own in zip(self.samples, samples_in)}
            targets = [inside.get(id(tensor), tensor) for tensor in self.inputs]
            found = torch.autograd.grad(r, targets, u, create_graph=again, allow_unused=True)
        gate.open = True
        return found


class _Gate:
    """Closed at first: a gradient of the residual in one input must not count its way through another."""

    open = False


class _Passage(torch.autograd.Function):
    """The identity, whose backward pass stops at a closed gate."""

    @staticmethod
    def forward(x: Tensor, gate: _Gate) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.gate = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        return g if ctx.gate.open else None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


class _ImplicitFunction(torch.autograd.Function):
    """The value z; derivatives as if z were -J^-1 r, r being the residual at z as a function of everything else.

    First derivatives go through the graph of r. Where they are to be differentiated, they go to `inputs` directly.
    """

    @staticmethod
    def forward(r: State, z: State, graph: _Graph, *inputs: Tensor) -> State:
        return z.view_as(z)  # the very memory that r's graph holds

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.graph = inputs[2]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:  # a pass that a closed gate has stopped
            return None, None, None, *(None for _ in ctx.graph.inputs)
        if torch._C._functorch.is_legacy_batchedtensor(g):
            raise RuntimeError(
                "torch.autograd's batched gradients (is_grads_batched=True, vectorize=True) do not pass through "
                "an implicit step; torch.func.jacrev, jacfwd, hessian and vmap do"
            )
        u = -ctx.graph.solve_transposed(g)
        if torch.is_grad_enabled() or dual_level():
            return None, None, None, *ctx.graph.gradients(u, g)
        return u, None, None, *(None for _ in ctx.graph.inputs)


def _inputs(r: State, z: State, samples: Sequence[Tensor], first: int, residual: Residual) -> tuple[tuple[Tensor, ...], bool]:
    """The tensors but z at which the graph of r leaves the evaluation of the residual, and whether some could not be found.

    Nodes of the evaluation have numbers from `first` on. Edges to older ones belong to the samples, or to tensors computed
    before that the closure holds; autograd does not give those away, so a second evaluation looks out for them.
    """
    known = {(sample.grad_fn, sample.output_nr): sample for sample in samples if sample.grad_fn is not None}
    found: dict[int, Tensor] = {}
    unknown: set[Any] = set()
    seen: set[Any] = set()
    edges: list[Any] = [(r.grad_fn, r.output_nr)]
    while edges:
        edge = edges.pop()
        node = edge[0]
        if node is None or edge in seen:
            continue
        seen.add(edge)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        elif edge in known:
            found[id(known[edge])] = known[edge]
        elif node._sequence_nr() >= first:
            edges.extend(node.next_functions)
        else:
            unknown.add(edge)
    found.pop(id(z), None)
    if unknown:
        with torch.no_grad(), _Lookout(unknown) as lookout:
            residual(z.detach(), *samples)
        found.update((id(tensor), tensor) for tensor in lookout.found.values())
        unknown -= lookout.found.keys()
    return tuple(found.values()), bool(unknown)


class _Lookout(TorchFunctionMode):
    """Finds the tensors at some edges of a graph among the arguments of torch's functions."""

    def __init__(self, edges: set[tuple[Node | None, int]]) -> None:
        super().__init__()
        self.edges = edges
        self.found: dict[Any, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in unwrap_dead_wrappers(tuple(v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor))):
            if tensor.requires_grad and (edge := (tensor.grad_fn, tensor.output_nr)) in self.edges:
                self.found[edge] = tensor
        return function(*args, **(kwargs or {}))
