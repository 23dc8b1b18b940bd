"""The earlier name of `freeloc.tiny.synthetic`."""

from freeloc.tiny.synthetic import *  # noqa: F403
