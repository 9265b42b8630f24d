"""The verbs of a program: contract, numpy reference, tolerance, cost. One file per group; no kernels."""
