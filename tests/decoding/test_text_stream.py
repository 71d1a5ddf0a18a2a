"""Text as it comes: whole characters, nothing that a stop string may yet cut, nothing lost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crossroads.decoding.request import RowText
from crossroads.decoding.text_stream import Piece, TextStream


class BytesTokenizer:
    """A token per piece of bytes; id i stands for the i-th one."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def text_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def streamed(pieces: list[bytes], stop: tuple[str, ...]) -> tuple[list[list[Piece]], str]:
    """Return what each token released (the end last), and the text as a row has it."""
    tokenizer = BytesTokenizer(pieces)
    stream, text = TextStream(tokenizer, stop), RowText(tokenizer, stop)
    released = []
    for token_id in range(len(pieces)):
        text.add(token_id)
        released.append(stream.add(token_id))
        if text.stopped:
            break
    return [*released, stream.end()], text.text


CHARACTERS = st.sampled_from(["a", "b", "é", "中", "🙂", "\n"])
BYTES = st.lists(CHARACTERS, max_size=20).map(lambda found: "".join(found).encode())
STOPS = st.lists(st.text(CHARACTERS, min_size=1, max_size=3), max_size=3).map(tuple)


@given(BYTES, st.lists(st.integers(0, 60), max_size=30), STOPS, st.binary(max_size=3))
def test_pieces_are_the_rows_text_however_it_is_cut_into_tokens(
    content: bytes, cuts: list[int], stop: tuple[str, ...], tail: bytes
) -> None:
    content += tail  # any bytes: a character that never completes
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[a:b] for a, b in pairwise(bounds)]
    released, text = streamed(pieces, stop)
    assert "".join(piece.text for part in released for piece in part) == text
    numbers = [piece.token for part in released[:-1] for piece in part]
    assert numbers == list(range(len(numbers))), "each token is released once, in order"


@given(BYTES, STOPS)
def test_every_token_is_released_in_the_end(content: bytes, stop: tuple[str, ...]) -> None:
    pieces = [content[i : i + 1] for i in range(len(content))]
    released, _ = streamed(pieces, stop)
    numbers = {piece.token for part in released for piece in part}
    assert numbers == set(range(len(released) - 1))


def test_what_may_become_a_stop_string_waits_and_nothing_else_does() -> None:
    released, text = streamed([b"Hi", b" th", b"ere", b" END", b"!"], (" thy", "END"))
    texts = ["".join(piece.text for piece in part) for part in released]
    assert texts == ["Hi", "", " there", " ", ""]
    assert text == "Hi there "


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    smile = "🙂".encode()
    released, _ = streamed([smile[:1], smile[1:3], smile[3:]], ())
    assert [part[0] for part in released[:3]] == [Piece(0, ""), Piece(1, ""), Piece(2, "🙂")]
