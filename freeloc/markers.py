"""The marks by which pluggy finds what a plugin brings. A leaf, so that built-ins can be plugins like any other."""

import pluggy

GROUP = "freeloc"
"""Of the entry points, and of the hooks."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
