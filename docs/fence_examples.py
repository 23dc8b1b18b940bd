"""For the reference: the examples of docstrings, which begin with ``>>>``, become code blocks of the site."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", flags=re.DOTALL | re.MULTILINE)


class FenceExamples(griffe.Extension):
    """Puts a fence around each example, where Markdown would make a quotation of it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring as it was loaded."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
