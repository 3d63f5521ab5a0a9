"""Ends of decoders as functions of one vector, many side by side, to be trained in seconds.

    tails = Tails.of(model, 8)                 # or Tails.drawn(Shape.of(model.config), 8)
    fit(tails, x, actions, draw, Training(steps=1000))
    policy = rewritten(model, tails.changes(model, run=3))      # actlens.planted.rewritten

Behind the last cross-attention nothing mixes chunk positions, so that all the last MLP, its norms
and the head ever see of a scene is one vector for each position. Where encoder and cross-attention
are frozen, training on cached vectors *is* training the policy.
"""

from actlens.tails.fitting import Training, draws, fit, whiten
from actlens.tails.stacked import Part, Shape, Tails, input_hook

__all__ = ["Part", "Shape", "Tails", "Training", "draws", "fit", "input_hook", "whiten"]
