"""What the oracle knows of each family: its positions, written from papers and code, not from the adapters."""

from families import hunyuan_video, wan

FACTS = {**hunyuan_video.FACTS, **wan.FACTS}
