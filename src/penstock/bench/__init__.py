"""Measuring the engine against this machine's floor. Nothing imports it but the command line."""
