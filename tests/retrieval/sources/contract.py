"""Contract tests of sources: each kind of source subclasses them and writes its input files."""

from abc import ABC, abstractmethod

import pytest

from retrieval.core.errors import InputError
from retrieval.sources.item_reader import ItemReader

NAMES = (
    "a.jpg",
    "cats/a.jpg",
    "cats/big/b.PNG",
    "two  spaces /a b.jpg",
    'it\'s "b" & <b>.jpg',
    "Grüße – 猫.jpg",
    "e\u0301.jpg",
    "\u00e9.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "a#b?c.jpg",
    "[a]*.jpg",
    "a:b, c;d.jpg",
    "a=b+c.jpg",
)
"""Image names with folders, spaces, quotes, Unicode, and special characters of URIs and globs."""


class SourceContract(ABC):
    """Tests every source must pass; `folder` does not exist yet, and is local or behind a URI."""

    unit = "images"
    has_other_files = True  # whether the input may contain files that are not images

    @pytest.fixture(params=["local", "remote"])
    def folder(self, request):
        return request.getfixturevalue(request.param)

    @abstractmethod
    def make_source(self, folder, images, other_files=()):
        """Write images (name -> bytes) and other files; return the source of them."""

    @abstractmethod
    def missing_source(self, folder):
        """Return a source whose root does not exist."""

    def expected_id(self, name):
        """Return the expected `image_id` of the image of a name."""
        return name

    def make_images(self, names=NAMES):
        """Return distinct contents (bytes) by image name."""
        return {name: f"bytes of {name}".encode() for name in names}

    def test_each_image_is_listed_once_with_expected_id(self, folder):
        ids = [item.image_id for item in self.make_source(folder, self.make_images()).items()]
        assert sorted(ids) == sorted(map(self.expected_id, NAMES))

    def test_paths_are_readable_with_and_without_position(self, folder):
        images = {self.expected_id(name): data for name, data in self.make_images().items()}
        items = list(self.make_source(folder, self.make_images()).items())
        assert len({item.path for item in items}) == len(items)
        with ItemReader() as reader:
            for item in items:
                assert reader.read(item.path, item.place, item.size) == images[item.image_id]
            for item in reversed(items):
                assert reader.read(item.path) == images[item.image_id]

    def test_size_equals_byte_count_if_known(self, folder):
        images = {self.expected_id(name): data for name, data in self.make_images().items()}
        for item in self.make_source(folder, self.make_images()).items():
            assert item.size in (None, len(images[item.image_id]))

    def test_valid_images_have_no_problem(self, folder):
        assert {item.problem for item in self.make_source(folder, self.make_images()).items()} == {
            None
        }

    def test_extra_values_match_extra_columns(self, folder):
        source = self.make_source(folder, self.make_images())
        for item in source.items():
            assert len(item.more) == len(source.columns())

    def test_repeated_iteration_yields_same_items(self, folder):
        source = self.make_source(folder, self.make_images())
        assert list(source.items()) == list(source.items())

    def test_other_files_are_counted_on_each_iteration(self, folder):
        other_files = ("notes.txt", "cats/a.jpg.bak", "README") if self.has_other_files else ()
        source = self.make_source(folder, self.make_images(("a.jpg", "cats/b.jpg")), other_files)
        for _ in range(2):
            assert len(list(source.items())) == 2
            assert source.skipped_count == len(other_files)

    def test_missing_root_is_refused_by_name(self, folder):
        source = self.missing_source(folder)
        for call in (lambda: list(source.items()), source.check):
            with pytest.raises(InputError, match=r"photos.* does not exist"):
                call()

    def test_check_refuses_source_without_images(self, folder):
        source = self.make_source(folder, {}, ("notes.txt",) if self.has_other_files else ())
        assert list(source.items()) == []
        with pytest.raises(InputError, match=rf"photos.* contains no {self.unit}"):
            source.check()
        self.make_source(folder, self.make_images(("a.jpg",))).check()
