"""Users and items by what people call them: the ids of the source, and titles."""

from __future__ import annotations

import functools

from kd_jax.data.dataset import Dataset


def folded(title: str) -> str:
    """A title as it is compared: without case, and with single spaces."""
    return " ".join(title.split()).casefold()


class Lookup:
    """From ids and titles to the positions of ``dataset``."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    @functools.cached_property
    def _users(self) -> dict[str, int]:
        return {str(value): index for index, value in enumerate(self.dataset.user_ids.to_list())}

    @functools.cached_property
    def _items(self) -> tuple[dict[str, list[int]], dict[str, int], dict[str, list[int]]]:
        """By exact title, by id, and by title without case and spaces."""
        exact: dict[str, list[int]] = {}
        alike: dict[str, list[int]] = {}
        for index, title in enumerate(self.dataset.titles):
            exact.setdefault(title, []).append(index)
            alike.setdefault(folded(title), []).append(index)
        return (
            exact,
            {str(value): index for index, value in enumerate(self.dataset.item_ids.to_list())},
            alike,
        )

    def user(self, value: object) -> int | None:
        return self._users.get(str(value).strip())

    def items(self, value: object) -> list[int]:
        """The items that are called so: by their very title, else by their id, else by a title that
        differs in case or spaces only. Several where a title is shared, none where it is unknown. A
        number is an id.
        """
        exact, ids, alike = self._items
        if isinstance(value, str) and value in exact:
            return exact[value]
        found = ids.get(str(value).strip())
        if found is not None:
            return [found]
        return alike.get(folded(value), []) if isinstance(value, str) else []
