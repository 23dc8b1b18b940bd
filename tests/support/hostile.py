"""Untrusted JSON and bytes: mutations of valid files, and the check that a refusal is clear."""

import json
from pathlib import Path

from hypothesis import strategies as st

LONGEST = 2500
"""The most characters that a message may have."""

LITERALS = [
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "5e-324", "true", "false", "null", "0", "-0", "1.0", "-1"),
    *(str(number) for number in (10**6, 10**6 + 1, 10**9, 10**9 + 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63))),
    *("9" * 4000, "-" + "9" * 4000, "9" * 5000, "0." + "3" * 5000),
    *('""', '"\\ud800"', '"\\u0000"', '"\\u001b[31m"', '"../../etc/passwd"', '"wan\\n2.1"', f'"{"long " * 20_000}"'),
    *("[]", "{}", "[" * 300 + "]" * 300, "[" * 980 + "]" * 980, "[" * 5000, '{"a":' * 300 + "1" + "}" * 300),
    *("[" + "-1," * 5000 + "-1]", "[" + "0," * 20_000 + "0]", "[0,0]", '{"none":[0,1,2,3]}', '{"9":{"near_frames":1}}'),
    "{" + ",".join(f'"{number}":{{"up":[-1]}}' for number in range(5000)) + "}",
]


class Literal(str):
    """JSON text, written as it is."""


class Fields(list):
    """A JSON object as pairs: a file can give a field twice."""


VALUES = st.one_of(
    st.sampled_from(LITERALS),
    st.integers(-9, 99).map(str),
    st.floats().map(json.dumps),
    st.text(max_size=9).map(json.dumps),
).map(Literal)


def written(node):
    if isinstance(node, Fields):
        return "{" + ", ".join(f"{json.dumps(name)}: {written(value)}" for name, value in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(written, node)) + "]"
    return str(node) if isinstance(node, Literal) else json.dumps(node)


def parts_of(node):
    """Every object and list in JSON, nested ones included."""
    if isinstance(node, list):
        yield node
        for child in node:
            yield from parts_of(child[1] if isinstance(node, Fields) else child)


@st.composite
def mutated(draw, text):
    """JSON that is changed in one to three places."""
    content = json.loads(text, object_pairs_hook=Fields)
    for _ in range(draw(st.integers(1, 3))):
        if not (parts := [part for part in parts_of(content) if part]):
            break  # all of it is deleted
        part = draw(st.sampled_from(parts))
        place = draw(st.integers(0, len(part) - 1))
        name = part[place][0] if isinstance(part, Fields) else None
        what = draw(st.sampled_from(["replace"] * 5 + ["delete", "repeat", "rename", "add"]))
        value = draw(VALUES)
        other = draw(st.sampled_from(["vrpr", "0", "3", "-1", "layers", "\ud800", "\x1b", "k" * 5000]) | st.text())
        if what == "delete":
            del part[place]
        elif what == "repeat":
            part.append(part[place])
        elif what == "replace":
            part[place] = value if name is None else (name, value)
        elif what == "rename" and name is not None:
            part[place] = (other, part[place][1])
        else:
            part.append(value if name is None else (other, value))
    return written(content)


@st.composite
def damaged(draw, good):
    """Bytes of a damaged file, or random ones."""
    where = draw(st.integers(0, len(good)))
    return draw(
        st.one_of(
            st.binary(max_size=200),
            st.just(good[:where]),
            st.binary(min_size=1, max_size=3).map(lambda some: good[:where] + some + good[where:]),
            st.binary(min_size=1, max_size=9).map(lambda some: good[:where] + some + good[where + len(some) :]),
            st.sampled_from([b"\x00" * 50, b"\xef\xbb\xbf" + good, good + b"\x00", good * 2, b'"' * 1001]),
            st.sampled_from(["utf-16", "utf-32", "utf-7", "utf-16-be"]).map(good.decode("latin-1").encode),
        )
    )


def clear(error, path):
    """Asserts that a message names the file, is printable, and is short enough to read."""
    message = str(error)
    assert Path(path).name in message
    assert len(message) < LONGEST
    assert all(line.isprintable() for line in message.split("\n"))
    message.encode("utf-8")
