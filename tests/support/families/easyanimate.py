"""EasyAnimate: the positions of CogVideoX-5b, spread over 30 x 45 tokens whatever the model's sizes."""

from dense import Facts, interleaved

from families.cogvideox import PATHS, TEMPORAL, spread_over

FACTS = {"easyanimate": Facts(PATHS, interleaved(16), TEMPORAL, spread_over(30, 45), text="first")}
