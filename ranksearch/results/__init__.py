"""What comes of a study: tidy frames, conditions on them, Pareto fronts, plots."""
