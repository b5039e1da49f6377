"""For tests of workflows: time that you decide, crashes that are real, changes that you can look at.

`FakeClock` for waits, retries and schedules without waiting; `crash` kills a real process at a named point;
`Snapshot` says what changed below a directory; `refuse_bypass` makes writes past the transaction an error.
"""

from .bypass import BypassRefused, refuse_bypass
from .clock import FakeClock
from .crashing import POINTS, crash
from .snapshots import Snapshot

__all__ = ["POINTS", "BypassRefused", "FakeClock", "Snapshot", "crash", "refuse_bypass"]
