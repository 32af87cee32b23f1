"""The equations of a step: nonlinear solvers, linear solves, roots and their gradients, and the log of a pass."""
