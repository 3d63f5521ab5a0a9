"""What is wrong with a checkpoint, in plain words and with the way to mend it.

`diagnose` looks at everything it still can after the first fault and never raises because of what
the files say: that becomes a finding.
"""

from actlens.doctor.diagnosis import Diagnosis as Diagnosis
from actlens.doctor.diagnosis import Finding as Finding
from actlens.doctor.diagnosis import Severity as Severity
from actlens.doctor.examination import diagnose as diagnose
