"""When the seed's claim counts as supported: limits that were fixed before any scene was decoded.

The claim is that the action vector after cross-attention holds all of the environment, even for
unseen scenes. "All" is read as the parts that a scene is made of, each with the limit that the
task itself suggests; it holds if every part does. What linear probes read of place and heading was
known when the limits were fixed; nothing of pictures and arm was.
"""

HALF_A_CUBE = 12.5
"""Millimetres: farther off, a gripper that goes there misses the cube."""
DRAWN = 0.9
"""Share of scenes whose cube is drawn within half a cube; misses count as not drawn."""
HEADING = 0.5
"""Mean error of the heading, as a share of the error of whoever always says the mean."""
ARM = 0.9
"""Of the joints' variance, what is read: a mean over joints."""
PICTURE = 0.9
"""Of what a decoder of this kind can draw of the changes between pictures, what it draws."""
