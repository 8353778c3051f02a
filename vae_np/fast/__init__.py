"""The same numbers, sooner: kept arrays, 9 products for 16, threads, kernels of a GPU."""
