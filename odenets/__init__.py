"""Residual networks as differential equations, integrated by pluggable schemes."""

from importlib.metadata import PackageNotFoundError, version

from odenets.errors import InputError
from odenets.nets import fields
from odenets.nets.certifiable import at_limit, certifiable_cifar10, certifiable_linf, certifiable_small, hold, prove_limits
from odenets.nets.convert import convert
from odenets.nets.fields import get_field, list_fields
from odenets.nets.models import get_model
from odenets.nets.resnet import (
    MODELS,
    ODEResNet,
    ode_resnet18,
    ode_resnet34,
    ode_resnet50,
    ode_resnet_small,
    ode_resnet_small_stride2,
)
from odenets.nets.stage import (
    ODEStage,
    channels_last,
    converged,
    evaluate,
    recorded,
    set_gradient,
    set_scheme,
    stages,
    tightened,
)
from odenets.nets.statistics import Outcome
from odenets.nets.warm import WarmStart
from odenets.schemes import GRADIENTS, Scheme, Tableau, get_scheme, list_schemes
from odenets.solve.root import root

try:
    __version__ = version("odenets")
except PackageNotFoundError:  # run from its folder, not installed
    __version__ = "unknown"

__all__ = [
    "GRADIENTS",
    "InputError",
    "MODELS",
    "ODEResNet",
    "ODEStage",
    "Outcome",
    "Scheme",
    "Tableau",
    "WarmStart",
    "channels_last",
    "converged",
    "convert",
    "at_limit",
    "certifiable_cifar10",
    "certifiable_linf",
    "certifiable_small",
    "evaluate",
    "fields",
    "get_field",
    "get_model",
    "get_scheme",
    "hold",
    "list_fields",
    "list_schemes",
    "ode_resnet18",
    "ode_resnet34",
    "ode_resnet50",
    "ode_resnet_small",
    "ode_resnet_small_stride2",
    "prove_limits",
    "recorded",
    "root",
    "set_gradient",
    "set_scheme",
    "stages",
    "tightened",
]
