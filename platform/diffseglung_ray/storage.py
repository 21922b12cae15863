"""A folder for what a job leaves, on this machine or behind a URI. Every file appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

from diffseglung.volume import WRITING, written_whole
from diffseglung_ray.cluster import is_uri
from diffseglung_ray.config import UserError, WrongArgument, refuse_credentials

# They have no folders, and to make one for a misspelt bucket would be to make the bucket.
BUCKETS = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://", "abfss://")


class CannotWrite(UserError):
    """A store that takes nothing more: its disk is full, it is read-only, or it is gone."""


@dataclass(frozen=True, slots=True)
class Store:
    """A root, `/a/folder` or `s3://bucket/prefix`, and files named below it. It travels to workers."""

    root: str

    @staticmethod
    def at(place: str | Path) -> Store:
        """The store at a folder or URI; a local one is made absolute: workers work in other folders."""
        place = str(place).rstrip("/")
        refuse_credentials("the place", place)
        return Store(place if is_uri(place) else str(Path(place).absolute()))

    @property
    def is_remote(self) -> bool:
        """Whether files go through a URI."""
        return is_uri(self.root)

    def path(self, name: str) -> str:
        """The full place of a file."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        filesystem, path = fsspec.core.url_to_fs(self.path(name))
        try:
            return filesystem.cat_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file, whole or not at all. Errors: CannotWrite."""
        data = content.encode() if isinstance(content, str) else content
        with self.writing():
            if self.is_remote:
                filesystem, path = fsspec.core.url_to_fs(self.path(name))
                if not self.root.startswith(BUCKETS):
                    filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                filesystem.pipe_file(path, data)
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as beside:
                beside.write_bytes(data)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A block that writes into this store, whose errors say so. Errors: CannotWrite."""
        try:
            yield
        except OSError as error:
            why = error.strerror or " ".join(str(error).split()) or type(error).__name__
            raise CannotWrite(f"{self.root} cannot be written to: {why}") from error

    def names(self, folder: str) -> list[str]:
        """The files in a folder, without those below it; sorted, nothing hidden."""
        filesystem, path = fsspec.core.url_to_fs(self.path(folder))
        filesystem.invalidate_cache()  # other processes write here too
        if not filesystem.isdir(path):
            return []
        found = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))
        return sorted(name for name in found if not name.startswith("."))

    def remove_unfinished(self, folder: str) -> None:
        """Remove what a writer that was killed left beside the files and folders of a local folder."""
        if self.is_remote:
            return
        for beside in Path(self.path(folder)).glob(".*.part.*"):
            beside.unlink(missing_ok=True)
        for beside in Path(self.path(folder)).glob(f"{WRITING}*"):
            shutil.rmtree(beside, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a file or folder; nothing happens where there is none."""
        filesystem, path = fsspec.core.url_to_fs(self.path(name))
        filesystem.invalidate_cache()
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)

    @contextmanager
    def folder(self, name: str, last: str) -> Iterator[Path]:
        """A local folder to fill. A remote store receives its files when the block ends well, `last` last.

        Errors: CannotWrite.
        """
        if not self.is_remote:
            with self.writing():
                yield Path(self.path(name))
            return
        scratch = Path(tempfile.mkdtemp(prefix="diffseglung-"))
        try:
            yield scratch / "folder"
            self.remove(name)
            files = sorted(p for p in (scratch / "folder").rglob("*") if p.is_file())
            for file in sorted(files, key=lambda file: file.name == last):
                self.write(f"{name}/{file.relative_to(scratch / 'folder').as_posix()}", file.read_bytes())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def check(self, argument: str) -> None:
        """See that files can be written here. Errors: WrongArgument, naming the job's `argument`."""
        try:
            self.write(f".check-{os.getpid()}", b"x")
            self.remove(f".check-{os.getpid()}")
        except CannotWrite as error:
            raise WrongArgument(f"--{argument} {error}") from error
        except (OSError, ValueError, ImportError) as error:
            raise WrongArgument(f"--{argument} {self.root} cannot be written to: {error}") from error

    @contextmanager
    def claimed(self, argument: str) -> Iterator[None]:
        """Keep this store from a second job for as long as the block lasts; a job that dies lets go of it.

        Only on this machine's file systems: elsewhere nothing tells a dead job from a living one.
        Errors: WrongArgument, naming the job's `argument`.
        """
        if self.is_remote:
            yield
            return
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(folder)
            raise WrongArgument(
                f"--{argument} {self.root} is being written to by another job: wait for its end, or give another "
                f"--{argument}"
            ) from error
        except OSError:
            pass  # a network share without locks
        try:
            yield
        finally:
            os.close(folder)
