"""The text of the demo: Python's language reference, which every CPython contains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Text:
    """A text as numbers, in two parts: nine tenths for training, and a last tenth held out.

    characters : the different characters of the text, sorted. A character's number is its index.
    train, held_out : integer arrays, the first nine tenths and the last tenth of the text.
    """

    def __init__(self, text: str) -> None:
        self.characters = "".join(sorted(set(text)))
        number = {character: i for i, character in enumerate(self.characters)}
        ids = np.array([number[character] for character in text], np.intp)
        self.train, self.held_out = np.split(ids, [ids.size * 9 // 10])

    def encode(self, string: str) -> NDArray[np.intp]:
        """The numbers of the characters of `string`, all of which the text must contain."""
        return np.array([self.characters.index(character) for character in string], np.intp)

    def decode(self, ids: NDArray[np.intp]) -> str:
        """The characters whose numbers `ids` are."""
        return "".join(self.characters[i] for i in ids)


def python_topics() -> Text:
    """The topics of Python's `help()`, about 465,000 characters; they vary with its version.

    The held-out last tenth is about types.
    """
    from pydoc_data.topics import topics

    return Text("\n".join(topics.values()))
