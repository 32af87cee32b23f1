"""Training one network: data, losses, optimisers, precision, the loop."""
