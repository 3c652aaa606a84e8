"""Contract tests of sources; each source has a subclass that writes its input files."""

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
"""Folders, cases, spaces, quotes, letters, and what means something in a URI or a pattern."""


class SourceContract(ABC):
    """The promises; `place` is a folder that does not exist yet, here and behind a URI."""

    unit = "images"
    others = True  # whether it meets files that are not images

    @pytest.fixture(params=["local", "remote"])
    def place(self, request):
        return request.getfixturevalue(request.param)

    @abstractmethod
    def source(self, place, images, others=()):
        """Lay out images (name -> bytes) and files that are none; give the source of them."""

    @abstractmethod
    def missing(self, place):
        """Give a source whose root is not there."""

    def image_id(self, name):
        """Give the id that the image of a name gets."""
        return name

    def images(self, names=NAMES):
        return {name: f"bytes of {name}".encode() for name in names}

    def test_each_image_is_offered_once_under_its_own_id(self, place):
        ids = [item.image_id for item in self.source(place, self.images()).items()]
        assert sorted(ids) == sorted(map(self.image_id, NAMES))

    def test_every_path_opens_to_the_same_bytes_with_its_place_and_without(self, place):
        images = {self.image_id(name): data for name, data in self.images().items()}
        items = list(self.source(place, self.images()).items())
        assert len({item.path for item in items}) == len(items)
        with ItemReader() as reader:
            for item in items:
                assert reader.read(item.path, item.place, item.size) == images[item.image_id]
            for item in reversed(items):
                assert reader.read(item.path) == images[item.image_id]

    def test_a_size_is_that_of_the_bytes_where_it_is_known(self, place):
        images = {self.image_id(name): data for name, data in self.images().items()}
        for item in self.source(place, self.images()).items():
            assert item.size in (None, len(images[item.image_id]))

    def test_no_image_has_a_problem(self, place):
        assert {item.problem for item in self.source(place, self.images()).items()} == {None}

    def test_values_stand_for_the_columns_that_are_told(self, place):
        source = self.source(place, self.images())
        for item in source.items():
            assert len(item.more) == len(source.columns())

    def test_going_through_it_twice_gives_the_same(self, place):
        source = self.source(place, self.images())
        assert list(source.items()) == list(source.items())

    def test_files_that_are_no_images_are_counted_each_time(self, place):
        others = ("notes.txt", "cats/a.jpg.bak", "README") if self.others else ()
        source = self.source(place, self.images(("a.jpg", "cats/b.jpg")), others)
        for _ in range(2):
            assert len(list(source.items())) == 2
            assert source.others == len(others)

    def test_a_missing_root_is_refused_by_name(self, place):
        source = self.missing(place)
        for use in (lambda: list(source.items()), source.check):
            with pytest.raises(InputError, match=r"photos.* does not exist"):
                use()

    def test_a_source_without_images_is_refused_by_check(self, place):
        source = self.source(place, {}, ("notes.txt",) if self.others else ())
        assert list(source.items()) == []
        with pytest.raises(InputError, match=rf"photos.* holds no {self.unit}"):
            source.check()
        self.source(place, self.images(("a.jpg",))).check()
