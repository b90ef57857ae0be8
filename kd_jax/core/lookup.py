"""Look-up of users and items by id and by title."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

ID, TITLE = "id:", "title:"  # prefixes of a name that is an id, or a title, and nothing else


def folded(title: str) -> str:
    """A title for comparison: composed (NFC), case-folded, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", title).split()).casefold()


class Lookup:
    """Finds the indices of users and items.

    user_ids, item_ids: integers or strings. titles: of the items.
    """

    def __init__(
        self, user_ids: Sequence[object], item_ids: Sequence[object], titles: Sequence[str]
    ):
        self.user_ids = user_ids
        self.item_ids = item_ids
        self.titles = titles

    @functools.cached_property
    def _users(self) -> dict[str, int]:
        return {str(value): index for index, value in enumerate(self.user_ids)}

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {str(value): index for index, value in enumerate(self.item_ids)}

    @functools.cached_property
    def _titles(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Indices by exact title, and by folded title."""
        exact: dict[str, list[int]] = {}
        alike: dict[str, list[int]] = {}
        for index, title in enumerate(self.titles):
            exact.setdefault(title, []).append(index)
            alike.setdefault(folded(title), []).append(index)
        return exact, alike

    def extended(self, ids: Sequence[object], titles: Sequence[str]) -> Lookup:
        """A look-up of these items as well; their ids must be new. This one is unchanged."""
        found = Lookup(self.user_ids, [*self.item_ids, *ids], [*self.titles, *map(str, titles)])
        first = len(self.item_ids)
        new = {str(value): first + place for place, value in enumerate(ids)}
        exact, alike = (dict(index) for index in self._titles)
        for place, title in enumerate(titles, first):
            exact[title] = [*exact.get(title, ()), place]
            alike[folded(title)] = [*alike.get(folded(title), ()), place]
        # What is derived from the ids and titles is taken over, not computed again.
        vars(found).update(_users=self._users, _ids=self._ids | new, _titles=(exact, alike))
        return found

    def user(self, value: object) -> int | None:
        """The index of the user with this id; None where it is unknown."""
        return self._users.get(str(value).strip())

    def item(self, value: object) -> int | None:
        """The index of the item with this id; None where it is unknown."""
        return self._ids.get(str(value))

    def items(self, value: object) -> list[int]:
        """The indices of the items with this name; empty where there is none.

        value: a number is an id. A text is an id, an exact title, or 'id:' or 'title:' and a name
        of that kind; else a title that differs in case, spaces or Unicode composition only. Several
        items may share a title, and a text may be one item's id and another's title.
        """
        text = str(value).strip()
        by_id = [self._ids[text]] if text in self._ids else []
        if not isinstance(value, str):
            return by_id
        exact, alike = self._titles
        found = {*by_id, *exact.get(value, [])}
        if text.startswith(ID):
            name = text.removeprefix(ID).strip()
            found |= {self._ids[name]} if name in self._ids else set()
        if text.startswith(TITLE):
            name = text.removeprefix(TITLE)
            found |= set(exact.get(name) or alike.get(folded(name), []))
        return sorted(found) or alike.get(folded(value), [])
