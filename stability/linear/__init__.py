"""How perturbations grow in a linearised map: spectra, pseudospectra, norms. Knows plain callables, no network."""
