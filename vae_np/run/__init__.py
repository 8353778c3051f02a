"""A training that is shown, saved and resumed; the gradient table, the benchmark, command lines."""
