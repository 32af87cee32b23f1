"""Residual networks as differential equations, integrated by pluggable schemes."""
from odenets.errors import InputError
from odenets.nets import fields
from odenets.nets.convert import convert
from odenets.nets.fields import get_field, list_fields
from odenets.nets.resnet import (
    MODELS,
    ODEResNet,
    ode_resnet18,
    ode_resnet34,
    ode_resnet50,
    ode_resnet_small,
    ode_resnet_small_stride2,
)
from odenets.nets.stage import ODEStage, converged, set_gradient, set_scheme, stages, tightened
from odenets.nets.warm import WarmStart
from odenets.schemes import GRADIENTS, Scheme, Tableau, get_scheme, list_schemes
from odenets.solve.root import root

__all__ = ["GRADIENTS", "InputError", "MODELS", "ODEResNet", "ODEStage", "Scheme", "Tableau", "WarmStart", "converged", "convert", "fields",
           "get_field", "get_scheme", "list_fields", "list_schemes", "ode_resnet18", "ode_resnet34", "ode_resnet50",
           "ode_resnet_small", "ode_resnet_small_stride2", "root", "set_gradient", "set_scheme", "stages", "tightened"]
