"""Bridges to other tools; each module imports its tool, and nothing else in actlens does."""
