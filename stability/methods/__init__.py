"""How perturbations grow in the scheme alone: stability regions, the largest stable step, algebraic stability."""
