"""Ranks of candidates: how much each takes away. Of those that are faster, the lowest is used."""

NOTHING = 0  # all is kept
MERGED = 1  # operators merge; one more for each kernel that shrinks
LINEAR = 99  # the branch becomes one linear layer
DROP = 100  # the branch goes
UNKNOWN = 1000


def narrower(share: float) -> int:
    """Rank of a candidate with this share of the channels: from 50 to 100."""
    return 50 + int(50 * (1 - share))
