"""Residual networks as differential equations, integrated by pluggable schemes."""
from odenets import fields
from odenets.convert import convert
from odenets.errors import InputError
from odenets.fields import get_field, list_fields
from odenets.implicit import root
from odenets.resnet import (
    MODELS,
    ODEResNet,
    ode_resnet18,
    ode_resnet34,
    ode_resnet50,
    ode_resnet_small,
    ode_resnet_small_stride2,
)
from odenets.schemes import GRADIENTS, Scheme, Tableau, get_scheme, list_schemes
from odenets.stage import ODEStage, converged, set_gradient, set_scheme, stages, tightened
from odenets.warm import WarmStart

__all__ = ["GRADIENTS", "InputError", "MODELS", "ODEResNet", "ODEStage", "Scheme", "Tableau", "WarmStart", "converged", "convert", "fields",
           "get_field", "get_scheme", "list_fields", "list_schemes", "ode_resnet18", "ode_resnet34", "ode_resnet50",
           "ode_resnet_small", "ode_resnet_small_stride2", "root", "set_gradient", "set_scheme", "stages", "tightened"]
