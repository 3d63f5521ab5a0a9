"""The microscope and the scalpel for ACT robot policies."""

__version__ = "0.1.0"
