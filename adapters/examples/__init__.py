"""Small random models of the families, and inputs for them: what the conformance suite checks the adapters on."""

from freeloc_adapters.examples import hunyuan_video, wan

EXAMPLES = [*hunyuan_video.EXAMPLES, *wan.EXAMPLES]
