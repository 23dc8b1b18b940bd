"""Fuzzing of all readers of untrusted input: ``python tests/fuzz.py --minutes 60``; see docs/untrusted-input.md.

Inputs are random changes of tests/corpus and of what this run has kept so far: inputs whose refusal is of a new kind.
A process of its own reads them, with a limit on its memory, so a crash or a hang of a decoder is seen and not fatal.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "support")]

from hostile import LITERALS, Fields, Literal, parts_of, written  # noqa: E402  # reason: found through the path above

CORPUS = HERE / "corpus"
LONGEST_KEPT = 4096
MOST_MEMORY = 12 << 30
MOST_SECONDS = 60
TOKENS = [
    *(b"null", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'""', b"true", b"[" * 200, b"{" * 200, b"9" * 5000),
    *(b"18446744073709551616", b'"\\ud800"', b'"\\u001b[31m"', b"../../etc/passwd", b"\x00", b"\xff\xff\xff\xff"),
    *(b"\x7f\xff\xff\xff", b"\xff" * 8, b"\n", b"=", b":", b"/", b"@", b'"settings"', b'"schema_version": 2, '),
]


def changed(name, data, others, chance):
    """The data of a reader with random changes: of its JSON if it has any, or else, and often, of its bytes."""
    if chance.random() < 0.7:
        try:
            if name == "measurements":
                return changed_header(data, chance)
            if name in ("profile", "settings", "clock", "tasks", "workflow"):
                return changed_json(data.decode(), chance).encode()
        except (ValueError, LookupError, TypeError, RecursionError):  # it was changed too much to have any
            pass
    return changed_bytes(data, others, chance)


def changed_json(text, chance):
    """JSON with one to three random changes of fields and values."""
    content = json.loads(text, object_pairs_hook=Fields)
    for _ in range(chance.randint(1, 3)):
        part = chance.choice([part for part in parts_of(content) if part])
        place = chance.randrange(len(part))
        name = part[place][0] if isinstance(part, Fields) else None
        value = chance.choice([Literal(chance.choice(LITERALS)), Literal(chance.randint(-1, 99)), part[-1]])
        value = value[1] if isinstance(value, tuple) else value
        match chance.choice(["replace", "replace", "replace", "delete", "repeat", "rename"]):
            case "delete":
                del part[place]
            case "repeat":
                part.append(part[place])
            case "rename" if name is not None:
                part[place] = (chance.choice(["vrpr", "0", "3", "-1", "layers", "\x1b", "k" * 5000]), part[place][1])
            case _:
                part[place] = value if name is None else (name, value)
    return written(content)


def changed_header(data, chance):
    """Measurements with a changed header, of the format or of freeloc in it, whose length fits."""
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end].decode()
    if chance.random() < 0.7:
        content = json.loads(text)
        content["__metadata__"]["freeloc"] = changed_json(content["__metadata__"]["freeloc"], chance)
        text = json.dumps(content)
    else:
        text = changed_json(text, chance)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data[end:]


def changed_bytes(data, others, chance):
    """The data with one to four random changes."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice([0, 1, 1, 2, 4, 8, 64]))
        other = chance.choice(others)
        start = chance.randint(0, len(other))
        data[at:end] = chance.choice(
            [
                chance.randbytes(end - at),
                chance.choice(TOKENS),
                b"",
                bytes(data[at:end]) * 2,
                other[start : start + chance.choice([1, 8, 64, 512])],
            ]
        )
        if chance.random() < 0.05:
            del data[at:]
    return bytes(data)


def read_all(connection, seed):
    """Read random inputs until the parent ends this process. Before and after each one it is told."""
    from untrusted_readers import READERS, seeds

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    chance = random.Random(seed)
    pool = {name: [first] for name, first in seeds().items()}
    for name, inputs in pool.items():
        inputs += [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    with tempfile.TemporaryDirectory() as folder:
        kinds = {(name, READERS[name](data, Path(folder))) for name, inputs in pool.items() for data in inputs}
        connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        while True:
            name = chance.choice([*READERS])
            first = pool[name][0] if chance.random() < 0.5 else chance.choice(pool[name])
            data = changed(name, first, pool[name], chance)
            connection.send((name, data))
            start = time.perf_counter()
            try:
                kind, failed = READERS[name](data, Path(folder)), False
            except Exception as error:
                kind, failed = f"TRACEBACK {type(error).__name__}: {error}"[:300], True
            is_new = (name, kind) not in kinds
            if is_new and len(data) <= LONGEST_KEPT:
                kinds.add((name, kind))
                pool[name].append(data)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            connection.send((kind, failed, is_new, time.perf_counter() - start, memory))


class Run:
    """One run: its figures, and the folder that it writes to."""

    def __init__(self, output):
        self.output, self.tried, self.kinds = output, Counter(), Counter()
        self.failures, self.kept, self.memory, self.base, self.slowest = [], 0, 0, 0, (0.0, "")

    def keep(self, data, folder):
        path = self.output / folder / hashlib.sha256(data).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def fail(self, name, data, cause):
        self.failures.append(f"{name}: {cause}: {self.keep(data, f'failures/{name}')}")

    def one_process(self, seed, end):
        """Read inputs in one process until the end, or until it stops or hangs."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=read_all, args=(there, seed), daemon=True)
        process.start()
        there.close()
        name, data = "start", b""
        try:
            self.base = here.recv()
            while time.monotonic() < end:
                name, data = here.recv()
                if not here.poll(MOST_SECONDS):
                    return self.fail(name, data, f"no answer in {MOST_SECONDS} seconds")
                self.note(name, data, *here.recv())
        except EOFError:
            self.fail(name, data, "the process stopped")
        finally:
            process.kill()
            process.join()
        return None

    def note(self, name, data, kind, failed, is_new, seconds, memory):
        self.tried[name] += 1
        self.kinds[name, kind] += 1
        self.memory = max(self.memory, memory)
        self.slowest = max(self.slowest, (seconds, f"{name}, {len(data)} bytes: {kind}"))
        if failed:
            self.fail(name, data, kind)
        elif is_new and len(data) <= LONGEST_KEPT:
            self.kept += 1
            self.keep(data, f"corpus/{name}")

    def __str__(self):
        lines = [f"{sum(self.tried.values())} inputs tried"]
        for name, count in sorted(self.tried.items()):
            lines.append(f"\n{name}: {count} inputs, {self.kinds[name, 'read']} read")
            kinds = [
                (kind, number) for (own, kind), number in self.kinds.most_common() if own == name and kind != "read"
            ]
            lines += [f"{number:8} {' '.join(kind.split())}" for kind, number in kinds[:12]]
            lines += [f"         and {len(kinds) - 12} more kinds"] if len(kinds) > 12 else []
        lines.append(f"\nkept: {self.kept} inputs with a refusal of a new kind, in {self.output / 'corpus'}")
        lines.append(
            f"peak memory: {self.memory / 1024:.0f} MiB, {(self.memory - self.base) / 1024:.0f} more than idle"
        )
        lines.append(f"slowest input: {self.slowest[0]:.2f} s, {' '.join(self.slowest[1].split())}")
        lines.append(f"tracebacks, crashes and hangs: {len(self.failures)}")
        return "\n".join([*lines, *self.failures[:20]])


def main():
    parser = argparse.ArgumentParser(description="Fuzz the readers of untrusted input.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fuzz"), help="folder for kept inputs and failures")
    arguments = parser.parse_args()
    run, end = Run(arguments.output), time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed
    while time.monotonic() < end and len(run.failures) < 100:
        run.one_process(seed, end)
        seed += 1
    print(run)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
