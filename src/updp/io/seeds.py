"""Seeds: everything that is drawn is a pure function of the recipe's seed and a place."""


def mix(*numbers: int) -> int:
    """One seed from several numbers, such that near ones give unrelated seeds."""
    state = 0
    for number in numbers:  # splitmix64 (Steele et al., 2014)
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
