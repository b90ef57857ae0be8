"""Look-up of users and items by the ids of the source and by titles."""

from __future__ import annotations

import functools

from kd_jax.data.dataset import Dataset


def folded(title: str) -> str:
    """A title for comparison: case-folded, with single spaces."""
    return " ".join(title.split()).casefold()


class Lookup:
    """Finds the indices of users and items of ``dataset``."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    @functools.cached_property
    def _users(self) -> dict[str, int]:
        return {str(value): index for index, value in enumerate(self.dataset.user_ids.to_list())}

    @functools.cached_property
    def _items(self) -> tuple[dict[str, list[int]], dict[str, int], dict[str, list[int]]]:
        """Indices by exact title, by id, and by folded title."""
        exact: dict[str, list[int]] = {}
        alike: dict[str, list[int]] = {}
        for index, title in enumerate(self.dataset.titles):
            exact.setdefault(title, []).append(index)
            alike.setdefault(folded(title), []).append(index)
        ids = {str(value): index for index, value in enumerate(self.dataset.item_ids.to_list())}
        return exact, ids, alike

    def user(self, value: object) -> int | None:
        """The index of the user with this id; None where it is unknown."""
        return self._users.get(str(value).strip())

    def items(self, value: object) -> list[int]:
        """The indices of the items with this name.

        value: an exact title, else an id, else a title that differs in case or spaces only; a
        number is an id. Several items may share a title; the list is empty where none has it.
        """
        exact, ids, alike = self._items
        if isinstance(value, str) and value in exact:
            return exact[value]
        found = ids.get(str(value).strip())
        if found is not None:
            return [found]
        return alike.get(folded(value), []) if isinstance(value, str) else []
