"""What cannot be broken: radii inside which no perturbation changes a prediction, by theorem."""
