"""A prompt as readable pieces: runs of one source, with the donor's text beside them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from semshare.errors import NotFound
from semshare.types import Ids
from semshare_service.engine import Engine
from semshare_service.replies import Body


def token_texts(engine: Engine, ids: Ids) -> list[str]:
    """For each of `ids` `[n]`, the characters that are complete with it.

    A character of several tokens stands whole at the last of them, and the others have none of it.
    Bytes that are no character are U+FFFD. Joined, it is the text of all.
    """
    tokens = ids.tolist()
    utf8 = {token: engine.token_bytes(token) for token in set(tokens)}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(utf8[token]) for token in tokens]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def prompt_pieces(engine: Engine, space: str, ids: Ids, runs: Sequence[Body]) -> list[Body]:
    """The runs of a prompt (`replies.token_runs`) with their text and their donor's.

    Args:
        engine: knows the donors.
        space: the engine's namespace in which they are.
        ids: `[n]` of the prompt.
        runs: of all its tokens.

    Returns:
        The runs with `text` and `donor_text`: null for what was computed, for cached prefixes of
        no donor, and for a donor that has gone meanwhile.

    """
    texts = token_texts(engine, ids)
    names = {run["donor"] for run in runs} - {None}
    of_donor = {name: _donor_texts(engine, space, name) for name in names}
    pieces = []
    for run in runs:
        start, donor_start = run["start"], run["donor_start"]
        theirs = of_donor.get(run["donor"])
        donor_text = None
        if theirs is not None and donor_start is not None:
            donor_text = "".join(theirs[donor_start : donor_start + run["end"] - start])
        pieces.append({**run, "text": "".join(texts[start : run["end"]]), "donor_text": donor_text})
    return pieces


def _donor_texts(engine: Engine, space: str, donor_id: str) -> list[str] | None:
    try:
        return token_texts(engine, engine.donor_ids(donor_id, namespace=space))
    except NotFound:
        return None
