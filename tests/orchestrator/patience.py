"""How long tests wait for their servers.

Where an answer must come, a busy machine may take its time; where none can come, nobody waits. A
connection is never given up because of the clock, which would tell of the machine and not of the
server; the test of a server that stands still has its own patience.
"""

from __future__ import annotations

from crossroads.models.server_pool import Patience

STEADY = Patience(connect=60.0, token=60.0, down=0.05, give_up=60.0)
HASTY = Patience(connect=60.0, token=60.0, down=0.05, give_up=0.5)
