"""The command line: one file per verb, flags generated from EngineConfig. Nothing imports it."""
