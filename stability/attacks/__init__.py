"""How perturbations grow in the worst case: threats, losses, attacks and the judge. Knows any classifier, no scheme."""
