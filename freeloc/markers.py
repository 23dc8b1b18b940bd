"""The pluggy markers of hooks. This module imports nothing from freeloc, so that built-ins can be plugins too."""

import pluggy

GROUP = "freeloc"
"""Name of the entry-point group, and of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
