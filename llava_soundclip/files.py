"""Files of others, read with care, and our own, which appear whole.

A file is written under another name, then renamed, so that a kill or a full disk leaves the old one.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DEEPEST = 100  # levels of JSON; Python's own functions fail at about 1,000
_TRIAL_BYTES = 4096  # a file of no bytes can be made on a full disk
_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT, errno.EACCES)


def parse_json(text: str | bytes, *, nan: bool = True) -> Any:
    """Parse JSON of others.

    Args:
        text: the JSON; bytes in UTF-8, UTF-16 or UTF-32.
        nan: whether NaN and Infinity, which Python writes, are taken for numbers.

    Raises:
        ValueError: if it isn't JSON, is nested more than 100 levels deep, or names a key twice.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=None if nan else _refuse_constant)
    except RecursionError:
        raise _TooDeep() from None
    if text.count("[") + text.count("{") > _DEEPEST:
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for outer in level for inner in _inside(outer)]
        if level:
            raise _TooDeep()
    return value


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the dict in a JSON file.

    Raises:
        ValueError: if the file holds anything else; the message names it.
        OSError: if it can't be read.
    """
    try:
        content = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is truncated or isn't JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict")  # noqa: TRY004
    return content


class _TooDeep(ValueError):
    def __init__(self) -> None:
        super().__init__(f"it is nested more than {_DEEPEST} levels deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} isn't JSON")


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def write_file(path: str | os.PathLike[str], content: bytes | str, *, replace: bool = True) -> None:
    """Write a file so that a reader sees either the old file or the whole new one.

    Args:
        path: the file. Links are followed; a device or a pipe is written to directly.
        content: the content; texts become UTF-8, and lone surrogates in them "?".
        replace: whether the file replaces another. If not, the first of several writers wins.

    Raises:
        OSError: if it can't be written; the message names the file.
    """
    with written_aside(path, replace=replace) as file:
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def write_picture(path: str | os.PathLike[str], picture: "Image") -> None:
    """Write a picture in the format of the path's suffix, as `write_file` does. Its folder is created if needed.

    Raises:
        ValueError: for a suffix that Pillow doesn't know.
        OSError: if it can't be written; the message names the file.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise ValueError(
            f"{os.fspath(path)}: pictures aren't written as {suffix or 'files without a suffix'}; use .png"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as file:
        picture.save(file, kind)


@contextmanager
def written_aside(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path` at the end of the block. After an error `path` is as it was.

    What killed processes left of the same file is removed.

    Raises:
        OSError: if it can't be written; the message names `path`.
    """
    whole = Path(os.path.realpath(path))
    if whole.exists() and not whole.is_file():
        if whole.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        with open(whole, "wb", buffering=0) as device:
            yield device
        return
    try:
        _remove_leftovers(whole)
        part, file = _new_part(whole)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if whole.exists():
                    part.chmod(whole.stat().st_mode)
                _rename(part, whole, replace=replace)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        # An error of the disk has the name of the part, or none.
        if error.errno in _DISK and str(error.filename or ".part").endswith(".part"):
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
        raise


def _rename(part: Path, path: Path, *, replace: bool) -> None:
    if not replace:
        try:
            os.link(part, path)  # fails if the file exists by now; a rename wouldn't
            return
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            pass
    os.replace(part, path)


@contextmanager
def locked_folder(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[None]:
    """Keep other processes that do the same out of a block. Systems without such locks let them in.

    Args:
        path: the folder.
        wait: whether to wait for a process that is in the block.

    Raises:
        BlockingIOError: without `wait`, if another process is in the block.
        OSError: if there is no such folder.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BlockingIOError(
                f"another run is working in {os.fspath(path)}: wait for it, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def check_file(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written. Its folder is created if needed.

    Raises:
        OSError: if it can't be; the message names the file.
    """
    whole = Path(os.path.realpath(path))
    if whole.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if whole.exists() and not os.access(whole, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    if whole.exists() and not whole.is_file():
        return
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        _try_to_write(whole)
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def check_folder(path: str | os.PathLike[str]) -> None:
    """Check that files can be written into a folder. It is created if needed.

    Raises:
        OSError: if they can't be; the message names the folder.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        _try_to_write(Path(path) / "trial")
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def _try_to_write(path: Path) -> None:
    part, file = _new_part(path)
    try:
        with file:
            file.write(b"\0" * _TRIAL_BYTES)
            file.flush()
            os.fsync(file.fileno())
    finally:
        part.unlink(missing_ok=True)


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked as long as it is open."""
    while True:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        file = open(part, "xb")  # noqa: SIM115 - the caller closes it
        if not _lock(file) or os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # another process took it for a leftover, before it was locked


def _remove_leftovers(path: Path) -> None:
    """Remove the parts of a file that no process has open."""
    if fcntl is None:
        return
    for part in path.parent.glob(f".{_escaped(path.name)}.{'[0-9a-f]' * 32}.part"):
        try:
            with open(part, "rb") as file:
                if _lock(file):
                    part.unlink(missing_ok=True)
        except OSError:  # another process was faster
            continue


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _lock(file: BinaryIO) -> bool:
    """Lock a file unless another process has; False on systems without locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
