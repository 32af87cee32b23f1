"""Cost beside its targets, always as ratios measured side by side in one run."""
