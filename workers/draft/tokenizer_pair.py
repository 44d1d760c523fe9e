"""What has to be known of two tokenizers before one's text can be said in the other's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer


class TokenizerPair:
    """The target's tokenizer and the draft model's.

    Control tokens (special ones, such as those of a chat template) that both spell alike pass from one to the other.
    Those of the target alone are left out of what the draft model is told; those of the draft model alone end a draft.
    """

    def __init__(self, target: Tokenizer, draft: Tokenizer, draft_end_ids: Iterable[int]) -> None:
        self.target, self.draft = _unlimited(target), _unlimited(draft)
        targets, drafts = _control_tokens(target), _control_tokens(draft)
        self.target_only = frozenset(targets[spelling] for spelling in targets.keys() - drafts.keys())
        self.draft_ends = frozenset(draft_end_ids)
        self.draft_only = frozenset(drafts[spelling] for spelling in drafts.keys() - targets.keys())
        self._target_id_of = {drafts[spelling]: targets[spelling] for spelling in drafts.keys() & targets.keys()}
        self.opening = _opening(draft)

    def ending(self, draft_id: int, target_end_ids: Sequence[int]) -> int | None:
        """The target's token for one that ends the draft model's answer; None where it has nothing like it."""
        token = self._target_id_of.get(draft_id)
        return token if token is not None else next(iter(target_end_ids), None)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of these ids, control tokens spelt out."""
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text


def _unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """Some tokenizers are saved with the length of their model's training texts."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.special}


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text, such as a token for its beginning."""
    encoding = tokenizer.encode("a")
    num_opening = next((i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special), 0)
    return list(encoding.ids[:num_opening])
