"""Runnable experiments: parse, call the library, show. `python -m experiments.NAME --help`."""
