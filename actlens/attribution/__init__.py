"""Attribution patching: an estimate of every patch from one forward and one backward, audited.

    result = attribute_pairs(model, pairs)
    result.frame()       # one row a site: estimates, error bars, exact effects where audited
    result.agreement()   # one row a hook point: how far to trust them

To first order, putting a donor's activation in changes a scalar of the actions by the difference
of the two activations times the gradient at the run (Nanda 2023). All sites together cost about two
forwards of the transformer, where patching each exactly costs one apiece. The scalar is the
restored share (`actlens.metrics.project`), which is linear in the actions.

It is a filter that says where to look, not a result: what it finds is to be patched exactly
(`actlens.patching`, `actlens.interventions.run`), and what it does not find may be there. Estimates
therefore come with exact patches of a sample of their sites. Known to fail (Kramar et al. 2024):

- saturated attention: the softmax's gradient vanishes, however much a changed key would turn it.
  Queries and keys, which are sites of their own, pass it exactly (`qk_fix`); the streams before do
  not, so a token that only decides where the network looks is underrated there.
- LayerNorm: its scale depends on the whole vector. ACT normalises after every sublayer, so the
  larger a change of a stream is, the more its estimate is off; read `hook_normalized_…` points.
- paths that cancel in the gradient and not in the patch, or the reverse.
- a gradient at one scene does not see how the network bends on the way to the other. Integrated
  gradients do; on the bundled policy they are nearer for tokens of the streams, and worse for
  queries, keys and neurons, of which the gradient at the run itself is nearly exact.

The error bar is the difference of two gradients, no bound: both can be blind to the same thing. The
audit says how many exact effects lie within it.
"""

from actlens.attribution.agreement import Agreement
from actlens.attribution.cuts import Cut, attributable, cuts_of
from actlens.attribution.options import AttributionOptions, Gradient
from actlens.attribution.pairs import attribute_pairs
from actlens.attribution.result import AttributionResult
from actlens.metrics import Direction

__all__ = [
    "Agreement",
    "AttributionOptions",
    "AttributionResult",
    "Cut",
    "Direction",
    "Gradient",
    "attributable",
    "attribute_pairs",
    "cuts_of",
]
