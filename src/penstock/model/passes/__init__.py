"""Passes: Program -> Program with the same bits."""
