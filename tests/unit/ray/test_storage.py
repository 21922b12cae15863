"""A store behaves the same on this machine and behind a URI."""

from pathlib import Path

import pytest

from diffseglung_ray.config import WrongArgument
from diffseglung_ray.storage import Store


@pytest.fixture(params=["local", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.at(tmp_path / "s" if request.param == "local" else f"file://{tmp_path}/s")


def test_what_is_written_can_be_read_listed_and_removed(store: Store) -> None:
    assert store.read("a/b.txt") is None
    assert store.names("a") == []
    store.write("a/b.txt", "words")
    store.write("a/.hidden", b"")
    assert store.read("a/b.txt") == b"words"
    assert store.names("a") == ["b.txt"]
    store.remove("a")
    store.remove("a")
    assert store.read("a/b.txt") is None


def test_a_file_is_replaced_whole(store: Store, tmp_path: Path) -> None:
    store.write("x", b"long content")
    store.write("x", b"new")
    assert store.read("x") == b"new"
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["x"]


def test_a_folder_that_failed_to_fill_leaves_nothing_behind_a_uri(tmp_path: Path) -> None:
    remote = Store.at(f"file://{tmp_path}/s")

    def fill_half() -> None:
        with remote.folder("case", last="z") as folder:
            folder.mkdir()
            (folder / "a").write_text("a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fill_half()
    assert remote.names("case") == []


def test_a_folder_reaches_its_place(store: Store) -> None:
    with store.folder("case", last="result.json") as folder:
        (folder / "deep").mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        (folder / "deep" / "a").write_text("a")
    assert store.read("case/deep/a") == b"a"
    assert store.read("case/result.json") == b"{}"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongArgument, match=r"--out .* cannot be written"):
        Store.at(tmp_path / "file").check("out")
