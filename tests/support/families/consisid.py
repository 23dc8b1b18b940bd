"""ConsisID: the positions of CogVideoX-5b."""

from families import cogvideox

FACTS = {"consisid": cogvideox.FACTS["cogvideox"]}
