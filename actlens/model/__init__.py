"""The network: every part of ACT, with its hook points."""
