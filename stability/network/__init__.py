"""How perturbations grow along a network: its blocks, its stages, and what they predict."""
