"""An oracle of two copies: random changes and interruptions against a real pair, trees compared after each pairing."""
