"""Scenes out of recorded demonstrations: datasets, clean/corrupt pairs, bundled data."""
