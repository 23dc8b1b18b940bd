"""Files: bounded reading of untrusted ones, and atomic writing: a file is written completely or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from freeloc.errors import FreelocError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` at the end of the block; after an error, `path` is unchanged.

    The temporary file is new, so no symbolic link is followed. A link at `path` itself is replaced by the file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(path) as part:
    ...     _ = part.write_text("whole")
    >>> path.read_text(), [file.name for file in path.parent.iterdir()]
    ('whole', ['note.txt'])

    Raises:
        OSError, ValueError: if it cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # With O_EXCL the name must not exist, not even as a link. The permissions are those of any new file.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, largest: int) -> Iterator[BinaryIO]:
    """An untrusted file, open for reading, if it is a regular one of at most `largest` bytes. This is checked first.

    >>> import tempfile
    >>> with opened(Path(tempfile.mkdtemp()), 100):
    ...     pass
    Traceback (most recent call last):
    freeloc.errors.FreelocError: expected a file of at most 100 bytes, found a folder or a device

    Raises:
        FreelocError: if it is not such a file, or cannot be read. The message does not name the file.
    """
    with ExitStack() as closing:
        try:
            if not path.is_file() and path.exists():  # opening a pipe would wait for a writer
                raise FreelocError(f"expected a file of at most {largest} bytes, found a folder or a device")
            file = closing.enter_context(path.open("rb"))
        except OSError as error:
            raise FreelocError(error.strerror or str(error)) from error
        except FreelocError:
            raise
        except ValueError as error:  # a name that no file can have
            raise FreelocError(f"expected the path of a file: {error}") from error
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise FreelocError(f"expected a file of at most {largest} bytes, found {size} bytes")
        yield file


def content_of(path: Path, largest: int) -> bytes:
    """The content of an untrusted file of at most `largest` bytes.

    Raises:
        FreelocError: as `opened`.
    """
    with opened(path, largest) as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise FreelocError(error.strerror or str(error)) from error
    if len(content) > largest:  # some files of the system say that they are empty
        raise FreelocError(f"expected a file of at most {largest} bytes, found more")
    return content
