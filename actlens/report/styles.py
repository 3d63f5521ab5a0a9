"""The colours of the console reports, readable on dark and on light terminals.

A terminal's own sixteen colours are whatever its theme says: the usual yellow and cyan vanish on
white, blue vanishes on black. These are fixed entries of the 256-colour table whose contrast
against both is at least 3.8 to 1 (WCAG 2.2 asks for 3 where words also say what the colour says,
as they do here).
"""

GOOD = "color(28)"
BAD = "color(160)"
WARNING = "color(130)"
NOTE = "color(31)"
